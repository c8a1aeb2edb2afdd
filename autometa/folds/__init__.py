"""What is done for one candidate on the splits of a dataset: fitting, scoring, and stopping in time."""

from autometa.folds.request import Job as Job
from autometa.folds.request import Request as Request
from autometa.folds.rival import Rival as Rival
from autometa.folds.splits import fit_quietly as fit_quietly
from autometa.folds.splits import quietly as quietly
from autometa.folds.splits import run_splits as run_splits
from autometa.folds.worker import finished_part as finished_part
from autometa.folds.worker import run_in_worker as run_in_worker
