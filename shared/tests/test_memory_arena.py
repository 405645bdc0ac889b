"""A plan never lets two living tensors overlap, and reaches model D's bound on the mobile family."""

import pytest
from edge_shared import architectures
from edge_shared.errors import InputError
from edge_shared.memory import arena, lifetimes, peak
from edge_shared.network import Layer, Network, Tensor, deployed
from hypothesis import given, settings
from hypothesis import strategies as st


def overlaps(network, plan):
    spans = lifetimes(network)
    names = list(plan.offsets)
    for index, one in enumerate(names):
        for other in names[:index]:
            together = spans[one][0] <= spans[other][1] and spans[other][0] <= spans[one][1]
            apart = (
                plan.offsets[one] + plan.sizes[one] <= plan.offsets[other] or plan.offsets[other] + plan.sizes[other] <= plan.offsets[one]
            )
            if together and not apart:
                return (one, other)
    return None


@st.composite
def networks(draw):
    """Chains with skips: every layer reads the tensor before it and perhaps an older one."""
    count = draw(st.integers(1, 12))
    tensors = {"t0": Tensor("t0", (1, draw(st.integers(1, 50))), 1)}
    layers = []
    for index in range(1, count + 1):
        tensors[f"t{index}"] = Tensor(f"t{index}", (1, draw(st.integers(1, 50))), 1)
        inputs = tuple(dict.fromkeys((f"t{index - 1}", f"t{draw(st.integers(0, index - 1))}")))
        layers.append(Layer(f"l{index}", "other", "op", inputs, f"t{index}", (1, 1), (1, 1)))
    return Network("random", ("t0",), (f"t{count}",), tuple(layers), tensors)


@given(networks(), st.sampled_from([1, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_no_two_living_tensors_overlap_and_no_plan_beats_the_bound(network, alignment):
    plan = arena(network, alignment=alignment)
    assert overlaps(network, plan) is None
    assert plan.bytes >= plan.lower_bound == peak(network, "D").bytes
    assert all(offset % alignment == 0 for offset in plan.offsets.values())


@pytest.mark.parametrize("name", ["mcunet-in0", "mcunet-in2", "mbv2-w0.35"])
def test_the_bound_is_reached_on_the_mobile_family(name):
    network = deployed(architectures.network(name))
    plan = arena(network, bits=8)
    assert plan.bytes == plan.lower_bound


def test_an_alignment_of_zero_is_refused():
    with pytest.raises(InputError, match="alignment is 0"):
        arena(deployed(architectures.network("mcunet-in0")), alignment=0)
