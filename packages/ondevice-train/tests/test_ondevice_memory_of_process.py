"""What a run holds beside the bytes that it keeps for backward: freed blocks, the making of the plan, layers that do not train."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from ondevice_train.compression import recompute
from ondevice_train.compression.perplexity import Judged, Option, judge
from ondevice_train.compression.quantise import Quantise
from ondevice_train.compression.recompute import Recomputed
from torch import nn

FREED = """
import gc, sys
import numpy as np
from ondevice_train.ops.allocator import return_freed_blocks
if not return_freed_blocks():
    sys.exit(77)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
for _ in range(3):  # a large block, a small one that lives on
    large, small = [], []
    for _ in range(12):
        large.append(np.ones(1 << 20))
        small.append(np.ones(1 << 10))
    full = resident()
    del large
print(full - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_leave_the_process():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("not glibc")
    full, left = map(int, done.stdout.split())
    assert full > 90 << 20
    assert left < 8 << 20


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 1, bias=False),
            nn.BatchNorm2d(4 * channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(4 * channels, channels, 3, padding=1),
        )

    def forward(self, x):
        return x + self.body(x)


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.Sequential(*[Residual(4) for _ in range(6)])
    return nn.Sequential(nn.Conv2d(3, 4, 3), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).double()


def test_judging_is_exact_and_leaves_the_model_alone():
    model, x, y = network().train(), torch.randn(8, 3, 18, 18).double(), torch.arange(8) % 5
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    plain = network().eval()
    nn.functional.cross_entropy(plain(x), y).backward()
    before = [(name, type(module), module.training) for name, module in model.named_modules()]
    tables = judge(model, x, y, names, lambda *_: [Option("quantise", lambda: Quantise(8, True))])
    assert [(name, type(module), module.training) for name, module in model.named_modules()] == before
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    for table, name in zip(tables, names, strict=True):
        assert table.norm == pytest.approx(float(plain.get_submodule(name).weight.grad.norm()), rel=1e-10)
        exact, rounded, frozen = table.judged
        assert isinstance(exact, Judged)
        assert 0 < rounded.perplexity < 0.1 * table.norm
        assert frozen.perplexity == table.norm


def test_what_does_not_train_is_not_rounded(monkeypatch):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    expected = attention(x, x, x, need_weights=False)[0]
    Recomputed(attention, eight_bit=True).install()
    attention.requires_grad_(False)
    monkeypatch.setattr(recompute, "quantise", lambda *_: pytest.fail("an input was rounded that nothing needs"))
    torch.testing.assert_close(attention(x, x, x, need_weights=False)[0], expected)
