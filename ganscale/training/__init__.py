"""Training: state, step, trainer, checkpoints; runs in one process or as one of N ranks, and knows no Ray."""

from ganscale.training.process_group import Group, solo_group, torch_group
from ganscale.training.trainer import TrainResult, train

__all__ = ["Group", "TrainResult", "solo_group", "torch_group", "train"]
