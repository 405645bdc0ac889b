"""The vectorised costs against the shared core, network by network."""

import numpy as np
import pytest
from edge_shared import flops
from edge_shared.architectures import mobile
from edge_shared.devices import load
from edge_shared.memory import flash, peak, sram
from hypothesis import given, settings
from hypothesis import strategies as st
from moofa.budget import Budget, Target, device_budget
from moofa.costs import CostTable
from moofa.flatness import flatness
from moofa.presets import PRESETS
from moofa.space import Genes, Space

TARGETS = [(model, bits, None) for model, bits in zip("ABCDE", (8, 4, 8, 32, 8), strict=True)] + [("C", 8, "stm32f746"), ("A", 32, "pi-4b")]


def expected(space: Space, row: np.ndarray, target: Target, patch_blocks: int | None) -> dict[str, float]:
    network = mobile.network(space.config(Genes(space).decode(row)))
    options = {"patch_blocks": patch_blocks} if target.memory_model == "E" else {}
    found = peak(network, target.memory_model, bits=target.bits, **options)
    ram = found.bytes
    if target.has_scratch:
        ram = sram(network).total
    return {
        "macs": flops.macs(network),
        "params": sum(layer.params for layer in network.layers if layer.kind != "norm"),
        "params_with_bn": network.params,
        "peak_items": found.items,
        "peak_bytes": found.bytes,
        "ram": ram,
        "flash": flash(network, target.bits),
        "flatness": flatness(found.per_layer, found.items),
    }


@pytest.mark.parametrize(
    ("name", "model", "bits", "device"),
    [(name, *target) for name in ("digits8", "mnist28+") for target in TARGETS]
    + [
        ("moofa-v3", "A", 8, None),
        ("moofa-v3", "C", 8, "stm32f746"),
        ("ofa-mobilenet-v3", "D", 8, None),
        ("ofa-mobilenet-v3", "E", 8, None),
        ("moofa-v2", "E", 8, None),
    ],
)
def test_costs_equal_the_shared_arithmetic_exactly(name, model, bits, device):
    space = PRESETS[name]()
    table = CostTable(space, Target(model, bits, load(device) if device else None))
    ends = table.genes.encode([space.smallest(), space.largest()])
    rows = np.vstack([ends, table.genes.sample(6, np.random.default_rng(1))])
    costs = table.costs(rows)
    for index, row in enumerate(rows):
        assert costs.row(index) == expected(space, row, table.target, table.patch_blocks)


def test_costs_of_every_network_of_digits8():
    space = PRESETS["digits8"]()
    table = CostTable(space, Target("D", 8))
    rows = table.genes.enumerate()
    costs = table.costs(rows)
    for index in range(0, len(rows), 29):
        assert costs.row(index) == expected(space, rows[index], table.target, None)


def test_expand_one_is_costed_without_expansion():
    space = PRESETS["moofa-v2"]()
    for model in "ABCD":
        table = CostTable(space, Target(model, 8))
        rows = table.genes.sample(5, np.random.default_rng(0))
        costs = table.costs(rows)
        for index, row in enumerate(rows):
            assert costs.row(index) == expected(space, row, table.target, None)


def test_patched_beginnings_are_asked_for_once_per_kernels_not_per_network(monkeypatch):
    """Model E of two thousand networks takes as many profiles as there are sequences of places and kernels, times expansions."""
    import moofa.costs

    table = CostTable(PRESETS["mnist28+"](), Target("E", 8))
    asked = []
    monkeypatch.setattr(moofa.costs, "peak", lambda *args, **options: (asked.append(1), peak(*args, **options))[1])
    costs = table.costs(table.genes.sample(2000, np.random.default_rng(0)))
    # Two elastic blocks in patches, in the first stage or the first two: 2 sequences of places, 3 kernels each, 3 expansions.
    assert table.patch_blocks == 3
    assert len(asked) == 2 * 3**2 * 3
    again = table.costs(table.genes.sample(2000, np.random.default_rng(1)))
    assert len(asked) == 2 * 3**2 * 3
    assert len(np.unique(np.concatenate([costs.peak_items, again.peak_items]))) > 15


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["digits8", "mnist28", "moofa-v2"]), st.sampled_from("ABCD"))
def test_the_smallest_network_needs_least_of_everything(seed, name, model):
    table = _table(name, model)
    smallest = table.costs(table.genes.encode([table.space.smallest()]))
    largest = table.costs(table.genes.encode([table.space.largest()]))
    costs = table.costs(table.genes.sample(200, np.random.default_rng(seed)))
    for field in ("ram", "flash", "macs"):
        assert (getattr(costs, field) >= getattr(smallest, field)[0]).all()
        assert (getattr(costs, field) <= getattr(largest, field)[0]).all()


_TABLES: dict[tuple[str, str], CostTable] = {}


def _table(name: str, model: str) -> CostTable:
    if (name, model) not in _TABLES:
        _TABLES[name, model] = CostTable(PRESETS[name](), Target(model, 8))
    return _TABLES[name, model]


def test_genes_round_trip_and_enumeration_is_complete():
    space = PRESETS["digits8"]()
    genes = Genes(space)
    rows = genes.enumerate()
    assert len(rows) == space.size == 1764
    choices = [genes.decode(row) for row in rows]
    assert len(set(choices)) == 1764
    assert (genes.encode(choices) == rows).all()


def test_sampled_depths_are_uniform():
    from scipy.stats import chisquare

    space = PRESETS["mnist28+"]()
    rows = Genes(space).sample(3000, np.random.default_rng(0))
    counts = np.bincount(rows[:, Genes(space).depth_columns[0]])
    assert chisquare(counts).pvalue > 1e-3


def test_sizes_of_the_published_and_small_spaces():
    assert PRESETS["ofa-mobilenet-v3"]().size == 4 * 7371**5
    assert PRESETS["mnist28"]().size == 74_088
    assert PRESETS["c32"]().size == 729_000
    assert PRESETS["mnist28+"]().size == 549_353_259


def test_device_budgets():
    board = Target("C", 8, load("stm32f746"))
    limits = device_budget(board)
    assert limits.ram == 320 * 1024
    assert limits.flash == 1024 * 1024 - round(63.7 * 1024)
    pi = Target("A", 32, load("pi-4b"))
    assert device_budget(pi).ram == 1024 * 1024  # the shared second-level cache
    assert device_budget(Target("D", 32, load("pi-4b"))).ram == 4 * 1024**3
    # Outside of model A all weights are counted where they lie in RAM.
    assert Target("D", 32, load("pi-4b")).ram(100, 50, 0) == 150
    assert Budget(ram=5).limits == {"ram": 5}
