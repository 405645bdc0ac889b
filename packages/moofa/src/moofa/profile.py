"""What a network costs, by formula alone: MACs, parameters, peak memory under a named model, SRAM, flash. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_shared import flops
from edge_shared.architectures import mobile
from edge_shared.architectures.mobile import MobileConfig
from edge_shared.errors import InputError
from edge_shared.memory import flash, peak, sram
from edge_shared.network import Network, deployed

from moofa.budget import Target, device_budget
from moofa.flatness import flatness

if TYPE_CHECKING:
    from edge_shared.devices import Device

PAPER_NOTE = (
    "compat moofa-paper: the MOOFA paper's own metric, which leaves the skip tensor out of the projection and so promises less "
    "memory than a run needs; to compare with its numbers, not to set a budget"
)


@dataclass(frozen=True)
class LayerProfile:
    """One layer that the memory model counts: shapes with the batch first, what it computes, what it needs while it runs."""

    name: str
    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    macs: int
    params: int
    items: int
    bytes: int


@dataclass(frozen=True)
class Profile:
    """The cost of one network.

    Attributes:
        name: of the network, if its description has one.
        macs: multiply-accumulates of one forward pass (two FLOPs each).
        params: weights and biases, batch norms left out (a board folds them).
        params_with_bn: with the norms' scale and shift.
        peak_items, peak_bytes, peak_layer: the largest need of any layer under `memory_model`, at `bits` per element.
        sram_bytes: RAM that the network takes: `peak_bytes`; on a microcontroller with TinyEngine's scratch buffers; on a device
            that keeps weights in RAM with the weights (model A counts those of one layer at a time and adds none). On a device it is
            the memory model's own figure even with `compat`.
        flash_bytes: weights at `bits`, biases and scales; no code.
        memory_model, bits, compat, device: what was asked for.
        utilisation: `sram_bytes` over the device's budget (`moofa.budget.device_budget`); None without a device.
        fits: whether that budget suffices, code in flash included; None without a device.
        flatness: mean over the blocks of a block's largest need, over the peak; 1 if each needs the same.
        layers: every layer that the memory model counts.
    """

    name: str
    macs: int
    params: int
    params_with_bn: int
    peak_items: int
    peak_bytes: int
    peak_layer: str
    sram_bytes: int
    flash_bytes: int
    memory_model: str
    bits: int
    compat: str | None
    device: str | None
    utilisation: float | None
    fits: bool | None
    flatness: float
    layers: tuple[LayerProfile, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; `layers` is left out if empty, and a compat metric says what it is."""
        data = dict(vars(self))
        del data["layers"]
        if self.layers:
            data["layers"] = [dict(vars(layer)) for layer in self.layers]
        if self.compat:
            data["note"] = PAPER_NOTE
        return data


def profile(
    config: MobileConfig,
    *,
    memory_model: str | None = None,
    bits: int = 8,
    device: Device | None = None,
    compat: str | None = None,
    with_layers: bool = True,
) -> Profile:
    """The cost of one network.

    Args:
        config: the network.
        memory_model: A to E (see `edge_shared.memory`); the device's own if omitted, D without a device, A with `compat`.
        bits: per weight and activation; 8 is what microcontroller runtimes run.
        device: for `sram_bytes`, `fits` and the default memory model.
        compat: ``moofa-paper`` for the paper's metric.
        with_layers: list the layers.

    Raises:
        InputError: if the network has a layer without outputs (too many strides) or an option is out of range.
    """
    if compat is not None and memory_model is None:
        memory_model = "A"
    model: Any = memory_model or (device.memory_model if device else "D")
    target = Target(model, bits, device)
    network = mobile.network(config)
    found = peak(network, model, bits=bits, compat=compat)  # type: ignore[arg-type]
    params_with_bn = sum(layer.params for layer in network.layers)
    params = sum(layer.params for layer in network.layers if layer.kind != "norm")
    flash_bytes = flash(network, bits)
    scratch_bytes = 0
    if target.has_scratch:
        buffers = sram(network)
        scratch_bytes = buffers.column_buffer + buffers.kernel_buffer
    # Whether a device has room is never answered with the paper's metric.
    real = peak(network, model, bits=bits) if compat and device else found
    needed = target.ram(real.bytes, flash_bytes, scratch_bytes)
    utilisation = fits = None
    if device:
        limits = device_budget(target).limits
        utilisation = needed / limits["ram"]
        fits = needed <= limits["ram"] and flash_bytes <= limits.get("flash", flash_bytes)
    return Profile(
        name=config.name,
        macs=flops.macs(network),
        params=params,
        params_with_bn=params_with_bn,
        peak_items=found.items,
        peak_bytes=found.bytes,
        peak_layer=found.layer,
        sram_bytes=needed,
        flash_bytes=flash_bytes,
        memory_model=model,
        bits=bits,
        compat=compat,
        device=device.name if device else None,
        utilisation=utilisation,
        fits=fits,
        flatness=flatness(found.per_layer, found.items),
        layers=_layers(network, model, found.per_layer) if with_layers else (),
    )


def _layers(network: Network, model: str, needs: Any) -> tuple[LayerProfile, ...]:
    # Models A, B, C and E count the deployed network, where a norm has become its convolution's bias; parameters are
    # those of the network as it was given.
    counted = {layer.name: layer for layer in (network if model == "D" else deployed(network)).layers}
    given = {layer.name: layer for layer in network.layers}
    result = []
    for need in needs:
        layer = counted[need.layer]
        result.append(
            LayerProfile(
                name=layer.name,
                kind="depthwise" if layer.is_depthwise else layer.kind,
                in_shape=given[need.layer].in_shape,
                out_shape=given[need.layer].out_shape,
                kernel=layer.kernel,
                stride=layer.stride,
                groups=layer.groups,
                macs=flops.forward(given[need.layer]),
                params=given[need.layer].params,
                items=need.items,
                bytes=need.bytes,
            )
        )
    return tuple(result)


def profile_all(documents: Any, *, where: str = "network", **options: Any) -> list[Profile]:
    """Profile one network or a list of them from plain data.

    Args:
        documents: the JSON of ``moofa profile``: an object, or a list of objects.
        where: how errors name the source.
        options: those of `profile`.

    Raises:
        InputError: naming the network of the list and the field that is wrong.
    """
    many = isinstance(documents, list)
    result = []
    for index, document in enumerate(documents if many else [documents]):
        place = f"{where}: network {index}" if many else where
        if not isinstance(document, dict):
            raise InputError(f"{place}: a network is a JSON object with resolution, stem and blocks, got {str(document)[:40]!r}")
        config = MobileConfig.parse(document, place)
        try:
            result.append(profile(config, **options))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    return result
