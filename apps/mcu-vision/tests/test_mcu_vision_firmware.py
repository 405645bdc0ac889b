"""The C code: equal to the reference bit for bit here and in QEMU, linked memory equal to the plan, kernels replaceable."""

import shutil

import numpy as np
import pytest
import torch
from edge_shared.devices import load
from edge_shared.errors import CheckFailed, InputError
from mcu_vision.board import Board, board_of
from mcu_vision.codegen import arena_bytes, plan, write_sources
from mcu_vision.firmware import ANSWER, emulate, run_on_host, weigh
from mcu_vision.integer import run
from mcu_vision.quantise import quantise

needs_cc = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler")
needs_arm = pytest.mark.skipif(not (shutil.which("arm-none-eabi-gcc") and shutil.which("make")), reason="no arm-none-eabi-gcc")
needs_qemu = pytest.mark.skipif(not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")), reason="no qemu-system-arm")
NETS = {
    "colour, odd sizes": {
        "resolution": 11, "in_channels": 3, "stem": {"out": 6, "stride": 2}, "classes": 4,
        "blocks": [{"kernel": 5, "expand": 1, "out": 6}, {"kernel": 3, "expand": 3, "out": 10, "stride": 2}, {"kernel": 7, "expand": 2, "out": 10}],
    },
    "relu, final expand and feature mix": {
        "resolution": 8, "in_channels": 1, "stem": {"out": 8, "stride": 1}, "classes": 10, "final_expand": 24, "feature_mix": 16, "act": "relu",
        "blocks": [{"kernel": 3, "expand": 4, "out": 8}, {"kernel": 3, "expand": 2, "out": 8}],
    },
    "stem alone": {"resolution": 6, "in_channels": 1, "stem": {"out": 5, "kernel": 5, "stride": 1}, "classes": 2, "blocks": []},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(settled):
    def make(config, seed=0):
        return _made(settled, config, seed)

    return make


def _made(settled, config, seed):
    rng = np.random.default_rng(seed)
    side, channels = config["resolution"], config["in_channels"]
    images = rng.integers(0, 256, (24, side, side, channels), dtype=np.uint8)
    images[0], images[1] = 0, 255
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    model = settled(config, x, seed)
    net = quantise(
        model, [x[:12]], input_shape=(1, channels, side, side), normalisation={}, classes=[str(n) for n in range(config["classes"])]
    )
    return net, images


@pytest.fixture(scope="module")
def board():
    return board_of(load("stm32f746"))


@needs_cc
@pytest.mark.parametrize("name", NETS)
def test_c_equals_the_reference_on_this_computer_and_the_sanitizers_are_silent(name, tmp_path, board, made):
    net, images = made(NETS[name])
    write_sources(tmp_path, net, board, 1024)
    expected = run(net, images)
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(run_on_host(tmp_path, net, images, "-O2 -Wconversion"), expected)
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    np.testing.assert_array_equal(run_on_host(tmp_path, net, images, flags), expected)


@needs_cc
def test_a_kernel_of_the_same_name_takes_the_place_of_ours(tmp_path, board, made):
    net, images = made(NETS["stem alone"])
    write_sources(tmp_path, net, board, 1024)
    (tmp_path / "own.c").write_text(
        '#include "mv_kernels.h"\n'
        "void mv_linear_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output) {\n"
        "    (void)input;\n"
        "    for (int i = 0; i < layer->out_channels; i++) { output[i] = (int8_t)(40 + i); }\n"
        "}\n"
    )
    makefile = tmp_path / "Makefile"
    makefile.write_text("KERNELS = own.c\n" + makefile.read_text())
    assert run_on_host(tmp_path, net, images).tolist() == [[40, 41]] * len(images)


@needs_arm
@pytest.mark.parametrize("device", ["stm32f746", "nrf52840", "rp2040", "rp2350"])
def test_linked_ram_is_the_plan_and_the_stated_buffers(device, tmp_path, made):
    net, _ = made(NETS["colour, odd sizes"])
    board = board_of(load(device))
    write_sources(tmp_path, net, board, 1536)
    sizes = weigh(tmp_path, board)
    assert sizes.data == 0
    assert sizes.bss == arena_bytes(plan(net)) + ANSWER
    assert sizes.stack == 1536
    assert net.weight_bytes < sizes.flash < net.weight_bytes + 12 * 1024


@needs_arm
def test_a_memory_that_is_too_small_stops_the_build(tmp_path, made):
    net, _ = made(NETS["colour, odd sizes"])
    small = Board("tiny", "cortex-m4", 1024, 4096, "mps2-an386", "cortex-m4")
    write_sources(tmp_path, net, small, 512)
    with pytest.raises(CheckFailed, match=r"does not fit tiny .* over FLASH by [\d,]+ bytes and RAM by|over RAM by"):
        weigh(tmp_path, small)


@needs_qemu
@pytest.mark.parametrize("core", ["Cortex-M3", "Cortex-M4F", "Cortex-M7", "Cortex-M55"])
@pytest.mark.parametrize("name", ["colour, odd sizes", "relu, final expand and feature mix"])
def test_qemu_gives_the_same_bits_and_the_same_count_twice(name, core, tmp_path, made):
    net, images = made(NETS[name])
    board = board_of(load("stm32f746").model_copy(update={"core": f"Arm {core}"}))
    write_sources(tmp_path, net, board, 1024)
    first, second = (emulate(tmp_path, net, board, images[:6]) for _ in range(2))
    np.testing.assert_array_equal(first.outputs, run(net, images[:6]))
    assert first.instructions == second.instructions > 2 * net.macs
    assert 64 < first.stack_bytes == second.stack_bytes < 1024


def test_a_device_without_a_cortex_m_is_refused():
    with pytest.raises(InputError, match="core 'Xtensa LX7'"):
        board_of(load("esp32-s3"))
