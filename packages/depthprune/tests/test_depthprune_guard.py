"""The last word on merges: whole networks by time, by memory, and on a board."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from depthprune import guard
from depthprune.capture import capture, sites
from depthprune.device import choose_policy, fit, keep_what_fits
from depthprune.measure import size
from depthprune.merging import count_layers, merge
from depthprune.models import Residual
from depthprune.padding import move_to_front
from depthprune.prices import Memory
from depthprune.surgery import remove
from edge_shared.devices import Device
from edge_shared.errors import CheckFailed, InputError
from torch import nn

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def shortened(policy: str = "always"):
    torch.manual_seed(0)
    gm = capture(Residual(expand=3).eval(), X)
    inner = {site.name for site in sites(gm) if site.name[-1] in "12"}
    for name in inner:
        remove(gm, name)
    return merge(gm, X, policy=policy, front_padded=move_to_front(gm, inner))


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_merges_that_do_not_make_the_whole_faster_are_undone(monkeypatch, backend) -> None:
    seen = []

    def timed(before, after, example, where, repeats, threads):
        seen.append((count_layers(before), count_layers(after), where))
        return SimpleNamespace(ratio=ratio)

    monkeypatch.setattr(guard, "time_both", timed)
    result, ratio = shortened(), 0.9
    assert guard.judge(result, X, "latency", backend) is None
    assert len(result.certificates) == 4
    ratio = 1.0
    reason = guard.judge(result, X, "latency", backend)
    assert reason is not None
    assert ("torch" if backend == "torch" else "ONNX Runtime") in reason
    assert result.certificates == []
    assert result.model is result.reference
    assert reason in {kept.reason for kept in result.kept}
    assert seen == [(15, 6, backend)] * 2
    assert guard.judge(result, X, "latency", backend) is None  # nothing left to undo


def test_both_runtimes_are_really_timed() -> None:
    result = shortened()
    for backend in ("onnxruntime", "torch"):
        timing = guard.time_both(result.reference, result.model, X, backend, 10)
        assert timing.before.repeats == 10
        assert timing.low <= timing.ratio <= timing.high


def test_memory_policy_prices_what_model_d_counts() -> None:
    """The planner's largest layer is the peak of the shared memory model, skips included."""
    result = shortened("memory")
    assert guard.judge(result, X, "memory") is None
    assert size(result.model, X).peak_bytes < size(result.reference, X).peak_bytes
    mlp = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8)).eval()
    merged = merge(mlp, torch.randn(2, 8), policy="memory")
    assert merged.certificates[0].cost_before == size(merged.reference, torch.randn(1, 8)).peak_bytes == 4 * 40
    assert merged.certificates[0].cost_after == size(merged.model, torch.randn(1, 8)).peak_bytes == 4 * 16


class Skip(nn.Module):
    """A skip over two layers that do not merge for less memory: the block's input stays alive while the second runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)) + x


def test_memory_of_a_skip_is_what_model_d_counts() -> None:
    x = torch.randn(1, 8)
    result = merge(Skip().eval(), x, policy="memory")
    assert size(result.reference, x).peak_bytes == 4 * 24
    assert result.certificates[0].cost_before == 4 * 24
    assert result.certificates[0].cost_after == size(result.model, x).peak_bytes == 4 * 16
    assert Memory().addition((1, 8)) == 4 * 24


def board(ram: int, flash: int = 0, kind: str = "mcu") -> Device:
    return Device(name="board", kind=kind, clock_hz=10**8, ram_total=ram, ram_largest_region=ram, flash_total=flash, memory_model="D")


def test_what_does_not_fit_a_board() -> None:
    result = shortened()
    merged, apart = fit(result.model, X, board(10**6)), fit(result.reference, X, board(10**6))
    assert merged.ram_bytes == size(result.model, X).peak_bytes < apart.ram_bytes
    assert merged.flash_bytes == 4 * size(result.model, X).parameters
    assert merged.lacks is None
    assert keep_what_fits(result, X, board(merged.ram_bytes)).ram_bytes == merged.ram_bytes
    with pytest.raises(CheckFailed, match="of RAM"):
        keep_what_fits(result, X, board(merged.ram_bytes - 1))
    with pytest.raises(CheckFailed, match="of flash"):
        keep_what_fits(result, X, board(10**6, 100))
    bigger = merge(nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 64)).eval(), torch.randn(1, 64), policy="always")
    assert len(bigger.certificates) == 1
    left = keep_what_fits(bigger, torch.randn(1, 64), board(10**6, 4000))
    assert left.flash_bytes < 4000
    assert bigger.certificates == []
    assert "of flash" in bigger.kept[-1].reason


def test_policy_by_device() -> None:
    assert choose_policy(None, None) == "latency"
    assert choose_policy(None, board(10**6, kind="linux")) == "latency"
    assert choose_policy(None, board(10**6)) == "macs"
    assert choose_policy("memory", board(10**6)) == "memory"
    with pytest.raises(InputError, match="say nothing about board"):
        choose_policy("latency", board(10**6))
