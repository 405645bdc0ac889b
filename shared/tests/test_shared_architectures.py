"""Published MACs, parameters and memories, from formulas and without torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from edge_shared import architectures, flops
from edge_shared.architectures.mobile import Block, MobileConfig, make_divisible, network
from edge_shared.errors import InputError
from edge_shared.memory import flash, peak, sram
from edge_shared.memory.schemes import Scheme, TrainingMemory, channel_activations, channel_cost, channel_macs, cost
from edge_shared.network import Layer, Network, deployed

# (width, resolution, millions of MACs, rounded down as published); parameters in millions by width
MOBILENET_V2 = [
    *((1.4, 224, 582), (1.3, 224, 509), (1.0, 224, 300), (1.0, 192, 221), (1.0, 160, 154), (1.0, 128, 99), (1.0, 96, 56)),
    *((0.75, 224, 209), (0.75, 192, 153), (0.75, 160, 107), (0.75, 128, 69), (0.75, 96, 39)),
    *((0.5, 224, 97), (0.5, 192, 71), (0.5, 160, 50), (0.5, 128, 32), (0.5, 96, 18)),
    *((0.35, 224, 59), (0.35, 192, 43), (0.35, 160, 30), (0.35, 128, 20), (0.35, 96, 11)),
]
PARAMS = {1.4: 6.06, 1.3: 5.34, 1.0: 3.47, 0.75: 2.61, 0.5: 1.95, 0.35: 1.66}


def params_without_norms(net: Network) -> int:
    return sum(layer.params for layer in net.layers if layer.kind != "norm")


@pytest.mark.parametrize(("width", "resolution", "millions"), MOBILENET_V2)
def test_mobilenet_v2_macs_and_params(width: float, resolution: int, millions: int) -> None:
    net = architectures.network("mobilenet_v2", width=width, resolution=resolution)
    assert flops.macs(net) // 10**6 == millions
    assert round(params_without_norms(net) / 1e6, 2) == PARAMS[width]


def test_mobilenet_v2_parameters_equal_torchvisions() -> None:
    assert architectures.network("mobilenet_v2").params == 3_504_872


# name: MACs in millions, parameters in millions with norms, SRAM KiB, flash KiB without code
MCUNET = {
    "mcunet-in0": (6.364, 0.7498, 48.89, 779.1),
    "mcunet-in2": (67.287, 0.7294, 214.63, 764.5),
    "mcunet-in4": (125.874, 1.7326, 416.13, 1761.6),
}
TINYENGINE_SRAM_KB = {"mcunet-in0": 49, "mcunet-in1": 96, "mcunet-in2": 215, "mcunet-in3": 260, "mcunet-in4": 416}


@pytest.mark.parametrize("name", MCUNET)
def test_mcunet(name: str) -> None:
    net = architectures.network(name)
    macs, params, ram, rom = MCUNET[name]
    assert round(flops.macs(net) / 1e6, 3) == macs
    assert round(net.params / 1e6, 4) == params
    assert sram(net).total / 1024 == pytest.approx(ram, abs=0.006)
    assert flash(net) / 1024 == pytest.approx(rom, abs=0.05)


@pytest.mark.parametrize("name", TINYENGINE_SRAM_KB)
def test_tinyengine_sram_to_the_printed_digit(name: str) -> None:
    assert round(sram(architectures.network(name)).total / 1024) == TINYENGINE_SRAM_KB[name]


@pytest.mark.parametrize(("index", "naive"), list(enumerate((46_080, 92_160, 332_800, 340_736, 422_400))))
def test_mcunet_naive_peak(index: int, naive: int) -> None:
    assert peak(architectures.network(f"mcunet-in{index}"), "B", bits=8).bytes == naive


@pytest.mark.parametrize(
    ("width", "resolution", "kib"),
    [
        (1, 224, 1372),
        (1, 192, 1008),
        (1, 160, 700),
        (1, 128, 448),
        (1, 96, 252),
        (0.5, 224, 686),
        (0.35, 224, 686),
        (0.5, 160, 350),
        (0.5, 96, 126),
    ],
)
def test_mobilenet_v2_peak_in_place(width: float, resolution: int, kib: int) -> None:
    assert peak(architectures.network("mobilenet_v2", width=width, resolution=resolution), "C", bits=8).bytes == kib * 1024


def test_mobilenet_v2_naive_and_patched_peaks() -> None:
    net = architectures.network("mobilenet_v2")
    assert peak(net, "B", bits=8).bytes == 1470 * 1024
    assert peak(net, "E", bits=8).bytes == 175_616 == 28 * 28 * (32 + 192)


def test_a_patched_run_counts_its_halo() -> None:
    """One patch per side is the whole map: the patched part then needs at least what model C needs there."""
    net = architectures.network("mobilenet_v2")
    whole, quarter = (peak(net, "E", bits=8, patches=n, patch_blocks=5).bytes for n in (1, 4))
    assert whole >= 1372 * 1024 > quarter


def test_a_patched_part_never_ends_inside_a_gated_block() -> None:
    """Behind the gate of a squeeze-and-excite block one tensor alone is alive, but the block has not ended."""
    from edge_shared.memory.inference import _cuts

    blocks = [{"kernel": 3, "expand": 4, "out": 8, "stride": stride, "se": True} for stride in (2, 1, 2)]
    net = deployed(network(MobileConfig.parse({"resolution": 32, "stem": {"out": 16}, "blocks": blocks})))
    assert [net.layers[index].name for index in _cuts(net)] == [
        "stem.conv",
        "blocks.0.project.conv",
        "blocks.1.add",
        "blocks.2.project.conv",
    ]


def test_a_block_without_expansion_can_follow_a_patched_one() -> None:
    """The cut lies between a projection and the depthwise convolution of a block with expand 1, as between any two blocks."""
    from edge_shared.memory.inference import _cuts

    block = {"kernel": 3, "out": 8, "stride": 1}
    net = deployed(
        network(
            MobileConfig.parse({"resolution": 32, "stem": {"out": 16}, "blocks": [{**block, "expand": 4}, block, {**block, "expand": 3}]})
        )
    )
    assert [net.layers[index].name for index in _cuts(net)] == ["stem.conv", "blocks.0.project.conv", "blocks.1.add", "blocks.2.add"]


def ofa(resolution: int, stem: int, text: str, final: int | None, mix: int, mix_bn: bool = False) -> Network:
    blocks = []
    for item in text.split():
        kernel, rest = item[1:].split("e", 1)
        expand, rest = rest.split("o")
        out, rest = rest.split("s")
        blocks.append({"kernel": int(kernel), "expand": int(expand), "out": int(out), "stride": int(rest[0]), "se": rest.endswith("SE")})
    data = {
        "resolution": resolution,
        "stem": {"out": stem},
        "blocks": blocks,
        "final_expand": final,
        "feature_mix": mix,
        "feature_mix_bn": mix_bn,
    }
    return network(MobileConfig.parse(data))


OFA = {
    "flops-389M": (
        ofa(224, 24, "k3e1o24s1 k3e3o32s2 k3e3o32s1 k5e3o48s2SE k5e6o48s1SE k3e3o48s1SE k5e4o96s2 k5e4o96s1 k3e3o96s1 k5e6o136s1SE k5e4o136s1SE k3e4o136s1SE k3e4o136s1SE k3e6o192s2SE k3e6o192s1SE k7e6o192s1SE k3e3o192s1SE", 1152, 1536),
        389.49, 8.387, 1_204_224,
    ),
    "cpu_lat-10ms": (
        ofa(144, 40, "k3e1o24s1 k5e4o32s2 k3e3o32s1 k3e3o56s2 k3e3o56s1 k7e3o104s2 k3e3o104s1 k7e3o104s1 k5e3o128s1 k5e4o128s1 k5e3o248s2 k3e4o248s1 k3e4o416s1", None, 1664, True),
        143.19, 4.158, 622_080,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OFA)
def test_once_for_all_specialised(name: str) -> None:
    net, macs, params, activations = OFA[name]
    assert round(flops.macs(net) / 1e6, 2) == macs
    assert round(net.params / 1e6, 3) == params
    assert peak(net, "B").items == activations


# name, published kB, n_bias, convs, ratios, weights, activations, units, biases, mask bits
SPARSE_UPDATE = [
    ("mbv2-w0.35", 49, 16, (36, 39, 40, 41, 42, 45, 48, 49), (1, 1, 0, 0.25, 0.125, 0.125, 0.125, 0.125), 22410, 5872, 28282, 3128, 80768),
    ("mbv2-w0.35", 73, 20, (32, 33, 36, 39, 41, 42, 45, 48), (0.125, 0.5, 0.5, 1, 0.25, 0.125, 0.125, 1), 39072, 7136, 46208, 3688, 116608),
    ("mbv2-w0.35", 99, 25, (27, 30, 33, 36, 39, 42, 45, 48), (1, 1, 1, 1, 1, 0.125, 0.5, 1), 55920, 10672, 66592, 4168, 147328),
    ("mbv2-w0.35", 138, 34, (27, 30, 33, 36, 39, 42, 45, 48), (1,) * 8, 81792, 11904, 93696, 5000, 222080),
    ("mcunet-5fps", 49, 20, (23, 24, 27, 30, 33, 39), (0, 0.25, 0.5, 0.5, 0, 0), 12096, 3840, 15936, 4592, 131840),
    ("mcunet-5fps", 74, 21, (21, 23, 24, 26, 27, 30), (1, 0, 1, 0, 0.5, 1), 29440, 10240, 39680, 4752, 142080),
    ("mcunet-5fps", 148, 23, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 1, 0.5), 98560, 14080, 112640, 4952, 154880),
    ("proxyless-w0.3", 49, 21, (39, 42, 44, 45, 50, 51, 54, 57), (0.25, 1, 0, 1, 0, 0.125, 0.25, 0.25), 20736, 5248, 25984, 3488, 86528),
    ("proxyless-w0.3", 74, 28, (33, 36, 39, 42, 45, 51, 54, 57), (0.5, 0.25, 1, 1, 1, 0.5, 0.25, 0.5), 36288, 8704, 44992, 4056, 122880),
    ("proxyless-w0.3", 148, 45, (36, 39, 42, 45, 48, 51, 54, 57), (1,) * 8, 89088, 12288, 101376, 4976, 243200),
]


@pytest.mark.parametrize("row", SPARSE_UPDATE, ids=lambda row: f"{row[0]}-{row[1]}kb")
def test_sparse_update_schemes(row: tuple) -> None:  # type: ignore[type-arg]
    name, kb, n_bias, convs, ratios, *expected = row
    net = architectures.network(name)
    scheme = Scheme.parse({"n_bias": n_bias, "convs": list(convs), "ratios": list(ratios)}, net)
    memory = cost(net, scheme, "mcunetv3")
    assert [memory.selected_weights, memory.selected_activations, memory.units, memory.bias_params, memory.mask_bits] == expected
    assert int(memory.kilobytes) == kb


@pytest.mark.parametrize(
    ("name", "last", "kib"),
    [("mcunet-5fps", 12, 448.05), ("mcunet-5fps", 6, 276.34), ("mcunet-5fps", 42, 1400.39), ("mbv2-w0.35", 6, 129.50), ("mbv2-w0.35", 12, 223.73),
     ("mbv2-w0.35", 51, 1306.44), ("proxyless-w0.3", 6, 139.34), ("proxyless-w0.3", 12, 266.41), ("proxyless-w0.3", 60, 1210.73)],
)  # fmt: skip
def test_last_convolutions(name: str, last: int, kib: float) -> None:
    net = architectures.network(name)
    assert round(cost(net, Scheme.parse({"last_convs": last}, net), "mcunetv3").kilobytes, 2) == kib


@pytest.mark.parametrize(
    ("name", "layers", "weights", "units", "macs"),
    [("mbv2-w0.35-zoo", 52, 288_864, 1_252_320, 17_449_728), ("mcunet-5fps", 42, 463_216, 1_309_808, 22_453_504), ("proxyless-w0.3-zoo", 61, 357_680, 1_162_032, 19_209_728)],
)  # fmt: skip
def test_whole_network_totals(name: str, layers: int, weights: int, units: int, macs: int) -> None:
    net = architectures.network(name, resolution=128)
    memory = cost(net, Scheme.last(net, layers), "units")
    assert (len(net.convs()), memory.selected_weights, memory.units) == (layers, weights, units)
    assert sum(flops.forward(layer) for layer in net.convs()) == macs


# Bytes of all convolution inputs: (name, resolution, batch, how many last convolutions, MiB)
ACTIVATIONS = [
    ("mobilenet_v2", 224, 128, 52, 3303.671875), ("mobilenet_v2", 224, 128, 2, 30.625), ("mobilenet_v2", 224, 128, 4, 57.421875),
    ("mcunet-in1", 224, 128, 42, 1265.9609), ("mcunet-in1", 224, 128, 2, 27.5625), ("mcunet-in1", 224, 128, 4, 39.0469),
    ("resnet18", 224, 64, 2, 12.25), ("resnet18", 224, 64, 4, 30.625), ("resnet18", 224, 64, 20, 532.88),
    ("resnet34", 224, 64, 2, 12.25), ("resnet34", 224, 64, 4, 24.5), ("resnet34", 224, 64, 36, 839.12),
]  # fmt: skip


@pytest.mark.parametrize(("name", "resolution", "batch", "last", "mib"), ACTIVATIONS)
def test_activation_memories(name: str, resolution: int, batch: int, last: int, mib: float) -> None:
    convs = architectures.network(name, resolution=resolution).convs()
    assert sum(layer.in_items for layer in convs[len(convs) - last :]) * batch * 4 / 2**20 == pytest.approx(mib, abs=0.005)


def test_torchvision_convolution_weights() -> None:
    """The parameter budgets of Velocity: convolution weights without biases."""
    expected = {"mobilenet_v2": 2_189_760, "resnet18": 11_166_912, "resnet50": 23_454_912}
    assert {name: sum(layer.weights for layer in architectures.network(name).convs()) for name in expected} == expected


def test_paper_convention_counts_depthwise_as_dense() -> None:
    """ASI's figures for the last convolutions of MCUNet, reproduced only with its convention."""
    convs = architectures.network("mcunet-in1", resolution=224).convs()
    total = sum(128 * (flops.forward(layer, "paper") + flops.weight_gradient(layer, "paper")) for layer in convs[-2:])
    assert total == pytest.approx(3.861e10, rel=1e-3)


def test_channel_cost_by_hand() -> None:
    from edge_shared.architectures._builder import NetworkBuilder

    build = NetworkBuilder("hand", (1, 4, 6, 6))
    x = build.conv("input", 4, 3, "depthwise", groups=4)
    build.conv(x, 8, 3, "dense")
    first, second = build.build("dense").convs()
    assert (channel_cost(first, 1), channel_cost(second, 1)) == (9 + 36, 72 + 36)


def test_cost_is_per_sample_of_the_network_not_of_a_layers_own_first_axis() -> None:
    """Two samples in 4 windows of 9 tokens each: one sample of a linear layer has 36 tokens, and only real biases count."""
    shape, wide = (8, 9, 5), (8, 9, 7)
    windowed = Layer("qkv", "linear", "linear", ("input",), "y", shape, wide, weights=35, params=35)
    assert (channel_activations(windowed, 2), channel_macs(windowed, 2)) == (36, 7 * 36)

    from edge_shared.architectures._builder import NetworkBuilder

    def memory(batch: int, bias: bool) -> TrainingMemory:
        build = NetworkBuilder("hand", (batch, 4, 6, 6))
        one = build.build(build.conv("input", 8, 3, "only"))
        layers = tuple(replace(layer, bias=bias) for layer in one.layers)
        return cost(replace(one, layers=layers), Scheme.last(one, 1), "mcunetv3")

    assert memory(1, True) == memory(2, True)
    assert (memory(1, True).bias_params, memory(1, False).bias_params) == (8, 0)


def test_bert_base_total() -> None:
    """TraDy's total of BERT-base at 128 tokens: all linear weights and biases, and every linear layer's own input."""
    from edge_shared.architectures._builder import NetworkBuilder

    build, x = NetworkBuilder("bert-base", (1, 128, 768)), "input"
    for index in range(12):
        for name in ("q", "k", "v"):
            build.linear(x, 768, f"{index}.{name}")
        x = build.linear(f"{index}.v", 768, f"{index}.o")
        x = build.linear(build.linear(x, 3072, f"{index}.fc1"), 768, f"{index}.fc2")
    pooler = NetworkBuilder("pooler", (1, 768))
    pooler.linear("input", 768, "pooler")
    layers = (*build.build(x).layers, *pooler.build("pooler").layers)
    assert sum(layer.params + layer.in_items for layer in layers) == 96_225_792


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"n_bias": 99, "convs": [], "ratios": []}, "n_bias is 99"),
        ({"n_bias": 2, "convs": [0], "ratios": [1]}, "raise n_bias to 42"),
        ({"n_bias": 42, "convs": [1], "ratios": [1.5]}, "between 0 and 1"),
        ({"n_bias": 42, "convs": [1, 1], "ratios": [1, 1]}, "twice"),
        ({"n_bias": 42, "convs": [True], "ratios": [1]}, "convs names True"),
        ({"last_convs": 43}, "has 42 convolutions"),
        ({"frobnicate": 1}, "unknown field"),
        ([], "JSON object"),
    ],
)
def test_bad_schemes_say_what_is_wrong(scheme: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scheme.parse(scheme, architectures.network("mcunet-5fps"))


def test_network_json_round_trip_and_refusals() -> None:
    net = architectures.network("mcunet-in0")
    data = net.to_json()
    assert Network.from_json(data) == net
    import json

    assert Network.from_json(json.loads(json.dumps(data))) == net
    for spoil in ("layers", "tensors", "inputs"):
        with pytest.raises(InputError):
            Network.from_json({key: value for key, value in data.items() if key != spoil})
    with pytest.raises(InputError, match="before it is written"):
        Network.from_json({**data, "layers": data["layers"][1:]})


def test_deployed_keeps_macs_and_drops_norms() -> None:
    net = architectures.network("mobilenet_v2")
    board = deployed(net)
    assert flops.macs(board) == flops.macs(net)
    assert {layer.kind for layer in board.layers} == {"conv", "add", "pool", "reshape", "linear"}
    assert len(board.convs()) == 52
    assert all(layer.bias for layer in board.convs())


def test_unknown_names() -> None:
    for name in ("mobilenet_v9", "mobilenet_v2-wx", "resnet19"):
        with pytest.raises(InputError, match="unknown architecture"):
            architectures.network(name)


def test_make_divisible_never_loses_a_tenth() -> None:
    assert [make_divisible(value) for value in (1, 12, 11, 20, 33.6)] == [8, 16, 16, 24, 32]
    assert all(make_divisible(value) >= 0.9 * value and make_divisible(value) % 8 == 0 for value in range(1, 500))


def test_block_middle() -> None:
    assert Block(kernel=3, expand=4, out=8).middle(24) == 96
    assert Block(kernel=3, expand=4, mid=50, out=8).middle(24) == 50
    assert Block(kernel=3, expand=1, out=8).middle(20) == 20
