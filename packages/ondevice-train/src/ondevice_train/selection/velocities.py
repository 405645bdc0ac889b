"""Velocities of neurons: how fast the similarity of their outputs to those of the epoch before still changes (NEq, eq. 1-3).

``paper`` recursion: v_t = Δφ_t - μ v_{t-1}. ``official-code`` (both released repositories): u_t = Δφ_t + s_{t-1} with
s_t = μ u_t - Δφ_t; the two agree for the first two steps at μ = 0.5 and differ in sign at lag 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from ondevice_train.selection.selector import Outputs

RECURSIONS = ("paper", "official-code")


def similarity(now: NDArray[np.float32], before: NDArray[np.float32]) -> NDArray[np.float64]:
    """φ of each neuron: cosine over positions of its outputs at two epochs, averaged over samples.

    Two zero outputs are equal (1), one zero is unlike (0).

    Args:
        now, before: (samples, neurons, positions).

    Returns:
        (neurons,).
    """
    a, b = now.astype(np.float64), before.astype(np.float64)
    na, nb = np.linalg.norm(a, axis=2), np.linalg.norm(b, axis=2)
    product = na * nb
    cosine = np.divide((a * b).sum(2), product, out=np.zeros_like(product), where=product > 0)
    cosine[(na == 0) & (nb == 0)] = 1.0
    return cosine.mean(0)


class Velocities:
    """Keeps φ and v of every neuron from epoch to epoch; φ starts at 1 (as if nothing had changed before).

    Attributes:
        mu: the memory μ.
        recursion: ``paper`` or ``official-code``.
        values: by layer the velocities, empty until two epochs were compared.
    """

    def __init__(self, mu: float = 0.5, recursion: str = "paper") -> None:
        if recursion not in RECURSIONS:
            raise InputError(f"recursion is {recursion!r}; choose one of {', '.join(RECURSIONS)}")
        self.mu, self.recursion = mu, recursion
        self.values: dict[str, NDArray[np.float64]] = {}
        self._phi: dict[str, NDArray[np.float64]] = {}
        self._memory: dict[str, NDArray[np.float64]] = {}
        self._outputs: dict[str, NDArray[np.float32]] = {}

    def remember(self, outputs: Outputs) -> None:
        """Take the outputs that the next `update` compares with."""
        self._outputs = {name: np.array(value, dtype=np.float32) for name, value in outputs.items()}

    def update(self, outputs: Outputs) -> dict[str, NDArray[np.float64]]:
        """Velocities after an epoch, from its outputs on D_val."""
        for name, now in outputs.items():
            phi = similarity(now, self._outputs[name])
            change = phi - self._phi.get(name, np.ones_like(phi))
            self._phi[name] = phi
            self.values[name] = self.advance(name, change)
        self.remember(outputs)
        return self.values

    def advance(self, name: str, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """One step of the recursion for a layer, from Δφ."""
        memory = self._memory.get(name, np.zeros_like(change))
        if self.recursion == "paper":
            velocity = change - self.mu * memory
            self._memory[name] = velocity
        else:
            velocity = change + memory
            self._memory[name] = self.mu * velocity - change
        return velocity

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return {"values": self.values, "phi": self._phi, "memory": self._memory, "outputs": self._outputs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.values, self._phi, self._memory = dict(state["values"]), dict(state["phi"]), dict(state["memory"])
        self._outputs = dict(state["outputs"])
