"""Studies: collection x candidates or methods x seeds, resumable, on any joblib backend; and the corpus they make."""

from autometa.experiment.corpus import collect
from autometa.experiment.engine import check_leakage, load_predictions, run_experiment
from autometa.experiment.joining import join_corpora
from autometa.experiment.study import Study, load_study, make_plan, read_rows
from autometa.experiment.summary import StudyStatus, compact, print_status, status

__all__ = [
    "Study",
    "StudyStatus",
    "check_leakage",
    "collect",
    "compact",
    "join_corpora",
    "load_predictions",
    "load_study",
    "make_plan",
    "print_status",
    "read_rows",
    "run_experiment",
    "status",
]
