"""Designed spaces are flat and within the budget; the published widths follow from the published rule."""

import pytest
from moofa.budget import Budget, Infeasible, Target
from moofa.costs import CostTable
from moofa.design import DesignConfig, control, control_same_stages, design, published_widths
from moofa.flatness import flatness
from moofa.presets import PRESETS
from moofa.space import Space

FLAT = [
    (8, 1, 5_408, "A"),
    (28, 1, 14_912, "A"),
    (28, 1, 16_000, "D"),
    (32, 3, 30_000, "A"),
    (32, 3, 40_000, "D"),
    (32, 3, 20_000, "B"),
    (96, 3, 100_000, "C"),
    (224, 3, 400_000, "A"),
]


def test_published_widths_follow_from_the_published_rule():
    assert published_widths() == [96, 288, 360, 384, 392, 392]
    assert published_widths(expand=2) == [96, 272, 360, 384, 392, 392]
    assert published_widths(expand=3) == [96, 288, 368, 392, 400, 400]
    assert published_widths(expand=6) == [96, 296, 368, 392, 400, 400]
    space = PRESETS["moofa-v3"]()
    assert [24, *published_widths()] == [*(stage.width for stage in space.stages), space.final_expand, space.feature_mix]


@pytest.mark.parametrize(("resolution", "channels", "ram", "model"), FLAT)
def test_designed_spaces_are_flat_and_within_the_budget(resolution, channels, ram, model):
    target = Target(model, 8)
    found = design(Budget(ram=ram), target, DesignConfig(resolution, channels))
    assert 0.85 * ram <= found.largest["ram"] <= ram
    assert found.largest["flatness"] >= 0.7
    table = CostTable(found.space, target)
    assert (table.costs(table.genes.sample(500, __import__("numpy").random.default_rng(0))).ram <= ram).all()


def test_no_width_can_be_larger():
    """Each width is the largest multiple of the divisor: the next one breaks the budget in its own or the next stage."""
    ram, target = 16_000, Target("D", 8)
    space = design(Budget(ram=ram), target, DesignConfig(28, 1)).space
    for index, stage in enumerate(space.stages):
        wider = [one.model_copy(update={"width": stage.width + 4}) if place == index else one for place, one in enumerate(space.stages)]
        table = CostTable(space.model_copy(update={"stages": tuple(wider)}), target)
        assert table.costs(table.genes.encode([table.space.largest()])).ram[0] > ram


@pytest.mark.parametrize(("resolution", "channels", "ram", "model"), FLAT)
def test_once_for_alls_layout_is_not_flat_at_the_same_budget(resolution, channels, ram, model):
    target = Target(model, 8)
    space = design(Budget(ram=ram), target, DesignConfig(resolution, channels)).space
    other = control(Budget(ram=ram), target, space)
    assert other["flatness"] < 0.5
    assert other["ram"] <= ram
    table = CostTable(Space.from_json(other["space"]), target)
    ends = table.costs(table.genes.encode([table.space.largest()]))
    assert (ends.ram[0], ends.flatness[0]) == (other["ram"], other["flatness"])


def test_widths_in_its_proportions_alone_are_less_flat_than_the_design():
    budget, target = Budget(ram=40_000), Target("D", 8)
    found = design(budget, target, DesignConfig(32, 3))
    assert found.same_stages["ram"] <= 40_000
    assert found.same_stages["flatness"] < 0.7 <= found.largest["flatness"]
    assert control_same_stages(budget, target, found.space) == found.same_stages


def test_a_flash_limit_costs_stages_not_flatness():
    """Flat memory at half the size takes sixteen times the weights: what flash cannot pay is the last stages."""
    target = Target("C", 8)
    free = design(Budget(ram=60_000), target, DesignConfig(48, 3))
    tight = design(Budget(ram=60_000, flash=300_000), target, DesignConfig(48, 3))
    assert free.largest["flash"] > 300_000 >= tight.largest["flash"]
    assert tight.largest["flatness"] >= 0.7
    assert len(tight.space.stages) <= len(free.space.stages)


def test_digits8_is_what_the_rule_gives():
    found = design(Budget(ram=5408), Target("A", 8), DesignConfig(8, 1))
    assert found.space.stem.stride == 1
    assert [stage.width for stage in found.space.stages] == [8, 20]
    assert round(found.largest["flatness"], 2) == 0.88
    assert round(found.smallest["flatness"], 2) == 0.81


@pytest.mark.parametrize(
    ("name", "largest", "smallest"), [("digits8", 0.88, 0.81), ("mnist28", 0.83, 0.73), ("mnist28+", 0.86, 0.92), ("c32", 0.78, 0.96)]
)
def test_flatness_of_the_presets(name, largest, smallest):
    space = PRESETS[name]()
    table = CostTable(space, Target("A", 8))
    found = table.costs(table.genes.encode([space.largest(), space.smallest()])).flatness
    assert [round(float(value), 2) for value in found] == [largest, smallest]


def test_flash_limit_narrows_the_late_stages():
    target = Target("C", 8)
    free = design(Budget(ram=100_000), target, DesignConfig(64, 3))
    tight = design(Budget(ram=100_000, flash=500_000), target, DesignConfig(64, 3))
    assert free.largest["flash"] > 500_000 >= tight.largest["flash"]
    assert tight.cap is not None
    assert max(stage.width for stage in tight.space.stages) <= tight.cap


def test_impossible_budgets_say_what_is_needed():
    with pytest.raises(Infeasible, match="the narrowest needs") as caught:
        design(Budget(ram=1000), Target("D", 8), DesignConfig(64, 3))
    assert caught.value.smallest["ram"] > 1000


def test_flatness_by_hand():
    from edge_shared.memory import LayerMemory

    needs = [
        LayerMemory("stem.conv", 90, 90),
        LayerMemory("blocks.0.a", 10, 10),
        LayerMemory("blocks.0.b", 100, 100),
        LayerMemory("blocks.1.a", 50, 50),
    ]
    assert flatness(needs, 100) == 0.75
