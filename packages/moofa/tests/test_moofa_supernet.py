"""Weight sharing, extraction, kernels, channel sorting, norm calibration."""

import numpy as np
import pytest
import torch
from edge_shared.architectures import mobile
from edge_shared.memory import peak
from edge_shared.memory.measure import live_bytes
from edge_shared.trace import trace
from moofa.presets import PRESETS
from moofa.space import Choice, FixedBlock, Genes, Space, Stage, Stem, middle
from moofa.supernet import Supernet, calibrate, extract, sort_channels
from moofa.supernet.layers import ElasticDepthwise, ElasticNorm


def space_with(se: bool = False, expands: tuple[float, ...] = (2, 3, 4), **changes) -> Space:
    stages = (
        Stage(width=8, stride=1, depths=(1, 2), kernels=(3, 5, 7), expands=expands, se=se, activation="hardswish"),
        Stage(width=16, stride=2, depths=(1, 2, 3), kernels=(3, 5), expands=expands, se=se),
    )
    options = {"in_channels": 3, "resolutions": (10, 12), "stem": Stem(out=8, stride=1), "stages": stages, **changes}
    return Space(name="test", **options)


SPACES = {
    "plain": space_with(),
    "squeeze and excite": space_with(se=True),
    "expand 1": space_with(expands=(1, 1.5, 2)),
    "expand 1 with squeeze and excite": space_with(se=True, expands=(1, 2)),
    "fixed first block and head": space_with(first=FixedBlock(out=8), final_expand=24, feature_mix=32, activation="hardswish"),
    "mix before pooling": space_with(feature_mix=20, feature_mix_bn=True),
}


def trained_like(space: Space, seed: int = 0) -> Supernet:
    """A supernet in float64 whose every parameter is away from its initial value."""
    torch.manual_seed(seed)
    supernet = Supernet(space).double()
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return supernet


@pytest.mark.parametrize("name", SPACES)
def test_extraction_equals_the_supernet(name):
    space = SPACES[name]
    supernet = trained_like(space)
    genes = Genes(space)
    rows = np.vstack([genes.encode([space.smallest(), space.largest()]), genes.sample(8, np.random.default_rng(0))])
    outputs = []
    for row in rows:
        choice = genes.decode(row)
        images = torch.randn(6, 3, choice.resolution, choice.resolution, dtype=torch.float64)
        calibrate(supernet, choice, [images, images + 0.1])
        supernet.eval()
        network = extract(supernet, choice)
        with torch.no_grad():
            shared, alone = supernet(images, choice), network(images)
        assert (shared - alone).abs().max() <= 1e-9
        assert alone.std() > 0.01
        outputs.append(alone[0].clone())
    assert len({tuple(output.tolist()) for output in outputs}) == len(outputs)


def test_defect_4_expand_one_has_no_expansion_in_supernet_and_extract():
    space = SPACES["expand 1"]
    supernet = trained_like(space)
    choice = Choice(12, (((3, 1.0),), ((3, 1.0),)))
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    calibrate(supernet, choice, [images])
    before = supernet.eval()(images, choice)
    with torch.no_grad():
        for blocks in supernet.stages:
            for block in blocks:
                block.expand.weight.zero_()  # nothing of it may enter
    assert torch.equal(supernet(images, choice), before)
    names = [name for name, _ in extract(supernet, choice).named_modules()]
    assert not any("expand" in name for name in names)


def test_measured_live_bytes_equal_model_d():
    for name in ("squeeze and excite", "expand 1"):
        space = SPACES[name]
        supernet = Supernet(space)
        for row in Genes(space).sample(1, np.random.default_rng(2)):
            choice = Genes(space).decode(row)
            network = extract(supernet, choice)
            example = torch.zeros(1, 3, choice.resolution, choice.resolution)
            predicted = peak(mobile.network(space.config(choice)), "D").bytes
            assert live_bytes(network, example) == predicted == peak(trace(network, example), "D").bytes


def test_kernels_start_as_centre_crops_and_their_matrices_learn():
    layer = ElasticDepthwise(6, (3, 5, 7), 1)
    assert torch.equal(layer.filters(7, 6), layer.weight)
    torch.testing.assert_close(layer.filters(5, 4), layer.weight[:4, :, 1:6, 1:6])
    torch.testing.assert_close(layer.filters(3, 6), layer.weight[:, :, 2:5, 2:5])
    layer(torch.randn(2, 6, 8, 8), 3).square().sum().backward()
    # The 3x3 kernel goes through both matrices: 7 to 5, then 5 to 3.
    assert all(matrix.grad is not None and matrix.grad.abs().sum() > 0 for matrix in layer.transforms.values())


def test_kernel_chain_equals_matrix_products():
    layer = ElasticDepthwise(4, (3, 5, 7), 1).double()
    with torch.no_grad():
        for matrix in layer.transforms.values():
            matrix += torch.randn_like(matrix)
    weight = layer.weight.detach().numpy()
    five = weight[:, 0, 1:6, 1:6].reshape(4, 25) @ layer.transforms["5"].detach().numpy().T
    three = five.reshape(4, 5, 5)[:, 1:4, 1:4].reshape(4, 9) @ layer.transforms["3"].detach().numpy().T
    np.testing.assert_allclose(layer.filters(3, 4).detach().numpy().reshape(4, 9), three, rtol=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_sorting_keeps_the_largest_network_and_what_is_trained(name):
    space = SPACES[name]
    supernet = trained_like(space)
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    trained = [stage.expands[-2:] for stage in space.stages]
    # Every expansion that is trained, and expand 1 where the space has it, stays the same function.
    kept = {stage.expands[-1] for stage in space.stages} | set(trained[0]) | ({1.0} & set(space.stages[0].expands))
    choices = [Choice(12, tuple(((3, expand),) * stage.depths[-1] for stage in space.stages)) for expand in sorted(kept)]
    before = []
    for choice in choices:
        calibrate(supernet, choice, [images])
        before.append(supernet.eval()(images, choice))
    sort_channels(supernet, trained)
    for choice, old in zip(choices, before, strict=True):
        calibrate(supernet, choice, [images])
        torch.testing.assert_close(supernet.eval()(images, choice), old, rtol=1e-9, atol=1e-9)


def test_sorting_puts_important_channels_first():
    space = SPACES["plain"]
    supernet = trained_like(space)
    sort_channels(supernet, [(4,), (4,)])
    for blocks in supernet.stages:
        for block in blocks:
            importance = block.project.weight.abs().sum((0, 2, 3))
            assert (importance.diff() <= 0).all()
    sort_again = trained_like(space)
    sort_channels(sort_again, [(3, 4), (3, 4)])
    block = sort_again.stages[0][1]
    importance, edge = block.project.weight.abs().sum((0, 2, 3)), middle(8, 3)
    assert (importance[:edge].diff() <= 0).all()
    assert (importance[edge:].diff() <= 0).all()
    assert set(importance[:edge].tolist()) == set(trained_like(space).stages[0][1].project.weight.abs().sum((0, 2, 3))[:edge].tolist())


def test_calibration_is_mean_and_biased_variance_and_touches_nothing_else():
    space = SPACES["plain"]
    supernet = trained_like(space)
    choice = space.smallest(12)
    images = torch.randn(16, 3, 12, 12, dtype=torch.float64)
    others = {name: value.clone() for name, value in supernet.state_dict().items()}
    seen = []
    handle = supernet.stages[0][0].expand_norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().numpy()))
    calibrate(supernet, choice, [images])
    handle.remove()
    norm = supernet.stages[0][0].expand_norm
    channels = seen[0].shape[1]
    np.testing.assert_allclose(norm.running_mean[:channels].numpy(), seen[0].mean((0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(norm.running_var[:channels].numpy(), seen[0].var((0, 2, 3)), rtol=1e-10)
    assert channels < len(norm.running_mean)
    for name, value in supernet.state_dict().items():
        if "running" not in name:
            assert torch.equal(value, others[name])
    assert torch.equal(norm.running_mean[channels:], others["stages.0.0.expand_norm.running_mean"][channels:])
    first = {name: value.clone() for name, value in supernet.state_dict().items()}
    calibrate(supernet, choice, [images])
    assert all(torch.equal(value, first[name]) for name, value in supernet.state_dict().items())


def test_calibration_weighs_batches_by_their_samples():
    norm = ElasticNorm(3).double()
    norm.observed = []
    a, b = torch.randn(3, 3, 4, 4, dtype=torch.float64), torch.randn(9, 3, 4, 4, dtype=torch.float64)
    norm(a), norm(b)
    weighted = sum(samples / 12 * mean for samples, mean, _ in norm.observed)
    np.testing.assert_allclose(weighted.numpy(), torch.cat([a, b]).mean((0, 2, 3)).numpy(), rtol=1e-10)


def test_resolution_is_elastic():
    space = SPACES["plain"]
    supernet = trained_like(space)
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    small, large = (space.largest(resolution) for resolution in space.resolutions)
    calibrate(supernet, small, [images])
    shapes = []
    supernet.stem.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[2:])))
    supernet.eval()(images, small), supernet(images, large)
    assert shapes == [(10, 10), (12, 12)]


def test_presets_build():
    for name in ("digits8", "mnist28+", "c32"):
        space = PRESETS[name]()
        supernet = Supernet(space)
        images = torch.randn(2, space.in_channels, space.resolutions[0], space.resolutions[0])
        assert supernet(images, space.smallest()).shape == (2, space.classes)
