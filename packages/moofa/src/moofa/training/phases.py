"""The papers' phases of progressive shrinking, with their learning rates and lengths.

Lengths and learning rates are relative: a run of E epochs at learning rate r gives each phase its share of E and its
multiple of r. Sources: Once-For-All's and MOOFA's training configurations (teacher 180 epochs, then 120, 25, 120, 25, 120;
base learning rates relative to 3e-2).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_shared.errors import InputError

from moofa.space import Space


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        name: teacher, kernel, depth_1, depth_2, expand_1 or expand_2.
        number: its place.
        epochs: in the papers.
        lr: multiple of the base learning rate.
        warmup: epochs of warm-up in the papers.
        networks: networks per step.
        kernels, depths, expands: how many options, counted from the largest, may be drawn; 0 means all.
        sort: sort the channels before it.
    """

    name: str
    number: int
    epochs: int
    lr: float
    warmup: int
    networks: int
    kernels: int = 0
    depths: int = 0
    expands: int = 0
    sort: bool = False

    def restrict(self, space: Space) -> Space:
        """The space of the networks that this phase may draw."""
        stages = tuple(
            stage.model_copy(
                update={
                    "kernels": stage.kernels[-self.kernels :],
                    "depths": stage.depths[-self.depths :],
                    "expands": stage.expands[-self.expands :],
                }
            )
            for stage in space.stages
        )
        return space.model_copy(update={"stages": stages})


def _table(teacher_lr: float, rates: tuple[float, float, float, float, float]) -> tuple[Phase, ...]:
    return (
        Phase("teacher", 0, 180, teacher_lr, 0, 1, kernels=1, depths=1, expands=1),
        Phase("kernel", 1, 120, rates[0], 5, 1, depths=1, expands=1),
        Phase("depth_1", 2, 25, rates[1], 0, 2, depths=2, expands=1),
        Phase("depth_2", 3, 120, rates[2], 5, 2, expands=1),
        Phase("expand_1", 4, 25, rates[3], 0, 4, expands=2, sort=True),
        Phase("expand_2", 5, 120, rates[4], 5, 4, sort=True),
    )


SCHEDULES = {
    "once-for-all": _table(1.0, (1.0, 1 / 12, 1 / 4, 1 / 12, 1 / 4)),
    "moofa": _table(1.0, (1 / 10, 1 / 120, 1 / 40, 1 / 120, 1 / 120)),
}
"""Phases by source. MOOFA's rates are ten times lower, and it never sorts channels in its official code; here it does."""


def phases(source: str) -> tuple[Phase, ...]:
    """The phases of a source.

    Raises:
        InputError: if the source is unknown.
    """
    if source not in SCHEDULES:
        raise InputError(f"unknown phases {source!r}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[source]
