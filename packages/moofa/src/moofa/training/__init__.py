"""Training a supernet: `sandwich` (one phase, the default) or `progressive` (the papers' phases), both resumable at any step."""

from moofa.training.losses import ProgressiveLoss, SandwichLoss
from moofa.training.phases import SCHEDULES, Phase, phases
from moofa.training.run import SupernetConfig, train_supernet

__all__ = ["SCHEDULES", "Phase", "ProgressiveLoss", "SandwichLoss", "SupernetConfig", "phases", "train_supernet"]
