"""What a deployed chain costs on a Cortex-M4F, without compiling it.

RAM and constant tables follow from the sizes exactly; the code size is a table of what arm-none-eabi-gcc 12.2 -Os made of each
variant (benchmarks/tinyeeg/firmware.py), so flash is an estimate. Operations are counts of multiplications, not cycles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyeeg.deployed import Deployed, Linear, Mlp, Trees

# Bytes of code with start-up, vectors and the library's helpers (64-bit shifts, memset, memcpy), by number format.
_CODE = {"float": 1453, "q15": 1747}
_CODE_PARTS: dict[str, dict[str, int]] = {
    "float": {"sections": 114, "boxcar": 91, "exponential": 40, "linear": 429, "mlp": 505, "trees": 519, "person": 54, "quantise": 114},
    "q15": {"sections": 365, "boxcar": 95, "exponential": 105, "linear": 532, "mlp": 631, "trees": 585, "person": 47},
}


@dataclass(frozen=True)
class Cost:
    """Cost of one deployed model.

    Attributes:
        ram: bytes of the state, per number format (without the stack).
        flash: bytes of code and tables, per number format; an estimate.
        multiplications: per decision.
        decisions_per_s: 1 / hop.
    """

    ram: dict[str, int]
    flash: dict[str, int]
    multiplications: int
    decisions_per_s: float

    def summary(self) -> dict[str, Any]:
        """JSON: ``ram_bytes``, ``flash_bytes_estimate`` by number format, ``multiplications_per_decision``, ``decisions_per_s``."""
        return {
            "ram_bytes": self.ram,
            "flash_bytes_estimate": self.flash,
            "multiplications_per_decision": self.multiplications,
            "decisions_per_s": self.decisions_per_s,
        }


def estimate(deployed: Deployed) -> Cost:
    """The cost of a deployed model in both number formats."""
    chain = deployed.chain
    return Cost(
        {number: ram_bytes(deployed, number) for number in ("float", "q15")},
        {number: flash_bytes(deployed, number) for number in ("float", "q15")},
        multiplications(deployed),
        chain.sfreq / chain.hop,
    )


def ram_bytes(deployed: Deployed, number: str) -> int:
    """Bytes of ``tinyeeg_t`` on a 32-bit target: the sum of its members and padding."""
    chain, fixed = deployed.chain, number == "q15"
    channels, features = len(chain.channels), chain.n_features
    smoothing = {
        "none": 0,
        "boxcar": 4 * chain.smoothing.frames * features,
        "exponential": (8 if fixed else 4) * features,
    }[chain.smoothing.kind]
    total = 4 * channels + 8 * channels * len(chain.sections) + 4 * chain.n_fft
    align = 8 if fixed and chain.smoothing.kind == "exponential" else 4
    total = -(-total // align) * align + smoothing + 4 * features + (8 * features if deployed.person else 0)
    total += channels * chain.segment * (2 if fixed or chain.quantise else 4)
    total = -(-total // 4) * 4 + 16 + (8 if deployed.person else 0)
    return -(-total // align) * align


def table_bytes(deployed: Deployed, number: str) -> int:
    """Bytes of all constants."""
    chain, fixed, model = deployed.chain, number == "q15", deployed.model
    features, classes = chain.n_features, len(deployed.classes)
    total = 4 * (chain.n_fft // 4 + 1) + (2 if fixed else 4) * (chain.segment // 2 + 1) + 4 * len(chain.groups) + 8 * features
    total += 24 * len(chain.sections)
    if fixed:
        total += 4 * 33 + (2 * (chain.smoothing.frames + 1) if chain.smoothing.kind == "boxcar" else 0)
    weight, bias = (2, 8) if fixed else (4, 4)
    if isinstance(model, Linear):
        return total + weight * model.weights.size + bias * classes
    if isinstance(model, Mlp):
        return total + weight * (model.w1.size + model.w2.size) + bias * (model.b1.size + model.b2.size)
    return total + 2 * len(model.root) + (6 + weight) * len(model.feature) + weight * model.values.size + bias * classes


def flash_bytes(deployed: Deployed, number: str) -> int:
    """Bytes of code and constants in flash; an estimate."""
    parts = _CODE_PARTS[number]
    names = [
        *(["sections"] if deployed.chain.sections else []),
        *([deployed.chain.smoothing.kind] if deployed.chain.smoothing.kind != "none" else []),
        deployed.kind,
        *(["person"] if deployed.person else []),
        *(["quantise"] if deployed.chain.quantise and number == "float" else []),
    ]
    return _CODE[number] + sum(parts[name] for name in names) + table_bytes(deployed, number)


def multiplications(deployed: Deployed) -> int:
    """Real multiplications per decision: filters of one hop, taper, transform, powers, classifier."""
    chain, model = deployed.chain, deployed.model
    half = chain.n_fft // 2
    bins = sum(group.last - group.first + 1 for group in chain.groups)
    per_channel = chain.hop * 7 * len(chain.sections) + chain.segment + 2 * half * (half.bit_length() - 1) + 6 * bins
    if isinstance(model, Linear):
        classifier = model.weights.size
    elif isinstance(model, Mlp):
        classifier = model.w1.size + model.w2.size
    else:
        assert isinstance(model, Trees)
        classifier = 0
    return len(chain.channels) * per_channel + classifier
