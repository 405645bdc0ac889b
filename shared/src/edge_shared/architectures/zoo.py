"""Published networks of the mobile family as `MobileConfig`s.

Sources: MobileNetV2 (Sandler 2018); MCUNet in0..in4 (Lin 2020, published configurations); the three networks of SparseUpdate
(Lin 2022), whose int8 form ends in the last block (51, 42 and 60 convolutions); ``-zoo`` adds the 1x1 convolution of the float form.
"""

from __future__ import annotations

from edge_shared.architectures.mobile import Block, MobileConfig, Stem, make_divisible

# (expand, out, stride, kernel)
_MCUNET: dict[str, tuple[int, int, str]] = {
    "mcunet-in0": (48, 24, "1,16,1,3 4,16,2,5 3,16,1,3 4,16,1,3 5,24,2,7 4,24,1,5 5,24,1,5 5,48,2,7 4,48,1,5 5,56,1,3 4,56,1,5 5,56,1,3 6,112,2,3 4,112,1,5 6,192,1,3"),
    "mcunet-in1": (96, 16, "1,8,1,3 4,16,2,3 3,16,1,3 3,24,2,7 5,24,1,3 5,40,2,3 4,40,1,7 4,48,1,5 3,48,1,3 4,48,1,3 5,96,2,7 4,96,1,5 4,96,1,5 6,160,1,3"),
    "mcunet-in2": (160, 16, "1,8,1,3 3,16,2,5 6,16,1,7 5,16,1,3 5,16,1,5 5,24,2,3 6,24,1,7 6,24,1,5 4,40,2,7 5,40,1,5 5,48,1,3 5,48,1,5 4,48,1,3 6,96,2,5 4,96,1,5 3,96,1,5 4,96,1,3 5,160,1,5"),
    "mcunet-in3": (176, 16, "1,8,1,3 3,16,2,7 5,16,1,3 5,16,1,7 4,16,1,5 5,24,2,5 5,24,1,5 5,24,1,5 5,40,2,3 6,40,1,7 4,40,1,5 5,48,1,5 5,48,1,7 5,48,1,3 6,96,2,3 5,96,1,7 4,96,1,3 5,160,1,7"),
    "mcunet-in4": (160, 32, "1,16,1,3 3,24,2,7 5,24,1,3 4,24,1,5 5,40,2,7 4,40,1,3 4,40,1,7 3,80,2,7 3,80,1,3 3,80,1,7 4,96,1,3 3,96,1,5 3,96,1,5 4,192,2,7 3,192,1,7 3,192,1,5 4,320,1,5"),
}  # fmt: skip

# (middle, out, stride, kernel) at 128 x 128
_SPARSE_UPDATE: dict[str, tuple[int | None, str]] = {
    "mbv2-w0.35": (448, "16,8,1,3 48,8,2,3 48,8,1,3 48,16,2,3 96,16,1,3 96,16,1,3 96,24,2,3 144,24,1,3 144,24,1,3 144,24,1,3 144,32,1,3 192,32,1,3 192,32,1,3 192,56,2,3 336,56,1,3 336,56,1,3 336,112,1,3"),
    "proxyless-w0.3": (384, "16,8,1,3 24,16,2,5 48,16,1,3 48,16,2,7 48,16,1,3 48,16,1,5 48,16,1,5 96,24,2,7 72,24,1,5 72,24,1,5 72,24,1,5 144,32,1,5 96,32,1,5 96,32,1,5 96,32,1,5 192,64,2,7 384,64,1,7 192,64,1,7 192,64,1,7 384,96,1,7"),
}  # fmt: skip

# (expand, out, repeats, stride)
_MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(width: float = 1.0, *, resolution: int = 224, classes: int = 1000, in_channels: int = 3) -> MobileConfig:
    """MobileNetV2 of any width multiplier; widths rounded to 8, the last convolution never narrower than 1280."""
    blocks = [
        Block(kernel=3, expand=expand, out=make_divisible(out * width), stride=stride if repeat == 0 else 1)
        for expand, out, repeats, stride in _MOBILENET_V2
        for repeat in range(repeats)
    ]
    return MobileConfig(
        name=f"mobilenet_v2-w{width:g}",
        resolution=resolution,
        in_channels=in_channels,
        stem=Stem(out=make_divisible(32 * width)),
        blocks=tuple(blocks),
        final_expand=make_divisible(1280 * max(1.0, width)),
        classes=classes,
    )


def config(name: str, *, resolution: int | None = None, classes: int = 1000, in_channels: int = 3) -> MobileConfig:
    """A published configuration by name: see `NAMES`; `resolution` defaults to the published one."""
    base = "mcunet-in1" if name == "mcunet-5fps" else name.removesuffix("-zoo")
    if base in _MCUNET:
        native, stem, text = _MCUNET[base]
        native = 128 if name == "mcunet-5fps" else native
        blocks = tuple(Block(expand=e, out=o, stride=s, kernel=k) for e, o, s, k in _rows(text))
        final = None
    else:
        native, stem = 128, 16
        last, text = _SPARSE_UPDATE[base]
        blocks = tuple(
            Block(mid=m, expand=1 if index == 0 else 2, out=o, stride=s, kernel=k) for index, (m, o, s, k) in enumerate(_rows(text))
        )
        final = last if name.endswith("-zoo") else None
    return MobileConfig(
        name=name,
        resolution=resolution or native,
        in_channels=in_channels,
        stem=Stem(out=stem),
        blocks=blocks,
        final_expand=final,
        classes=classes,
    )


def _rows(text: str) -> list[tuple[int, int, int, int]]:
    return [tuple(map(int, row.split(","))) for row in text.split()]  # type: ignore[misc]


NAMES = (*_MCUNET, "mcunet-5fps", *(name + suffix for name in _SPARSE_UPDATE for suffix in ("", "-zoo")))
