"""Latency tables: blocks are whole parts of the network, estimates are their sums, limits hold."""

import json

import numpy as np
import pytest
from edge_shared.architectures import mobile
from edge_shared.cli import run
from edge_shared.errors import InputError
from moofa.budget import Budget, Infeasible, Target
from moofa.cli import app
from moofa.costs import CostTable
from moofa.latency import LatencyTable, _feeds, _model, measure, measure_space
from moofa.presets import PRESETS
from moofa.search import Archive, nsga2, search

SPACE = PRESETS["digits8"]()


def made(space=SPACE, seed=0):
    """A table of made-up milliseconds that no larger option undercuts."""
    rng = np.random.default_rng(seed)
    places = sum(stage.depths[-1] for stage in space.stages)
    shape = (places, len(space.resolutions), 2 if space is SPACE else 3, 3)
    values = rng.uniform(0.1, 1, shape).cumsum(1).cumsum(2).cumsum(3)
    return LatencyTable(space.fingerprint(), {"threads": 1}, rng.uniform(1, 2, shape[1]).cumsum().tolist(), values.tolist(), 0.25)


def test_the_timed_parts_are_the_network_cut_between_its_blocks():
    """Run one after the other they give what the whole gives: same layers, same order, same shapes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    space = PRESETS["moofa-v3"]().model_copy(update={"resolutions": (32,)})  # squeeze-and-excite, hard-swish, fixed block, head
    network = mobile.network(space.config(space.smallest()))
    layers = list(network.layers)
    starts = [index for index, layer in enumerate(layers) if layer.name.endswith((".expand.conv", "final_expand.conv"))]
    parts = [layers[a:b] for a, b in zip([0, *starts], [*starts, len(layers)], strict=True)]
    values = _feeds(network, layers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    whole = onnxruntime.InferenceSession(_model(network, layers), options).run(None, values)[0]
    assert whole.shape == network.tensors[network.outputs[0]].shape
    shapes = []
    for part in parts:
        session = onnxruntime.InferenceSession(_model(network, part), options)
        assert len(session.get_inputs()) == 1
        (out,) = session.run(None, {session.get_inputs()[0].name: np.zeros(session.get_inputs()[0].shape, np.float32)})
        shapes.append((tuple(session.get_inputs()[0].shape), out.shape))
    assert shapes[0][0] == (1, 3, 32, 32)
    assert [out for _, out in shapes[:-1]] == [into for into, _ in shapes[1:]]
    assert shapes[-1][1] == whole.shape


def test_estimates_are_sums_over_the_blocks_that_exist():
    table = made()
    costs = CostTable(SPACE, Target(), table)
    rows = costs.genes.sample(50, np.random.default_rng(1))
    for row, value in zip(rows, costs.costs(rows).latency_ms, strict=True):
        choice = costs.genes.decode(row)
        expected = table.fixed[0] + table.overhead
        place = 0
        for stage, blocks in zip(SPACE.stages, choice.stages, strict=True):
            for index, (kernel, expand) in enumerate(blocks):
                expected += table.blocks[place + index][0][stage.kernels.index(kernel)][stage.expands.index(expand)]
            place += stage.depths[-1]
        assert value == pytest.approx(expected, rel=1e-12)


def test_noise_never_makes_a_larger_option_faster():
    values = np.random.default_rng(0).uniform(0, 1, (4, 1, 2, 3))
    monotone = LatencyTable("", {}, [1.0], values.tolist(), 0.0).monotone
    assert (np.diff(monotone, axis=2) >= 0).all()
    assert (np.diff(monotone, axis=3) >= 0).all()
    assert (monotone >= values).all()
    assert monotone.max() == values.max()


@pytest.mark.parametrize("method", ["evolution", "exhaustive"])
def test_a_limit_on_latency_holds_and_a_larger_one_is_never_worse(method):
    costs = CostTable(SPACE, Target("D", 8), made())
    rng = np.random.default_rng(3)
    weights = rng.normal(size=len(costs.genes.sizes)) + 0.5

    def score(rows):
        return np.round(rows @ weights, 9)

    rows = costs.genes.enumerate()
    every = costs.costs(rows)
    last = -np.inf
    for limit in np.quantile(every.latency_ms, [0, 0.1, 0.4, 0.8, 1]):
        budget = Budget(ram=4096, latency_ms=float(limit))
        found = search(costs, score, budget, method=method).found
        assert found.costs["latency_ms"] <= limit
        assert found.score >= last
        assert found.score == score(rows)[budget.allows(every)].max() or method == "evolution"
        last = found.score
    with pytest.raises(Infeasible, match="ms"):
        search(costs, score, Budget(latency_ms=0.1))


def test_a_front_over_five_goals_holds_only_what_nothing_beats():
    costs = CostTable(SPACE, Target("B", 8), made())
    archive = Archive(costs, lambda rows: np.round(rows.sum(1) / 100.0, 6))
    names = ("ram", "flash", "macs", "latency_ms")
    front = nsga2(archive, names=names, population=40, generations=5)
    points = np.array([[-one.score, *(one.costs[name] for name in names)] for one in front])
    for point in points:
        assert not (np.all(points <= point, axis=1) & np.any(points < point, axis=1)).any()


def test_without_a_table_there_is_a_word():
    costs = CostTable(SPACE, Target())
    with pytest.raises(InputError, match="moofa latency"):
        search(costs, lambda rows: rows.sum(1), Budget(latency_ms=1.0))
    with pytest.raises(InputError, match="moofa latency"):
        nsga2(Archive(costs, lambda rows: rows.sum(1)), names=("latency_ms",))
    assert np.isnan(costs.costs(costs.genes.sample(3, np.random.default_rng(0))).latency_ms).all()


def test_a_table_goes_to_a_file_and_back_and_belongs_to_one_space(tmp_path):
    path = tmp_path / "table.json"
    table = made()
    table.save(path)
    assert LatencyTable.load(path, SPACE) == table
    with pytest.raises(InputError, match="another space"):
        LatencyTable.load(path, PRESETS["mnist28"]())
    data = json.loads(path.read_text())
    data["blocks"] = data["blocks"][:1]
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="damaged"):
        LatencyTable.load(path, SPACE)
    path.write_text("[]")
    with pytest.raises(InputError, match="no latency table"):
        LatencyTable.load(path, SPACE)


def test_measuring_a_space_and_a_network(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    table = measure_space(SPACE, milliseconds=1)
    assert np.array(table.blocks).shape == (4, 1, 2, 3)
    assert min(table.fixed) >= 0 < table.overhead  # what is left after the overhead: nothing, on a busy machine
    assert (np.array(table.blocks) >= 0).all()
    found = measure(SPACE.config(SPACE.largest()), milliseconds=5)
    assert found.quartiles_ms[0] <= found.median_ms <= found.quartiles_ms[1]
    assert found.runs >= 5
    path = tmp_path / "latency.json"
    assert run(app, ["latency", "--space", "digits8", "--milliseconds", "1", "--out", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["largest"]["estimated_ms"] >= document["smallest"]["estimated_ms"] > 0
    assert LatencyTable.load(path, SPACE).machine["threads"] == 1
    assert run(app, ["latency", "--out", str(path)]) == 2
