"""Selection: every candidate for a dataset ranked by what earlier datasets say, with reasons; nothing is fitted."""

from autometa.selection.ranking import select as select
from autometa.selection.ranking import shipped_meta_model as shipped_meta_model
from autometa.selection.result import LearningRates as LearningRates
from autometa.selection.result import Selection as Selection
