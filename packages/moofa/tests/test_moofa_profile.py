"""Published and independently computed figures, and a second implementation of the paper's formula."""

import json
from pathlib import Path

import pytest
from edge_shared.architectures.mobile import MobileConfig, make_divisible
from edge_shared.cli import run
from edge_shared.devices import load
from hypothesis import example, given, settings
from hypothesis import strategies as st
from moofa.cli import app
from moofa.presets import PRESETS
from moofa.profile import profile, profile_all
from moofa.space import Choice

BOARD = load("stm32h743")
GOLDEN = json.loads((Path(__file__).parent / "golden_peaks.json").read_text())

MCUNET = {
    "in0": (48, 24, "1,16,1,3 4,16,2,5 3,16,1,3 4,16,1,3 5,24,2,7 4,24,1,5 5,24,1,5 5,48,2,7 4,48,1,5 5,56,1,3 4,56,1,5 5,56,1,3 6,112,2,3 4,112,1,5 6,192,1,3"),
    "in1": (96, 16, "1,8,1,3 4,16,2,3 3,16,1,3 3,24,2,7 5,24,1,3 5,40,2,3 4,40,1,7 4,48,1,5 3,48,1,3 4,48,1,3 5,96,2,7 4,96,1,5 4,96,1,5 6,160,1,3"),
    "in2": (160, 16, "1,8,1,3 3,16,2,5 6,16,1,7 5,16,1,3 5,16,1,5 5,24,2,3 6,24,1,7 6,24,1,5 4,40,2,7 5,40,1,5 5,48,1,3 5,48,1,5 4,48,1,3 6,96,2,5 4,96,1,5 3,96,1,5 4,96,1,3 5,160,1,5"),
    "in3": (176, 16, "1,8,1,3 3,16,2,7 5,16,1,3 5,16,1,7 4,16,1,5 5,24,2,5 5,24,1,5 5,24,1,5 5,40,2,3 6,40,1,7 4,40,1,5 5,48,1,5 5,48,1,7 4,48,1,3 6,96,2,3 5,96,1,7 4,96,1,3 5,160,1,7"),
    "in4": (160, 32, "1,16,1,3 3,24,2,7 5,24,1,3 4,24,1,5 5,40,2,7 4,40,1,3 4,40,1,7 3,80,2,7 3,80,1,3 3,80,1,7 4,96,1,3 3,96,1,5 3,96,1,5 4,192,2,7 3,192,1,7 3,192,1,5 4,320,1,5"),
}  # fmt: skip
PUBLISHED_SRAM_KB = {"in0": 49, "in1": 96, "in2": 215, "in3": 260, "in4": 416}  # TinyEngine's measured results, STM32H743
OFA = {
    # resolution, stem, blocks (k e o s SE), final expand, mix, mix has norm; MACs, params with norms, activation peak
    "flops-389M": (
        224, 24, "3,1,24,1,0 3,3,32,2,0 3,3,32,1,0 5,3,48,2,1 5,6,48,1,1 3,3,48,1,1 5,4,96,2,0 5,4,96,1,0 3,3,96,1,0 5,6,136,1,1 5,4,136,1,1 "
        "3,4,136,1,1 3,4,136,1,1 3,6,192,2,1 3,6,192,1,1 7,6,192,1,1 3,3,192,1,1", 1152, 1536, False, 389.49, 8.387, 1_204_224,
    ),
    "LG-G8-8ms": (
        144, 16, "3,1,16,1,0 3,3,24,2,0 3,3,24,1,0 5,4,40,2,1 5,3,40,1,1 5,3,80,2,0 3,3,80,1,0 3,3,80,1,0 3,6,112,1,1 7,4,112,1,1 3,6,160,2,1 "
        "7,4,160,1,1", 960, 1280, False, 73.47, 4.112, 331_776,
    ),
    "cpu-10ms": (
        144, 40, "3,1,24,1,0 5,4,32,2,0 3,3,32,1,0 3,3,56,2,0 3,3,56,1,0 7,3,104,2,0 3,3,104,1,0 7,3,104,1,0 5,3,128,1,0 5,4,128,1,0 5,3,248,2,0 "
        "3,4,248,1,0 3,4,416,1,0", None, 1664, True, 143.19, 4.158, 622_080,
    ),
}  # fmt: skip


def mcunet(name: str) -> dict:
    resolution, stem, text = MCUNET[name]
    blocks = [dict(zip(("expand", "out", "stride", "kernel"), map(int, part.split(",")), strict=True)) for part in text.split()]
    return {"resolution": resolution, "in_channels": 3, "stem": {"out": stem, "kernel": 3, "stride": 2}, "blocks": blocks, "classes": 1000}


def ofa(name: str) -> tuple[dict, float, float, int]:
    resolution, stem, text, final, mix, mix_bn, macs, params, peak = OFA[name]
    blocks = []
    for part in text.split():
        kernel, expand, out, stride, se = map(int, part.split(","))
        blocks.append({"kernel": kernel, "expand": expand, "out": out, "stride": stride, "se": bool(se)})
    network = {
        "resolution": resolution, "in_channels": 3, "stem": {"out": stem, "kernel": 3, "stride": 2}, "blocks": blocks,
        "final_expand": final, "feature_mix": mix, "feature_mix_bn": mix_bn, "classes": 1000,
    }  # fmt: skip
    return network, macs, params, peak


def golden_choice(resolution: int, text: str) -> Choice:
    stages = []
    for stage in text.split(" | "):
        stages.append(tuple((int(block.split("/")[0]), float(block.split("/")[1])) for block in stage.split()))
    return Choice(resolution, tuple(stages))


def paper_peak(config: MobileConfig) -> int:
    """The paper's formula, written a second time: in + out + weights, the skip only in the depthwise convolution."""
    size = -(-config.resolution // config.stem.stride)
    channels = config.stem.out
    needs = [config.in_channels * config.resolution**2 + channels * size**2 + config.in_channels * channels * config.stem.kernel**2]
    for block in config.blocks:
        middle = channels if block.expand == 1 else make_divisible(channels * block.expand)
        after = -(-size // block.stride)
        skip = channels * size**2 if block.stride == 1 and channels == block.out else 0
        if block.expand != 1:
            needs.append(channels * size**2 + middle * size**2 + channels * middle)
        needs.append(middle * size**2 + middle * after**2 + middle * block.kernel**2 + skip)
        needs.append(middle * after**2 + block.out * after**2 + middle * block.out)
        channels, size = block.out, after
    if config.final_expand:
        needs.append(channels * size**2 + config.final_expand * size**2 + channels * config.final_expand)
    return max(needs)


def test_the_papers_metric_equals_every_published_pair():
    wrong = []
    for space_name, resolution, text, published in GOLDEN:
        config = PRESETS[space_name]().config(golden_choice(resolution, text))
        found = profile(config, compat="moofa-paper", with_layers=False).peak_items
        if not found == published == paper_peak(config):
            wrong.append((space_name, resolution, published, found))
    assert len(GOLDEN) == 240
    assert not wrong


@st.composite
def networks(draw) -> MobileConfig:
    """Any network of the family: expand 1 with and without a skip, sizes down to one pixel, gates, heads."""
    width = st.sampled_from([3, 8, 12, 16, 24, 40])
    block = st.fixed_dictionaries(
        {"kernel": st.sampled_from([1, 3, 5, 7, 9]), "expand": st.sampled_from([1, 1, 1.5, 2, 2.5, 3, 6]), "stride": st.sampled_from([1, 1, 2]), "se": st.booleans()}
    )  # fmt: skip
    before, blocks = draw(width), []
    stem = {"out": before, "kernel": draw(st.sampled_from([1, 3, 5])), "stride": draw(st.sampled_from([1, 2]))}
    for part in draw(st.lists(block, min_size=1, max_size=6)):
        before = draw(st.sampled_from([before, before, 8, 16, 20]))
        blocks.append({**part, "out": before})
    return MobileConfig.parse(
        {
            "resolution": draw(st.integers(4, 48)), "in_channels": draw(st.sampled_from([1, 3])), "stem": stem, "blocks": blocks,
            "final_expand": draw(st.sampled_from([None, 24, 96])), "feature_mix": draw(st.sampled_from([None, 64])),
            "feature_mix_bn": draw(st.booleans()), "classes": draw(st.sampled_from([2, 10, 1000])),
        }
    )  # fmt: skip


ONE_PIXEL = MobileConfig.parse(
    {
        "resolution": 4, "in_channels": 1, "stem": {"out": 8, "kernel": 3, "stride": 2}, "classes": 1000, "feature_mix": 32,
        "blocks": [{"kernel": 3, "expand": 2, "out": 8, "stride": 2, "se": True}],
    }
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(networks())
@example(ONE_PIXEL)  # the classifier is no part of the metric, whatever is left to pool
def test_the_papers_metric_equals_its_formula_on_any_network(config):
    """The published pairs hold no expand 1 block at the peak; the formula counts such a block's input twice where it is the skip."""
    assert profile(config, compat="moofa-paper", with_layers=False).peak_items == paper_peak(config)


def test_defect_3_model_a_counts_the_skip_in_the_projection():
    under, sample = 0, GOLDEN[::4]
    for space_name, resolution, text, published in sample:
        config = PRESETS[space_name]().config(golden_choice(resolution, text))
        full = profile(config, memory_model="A", with_layers=False).peak_items
        assert full >= published
        under += full > published
        # Whether a device has room is asked of the full model in either case.
        with_device, with_both = (
            profile(config, memory_model="A", device=BOARD, compat=c, with_layers=False) for c in (None, "moofa-paper")
        )
        assert (with_both.sram_bytes, with_both.fits) == (with_device.sram_bytes, with_device.fits)
    # The paper's metric promises too little for many of its own networks.
    assert under > len(sample) / 6


@pytest.mark.parametrize(
    ("space", "resolution", "end", "compat_peak", "full_peak", "macs", "params"),
    [
        ("ofa-mobilenet-v3", 128, "smallest", 262_912, 262_912, 41, 3.40),
        ("ofa-mobilenet-v3", 224, "smallest", 803_584, 803_584, 121, 3.40),
        ("ofa-mobilenet-v3", 224, "largest", 1_509_984, 1_509_984, 566, 7.62),
        ("moofa-v3", 128, "smallest", 299_520, 301_056, 79, 3.97),
        ("moofa-v3", 160, "smallest", 305_280, 308_736, 125, 3.97),
        ("moofa-v3", 224, "smallest", 378_048, 391_680, 242, 3.97),
        ("moofa-v3", 128, "largest", 597_504, 599_040, 381, 19.26),
        ("moofa-v3", 224, "largest", 696_192, 696_192, 1170, 19.26),
    ],
)
def test_extremes_of_the_published_spaces(space, resolution, end, compat_peak, full_peak, macs, params):
    networks = PRESETS[space]()
    config = networks.config(getattr(networks, end)(resolution))
    assert profile(config, compat="moofa-paper").peak_items == compat_peak
    full = profile(config, memory_model="A")
    assert full.peak_items == full_peak
    assert round(full.macs / 1e6) == macs
    assert round(full.params / 1e6, 2) == params


@pytest.mark.parametrize(
    ("name", "macs", "params", "activations", "sram_kib", "flash_kib"),
    [
        ("in0", 6.364, 0.7498, 46_080, 48.89, 779.1),
        ("in1", 12.790, 0.6362, 92_160, 95.73, 663.4),
        ("in2", 67.287, 0.7294, 204_800, 214.63, 764.5),
        ("in3", 81.176, 0.7322, 247_808, 260.10, 766.3),
        ("in4", 125.874, 1.7326, 409_600, 416.13, 1761.6),
    ],
)
def test_tinyengine_sram_of_mcunet_on_stm32h743(name, macs, params, activations, sram_kib, flash_kib):
    config = MobileConfig.parse(mcunet(name))
    found = profile(config, device=BOARD, bits=8)
    assert round(found.macs / 1e6, 3) == macs
    assert round(found.params_with_bn / 1e6, 4) == params
    assert (found.memory_model, found.peak_bytes) == ("C", activations)
    assert found.peak_layer == "blocks.1.expand.conv"
    assert found.sram_bytes / 1024 == pytest.approx(sram_kib, abs=0.0051)
    assert round(found.sram_bytes / 1024) == PUBLISHED_SRAM_KB[name]
    assert round(found.flash_bytes / 1024, 1) == flash_kib
    assert found.fits


@pytest.mark.parametrize("name", OFA)
def test_once_for_alls_specialised_networks(name):
    network, macs, params, peak = ofa(name)
    found = profile(MobileConfig.parse(network), memory_model="B")
    assert round(found.macs / 1e6, 2) == macs
    assert round(found.params_with_bn / 1e6, 3) == params
    assert found.peak_items == peak


def test_layers_add_up():
    found = profile(MobileConfig.parse(mcunet("in0")), memory_model="D", bits=8)
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert sum(layer.params for layer in found.layers) == found.params_with_bn
    assert max(layer.items for layer in found.layers) == found.peak_items


def test_mid_wins_over_expand_and_expand_one_has_no_expansion():
    base = {"resolution": 8, "in_channels": 1, "stem": {"out": 8, "kernel": 3, "stride": 1}, "classes": 10}
    with_mid = profile_all({**base, "blocks": [{"kernel": 3, "expand": 3, "mid": 40, "out": 8, "stride": 1, "se": False}]})[0]
    with_five = profile_all({**base, "blocks": [{"kernel": 3, "expand": 5, "out": 8, "stride": 1, "se": False}]})[0]
    assert with_mid.macs == with_five.macs
    one = profile_all({**base, "blocks": [{"kernel": 3, "expand": 1, "out": 8, "stride": 1, "se": False}]})[0]
    assert [layer.name for layer in one.layers if layer.kind in ("conv", "depthwise")] == [
        "stem.conv", "blocks.0.depthwise.conv", "blocks.0.project.conv",
    ]  # fmt: skip


def test_a_null_is_a_field_left_out():
    base = {"resolution": 8, "in_channels": 1, "stem": {"out": 8, "kernel": 3, "stride": 1}, "classes": 10}
    block = {"kernel": 3, "expand": 1, "out": 8, "stride": 1, "se": False}
    nulls = {**base, "blocks": [{**block, "expand": None, "mid": None, "se": None, "stride": None}], "final_expand": None}
    assert profile_all({**nulls, "feature_mix": None, "feature_mix_bn": None}) == profile_all({**base, "blocks": [block]})


def test_command_prints_one_document_for_one_network_and_a_list_for_a_list(tmp_path, capsys):
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    one.write_text(json.dumps(mcunet("in0")))
    many.write_text(json.dumps([mcunet("in0"), mcunet("in4")]))
    assert run(app, ["profile", str(one), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"macs", "params", "params_with_bn", "peak_items", "peak_bytes", "peak_layer", "sram_bytes", "flash_bytes", "layers"} <= set(
        document
    )
    assert run(app, ["profile", str(many), "--json", "--device", "stm32h743"]) == 0
    assert [entry["sram_bytes"] for entry in json.loads(capsys.readouterr().out)] == [50_064, 426_120]
    assert run(app, ["profile", str(one), "--json", "--compat", "moofa-paper"]) == 0
    assert "not to set a budget" in json.loads(capsys.readouterr().out)["note"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[3]", "network 0: a network is a JSON object"),
        ('[{"resolution": 8}]', "network 0: stem"),
        ('{"resolution": 8, "stem": {"out": 8}, "blocks": [{"kernel": -1, "out": 8}]}', "blocks.0.kernel"),
        ('{"resolution": 8, "stem": {"out": 8}, "blocks": [], "colour": 1}', "colour is no known field; known: resolution"),
        ('{"resolution": 8, "stem": {"out": 8}, "blocks": [{"kernal": 3, "out": 8}]}', "blocks.0.kern"),
        ('{"resolution": 8, "stem": {"out": 8}, "blocks": [{"kernel": 4, "out": 8}]}', "kernels are odd"),
        ('{"resolution": null, "stem": {"out": 8}, "blocks": []}', "resolution is missing"),
        ('{"resolution": 8, "stem": 8, "blocks": []}', "stem must be an object"),
    ],
)
def test_bad_networks_are_refused_in_one_line(tmp_path, capsys, text, message):
    file = tmp_path / "bad.json"
    file.write_text(text)
    assert run(app, ["profile", str(file), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("options", [["--memory-model", "Z"], ["--compat", "paper"], ["--device", "abacus"], ["--bits", "0"]])
def test_bad_options_are_refused(tmp_path, capsys, options):
    file = tmp_path / "one.json"
    file.write_text(json.dumps(mcunet("in0")))
    assert run(app, ["profile", str(file), *options]) == 2
    assert capsys.readouterr().err.startswith("error: ")
