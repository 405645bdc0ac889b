"""Settings of a run, as plain data: they are written into the run's folder, so that it can be resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_shared.data.vision import names
from edge_shared.errors import InputError

SHIFTS = ("inverted", "rotated")
PI_SPACE = "pi"
SHORTCUTS = ("auto", "light", "none")


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of `pi-adapt run`.

    Attributes:
        data: image set by name, or a path: ImageFolder, .npz, IDX files.
        image_size: pixels a side; the model's or the data's own if None.
        limit: at most so many images of each part.
        model: a model folder, a torchvision name, ``timm:NAME``, or None to search one.
        weights: state dict for a model given by name.
        device: profile name or TOML file.
        budget: bytes of RAM for one network; what the device allows if None.
        space: what is searched: ``pi``, a preset of moofa, or a JSON file of `moofa design`.
        shortcut: ``light`` plants one (synthetic), ``none`` does not; ``auto`` plants in sets known by name only.
        rho: share of training images in which the planted light goes with the class.
        shift: the new domain: inverted, rotated, or a path of images of the same classes.
        method: of ondevice-train.
        training_budget: bytes for training on the device, as `ondevice-train --budget` takes them.
        epochs: of the supernet, or of a given model on the data; None: 12 for a search, 0 for a model folder that fits the data
            when nothing is planted, 4 for any other model.
        finetune_epochs: after extraction, and after each round of shortening.
        gate_epochs: at most, of the search for the mask that cuts the shortcut out.
        personal_epochs, personal_lr: of training on the device, plain SGD.
        networks: measured for the accuracy predictor.
        tolerance: validation accuracy that shortening may cost.
        repeats: timed runs of each exported file.
        seed: of everything random.
    """

    data: str = "digits"
    image_size: int | None = None
    limit: int | None = None
    model: str | None = None
    weights: str | None = None
    device: str = "pi-4b"
    budget: int | None = None
    space: str = PI_SPACE
    shortcut: str = "auto"
    rho: float = 0.9
    shift: str = "inverted"
    method: str = "sparse-update"
    training_budget: str = "64kB"
    epochs: int | None = None
    finetune_epochs: int = 6
    gate_epochs: int = 40
    personal_epochs: int = 20
    personal_lr: float = 0.02
    networks: int = 24
    tolerance: float = 0.02
    repeats: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shortcut not in SHORTCUTS:
            raise InputError(f"--shortcut {self.shortcut}: choose one of {', '.join(SHORTCUTS)}")
        if self.shift not in SHIFTS and not Path(self.shift).exists():
            raise InputError(f"--shift {self.shift}: choose {' or '.join(SHIFTS)}, or give a path of images of the new domain")
        if self.model is not None and Path(self.model).is_file():
            raise InputError(
                f"--model {self.model} is a file: give the folder of model.safetensors and recipe.json, or --model NAME --weights {self.model}"
            )
        if self.weights is not None and (self.model is None or Path(self.model).is_dir()):
            raise InputError("--weights goes with a --model that is a name; a model folder holds its own")
        for name, least in (("finetune_epochs", 0), ("gate_epochs", 1), ("personal_epochs", 1), ("networks", 10), ("repeats", 10)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it is at least {least}")
        if not 0 < self.personal_lr < 1e3:
            raise InputError(f"--personal-lr is {self.personal_lr}; it is above 0")
        if not 0 < self.rho <= 1:
            raise InputError(f"--rho is {self.rho}; it is a share above 0, at most 1")

    @property
    def planted(self) -> bool:
        """Whether a shortcut is planted."""
        return self.shortcut == "light" or (self.shortcut == "auto" and self.data in names())
