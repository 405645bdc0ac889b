"""Quantised networks: scales where they belong, values near the float network's, clear words for what has no kernel."""

import numpy as np
import pytest
import torch
from edge_shared.architectures import mobile
from edge_shared.artifacts.model import load_artifact
from edge_shared.errors import InputError
from edge_shared.memory import peak
from hypothesis import given, settings
from hypothesis import strategies as st
from mcu_vision.codegen import plan
from mcu_vision.integer import run
from mcu_vision.quantise import quantise
from torch import nn


def quantised(saved, digits):
    artifact = load_artifact(saved / "model")
    batches = [next(iter(digits.loader("train", 256)))[0]]
    net = quantise(
        artifact.model, batches, input_shape=artifact.input_shape, normalisation=artifact.normalisation, classes=artifact.classes
    )
    return artifact, net


def test_weights_have_a_scale_per_channel_and_activations_one_per_tensor(saved, digits):
    artifact, net = quantised(saved, digits)
    for op in net.ops:
        if op.weight is None:
            continue
        channels_last = op.kind == "depthwise"
        flat = np.abs(op.weight.astype(int).reshape(-1, op.weight.shape[-1]).T if channels_last else op.weight.reshape(len(op.weight), -1))
        assert (np.abs(flat.astype(int)).max(1) == 127).all()
        assert op.multiplier.shape == op.shift.shape == op.bias.shape == (op.out_shape[2],)
        assert -128 <= op.out_zero <= 127
    assert [op.kind for op in net.ops].count("add") == 3
    assert sum(op.weight.size for op in net.ops if op.weight is not None) == sum(
        module.weight.numel() for module in artifact.model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    )


def test_outputs_follow_the_float_network(saved, digits):
    artifact, net = quantised(saved, digits)
    x, y = digits.arrays("test")
    with torch.no_grad():
        expected = torch.cat([artifact.model(images) for images, _ in digits.loader("test", 128)]).numpy()
    outputs = run(net, x)
    got = net.output_scale * (outputs.astype(float) - net.output_zero)
    assert (expected.argmax(1) == y).mean() > 0.9, "a network that has learned: one that has not decides by rounding"
    assert np.abs(got - expected).mean() < 0.03 * np.abs(expected).max()
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.97
    assert abs((got.argmax(1) == y).mean() - (expected.argmax(1) == y).mean()) < 0.02


def test_the_pixel_table_is_the_normalisation(saved, digits):
    _, net = quantised(saved, digits)
    scale = (1 / digits.std[0]) / 255
    values = scale * (net.table[0].astype(float) - net.ops[0].in_zeros[0])
    expected = (np.arange(256) / 255 - digits.mean[0]) / digits.std[0]
    assert np.abs(values - expected).max() <= scale * 1.0001  # the zero of the grid and each value are rounded


@given(
    st.lists(st.tuples(st.sampled_from([3, 5]), st.sampled_from([1, 2, 3, 4]), st.sampled_from([4, 8, 12]), st.sampled_from([1, 1, 2])), min_size=1, max_size=5),
    st.sampled_from([6, 8, 11]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_the_plan_needs_what_memory_model_B_promises_for_the_float_network(blocks, resolution):
    """So a search under model B promises what the arena takes, where convolutions decide the peak."""
    config = mobile.MobileConfig.model_validate(
        {
            "resolution": resolution, "in_channels": 1, "stem": {"out": 8, "stride": 1}, "classes": 10,
            "blocks": [{"kernel": k, "expand": e, "out": o, "stride": s} for k, e, o, s in blocks],
        }
    )  # fmt: skip
    net = quantise(
        mobile.module(config).eval(),
        [torch.randn(4, 1, resolution, resolution, generator=torch.Generator().manual_seed(0))],
        input_shape=(1, 1, resolution, resolution),
        normalisation={},
        classes=[str(n) for n in range(10)],
    )
    found = plan(net)
    assert found.bytes == found.lower_bound == peak(mobile.network(config), "B", bits=8).bytes


def head(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (head(nn.Conv2d(1, 4, 3), nn.Hardswish()), r"1 \(Hardswish\) has no int8 kernel"),
        (head(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), "a batch norm directly follows its convolution"),
        (head(nn.Conv2d(1, 4, 3, dilation=2)), "dilation 1"),
        (head(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), "depthwise"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval(), "reads a map of 6x6"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "end in a linear layer"),
    ],
)
def test_what_has_no_kernel_is_named(model, words):
    with pytest.raises(InputError, match=words):
        quantise(model, [torch.zeros(2, 1, 8, 8)], input_shape=(1, 1, 8, 8), normalisation={}, classes=["a", "b", "c"])


def test_without_calibration_images_there_is_a_word():
    model = head(nn.Conv2d(1, 4, 3))
    with pytest.raises(InputError, match="no calibration images"):
        quantise(model, [], input_shape=(1, 1, 8, 8), normalisation={}, classes=["a", "b", "c"])
