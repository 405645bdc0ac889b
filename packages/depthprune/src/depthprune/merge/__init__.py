"""The mathematics of merging, on plain tensors in float64: no graphs, no modules of a network.

`conv` holds the convolution and its composition, `borders` the five ways with zero padding, `norm` batch and layer norm,
`parallel` skips and sums, `pool` average pooling, `dead` branches that are constants.
"""

from depthprune.merge.borders import MODES, Merged, Mode, bias_pad, front_pad, merge, merge_chain
from depthprune.merge.conv import Conv, Refused, compose, exact, from_module, quiet, ring, ring_share, to_module

__all__ = [
    "MODES",
    "Conv",
    "Merged",
    "Mode",
    "Refused",
    "bias_pad",
    "compose",
    "exact",
    "from_module",
    "front_pad",
    "merge",
    "merge_chain",
    "quiet",
    "ring",
    "ring_share",
    "to_module",
]
