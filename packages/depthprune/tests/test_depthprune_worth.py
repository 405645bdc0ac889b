"""Only what pays is taken out, and dead neurons do not spoil the norms behind them."""

import copy

import pytest
import torch
from depthprune.capture import capture
from depthprune.finetune import recalibrate
from depthprune.merging import merge
from depthprune.methods import make
from depthprune.models import Residual
from depthprune.padding import move_to_front
from depthprune.prices import Latency
from depthprune.pruner import DepthPruner
from depthprune.surgery import remove
from depthprune.worth import worth_merging
from torch import nn


def basic() -> nn.Sequential:
    """Two 3x3 convolutions (one 5x5 costs more), then a bottleneck of 1x1 and 3x3 that pays."""
    return nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 64, 1), nn.ReLU(), nn.Conv2d(64, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    ).eval()  # fmt: skip


def test_a_rehearsal_names_what_merges_to_advantage() -> None:
    x = torch.randn(2, 16, 16, 16)
    gm = capture(basic(), x)
    before = copy.deepcopy(gm.state_dict())
    assert worth_merging(gm, x, {"1", "6"}, "macs") == {"6"}
    assert worth_merging(gm, x, {"1", "6"}, "always") == {"1", "6"}
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    assert [type(gm.get_submodule(name)) for name in ("1", "6")] == [nn.ReLU, nn.ReLU]


def test_a_merge_has_to_beat_the_dense_layers_not_those_with_larger_maps() -> None:
    """On 4 x 4 pixels the first of two 3x3 layers makes 6 x 6 once it has all the padding: 9*36 + 9*16 taps, one 5x5 25*16, dense 18*16."""
    x = torch.randn(2, 16, 4, 4)
    gm = capture(basic(), x)
    padded = copy.deepcopy(gm)
    remove(padded, "1")
    moved = move_to_front(padded, {"1"})
    assert ("0", "2") in [certificate.layers for certificate in merge(padded, x, policy="macs", front_padded=moved).certificates]
    assert worth_merging(gm, x, {"1", "6"}, "macs") == {"6"}


def test_a_saving_within_the_noise_of_timings_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices per layer that favour the merge of the 3x3 pair by 2 %, then by 20 %."""
    x = torch.randn(2, 16, 16, 16)
    gm = capture(basic(), x)
    for saving, found in ((0.02, {"6"}), (0.2, {"1", "6"})):
        monkeypatch.setattr(
            Latency, "layer", lambda self, merged, shape, cost=2 * (1 - saving): cost if merged.conv.weight.shape[-1] == 5 else 1.0
        )
        assert worth_merging(gm, x, {"1", "6"}, "latency") == found


def pruner(front_pad: bool | frozenset[str], candidates: str | frozenset[str]) -> DepthPruner:
    x, y = torch.randn(8, 16, 16, 16), torch.zeros(8, dtype=torch.int64)
    return DepthPruner(
        basic(), x, make("easier", tolerance=1.0), calibration=[(x, y)], held_out=[(x, y)], evaluate=lambda model: 1.0,
        finetune=lambda *arguments: None, per_round=2, target=2 if candidates == "mergeable" else None, candidates=candidates,
        front_pad=front_pad,
    )  # fmt: skip


def test_padding_moves_only_where_layers_will_merge() -> None:
    def padding(front_pad: bool | frozenset[str]) -> list[int]:
        model = pruner(front_pad, "mergeable").run().model
        return [model.get_submodule(name).padding[0] for name in ("0", "2", "5", "7")]

    assert padding(True) == [2, 0, 1, 0]
    assert padding(frozenset({"6"})) == [1, 1, 1, 0]
    assert padding(False) == [1, 1, 0, 1]
    outcome = pruner(frozenset({"6"}), frozenset({"6"})).run()
    assert [removal.site for removal in outcome.removals] == ["6"]


def test_a_masked_layer_does_not_spoil_the_norms_behind_it() -> None:
    """A few steps after a branch died its statistics lag behind; taken anew, train and evaluation mode agree."""
    torch.manual_seed(0)
    model = Residual(1, 10, (8, 8), depth=1, expand=2)
    data = [torch.randn(64, 1, 8, 8) for _ in range(3)]
    for x in data * 10:
        model.train()(x)
    with torch.no_grad():
        model.blocks[1].expand.weight.zero_()
    for x in data * 4:
        model(x)

    def gap() -> float:
        with torch.no_grad():
            expected = copy.deepcopy(model).train()(data[0])
            return float((model.eval()(data[0]) - expected).abs().max() / expected.abs().max())

    stale = gap()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    recalibrate(model, [(x, None) for x in data])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert gap() < 0.25 < 1 < stale
    assert float(model.blocks[1].norm1.running_var.max()) == 0.0
    assert model.blocks[1].norm1.momentum == 0.1


def test_recalibrated_statistics_are_means_over_the_batches() -> None:
    norm, batches = nn.BatchNorm2d(3), [torch.randn(16, 3, 5, 5) * 2 + 1 for _ in range(4)]
    recalibrate(nn.Sequential(norm), batches)
    assert torch.allclose(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0), atol=1e-5)
