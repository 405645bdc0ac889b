"""The torch models against dense float64 references, torch's own transformer, and themselves in another order."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from edge_ids.flow import neural
from edge_ids.flow.graph import SampledMeans, in_means
from edge_ids.flow.graphids import GraphEncoder, GraphIDS, attention_mask
from edge_ids.flow.presets import PAPER, NeuralConfig, preset
from edge_shared.errors import InputError

SMALL = NeuralConfig(embedding=8, graph_dropout=0.0, width=8, feed_forward=16, heads=2, window=16, batch=64, lr=1e-3, epochs=3)
RNG = np.random.default_rng(0)


def flows(count=50, hosts=6, features=5):
    x = RNG.random((count, features), dtype=np.float32)
    return x, RNG.integers(0, hosts, count), RNG.integers(0, hosts - 1, count)


@pytest.mark.parametrize(("name", "features", "count"), [
    ("unsw-v3", 49, 447_426), ("cse-v3", 49, 292_274), ("unsw-v2", 41, 440_842), ("cse-v2", 41, 290_522),
])  # fmt: skip
def test_parameter_counts_of_the_paper(name, features, count):
    assert neural.parameters(neural.build("graphids", features, PAPER[name], 0)) == count


def test_in_means_of_a_multigraph():
    x = np.array([[1, 2], [3, 4], [5, 9], [7, 7]], np.float32)
    means = in_means(x, np.array([1, 1, 0, 1]), 4)
    np.testing.assert_allclose(means, [[5, 9], [11 / 3, 13 / 3], [0, 0], [0, 0]], rtol=1e-6)


def test_graph_encoder_equals_a_dense_float64_reference():
    x, src, dst = flows()
    encoder = GraphEncoder(5, 8, 0.5).eval()
    w1, b1 = encoder.node.weight.detach().double().numpy(), encoder.node.bias.detach().double().numpy()
    w2, b2 = encoder.edge.weight.detach().double().numpy(), encoder.edge.bias.detach().double().numpy()
    h = []
    for host in range(6):
        into = x[dst == host].astype(np.float64)
        h.append(np.maximum(w1 @ (into.mean(0) if len(into) else np.zeros(5)) + b1, 0))
    expected = np.array([w2 @ np.concatenate([h[u], h[v]]) + b2 for u, v in zip(src, dst, strict=True)])
    with torch.no_grad():
        got = encoder(torch.from_numpy(in_means(x, dst, 6)), torch.from_numpy(src), torch.from_numpy(dst)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # Host 5 has no incoming flow: its h is ReLU(b1).
    np.testing.assert_allclose(h[5], np.maximum(b1, 0))
    same = np.flatnonzero((src == src[0]) & (dst == dst[0]))
    assert (got[same] == got[0]).all()


def oracle(model: GraphIDS, config: NeuralConfig):
    """torch's own layers with the model's weights, in float64."""
    arguments = {
        "d_model": config.width,
        "nhead": config.heads,
        "dim_feedforward": config.feed_forward,
        "dropout": 0.0,
        "batch_first": True,
    }
    encoder = torch.nn.TransformerEncoderLayer(**arguments)
    decoder = torch.nn.TransformerDecoderLayer(**arguments)
    encoder.load_state_dict(model.autoencoder.encoder.state_dict())
    decoder.load_state_dict(model.autoencoder.decoder.state_dict())
    encoder.double().train()
    decoder.double().train()
    wide = GraphIDS(5, config).double()
    wide.load_state_dict({name: value.double() for name, value in model.state_dict().items()})

    def run(z, mask=None):
        x = wide.autoencoder.input(z.double())
        closed = None if mask is None else mask == -math.inf
        return wide.autoencoder.output(decoder(x, encoder(x, src_mask=closed), tgt_mask=closed))

    return run


def test_autoencoder_equals_torchs_layers():
    model = neural.build("graphids", 5, SMALL, 1)
    z = torch.randn(3, 16, 8)
    mask = attention_mask(16, 0.3, torch.Generator().manual_seed(0))
    reference = oracle(model, SMALL)
    with torch.no_grad():
        torch.testing.assert_close(model.autoencoder(z, mask).double(), reference(z, mask), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.autoencoder(z).double(), reference(z), atol=1e-5, rtol=1e-5)
        norm = (model.autoencoder(z) - z).square().sum(-1)
        torch.testing.assert_close(model.errors(z, None) * 8, norm)


def test_scoring_each_pair_once_equals_scoring_every_flow():
    x, src, dst = flows(83)
    model = neural.build("graphids", 5, SMALL, 2)
    means = in_means(x, dst, 6)
    got = neural.score(model, x, means, src, dst, 16)
    reference = oracle(model, SMALL)
    with torch.no_grad():
        z = model.embed(torch.from_numpy(means), torch.from_numpy(src), torch.from_numpy(dst), None)
        expected = torch.cat([(reference(part[None]) - part).square().mean(-1)[0] for part in z.split(16)])
    np.testing.assert_allclose(got, expected.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["graphids", "edge-aware", "simpleae"])
def test_permuting_a_window_permutes_its_scores(kind):
    x, src, dst = flows(16)
    model = neural.build(kind, 5, SMALL, 3)
    means = in_means(x, dst, 6)
    order = RNG.permutation(16)
    scores = neural.score(model, x, means, src, dst, 16)
    np.testing.assert_allclose(neural.score(model, x[order], means, src[order], dst[order], 16), scores[order], rtol=1e-4, atol=1e-6)


def test_only_the_edge_aware_model_sees_a_flows_own_features():
    x, src, dst = flows(16)
    other = x.copy()
    other[3] += 1
    means = in_means(x, dst, 6)
    for kind, sees in (("graphids", False), ("simpleae", False), ("edge-aware", True)):
        model = neural.build(kind, 5, SMALL, 0)
        same = neural.score(model, x, means, src, dst, 16)[3] == neural.score(model, other, means, src, dst, 16)[3]
        assert same != sees


def test_attention_mask_is_symmetric_with_open_diagonal():
    mask = attention_mask(400, 0.15, torch.Generator().manual_seed(0))
    closed = mask == -math.inf
    assert (closed == closed.T).all()
    assert not closed.diagonal().any()
    off_diagonal = 400 * 399
    assert abs(closed.sum().item() / off_diagonal - 0.15) < 4 * math.sqrt(2 * 0.15 * 0.85 / off_diagonal)


def test_chunks_do_not_change_training(monkeypatch):
    x, src, dst = flows(150)
    weights = []
    for chunk in (16, 1024):
        monkeypatch.setattr(neural, "TRAIN_CHUNK", chunk)
        model = neural.build("graphids", 5, SMALL, 0)
        neural.train(model, x, src, dst, SMALL, seed=0, validate=lambda: None, precision="float32")
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    # Nine steps of 1e-3 each move a weight by up to 9e-3; Adam turns rounding of near-zero gradients into 1e-5.
    torch.testing.assert_close(*weights, atol=2e-4, rtol=0)


def test_training_goes_on_where_it_was_stopped():
    x, src, dst = flows(150)
    whole = neural.build("edge-aware", 5, SMALL, 0)
    neural.train(whole, x, src, dst, SMALL, seed=0, validate=lambda: None)
    states = []

    def stop(state):
        import copy

        states.append(copy.deepcopy(state))
        if len(states) == 2:
            raise KeyboardInterrupt

    part = neural.build("edge-aware", 5, SMALL, 0)
    with pytest.raises(KeyboardInterrupt):
        neural.train(part, x, src, dst, SMALL, seed=0, validate=lambda: None, checkpoint=stop)
    again = neural.build("edge-aware", 5, SMALL, 7)
    neural.train(again, x, src, dst, SMALL, seed=0, validate=lambda: None, state=states[-1])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_sampled_means_draw_only_busy_hosts_and_are_unbiased():
    x = RNG.random((400, 3), dtype=np.float32)
    dst = np.concatenate([np.zeros(390, int), np.ones(10, int)])
    sampler = SampledMeans(x, dst, 2, fanout=20)
    exact = in_means(x, dst, 2)
    generator = np.random.default_rng(0)
    draws = np.stack([sampler.draw(generator).copy() for _ in range(400)])
    assert (draws[:, 1] == exact[1]).all()
    spread = draws[:, 0].std(0)
    assert (spread > 0.02).all()
    np.testing.assert_allclose(draws[:, 0].mean(0), exact[0], atol=5 * spread.max() / 20)


def test_presets_refuse_what_the_paper_does_not_know():
    with pytest.raises(InputError, match="own only"):
        preset("unsw-v2", "edge-aware", "nf-v2")
    with pytest.raises(InputError, match="--preset x"):
        preset("x", "graphids", "nf-v2")
    assert preset("auto", "graphids", "nf-v3") == PAPER["unsw-v3"]


@pytest.mark.parametrize(
    ("flows", "batch"), [(300, 300), (1028, 343), (5000, 500), (100_000, 10_000), (327_680, 32_768), (2_000_000, 32_768)]
)
def test_few_flows_get_smaller_batches_of_equal_size(flows, batch):
    assert preset("auto", "graphids", "nf-v2", flows=flows) == replace(PAPER["unsw-v2"], batch=batch)
    assert preset("unsw-v2", "graphids", "nf-v2", flows=flows) == PAPER["unsw-v2"]
