"""Models as files: rebuilt to the same bits, nothing but a network can come out of a recipe, ONNX is what torch is."""

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from edge_shared.artifacts import (
    allowed,
    export_onnx,
    from_recipe,
    load_artifact,
    load_model,
    load_weights,
    quantize_onnx,
    register_builder,
    save_model,
    to_recipe,
)
from edge_shared.errors import CheckFailed, InputError
from torch import fx, nn


class Residual(nn.Module):
    """A bit of everything: reused modules, a tied weight, a bare parameter, a buffer, a constant, functions and methods."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.act = nn.PReLU()
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.register_buffer("shift", torch.arange(8.0).reshape(8, 1, 1))
        self.register_buffer("unused", torch.tensor(3))
        self.drop = nn.Dropout(0.5)
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight = self.one.weight
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x_BCHW):
        x_BCHW = self.stem(x_BCHW)
        for _ in range(2):
            x_BCHW = x_BCHW + self.act(self.block(x_BCHW)) * self.scale
        x_BCHW = nn.functional.adaptive_avg_pool2d(x_BCHW + self.shift + torch.tensor([[0.25]]), 2)
        x_BF = torch.flatten(x_BCHW, 1)
        x_BF = self.norm(self.two(torch.nn.functional.gelu(self.one(x_BF)))).clamp(min=-2.0)
        return self.head(self.drop(x_BF)).view(x_BF.shape[0], -1)[..., :5]


def shaken(module, seed=0):
    """Statistics and weights as after training, so that no output is trivially small."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.uniform_(-0.1, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            part.weight.data.uniform_(0.8, 1.2, generator=generator)
        if isinstance(part, nn.Linear) and not part.weight.any():
            part.weight.data.normal_(0, 0.1, generator=generator)
    return module


@pytest.fixture
def model():
    torch.manual_seed(0)
    module = shaken(Residual())
    module.stem[0].weight.requires_grad_(False)
    return module


def same_state(one, other):
    a, b = one.state_dict(), other.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def round_trip(module, **options):
    recipe = json.loads(json.dumps(to_recipe(module, **options)))
    state = module.state_dict()
    return from_recipe(recipe, {name: state[name].clone() for name in recipe["tensors"]})


def test_a_model_comes_back_with_the_same_bits_and_trains_the_same(tmp_path, model):
    x = torch.randn(4, 3, 8, 8)
    saved = save_model(tmp_path / "m", model, x, classes=list("abcde"), normalisation={"mean": (0.5,)}, onnx=False)
    assert model.training
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == sorted(saved["files"]) == ["model.safetensors", "recipe.json"]
    got = load_artifact(tmp_path / "m")
    assert (got.classes, got.normalisation, got.input_shape) == (tuple("abcde"), {"mean": [0.5]}, (1, 3, 8, 8))
    rebuilt = load_model(tmp_path / "m")
    assert not rebuilt.training
    assert same_state(model, rebuilt)
    assert type(rebuilt.stem[0] if isinstance(rebuilt.stem, nn.Sequential) else rebuilt.get_submodule("stem.0")) is nn.Conv2d
    assert rebuilt.get_submodule("two").weight is rebuilt.get_submodule("one").weight
    frozen = {name for name, parameter in rebuilt.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.0.weight"}
    assert len(list(rebuilt.parameters())) == len(list(model.parameters()))
    for module in (model, rebuilt):
        torch.manual_seed(1)
        module.train()
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), torch.arange(4)).backward()
            optimizer.step()
    assert same_state(model, rebuilt)
    again = round_trip(rebuilt)
    assert same_state(again, rebuilt)
    assert torch.equal(again(x), rebuilt.eval()(x))


def test_tracing_leaves_nothing_on_the_model(model):
    before = set(vars(model))
    to_recipe(model)
    assert set(vars(model)) == before
    assert model.training


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v2", 64),
        ("mobilenet_v3_small", 64),
        ("resnet18", 64),
        ("swin_t", 64),
        ("vgg16_bn", 32),
        ("vit_b_32", 224),
        ("timm:vit_tiny_patch16_224", 224),
        pytest.param("resnet50", 64, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_large", 64, marks=pytest.mark.slow),
        pytest.param("swin_v2_t", 64, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 64, marks=pytest.mark.slow),
        pytest.param("shufflenet_v2_x1_0", 64, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),
        pytest.param("densenet121", 64, marks=pytest.mark.slow),
        pytest.param("timm:mobilenetv4_conv_small", 64, marks=pytest.mark.slow),
        pytest.param("timm:swin_tiny_patch4_window7_224", 224, marks=pytest.mark.slow),
    ],
)
def test_known_architectures_come_back_with_the_same_bits(name, size):
    module = known(name)
    rebuilt = round_trip(module)
    assert same_state(module, rebuilt)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = module.eval()(x)
        assert float(expected.std()) > 1e-4
        assert torch.equal(expected, rebuilt(x))


def known(name):
    torch.manual_seed(0)
    if name.startswith("timm:"):
        import timm

        return shaken(timm.create_model(name.removeprefix("timm:")))
    import torchvision

    return shaken(torchvision.models.get_model(name, weights=None))


def test_stochastic_depth_still_trains_after_the_round_trip():
    from torchvision.models import swin_t
    from torchvision.ops import StochasticDepth

    module = shaken(swin_t(weights=None))
    for part in module.modules():
        if isinstance(part, StochasticDepth):
            part.p = 0.5
    rebuilt = round_trip(module).train()
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(rebuilt(x), rebuilt(x))
    assert torch.equal(rebuilt.eval()(x), rebuilt(x))


EXAMPLES = {
    "Conv1d": (2, 4, 3), "Conv2d": (2, 4, 3), "Conv3d": (2, 4, 3), "ConvTranspose1d": (2, 4, 3), "ConvTranspose2d": (2, 4, 3),
    "ConvTranspose3d": (2, 4, 3), "Linear": (3, 4), "Bilinear": (3, 4, 5), "BatchNorm1d": (3,), "BatchNorm2d": (3,), "BatchNorm3d": (3,),
    "InstanceNorm1d": (3,), "InstanceNorm2d": (3,), "InstanceNorm3d": (3,), "LayerNorm": (3,), "GroupNorm": (2, 4), "RMSNorm": (3,),
    "Embedding": (5, 3), "MultiheadAttention": (8, 2), "LSTM": (3, 4), "GRU": (3, 4), "RNN": (3, 4), "Upsample": (None, 2.0),
    "UpsamplingNearest2d": (4,), "UpsamplingBilinear2d": (4,), "ZeroPad1d": (1,), "ZeroPad2d": (1,), "ReflectionPad2d": (1,),
    "ReplicationPad2d": (1,), "ConstantPad1d": (1, 2.0), "ConstantPad2d": (1, 2.0), "PixelShuffle": (2,), "PixelUnshuffle": (2,),
    "ChannelShuffle": (2,), "Unfold": (3,), "MaxPool1d": (2,), "MaxPool2d": (2,), "MaxPool3d": (2,), "AvgPool1d": (2,), "AvgPool2d": (2,),
    "AvgPool3d": (2,), "AdaptiveAvgPool1d": (2,), "AdaptiveAvgPool2d": ((2, None),), "AdaptiveAvgPool3d": (2,), "AdaptiveMaxPool1d": (2,),
    "AdaptiveMaxPool2d": (2,), "StochasticDepth": (0.5, "row"), "Softmax": (1,), "LogSoftmax": (1,),
}  # fmt: skip
VARIANTS = {
    "Conv2d": {"bias": False, "stride": (1, 2), "padding": "same" if False else (1, 0), "dilation": 2, "groups": 2, "padding_mode": "circular"},
    "Linear": {"bias": False}, "LayerNorm": {"bias": False, "eps": 1e-3}, "BatchNorm2d": {"affine": False, "momentum": None, "track_running_stats": False},
    "MultiheadAttention": {"bias": False, "add_bias_kv": True, "kdim": 6, "vdim": 5, "batch_first": True, "dropout": 0.1},
    "LSTM": {"bias": False, "num_layers": 2, "bidirectional": True, "proj_size": 2}, "Embedding": {"padding_idx": 1, "max_norm": 2.0},
    "GELU": {"approximate": "tanh"}, "ReLU": {"inplace": True}, "PReLU": {"num_parameters": 3}, "Dropout": {"p": 0.3},
    "ConvTranspose2d": {"output_padding": 1, "stride": 2, "bias": False}, "RNN": {"nonlinearity": "relu"}, "RMSNorm": {"elementwise_affine": False},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(allowed.modules()))
def test_each_module_is_made_again_by_its_arguments(name):
    cls, short = allowed.modules()[name], name.rsplit(".", 1)[1]
    for options in ({}, VARIANTS.get(short, {})):
        module = cls(*EXAMPLES.get(short, ()), **options)
        again = cls(**allowed.arguments(name, module))
        assert repr(again) == repr(module)
        assert {key: value.shape for key, value in again.state_dict().items()} == {
            key: value.shape for key, value in module.state_dict().items()
        }
        plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | tuple | None)}
        assert plain == {key: vars(again)[key] for key in plain}


def test_a_builder_names_what_cannot_be_traced(tmp_path):
    class Branching(nn.Module):
        def __init__(self, width: int = 4):
            super().__init__()
            self.layer = nn.Linear(3, width)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    with pytest.raises(InputError, match=r"cannot trace Branching .* give a builder"):
        to_recipe(Branching())
    register_builder("tests.branching", Branching)
    module = Branching(width=6)
    save_model(tmp_path, module, torch.ones(1, 3), onnx=False, builder={"library": "tests.branching", "arguments": {"width": 6}})
    assert torch.equal(load_model(tmp_path)(-torch.ones(1, 3)), module(-torch.ones(1, 3)))
    vision = known("mobilenet_v3_small")
    assert same_state(
        round_trip(vision, builder={"library": "torchvision", "name": "mobilenet_v3_small", "arguments": {"num_classes": 1000}}), vision
    )
    timm = known("timm:vit_tiny_patch16_224")
    assert type(round_trip(timm, builder={"library": "timm", "name": "vit_tiny_patch16_224"})) is type(timm)


def test_models_that_no_recipe_can_hold_are_refused():
    class Calls(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    for function, match in [
        (torch.fft.fft, "calls fft_fft"),
        (lambda x: x.backward(), "tensor method backward"),
        (lambda x: torch.add(x, torch.nn.functional.pad(x, (1, 1), value=object())), "object"),
    ]:
        with pytest.raises(InputError, match=match):
            to_recipe(Calls(function))


@pytest.fixture
def saved(tmp_path, model):
    save_model(tmp_path / "m", model, torch.randn(2, 3, 8, 8), onnx=False)
    return tmp_path / "m"


def broken(recipe, path, value):
    recipe = copy.deepcopy(recipe)
    place = recipe
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return recipe


CONV = ("modules", "stem.0")
HOSTILE = [
    ((*CONV, "class"), "os.system", "no recipe may"),
    ((*CONV, "class"), "torch.nn.Conv2d.__class__", "no recipe may"),
    ((*CONV, "class"), ["torch.nn.Conv2d"], "broken"),
    ((*CONV, "arguments", "device"), "cuda", "argument 'device'"),
    ((*CONV, "arguments", "out_channels"), 10**12, "weights of stem.0.weight are float32|broken"),
    ((*CONV, "arguments", "out_channels"), 2**62, "weights of stem.0.weight are float32|broken"),
    ((*CONV, "arguments", "out_channels"), 16, "weights of stem.0.weight are float32"),
    ((*CONV, "arguments", "kernel_size"), "x", "broken"),
    ((*CONV, "arguments", "kernel_size"), {"tuple": [1e308, 3]}, "broken|weights"),
    ((*CONV, "arguments", "kernel_size"), {"lambda": 3}, "unknown kind"),
    (("modules", "../../etc/passwd"), {"class": "torch.nn.ReLU", "arguments": {}}, "module name"),
    (("modules", "__class__"), {"class": "torch.nn.ReLU", "arguments": {}}, "module name"),
    (("modules", "forward"), {"class": "torch.nn.ReLU", "arguments": {}}, "broken"),
    (("modules", "a" + ".a" * 99), {"class": "torch.nn.ReLU", "arguments": {}}, "module name"),
    (("bare", "extra"), "parameter", "broken"),
    (("tensors", "extra"), {"dtype": "float32", "shape": [10**15]}, "only in the recipe"),
    (("tensors", "scale", "shape"), [10**15, 1, 1], "the recipe says"),
    (("tensors", "scale", "dtype"), "float64", "the recipe says"),
    (("tensors", "scale", "dtype"), "object", "the recipe says"),
    (("tensors", "scale"), None, "only in the weights"),
    (("aliases", "two.weight"), "nowhere", "broken"),
    (("aliases",), None, "broken"),
    (("frozen",), ["nowhere"], "broken|does not have"),
    (("format",), "edgewise-recipe-9", "format"),
    (("nodes", 0, "op"), "exec", "unknown kind"),
    (("nodes", 0, "target"), "x: __import__('os').system('touch pwned')", "which is none"),
    (("nodes", 0, "name"), "x\nimport os", "which is none"),
    (("nodes", 0, "name"), "class", "which is none"),
    (("nodes", 1, "target"), "stem.9", "does not have"),
    (("nodes", 1, "args", 0), {"node": "later"}, "before it is made"),
    (("nodes", 1, "kwargs", "a=__import__('os').system('touch pwned'), b"), 1, "which is none"),
    (("nodes",), [], "broken"),
    (("nodes",), None, "broken"),
    (("modules",), "text", "broken"),
]


@pytest.mark.parametrize(("path", "value", "match"), HOSTILE)
def test_hostile_recipes_are_one_line_and_nothing_runs(saved, monkeypatch, path, value, match):
    monkeypatch.chdir(saved)
    recipe = json.loads((saved / "recipe.json").read_text())
    (saved / "recipe.json").write_text(json.dumps(broken(recipe, path, value)))
    with pytest.raises(InputError, match=match) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)
    assert "recipe.json" in str(caught.value)
    assert sorted(file.name for file in saved.iterdir()) == ["model.safetensors", "recipe.json"]


@pytest.mark.parametrize(
    ("op", "target", "args", "match"),
    [
        ("call_function", "os.system", ["touch pwned"], "no recipe may"),
        ("call_function", "builtins.eval", ["1"], "no recipe may"),
        ("call_function", "torch.load", ["x"], "no recipe may"),
        ("call_function", "torch.zeros", [10**12], "no recipe may"),
        ("call_function", "getattr", [{"node": "x"}, "__class__"], "reads the attribute"),
        ("call_function", "getattr", ["x", "shape"], "reads the attribute"),
        ("call_method", "__reduce__", [{"node": "x"}], "no recipe may"),
        ("call_method", "numpy", [{"node": "x"}], "no recipe may"),
        ("call_method", "apply_", [{"node": "x"}], "no recipe may"),
        ("get_attr", "__dict__", [], "does not have"),
        ("get_attr", "../x", [], "does not have"),
        ("call_module", "forward", [{"node": "x"}], "does not have"),
    ],
)
def test_steps_outside_of_the_list_are_refused(op, target, args, match):
    recipe = to_recipe(nn.Sequential(nn.ReLU()))
    recipe["nodes"][0]["name"] = recipe["nodes"][0]["target"] = "x"
    recipe["nodes"][1:-1] = [{"name": "y", "op": op, "target": target, "args": args, "kwargs": {}}]
    recipe["nodes"][-1]["args"] = [{"node": "y"}]
    with pytest.raises(InputError, match=match):
        from_recipe(recipe, {})


@pytest.mark.parametrize(
    ("builder", "match"),
    [
        ({"library": "os", "name": "system"}, "library 'os'"),
        ({"library": "torchvision", "name": "get_model"}, "no classifier"),
        ({"library": "torchvision", "name": ["resnet18"]}, "no classifier"),
        ({"library": "torchvision", "name": "resnet18", "arguments": {"weights": "DEFAULT"}}, "argument 'weights'"),
        ({"library": "torchvision", "name": "resnet18", "arguments": {"num_classes": 10**9}}, "largest allowed"),
        ({"library": "torchvision", "name": "resnet18", "arguments": {"num_classes": "many"}}, "do not make"),
        ({"library": "timm", "name": "hf-hub:some/model"}, "no model named"),
        ({"library": "timm", "name": "vit_tiny_patch16_224", "arguments": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
        ({"library": "timm", "name": "vit_tiny_patch16_224", "arguments": {"pretrained": True}}, "pretrained"),
        ("resnet18", "a builder is an object"),
    ],
)
def test_hostile_builders_are_refused(builder, match):
    recipe = {**to_recipe(nn.Sequential()), "builder": builder}
    with pytest.raises(InputError, match=match):
        from_recipe(recipe, {})


@pytest.mark.parametrize("harm", ["cut", "flip", "pickle", "gone", "empty"])
def test_weights_that_were_harmed_are_refused(saved, harm):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[:-9])
    elif harm == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    elif harm == "pickle":
        torch.save({"x": 1}, path)
        recipe = json.loads((saved / "recipe.json").read_text())
        (saved / "recipe.json").write_text(json.dumps({**recipe, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    elif harm == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no model folder"):
        load_model(saved.parent)


def test_weights_of_a_state_dict_are_read_without_code(tmp_path):
    state = {"module.a": torch.ones(2), "module.b": torch.zeros(1)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    assert {name: tensor.tolist() for name, tensor in load_weights(tmp_path / "w.pth").items()} == {"a": [1, 1], "b": [0]}

    class Evil:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "pwned",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "text.pth", "text.safetensors", "list.pth", "absent.pth"):
        with pytest.raises(InputError, match=name):
            load_weights(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_onnx_is_held_against_torch_with_any_batch_size(tmp_path, model):
    import onnxruntime

    path = tmp_path / "m.onnx"
    error = export_onnx(model, torch.randn(1, 3, 8, 8), path)
    assert error < 1e-4
    assert model.training
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    session = onnxruntime.InferenceSession(path)
    x = torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    assert np.abs(session.run(None, {"input": x.numpy()})[0] - expected).max() < 1e-4
    before = path.read_bytes()
    with pytest.raises(CheckFailed, match="differs from torch"):
        export_onnx(model, torch.randn(1, 3, 8, 8), path, tolerance=-1)
    assert path.read_bytes() == before


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_onnx_cannot_say_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot export Branching") as caught:
        export_onnx(Branching(), torch.ones(1, 3), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_onnx_export_leaves_the_activations_as_they_were(tmp_path):
    """They are exported out of place and ReLU6 as a clamp; the user's model keeps its own ways, also after a failure."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True), nn.Hardtanh(-0.5, 0.5), nn.ReLU(inplace=True), nn.Hardswish(inplace=True)
    )
    export_onnx(model, torch.randn(1, 3, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="cannot export"):
        export_onnx(nn.Sequential(model, Branching()), torch.randn(1, 3, 8, 8), tmp_path / "no.onnx")
    assert [getattr(layer, "inplace", None) for layer in model] == [None, True, False, True, True]
    assert not any("forward" in vars(layer) for layer in model)


def test_int8_keeps_the_decisions_in_a_quarter_of_the_bytes(tmp_path):
    from edge_shared.data.vision import load_images
    from edge_shared.training import TrainConfig, fit

    digits = load_images("digits")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    fit(network, digits.loader("train", 64, shuffle=True), None, TrainConfig(epochs=3))
    x_NCHW = torch.cat([batch for batch, _ in digits.loader("val", 64)])
    export_onnx(network, x_NCHW, tmp_path / "float.onnx")
    result = quantize_onnx(tmp_path / "float.onnx", x_NCHW.numpy(), tmp_path / "int8.onnx")
    assert result["agreement"] > 0.97
    assert result["bytes"] == (tmp_path / "int8.onnx").stat().st_size < 0.4 * result["float_bytes"]
    for bad in (np.full((2, 1, 8, 8), np.nan, np.float32), np.empty((0, 1, 8, 8), np.float32), []):
        with pytest.raises(InputError, match="calibration"):
            quantize_onnx(tmp_path / "float.onnx", bad, tmp_path / "x.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InputError, match="cannot read"):
        quantize_onnx(tmp_path / "text.onnx", x_NCHW.numpy(), tmp_path / "x.onnx")


def test_int8_sums_of_large_products_do_not_saturate(tmp_path):
    """x86 without VNNI adds pairs of 8-bit products in 16 bits: weights and activations at their ends overflow that."""
    network = nn.Conv2d(16, 2, 3, bias=False)
    nn.init.ones_(network.weight)
    x_NCHW = torch.ones(4, 16, 8, 8)
    x_NCHW[0] = 0
    export_onnx(network, x_NCHW, tmp_path / "float.onnx")
    result = quantize_onnx(tmp_path / "float.onnx", x_NCHW.numpy(), tmp_path / "int8.onnx")
    assert result["max_abs_error"] <= 0.01 * 144


class Means(nn.Module):
    """Mean over the given axes, between a layer and another."""

    def __init__(self, first, axes, last, keepdim):
        super().__init__()
        self.first, self.last, self.axes, self.keepdim = first, last, axes, keepdim

    def forward(self, x):
        return self.last(self.first(x).mean(self.axes, keepdim=self.keepdim).flatten(1))


@pytest.mark.parametrize(("axes", "keepdim"), [((2, 3), True), ((-1, -2), False)])
def test_int8_means_over_pixels_are_sums_of_integers(tmp_path, axes, keepdim):
    """Sums of floats come in another order on another processor, and then ties round the other way."""
    import onnx

    torch.manual_seed(0)
    for network, x, kept in (
        (Means(nn.Conv2d(1, 8, 3), axes, nn.Linear(8, 4), keepdim), torch.rand(8, 1, 10, 10), False),
        (Means(nn.Linear(10, 8), 1, nn.Linear(80, 4), keepdim), torch.rand(8, 3, 10, 10), True),
    ):
        export_onnx(network, x, tmp_path / "float.onnx")
        result = quantize_onnx(tmp_path / "float.onnx", x.numpy(), tmp_path / "int8.onnx")
        assert result["max_abs_error"] < 0.02
        operations = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
        assert ("GlobalAveragePool" in operations, "ReduceMean" in operations) == (not kept, kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_small", "resnet18", "vgg16_bn", "swin_t", "vit_b_32", "timm:vit_tiny_patch16_224"]
)
def test_known_architectures_save_and_export(tmp_path, name):
    module = known(name)
    result = save_model(tmp_path, module, torch.randn(1, 3, 224, 224))
    assert result["onnx_max_abs_error"] < 1e-4
    assert same_state(load_model(tmp_path), module)


def test_a_recipe_is_a_graph_of_plain_modules():
    rebuilt = round_trip(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    assert isinstance(rebuilt, fx.GraphModule)
    assert [node.op for node in rebuilt.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
