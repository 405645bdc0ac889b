"""Pieces that train side by side: the same weights as one after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from edge_ids.flow import neural
from edge_ids.flow.presets import NeuralConfig
from edge_ids.flow.replicas import Replicas

CONFIG = NeuralConfig(embedding=8, graph_dropout=0.5, width=8, feed_forward=16, heads=2, window=16, batch=160, lr=1e-3, epochs=3)


def trained(monkeypatch, threads, config=CONFIG):
    """Weights and losses after training on 300 flows in pieces of 32, with `threads` threads."""
    monkeypatch.setattr(neural, "TRAIN_CHUNK", 32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        random = np.random.default_rng(0)
        x = random.random((300, 5), dtype=np.float32)
        src, dst = random.integers(0, 9, (2, 300))
        model = neural.build("graphids", 5, config, 0)
        result = neural.train(model, x, src, dst, config, seed=0, validate=lambda: None, precision="float32")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    return model.state_dict(), result.loss


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_train_as_one(monkeypatch, threads):
    one, loss = trained(monkeypatch, 1)
    side_by_side, its_loss = trained(monkeypatch, threads)
    assert its_loss == pytest.approx(loss, rel=1e-6)
    start = neural.build("graphids", 5, CONFIG, 0).state_dict()
    assert any(not torch.equal(one[name], start[name]) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(side_by_side[name], value, atol=2e-5, rtol=0)


def test_the_same_threads_give_the_same_weights(monkeypatch):
    first, again = (trained(monkeypatch, 2)[0] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_dropout_is_drawn_in_one_thread(monkeypatch):
    config = replace(CONFIG, dropout=0.2)
    one, two = (trained(monkeypatch, threads, config)[1] for threads in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
    assert one != pytest.approx(trained(monkeypatch, 1, replace(config, dropout=0.19))[1], rel=1e-3)


def test_twins_share_weights_but_not_gradients():
    model = neural.build("graphids", 5, CONFIG, 0)
    with Replicas.open(model, 2, "float32") as replicas:
        twin = replicas.models[1]
        for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
            assert mine.data_ptr() == its.data_ptr()
        z = torch.rand(4, 16, 8)

        def work(part, piece):
            loss = part.errors(z[piece[0] : piece[1]], None).sum()
            loss.backward()
            return loss.item()

        total = replicas.backward([(0, 1, 16), (1, 2, 16), (2, 4, 16)], work)
        assert all(parameter.grad is None for parameter in twin.parameters())
    got = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    loss = model.errors(z, None).sum()
    loss.backward()
    assert total == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-4, rtol=1e-4)
