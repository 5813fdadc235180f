"""Training: arguments, trainer, checkpoints that resume bit for bit."""

from .arguments import SAETrainingArguments, default_learning_rate
from .recipes import train_sae
from .trainer import SAETrainer


__all__ = ["SAETrainer", "SAETrainingArguments", "default_learning_rate", "train_sae"]
