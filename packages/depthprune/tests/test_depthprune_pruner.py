"""The loop: what it keeps, undoes and refuses, with a fine-tuning that the caller brings."""

from __future__ import annotations

import pytest
import torch
from depthprune.capture import capture
from depthprune.methods import make
from depthprune.models import Residual, load_weights
from depthprune.pairs import complete, depthwise_pairs, level
from depthprune.pruner import DepthPruner, accuracy_of
from edge_shared.errors import CheckFailed, InputError
from torch import nn

X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 10, (32,), generator=torch.Generator().manual_seed(1))


def pruner(scores: list[float], method: str = "easier", **options) -> tuple[DepthPruner, list[int]]:
    """A pruner whose validation accuracy follows a script; returns the rounds that fine-tuning saw."""
    torch.manual_seed(0)
    seen: list[int] = []
    answers = iter(scores)

    def finetune(model, round_, masks, penalty) -> None:
        seen.append(round_)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        nn.functional.cross_entropy(model.train()(X), Y).backward()
        optimizer.step()
        model.eval()

    built = DepthPruner(
        Residual(expand=2),
        X[:2],
        make(method),
        calibration=[(X, Y)],
        held_out=[(X, Y)],
        evaluate=lambda model: next(answers),
        finetune=finetune,
        **options,
    )
    return built, seen


def test_rounds_go_on_until_accuracy_falls_and_the_last_is_undone() -> None:
    loop, seen = pruner([0.9, 0.9, 0.895, 0.5])
    outcome = loop.run()
    assert [r.kept for r in outcome.rounds] == [True, True, False]
    assert len(outcome.removals) == 4  # two of each pair
    assert outcome.accuracy == 0.895
    assert seen == [1, 2, 3]
    gone = {removal.site for removal in outcome.removals}
    left = [
        node.meta["site"]
        for node in outcome.model.graph.nodes
        if "site" in node.meta and isinstance(outcome.model.get_submodule(node.target), nn.ReLU)
    ]
    assert gone.isdisjoint(left)
    assert len(left) == 9
    assert set(outcome.counts) == gone


def test_a_rejected_round_is_tried_again_with_half_as_many() -> None:
    loop, _ = pruner([0.9, 0.2, 0.9, 0.9, 0.9, 0.9], per_round=4, target=8)
    outcome = loop.run()
    assert [len(r.removed) for r in outcome.rounds] == [4, 2, 2, 2, 2]
    assert len(outcome.removals) == 8


def test_the_two_activations_beside_a_depthwise_convolution_go_together() -> None:
    gm = capture(Residual(expand=2), X[:2])
    pairs = depthwise_pairs(gm)
    assert pairs == [(f"blocks.{i}.relu1", f"blocks.{i}.relu2") for i in range(4)]
    assert level({"a": 0.1, "b": 0.5, "c": 0.2}, [("a", "b")]) == pytest.approx({"a": 0.3, "b": 0.3, "c": 0.2})
    assert complete(["a"], {"a": 0.3, "b": 0.3}, [("a", "b")]) == ["a", "b"]
    assert complete(["a"], {"a": 0.3}, [("a", "b")]) == ["a"]
    loop, _ = pruner([0.9, 0.9, 0.9], target=3)
    outcome = loop.run()
    assert [len(r.removed) for r in outcome.rounds] == [2, 1]
    first, second = outcome.rounds[0].removed
    assert first.rpartition(".")[0] == second.rpartition(".")[0]
    entropy_only, _ = pruner([0.9, 0.9], "egp", max_rounds=1)
    assert entropy_only.run().removals == []  # no layer has entropy 0, and none is taken along


def test_a_target_that_accuracy_does_not_allow_is_a_failed_check() -> None:
    loop, _ = pruner([0.9, 0.1], target=3)
    with pytest.raises(CheckFailed, match="only 0 of the 3"):
        loop.run()


def test_the_model_given_is_not_changed() -> None:
    torch.manual_seed(0)
    net = Residual(expand=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    answers = iter([0.9, 0.9])
    loop = DepthPruner(
        net,
        X[:2],
        make("affine"),
        calibration=[(X, Y)],
        held_out=[(X, Y)],
        evaluate=lambda m: next(answers),
        finetune=lambda *a: None,
        target=1,
    )
    loop.run()
    assert net.blocks[0].depthwise.padding == (1, 1)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("method", ["affine", "tlc", "nepenthe", "egp", "layer-folding"])
def test_every_method_runs_in_the_loop(method) -> None:
    loop, seen = pruner([0.9] * 12, method, max_rounds=4)
    outcome = loop.run()
    assert seen
    assert torch.isfinite(outcome.model(X)).all()
    if method in ("affine", "tlc", "layer-folding"):
        assert outcome.removals
    else:
        assert outcome.rounds[-1].sparsity > 0.5


def test_bad_input() -> None:
    with pytest.raises(InputError, match="only 8 of 13"):
        pruner([0.9], target=9)
    with pytest.raises(InputError, match="per_round"):
        pruner([0.9], per_round=0)
    kwargs = {"calibration": [], "held_out": [], "evaluate": lambda m: 0.5, "finetune": lambda *a: None}
    with pytest.raises(InputError, match="no activation"):
        DepthPruner(nn.Linear(3, 3), torch.randn(1, 3), make("easier"), **kwargs)
    with pytest.raises(InputError, match="could be merged"):
        DepthPruner(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(1, 3), make("easier"), **kwargs)
    with pytest.raises(InputError, match="labels"):
        accuracy_of([X])(Residual())
    with pytest.raises(InputError, match="empty"):
        accuracy_of([])(Residual())


def test_weights_for_other_classes_keep_a_fresh_head() -> None:
    source, target = Residual(classes=7), Residual(classes=10)
    fresh = load_weights(target, source.state_dict(), "w")
    assert fresh == ["head.weight", "head.bias"]
    assert torch.equal(target.stem.weight, source.stem.weight)
    with pytest.raises(InputError, match="has shape"):
        load_weights(Residual(widths=(8, 16)), source.state_dict(), "w")
