"""Tables with a target: read, checked, and with a kind for each column."""

from autometa.data.dataset import Dataset as Dataset
from autometa.data.dataset import as_dataset as as_dataset
from autometa.data.kinds import MAX_CATEGORIES as MAX_CATEGORIES
from autometa.data.kinds import ColumnKind as ColumnKind
from autometa.data.kinds import TaskType as TaskType
from autometa.data.kinds import feature_names as feature_names
from autometa.data.kinds import infer_kind as infer_kind
from autometa.data.kinds import infer_kinds as infer_kinds
from autometa.data.kinds import infer_task as infer_task
from autometa.data.reading import as_frame as as_frame
from autometa.data.reading import as_series as as_series
from autometa.data.reading import check_columns as check_columns
from autometa.data.reading import read_table as read_table
from autometa.data.sampling import stratified_sample as stratified_sample
