"""The fine-tuning that `prune` brings: what it may change, what it must keep, whom it learns from."""

from __future__ import annotations

import copy

import torch
from depthprune.capture import capture
from depthprune.finetune import Distill
from depthprune.methods import State, make, masks
from depthprune.methods.layer_folding import Fold
from depthprune.surgery import remove
from edge_shared.training import TrainConfig
from torch import nn

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))
BATCHES = list(zip(X.split(16), Y.split(16), strict=True))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def settings(epochs: int = 3) -> TrainConfig:
    return TrainConfig(epochs=epochs, batch_size=16, lr=0.1, momentum=0.9, weight_decay=0.01, seed=0)


def test_masked_weights_and_removed_neurons_stay_gone() -> None:
    net = network()
    graph = capture(copy.deepcopy(net), X)
    keep = (torch.arange(16) % 2).float()
    remove(graph, "1", "sign", keep)
    mask = {"2.weight": masks.prune_smallest(graph.get_parameter("2.weight"), None, 100)}
    before = graph.get_parameter("2.weight").detach().clone()
    Distill(net, BATCHES, settings(), device="cpu")(graph, 1, mask, None)
    after = graph.get_parameter("2.weight").detach()
    assert bool((after[mask["2.weight"] == 0] == 0).all())
    assert bool((after[mask["2.weight"] == 1] != before[mask["2.weight"] == 1]).all())
    hidden = graph.get_submodule("1")(graph.get_submodule("0")(X)).detach()
    assert bool((hidden[:, keep == 0] == 0).all())
    assert float(hidden[:, keep == 1].abs().min()) > 0


def test_the_teacher_is_learned_from_and_does_not_change() -> None:
    teacher, graph = network(0), capture(network(1), X)
    before = copy.deepcopy(teacher.state_dict())

    def agreement() -> float:
        with torch.no_grad():
            return float((graph(X).argmax(1) == teacher(X).argmax(1)).float().mean())

    start = agreement()
    wrong = [(x, (teacher(x).argmax(1) + 1) % 3) for x, _ in BATCHES]
    Distill(teacher, wrong, settings(30), weight=1.0, device="cpu")(graph, 1, {}, None)
    assert agreement() > max(0.9, start)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    Distill(teacher, wrong, settings(30), weight=0.0, device="cpu")(graph, 1, {}, None)  # now from the labels, which are wrong
    assert agreement() < 0.2


def test_the_penalty_of_a_method_is_trained() -> None:
    net = network()
    method, state = make("layer-folding", strength=5.0), State(capture(copy.deepcopy(net), X), BATCHES, BATCHES)
    method.prepare(state)
    Distill(net, BATCHES, settings(2), device="cpu")(state.model, 0, {}, method.penalty(state))
    with_penalty = [float(m.alpha.detach()) for m in state.model.modules() if isinstance(m, Fold)]
    state = State(capture(copy.deepcopy(net), X), BATCHES, BATCHES)
    method.prepare(state)
    Distill(net, BATCHES, settings(2), device="cpu")(state.model, 0, {}, None)
    without = [float(m.alpha.detach()) for m in state.model.modules() if isinstance(m, Fold)]
    assert all(a > b for a, b in zip(with_penalty, without, strict=True))
