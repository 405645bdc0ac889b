"""A shortcut to plant: every class photographed under a light of its own. Synthetic, and called so wherever it shows.

The light of a group is a colour (evenly spaced hues) or, for grey images, a brightness; it is mixed into every pixel. Counts of who
gets which light are Biased-MNIST's (`fairnet.data.biased.assign_groups`).
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

STRENGTH = 0.2
"""Share of the light in a pixel: the object stays as visible as before."""


def lights(groups: int, channels: int) -> NDArray[np.float64]:
    """The light of each group, (G, C) in 0 to 255."""
    if channels == 1:
        return np.linspace(0, 255, groups)[:, None]
    return 255 * np.array([colorsys.hsv_to_rgb(group / groups, 1, 1) for group in range(groups)])


def under_light(x_NHWC: NDArray[np.uint8], group_N: NDArray[np.int64], groups: int) -> NDArray[np.uint8]:
    """The images under the light of their group."""
    colour_N11C = lights(groups, x_NHWC.shape[-1])[group_N][:, None, None, :]
    return np.rint((1 - STRENGTH) * x_NHWC + STRENGTH * colour_N11C).astype(np.uint8)
