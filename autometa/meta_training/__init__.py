"""Learning from earlier datasets what a new one starts with: the meta-model, and births of networks."""

from autometa.meta_training.initialisation import MetaTrainingPlan as MetaTrainingPlan
from autometa.meta_training.initialisation import meta_train_initialisation as meta_train_initialisation
from autometa.meta_training.meta_model import TrainingOptions as TrainingOptions
from autometa.meta_training.meta_model import train_meta_model as train_meta_model
