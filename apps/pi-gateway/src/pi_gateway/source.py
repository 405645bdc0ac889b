"""What a gateway watches: one record per source, plain values that can be sent to a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_shared.errors import InputError

Kind = Literal["can-replay", "can-channel", "flow-file", "flow-interface"]


@dataclass(frozen=True)
class Source:
    """One stream of frames or flows, watched by a process of its own.

    Attributes:
        name: unique, shown in alerts, metrics and on the dashboard.
        kind: how it is read.
        target: file, CAN channel or network interface.
        model: folder that ``edge-ids can train`` or ``edge-ids flow train`` wrote.
        interface: python-can interface of a channel.
        speed: pace of a CAN replay: 1 real time, 0 as fast as possible.
        state: file for what the worker must remember; None for none.
    """

    name: str
    kind: Kind
    target: str
    model: Path
    interface: str = "socketcan"
    speed: float = 0.0
    state: Path | None = None

    @property
    def finite(self) -> bool:
        """True for files: they end, and a restarted worker goes on inside them."""
        return self.kind in ("can-replay", "flow-file")

    def check(self) -> None:
        """Look whether the model and the file are there.

        Raises:
            InputError: naming what is missing.
        """
        marker = "profile.json" if self.kind.startswith("can") else "model.json"
        if not (self.model / marker).is_file():
            half = "can" if self.kind.startswith("can") else "flow"
            raise InputError(f"--{half}-model {self.model}: no {marker} there; `edge-ids {half} train --out DIR` makes one")
        if self.finite and not Path(self.target).is_file():
            raise InputError(f"{self.target}: no such file")
