"""Fine-tune on the device under a hard memory budget.

* `plan` chooses what each trained layer keeps for its backward pass; `prepare` puts the plan into a model, `restore` takes it out.
* `ondevice_train.compression`: low-rank activations and weights. `ondevice_train.selection`: which channels to update.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ondevice_train.compression.planner import plan
    from ondevice_train.compression.plans import Plan
    from ondevice_train.compression.prepare import prepare, restore

__all__ = ["Plan", "plan", "prepare", "restore"]

_HOME = {
    "Plan": "ondevice_train.compression.plans",
    "plan": "ondevice_train.compression.planner",
    "prepare": "ondevice_train.compression.prepare",
    "restore": "ondevice_train.compression.prepare",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing the package stays free of torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
