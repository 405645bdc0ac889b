"""The mobile family as one small description: MobileNetV2, MCUNet, ProxylessNAS, Once-For-All MobileNetV3.

A network is a stem, inverted residual blocks (expand 1x1, depthwise k x k, optional squeeze-and-excite, project 1x1, skip
where stride 1 and equal widths), an optional 1x1 convolution, global average pooling, an optional feature mix and a
classifier. The JSON form is the input of ``moofa profile``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge_shared.architectures._builder import NetworkBuilder
from edge_shared.errors import InputError
from edge_shared.network import Network

if TYPE_CHECKING:
    from torch import nn

Activation = Literal["relu", "relu6", "hardswish", "silu", "gelu"]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, half up, never more than 10 % down (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("kernels are odd: with padding kernel // 2 an even one does not keep the size")
    return kernel


Kernel = Annotated[int, Field(gt=0, le=31), AfterValidator(_odd)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class Stem(_Strict):
    """The first convolution: output channels, kernel size, stride."""

    out: int = Field(gt=0, le=65536)
    kernel: Kernel = 3
    stride: int = Field(default=2, gt=0, le=8)


class Block(_Strict):
    """An inverted residual block. `mid` given wins over `expand`; expand 1 has no expansion convolution."""

    kernel: Kernel
    expand: float = Field(default=1, gt=0, le=64)
    mid: int | None = Field(default=None, gt=0, le=1048576)
    out: int = Field(gt=0, le=65536)
    stride: int = Field(default=1, gt=0, le=8)
    se: bool = False
    act: Activation | None = None

    def middle(self, channels: int) -> int:
        """Channels between expansion and projection."""
        if self.mid is not None:
            return self.mid
        return channels if self.expand == 1 else make_divisible(round(channels * self.expand))

    def expands(self, channels: int) -> bool:
        """Whether there is an expansion convolution."""
        return self.expand != 1 or (self.mid is not None and self.mid != channels)


class MobileConfig(_Strict):
    """One network of the family; square inputs of `resolution` pixels.

    `final_expand` is a 1x1 convolution with norm before the pooling. `feature_mix` stands after the pooling, or before
    it where there is no `final_expand` (ProxylessNAS); it has a norm where `feature_mix_bn` says so.
    """

    resolution: int = Field(gt=0, le=8192)
    in_channels: int = Field(default=3, gt=0, le=4096)
    stem: Stem
    blocks: tuple[Block, ...] = Field(max_length=1000)
    final_expand: int | None = Field(default=None, gt=0, le=1048576)
    feature_mix: int | None = Field(default=None, gt=0, le=1048576)
    feature_mix_bn: bool = False
    classes: int = Field(default=1000, gt=0, le=10_000_000)
    act: Activation = "relu6"
    bn: bool = True
    name: str = "mobile"

    @staticmethod
    def parse(data: Any, where: str = "network") -> MobileConfig:
        """Validate plain data; a field that is null counts as left out.

        Raises:
            InputError: naming the field that is wrong and what it may be.
        """
        try:
            return MobileConfig.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{where}: {_problem(error)}") from error


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = first["loc"]
    field = ".".join(map(str, place)) or "the network"
    parts: dict[str, type[BaseModel]] = {"stem": Stem, "blocks": Block}
    part = parts.get(str(place[0]), MobileConfig) if len(place) > 1 else MobileConfig
    if first["type"] == "extra_forbidden":
        return f"{field} is no known field; known: {', '.join(part.model_fields)}"
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] in ("model_type", "tuple_type"):
        return f"{field} must be {'an object' if first['type'] == 'model_type' else 'a list'}, got {str(first['input'])[:60]}"
    return f"{field}: {first['msg'].removeprefix('Value error, ')} (got {str(first['input'])[:60]})"


def network(config: MobileConfig) -> Network:
    """The network of `config` with batch 1, without torch: norms and activations as layers of their own."""
    build = NetworkBuilder(config.name, (1, config.in_channels, config.resolution, config.resolution))

    def unit(x: str, out: int, kernel: int, name: str, act: str | None, *, stride: int = 1, groups: int = 1, norm: bool = True) -> str:
        x = build.conv(x, out, kernel, f"{name}.conv", stride=stride, groups=groups, bias=not config.bn and norm)
        if norm and config.bn:
            x = build.norm(x, f"{name}.bn")
        return build.activation(x, act, f"{name}.act") if act else x

    x = unit("input", config.stem.out, config.stem.kernel, "stem", config.act, stride=config.stem.stride)
    channels = config.stem.out
    for index, block in enumerate(config.blocks):
        name, skip, act = f"blocks.{index}", x, block.act or config.act
        middle = block.middle(channels)
        if block.expands(channels):
            x = unit(x, middle, 1, f"{name}.expand", act)
        x = unit(x, middle, block.kernel, f"{name}.depthwise", act, stride=block.stride, groups=middle)
        if block.se:
            x = _squeeze_excite(build, x, middle, f"{name}.se")
        x = unit(x, block.out, 1, f"{name}.project", None)
        if block.stride == 1 and channels == block.out:
            x = build.combine("add", x, skip, f"{name}.add")
        channels = block.out
    if config.final_expand:
        x = unit(x, config.final_expand, 1, "final_expand", config.act)
    if config.feature_mix and not config.final_expand:
        x = unit(x, config.feature_mix, 1, "feature_mix", config.act, norm=config.feature_mix_bn)
    x = build.pool(x, "adaptive_avg_pool2d", "pool")
    if config.feature_mix and config.final_expand:
        x = unit(x, config.feature_mix, 1, "feature_mix", config.act, norm=config.feature_mix_bn)
    x = build.flatten(x, "flatten")
    return build.build(build.linear(x, config.classes, "classifier"))


def _squeeze_excite(build: NetworkBuilder, x: str, channels: int, name: str) -> str:
    hidden = make_divisible(channels // 4)
    gate = build.pool(x, "adaptive_avg_pool2d", f"{name}.pool")
    gate = build.activation(build.conv(gate, hidden, 1, f"{name}.reduce", bias=True), "relu", f"{name}.act")
    gate = build.activation(build.conv(gate, channels, 1, f"{name}.excite", bias=True), "hardsigmoid", f"{name}.gate")
    return build.combine("mul", x, gate, f"{name}.mul")


def module(config: MobileConfig) -> nn.Module:
    """The same network as a torch module with fresh weights (He fan-out, as MobileNetV2)."""
    from edge_shared.architectures._mobile_module import MobileNet

    return MobileNet(config)
