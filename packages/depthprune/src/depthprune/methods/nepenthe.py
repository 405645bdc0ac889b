"""NEPENTHE: EGP with a don't-care state and the mean over neurons that still switch (Liao et al. 2024, TMLR 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from depthprune.entropy import Over, ZeroIs
from depthprune.methods.egp import Egp


@dataclass
class Nepenthe(Egp):
    """z = 0 leaves the count; the layer mean is over neurons of non-zero entropy; stops at an accuracy threshold.

    Attributes:
        zeta: 0.5 for ResNet-18, 0.25 for Swin-T, 0.1 for MobileNetV2 in the paper's experiments (second-hand).
    """

    over: Over = "mixed"
    zero_is: ZeroIs = "ignored"
    name = "nepenthe"
