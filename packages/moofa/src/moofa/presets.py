"""Spaces by name: Once-For-All's MobileNetV3, MOOFA V1 to V3 with their published widths, and small ones for small data.

Widths, strides, activations and options of the large spaces are those of the official code of Once-For-All (Cai et al.,
ICLR 2020) and MOOFA (Girard et al., CADL 2024, arXiv 2409.05900). The small spaces solve MOOFA's rule, with the skip
tensor and the real sizes counted, for 8, 28 and 32 pixels; ``*-control`` are their Once-For-All-like counterparts.
"""

from __future__ import annotations

from collections.abc import Callable

from moofa.space import Activation, FixedBlock, Space, Stage, Stem

_LARGE_RESOLUTIONS = (128, 160, 192, 224)


def ofa_mobilenet_v3() -> Space:
    """Once-For-All's MobileNetV3 space at width 1.0: 2.2e19 networks per resolution."""
    rows: list[tuple[int, int, bool, Activation]] = [
        (24, 2, False, "relu"),
        (40, 2, True, "relu"),
        (80, 2, False, "hardswish"),
        (112, 1, True, "hardswish"),
        (160, 2, True, "hardswish"),
    ]
    return Space(
        name="ofa-mobilenet-v3",
        classes=1000,
        resolutions=_LARGE_RESOLUTIONS,
        stem=Stem(out=16),
        activation="hardswish",
        first=FixedBlock(out=16, activation="relu"),
        stages=tuple(
            Stage(width=width, stride=stride, depths=(2, 3, 4), kernels=(3, 5, 7), expands=(3, 4, 6), se=se, activation=activation)
            for width, stride, se, activation in rows
        ),
        final_expand=960,
        feature_mix=1280,
        dropout=0.1,
    )


def _moofa(version: int, expands: tuple[float, ...]) -> Space:
    rows: list[tuple[int, bool, Activation]] = [
        (24, False, "hardswish"),
        (96, True, "hardswish"),
        (288, True, "hardswish"),
        (360, False, "relu"),
        (384, True, "hardswish"),
    ]
    return Space(
        name=f"moofa-v{version}",
        classes=1000,
        resolutions=_LARGE_RESOLUTIONS,
        stem=Stem(out=3),
        activation="hardswish",
        first=FixedBlock(out=8, activation="relu"),
        stages=tuple(
            Stage(width=width, depths=(2, 3, 4), kernels=(3, 5, 7), expands=expands, se=se, activation=activation)
            for width, se, activation in rows
        ),
        final_expand=392,
        feature_mix=392,
        dropout=0.1,
    )


def moofa_v1() -> Space:
    """MOOFA V1: expands 3, 4, 6."""
    return _moofa(1, (3, 4, 6))


def moofa_v2() -> Space:
    """MOOFA V2: expands 1, 1.5, 2; its expand 1 has no expansion convolution, in the supernet as in the extracted network."""
    return _moofa(2, (1, 1.5, 2))


def moofa_v3() -> Space:
    """MOOFA V3, the published one: expands 2, 3, 4."""
    return _moofa(3, (2, 3, 4))


def _small(
    name: str,
    shape: tuple[int, int],
    stem: Stem,
    widths: tuple[int, ...],
    kernels: tuple[int, ...],
    depths: tuple[int, ...],
    first_stride: int = 2,
) -> Space:
    channels, resolution = shape
    stages = tuple(
        Stage(width=width, stride=first_stride if index == 0 else 2, depths=depths, kernels=kernels) for index, width in enumerate(widths)
    )
    return Space(name=name, in_channels=channels, resolutions=(resolution,), stem=stem, stages=stages)


def digits8() -> Space:
    """For 1x8x8 images: 1,764 networks, few enough to try each."""
    return _small("digits8", (1, 8), Stem(out=8, stride=1), (8, 20), (3, 5), (1, 2), first_stride=1)


def digits8_control() -> Space:
    """As digits8 with widths that grow as Once-For-All's do."""
    return _small("digits8-control", (1, 8), Stem(out=8, stride=1), (8, 12), (3, 5), (1, 2), first_stride=1)


def mnist28() -> Space:
    """For 1x28x28 images: 74,088 networks."""
    return _small("mnist28", (1, 28), Stem(out=8), (8, 24, 48), (3, 5), (1, 2), first_stride=1)


def mnist28_control() -> Space:
    """As mnist28 with widths that grow as Once-For-All's do."""
    return _small("mnist28-control", (1, 28), Stem(out=8), (8, 12, 16), (3, 5), (1, 2), first_stride=1)


def mnist28_plus() -> Space:
    """A larger space for 1x28x28 images: 5.5e8 networks."""
    return _small("mnist28+", (1, 28), Stem(out=8), (12, 36, 64), (3, 5, 7), (1, 2, 3), first_stride=1)


def c32() -> Space:
    """For 3x32x32 images: 729,000 networks in the notation of one resolution."""
    return _small("c32", (3, 32), Stem(out=8), (12, 36, 72), (3, 5, 7), (1, 2), first_stride=1)


PRESETS: dict[str, Callable[[], Space]] = {
    "ofa-mobilenet-v3": ofa_mobilenet_v3,
    "moofa-v1": moofa_v1,
    "moofa-v2": moofa_v2,
    "moofa-v3": moofa_v3,
    "digits8": digits8,
    "digits8-control": digits8_control,
    "mnist28": mnist28,
    "mnist28-control": mnist28_control,
    "mnist28+": mnist28_plus,
    "c32": c32,
}


def names() -> tuple[str, ...]:
    """Names that `moofa.space.load_space` knows."""
    return tuple(PRESETS)
