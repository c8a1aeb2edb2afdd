"""What was measured on earlier datasets: evaluations and meta-features, split by group of related datasets only."""

from autometa.meta_dataset.dataset import SMALL_ROWS as SMALL_ROWS
from autometa.meta_dataset.dataset import MetaDataset as MetaDataset
from autometa.meta_dataset.dataset import group_folds as group_folds
from autometa.meta_dataset.dataset import row_features as row_features
from autometa.meta_dataset.keys import candidate_key as candidate_key
from autometa.meta_dataset.keys import canonical_config as canonical_config
