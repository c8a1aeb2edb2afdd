"""Learning from earlier datasets what a new one starts with: the meta-model, and births of networks.

Names are imported when they are first used: training a meta-model needs nothing of what trains births.
"""

from autometa.meta_training.meta_model import TrainingOptions as TrainingOptions
from autometa.meta_training.meta_model import train_meta_model as train_meta_model
