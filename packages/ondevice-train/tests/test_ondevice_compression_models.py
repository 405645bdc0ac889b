"""Models of one's own and of timm: bytes are predicted whatever they are made of, or the model is refused in one line."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from edge_shared.errors import InputError
from edge_shared.memory import measure
from ondevice_train import plan, prepare, restore
from ondevice_train.compression._tucker import spectrum
from ondevice_train.compression.bench import evaluation_norms
from ondevice_train.compression.predict import predict
from ondevice_train.compression.prepare import codecs
from torch import nn
from torch.nn import functional as F

METHODS = ["asi", "hosvd", "svd", "wasi", "gradient-filter", "fixed-bases", "checkpointing", "plain"]


class Body(nn.Module):
    """A convolution, something else, a classifier."""

    def __init__(self, middle: nn.Module, features: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.middle, self.head = middle, nn.Linear(features, 10)

    def forward(self, x):
        return self.head(self.middle(F.relu(self.second(self.first(x)))))


class Rows(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8 * 16, 8, batch_first=True)

    def forward(self, x):
        return self.lstm(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1]


class Encoder(nn.Module):
    """Torch's own transformer over the pixels; it looks at the weights of its linear layers in inference."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x):
        return self.layers(x.flatten(2).transpose(1, 2)).mean(1)


class Remembers(nn.Module):
    """As timm's LeViT: in evaluation a bias is computed once and kept until the mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.index = nn.Parameter(torch.randn(4)), torch.arange(8) % 4
        self.kept = None

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x * self.table[self.index].view(1, -1, 1, 1)
        self.kept = self.table[self.index] if self.kept is None else self.kept
        return x * self.kept.view(1, -1, 1, 1)


def pooled(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())


OWN = {
    "batch statistics": lambda: Body(pooled(nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())),
    "transposed": lambda: Body(pooled(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.GroupNorm(2, 8), nn.ELU())),
    "lstm": lambda: Body(Rows()),
    "encoder": lambda: Body(Encoder()),
    "remembers": lambda: Body(pooled(nn.Sequential(nn.Sequential(Remembers(), nn.Conv2d(8, 8, 1)), nn.Sequential(nn.Conv2d(8, 8, 1))))),
}


@pytest.mark.parametrize("kind", OWN)
def test_own_models(kind):
    torch.manual_seed(0)
    model, x = OWN[kind]().train(), torch.randn(4, 3, 16, 16)
    for method in METHODS:
        own = copy.deepcopy(model)
        made = plan(own, x, method=method)
        assert made.predicted_bytes == measure.training_bytes(prepare(own, made), x).bytes, method
        own(x).sum().backward()
        with torch.no_grad():
            trained, inference = own(x), own.eval()(x)
        assert torch.allclose(trained, inference, atol=1e-5), method
        assert restore(own).state_dict().keys() == model.state_dict().keys()


TIMM = ("mobilenetv3_small_050", "convnext_atto", "resnet10t", "ghostnet_050")


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    torch.manual_seed(0)
    model, x = evaluation_norms(timm.create_model(name, num_classes=10, drop_rate=0.0)), torch.randn(2, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    outputs = model(x).detach()
    for method, last in (("asi", None), ("gradient-filter", 3)):
        made = plan(model, x, method=method, last=last)
        prepare(model, made)
        assert made.predicted_bytes == predict(model, x).bytes == measure.training_bytes(model, x).bytes, method
        assert torch.allclose(model(x), outputs, atol=1e-4, rtol=1e-3), method
        restore(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_timm_norms_keep_bits():
    """Norms with an activation inside (BatchNormAct2d) keep its mask and nothing of the norm, and train their bias."""
    model, x = evaluation_norms(timm.create_model("mobilenetv2_035", num_classes=10)), torch.randn(2, 3, 32, 32)
    made = plan(model, x)
    assert made.predicted_bytes < made.vanilla_bytes / 8
    assert made.other_bytes < made.predicted_bytes / 10
    plain = copy.deepcopy(model)
    prepare(model, made)
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.allclose(model.bn1.bias.grad, plain.bn1.bias.grad, rtol=1e-3, atol=1e-3)


def test_attention_of_linear_layers_is_run_again():
    """timm's attention is made of layers that could be compressed; then queries, keys and values would be kept beside them."""
    torch.manual_seed(0)
    model, x = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=2), torch.randn(4, 3, 64, 64)
    plain, made = copy.deepcopy(model), plan(model, x)
    assert [layer.name for layer in made.layers if ".attn." in layer.name] == []
    assert [layer.name for layer in plan(model, x, layers=["blocks.1.attn.qkv"]).layers] == ["blocks.1.attn.qkv"]
    assert any(".attn." in layer.name for layer in plan(model, x, pack=False).layers)
    prepare(model, made)
    assert made.predicted_bytes == measure.training_bytes(model, x).bytes
    for each in (model, plain):
        each(x).square().sum().backward()
    # Exact but for the rounding of the attention's input, and of what comes after it, to 8 bits.
    ours, exact = model.blocks[0].attn.qkv.weight.grad, plain.blocks[0].attn.qkv.weight.grad
    assert (ours - exact).norm() < 0.05 * exact.norm()


def test_nothing_is_encoded_where_no_gradient_follows():
    """Validation must not move the bases, nor take the time of a decomposition."""
    torch.manual_seed(0)
    model, x = Body(Encoder()), torch.randn(4, 3, 16, 16)
    prepare(model, plan(model, x, method="wasi"))
    model(x)
    before = copy.deepcopy({name: codec.state() for name, codec in codecs(model)})
    with torch.no_grad():
        model.eval()(torch.randn(4, 3, 16, 16))
    after = {name: codec.state() for name, codec in codecs(model)}
    assert all(torch.equal(after[name][key], value) for name, state in before.items() for key, value in state.items())


class Several(Body):
    """A dict of outputs."""

    def forward(self, x):
        return {"count": 3, "logits": super().forward(x)}


def test_outputs_that_are_no_tensor():
    model, x = Several(pooled(nn.ReLU())), torch.randn(4, 3, 16, 16)
    made = plan(model, x)
    assert made.predicted_bytes == measure.training_bytes(prepare(model, made), x).bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_in_another_precision(dtype):
    model, x = Body(pooled(nn.ReLU())).to(dtype), torch.randn(4, 3, 16, 16, dtype=dtype)
    for method in ("asi", "hosvd", "svd", "fixed-bases", "quantise", "plain"):
        made = plan(model, x, method=method)
        assert made.predicted_bytes == measure.training_bytes(prepare(model, made), x).bytes, method
        model(x).sum().backward()
        assert model.first.weight.grad.dtype == dtype
        restore(model)


def test_planning_without_gradients_is_refused():
    with torch.inference_mode(), pytest.raises(InputError, match="outside of torch"):
        plan(Body(pooled(nn.ReLU())), torch.randn(2, 3, 8, 8))


def test_nothing_to_compress_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(InputError, match="nothing for asi to compress"):
        plan(model, torch.randn(2, 3, 2, 2))
    with pytest.raises(InputError, match="no Conv2d or Linear"):
        plan(model, torch.randn(2, 3, 2, 2), last=1)


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"epsilon": "abc"}, "epsilon is 'abc'"),
        ({"weight_epsilon": 7}, "weight_epsilon is 7"),
        ({"bits": 3}, "bits is 3; choose 8 or 4"),
        ({"smooth_bits": 7}, "smooth_bits is 7"),
        ({"patch": 0}, "patch is 0"),
        ({"basis": "cosin"}, "choose calibrated or cosine"),
        ({"pack": "maybe"}, "choose true or false"),
        ({"max_error": float("nan")}, "max_error is nan"),
        ({"layers": "first"}, "a list of layer names"),
        ({"layers": []}, "a list of layer names"),
        ({"last": 9}, "it is 1 to 2"),
    ],
)
def test_a_setting_out_of_range_is_named(setting, word):
    with pytest.raises(InputError, match=word):
        plan(Body(pooled(nn.ReLU())), torch.randn(2, 3, 8, 8), **setting)


def test_an_input_that_is_not_finite_is_named():
    with pytest.raises(InputError, match="training has diverged"):
        spectrum(torch.full((3, 3), torch.nan))
