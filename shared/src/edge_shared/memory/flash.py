"""Read-only memory of a deployed network."""

from __future__ import annotations

from math import ceil

from edge_shared.network import Network, deployed

TINYENGINE_CODE = round(63.7 * 1024)
"""Code bytes of TinyEngine: its published flash figures less the weights (62.9 to 65.5 KiB for mcunet-in0, in1, in2 and in4; 68.7 for in3)."""


def flash(network: Network, bits: int = 8, *, code: int = 0) -> int:
    """Bytes of weights at `bits` each, plus a 4-byte bias and a 4-byte requantisation scale per output channel, plus `code`.

    At 32 bits there is nothing to requantise: 4 bytes of bias per channel.
    """
    layers = deployed(network).weighted()
    per_channel = 4 if bits >= 32 else 8
    return ceil(sum(layer.weights for layer in layers) * bits / 8) + per_channel * sum(layer.out_channels for layer in layers) + code
