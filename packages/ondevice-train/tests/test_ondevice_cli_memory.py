"""`ondevice-train memory`: published tables from formula, contract of the command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from edge_shared.architectures import network
from edge_shared.cli import run
from hypothesis import given, settings
from hypothesis import strategies as st
from ondevice_train.cli import app
from ondevice_train.selection.scheme import PUBLISHED, read_scheme, scheme_memory

# notes §3.2, and the schemes of tiny-training that it leaves out: selected weights, activations, units, biases, mask bits, kB, weight-gradient MACs
ROWS = {
    ("mbv2-w0.35", "49kb"): (22410, 5872, 28282, 3128, 80768, 49.81, 948384),
    ("mbv2-w0.35", "73kb"): (39072, 7136, 46208, 3688, 116608, 73.88, 1242624),
    ("mbv2-w0.35", "99kb"): (55920, 10672, 66592, 4168, 147328, 99.41, 2111232),
    ("mbv2-w0.35", "123kb"): (72384, 11456, 83840, 4792, 187264, 123.56, 2374656),
    ("mbv2-w0.35", "138kb"): (81792, 11904, 93696, 5000, 222080, 138.25, 2525184),
    ("mcunet-5fps", "49kb"): (12096, 3840, 15936, 4592, 131840, 49.75, 774144),
    ("mcunet-5fps", "74kb"): (29440, 10240, 39680, 4752, 142080, 74.81, 1884160),
    ("mcunet-5fps", "99kb"): (52480, 12352, 64832, 4792, 144640, 99.84, 2473984),
    ("mcunet-5fps", "124kb"): (75328, 11392, 86720, 5112, 165120, 124.97, 2609152),
    ("mcunet-5fps", "148kb"): (98560, 14080, 112640, 4952, 154880, 148.41, 3211264),
    ("proxyless-w0.3", "49kb"): (20736, 5248, 25984, 3488, 86528, 49.66, 811008),
    ("proxyless-w0.3", "74kb"): (36288, 8704, 44992, 4056, 122880, 74.88, 1290240),
    ("proxyless-w0.3", "98kb"): (62976, 9984, 72960, 3744, 102912, 98.53, 1671168),
    ("proxyless-w0.3", "120kb"): (76800, 11776, 88576, 4296, 138240, 120.25, 1966080),
    ("proxyless-w0.3", "148kb"): (89088, 12288, 101376, 4976, 243200, 148.22, 2162688),
}
LAST = {
    ("mcunet-5fps", 12): 448.05, ("mcunet-5fps", 6): 276.34, ("mcunet-5fps", 42): 1400.39,
    ("mbv2-w0.35", 6): 129.50, ("mbv2-w0.35", 12): 223.73, ("mbv2-w0.35", 51): 1306.44,
    ("proxyless-w0.3", 6): 139.34, ("proxyless-w0.3", 12): 266.41, ("proxyless-w0.3", 60): 1210.73,
}  # fmt: skip
BIAS_ONLY = {("mbv2-w0.35", 51): 134.22, ("mcunet-5fps", 42): 121.28, ("proxyless-w0.3", 60): 113.44}
TOTALS = {("mbv2-w0.35-zoo", 52): 1252320, ("mcunet-in1", 42): 1309808, ("proxyless-w0.3-zoo", 61): 1162032}
CONV_PARAMS = {
    "mobilenet_v2": 2189760, "resnet18": 11166912, "resnet50": 23454912, "mcunet-in0": 543176, "mcunet-in1": 463216,
    "mcunet-in2": 552904, "mcunet-in3": 561032, "mcunet-in4": 1390232,
}  # fmt: skip


# notes §3.1: C_in, hidden, C_out, kernel and stride of each block, the classifier's inputs
TABLES = {
    "mbv2-w0.35": (
        "16 16 8 3 1;8 48 8 3 2;8 48 8 3 1;8 48 16 3 2;16 96 16 3 1;16 96 16 3 1;16 96 24 3 2;24 144 24 3 1;24 144 24 3 1;24 144 24 3 1;"
        "24 144 32 3 1;32 192 32 3 1;32 192 32 3 1;32 192 56 3 2;56 336 56 3 1;56 336 56 3 1;56 336 112 3 1", 112,
    ),
    "mcunet-5fps": (
        "16 16 8 3 1;8 32 16 3 2;16 48 16 3 1;16 48 24 7 2;24 120 24 3 1;24 120 40 3 2;40 160 40 7 1;40 160 48 5 1;48 144 48 3 1;"
        "48 192 48 3 1;48 240 96 7 2;96 384 96 5 1;96 384 96 5 1;96 576 160 3 1", 160,
    ),
    "proxyless-w0.3": (
        "16 16 8 3 1;8 24 16 5 2;16 48 16 3 1;16 48 16 7 2;16 48 16 3 1;16 48 16 5 1;16 48 16 5 1;16 96 24 7 2;24 72 24 5 1;24 72 24 5 1;"
        "24 72 24 5 1;24 144 32 5 1;32 96 32 5 1;32 96 32 5 1;32 96 32 5 1;32 192 64 7 2;64 384 64 7 1;64 192 64 7 1;64 192 64 7 1;"
        "64 384 96 7 1", 96,
    ),
}  # fmt: skip


def by_hand(arch, size, biases, ratios):
    """Weights, activations, biases, mask bits, kB (mcunetv3) and MACs, from the printed table and a loop over its convolutions."""
    blocks, classifier = TABLES[arch]
    side = (size + 1) // 2
    convs = [(3, 16, 9, 16, size, side)]  # inputs, outputs, weights per input channel and output, outputs per input, sides
    for index, row in enumerate(blocks.split(";")):
        inside, hidden, outside, kernel, stride = map(int, row.split())
        after = (side - 1) // stride + 1
        convs += [(inside, hidden, 1, hidden, side, side)] if index else []
        convs += [(hidden, hidden, kernel**2, 1, side, after), (hidden, outside, 1, outside, after, after)]
        side = after
    weights = activations = macs = 0
    for index, ratio in ratios.items():
        inside, _, taps, reads, before, after = convs[index]
        count = int(inside * ratio)
        weights += count * taps * reads
        activations += count * before**2
        macs += count * taps * reads * after**2
    tail = convs[len(convs) - biases :]
    bias, mask = sum(conv[1] for conv in tail), sum(conv[1] * conv[5] ** 2 for conv in tail)
    return weights, activations, bias, mask, (weights + 4 * bias + activations + mask / 8 + classifier) / 1024, macs


@settings(max_examples=120, deadline=None)
@given(arch=st.sampled_from(list(TABLES)), size=st.sampled_from([64, 96, 112, 128, 144, 160, 176, 224]), data=st.data())
def test_any_scheme_is_what_the_printed_tables_say(arch, size, data):
    count = {"mbv2-w0.35": 51, "mcunet-5fps": 42, "proxyless-w0.3": 60}[arch]
    biases = data.draw(st.integers(0, count))
    if data.draw(st.booleans()) and biases:
        scheme, ratios = {"last_convs": biases}, dict.fromkeys(range(count - biases, count), 1.0)
    else:
        chosen = data.draw(st.sets(st.integers(count - biases, count - 1), max_size=9)) if biases else set()
        ratios = {index: data.draw(st.sampled_from([0, 0.125, 0.25, 0.3, 0.5, 0.9, 1])) for index in sorted(chosen)}
        scheme = {"n_bias": biases, "convs": list(ratios), "ratios": list(ratios.values())}
    weights, activations, bias, mask, kilobytes, macs = by_hand(arch, size, biases, ratios)
    for accounting, total in (("units", 4 * (weights + activations)), ("params", 4 * weights), ("mcunetv3", 1024 * kilobytes)):
        got = scheme_memory(arch, scheme, input_size=size, accounting=accounting)
        assert (got.selected_weights, got.selected_activations, got.units) == (weights, activations, weights + activations)
        assert (got.bias_params, got.mask_bits, got.weight_gradient_macs) == (bias, mask, macs)
        assert got.total_bytes == pytest.approx(total, abs=1e-9)


def command(capsys, *arguments):
    code = run(app, ["memory", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("key", ROWS)
def test_published_schemes_to_the_digit(key, capsys, tmp_path):
    arch, name = key
    file = tmp_path / "scheme.json"
    file.write_text(json.dumps(read_scheme(name, arch)))
    code, out, _ = command(capsys, "--arch", arch, "--input-size", "128", "--scheme", str(file), "--accounting", "mcunetv3", "--json")
    assert code == 0
    got = json.loads(out)
    weights, activations, units, biases, masks, kilobytes, macs = ROWS[key]
    assert (got["selected_weights"], got["selected_activations"], got["units"]) == (weights, activations, units)
    assert (got["bias_params"], got["mask_bits"], got["weight_gradient_macs"]) == (biases, masks, macs)
    assert round(got["kilobytes"], 2) == kilobytes
    assert int(got["kilobytes"]) == int(name.removesuffix("kb"))
    assert got["total_bytes"] == got["kilobytes"] * 1024


@pytest.mark.parametrize("key", LAST)
def test_last_layers(key):
    assert round(scheme_memory(key[0], {"last_convs": key[1]}, input_size=128, accounting="mcunetv3").kilobytes, 2) == LAST[key]


@pytest.mark.parametrize("key", BIAS_ONLY)
def test_bias_only(key):
    assert round(scheme_memory(key[0], {"n_bias": key[1]}, input_size=128, accounting="mcunetv3").kilobytes, 2) == BIAS_ONLY[key]


@pytest.mark.parametrize("key", TOTALS)
def test_whole_networks_in_units(key):
    memory = scheme_memory(key[0], {"last_convs": key[1]}, input_size=128)
    assert memory.units == TOTALS[key]
    assert memory.total_bytes == 4 * TOTALS[key]


@pytest.mark.parametrize("name", CONV_PARAMS)
def test_convolution_parameters(name):
    scheme = {"last_convs": len(network(name).convs())}
    assert scheme_memory(name, scheme, accounting="params").selected_weights == CONV_PARAMS[name]


@pytest.mark.parametrize(("name", "weights"), [("49kb", 192312), ("73kb", 330240), ("99kb", 464640), ("123kb", 599040), ("138kb", 675840)])
def test_weight_budgets_of_full_width(name, weights):
    scheme = read_scheme(name, "mbv2-w0.35")
    assert scheme_memory("mobilenet_v2", scheme | {"n_bias": 40}, input_size=128).selected_weights == weights


@pytest.mark.parametrize(
    ("name", "budgets"),
    [
        ("mobilenet_v2", (192311, 464639, 675540)),
        ("resnet18", (980715, 2369480, 3444987)),
        ("resnet50", (2059888, 4976842, 7235830)),
    ],
)
def test_parameter_budgets_of_velocity(name, budgets):
    ratios = (0.0878233231, 0.212187637, 0.3084995616)  # the shares of the published configuration
    weights = scheme_memory(name, {"last_convs": len(network(name).convs())}, accounting="params").selected_weights
    assert tuple(int(ratio * weights) for ratio in ratios) == budgets


def test_biases_are_counted_where_a_layer_has_one():
    linear = 41184  # all outputs of Swin-T's layers; 3 patch mergings have no bias
    memory = scheme_memory("swin_t", {"n_bias": 52}, input_size=128)
    assert memory.bias_params == linear - (192 + 384 + 768) == 39840


def test_swin_total_of_the_papers():
    memory = scheme_memory("swin_t", {"last_convs": 52}, input_size=128)
    assert memory.units + 39840 == 31889952  # the published total holds the biases of layers that have one


def test_bytes_scale_with_the_batch_for_activations_only():
    scheme = read_scheme("49kb", "mcunet-5fps")
    one, eight = (scheme_memory("mcunet-5fps", scheme, accounting="bytes", batch_size=b).details for b in (1, 8))
    assert one["saved_channels"] == 4 * 3840
    for name in one:
        assert eight[name] == (8 * one[name] if name.startswith("saved") else one[name]), name


@pytest.mark.parametrize(
    ("scheme", "word"),
    [
        ('{"n_bias": 5, "convs": [21], "ratios": [1]}', "raise n_bias to 21"),
        ('{"n_bias": 22, "convs": [21, 24], "ratios": [1]}', "equal length"),
        ('{"n_bias": 22, "convs": [21, 21], "ratios": [1, 1]}', "twice"),
        ('{"n_bias": 22, "convs": [99], "ratios": [1]}', "0 to 41"),
        ('{"n_bias": 22, "convs": [30], "ratios": [1.5]}', "between 0 and 1"),
        ('{"n_bias": -1}', "n_bias"),
        ('{"n_bias": true}', "n_bias"),
        ('{"last_convs": 43}', "42 convolutions"),
        ('{"last_convs": 3, "n_bias": 1}', "last_convs"),
        ('{"convz": []}', "convz"),
        ("[1]", "--scheme"),
        ("{", "no JSON"),
        ("nosuch.json", "no such file"),
    ],
)
def test_bad_schemes(scheme, word, capsys):
    code, out, error = command(capsys, "--arch", "mcunet-5fps", "--scheme", scheme, "--json")
    assert code == 2
    assert out == ""
    assert error.count("\n") == 1
    assert word in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--arch", "nosuch", "--scheme", "{}"],
        ["--arch", "mcunet-5fps", "--scheme", "{}", "--accounting", "kb"],
        ["--arch", "mcunet-5fps", "--scheme", "{}", "--input-size", "0"],
        ["--arch", "mcunet-5fps", "--scheme", "{}", "--batch-size", "0"],
        ["--arch", "mcunet-5fps"],
    ],
)
def test_bad_options(arguments, capsys):
    code, out, error = command(capsys, *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)


def test_tables_need_no_torch():
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom edge_shared.cli import run\nfrom ondevice_train.cli import app\n"
        "for a in ('units', 'params', 'mcunetv3', 'bytes'):\n"
        "    assert run(app, ['memory', '--arch', 'mcunet-in1', '--input-size', '128', '--scheme', '{\"last_convs\": 3}',"
        " '--accounting', a, '--json']) == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_published_scheme_is_tested():
    assert {(arch, name) for arch, schemes in PUBLISHED.items() for name in schemes} == set(ROWS)
