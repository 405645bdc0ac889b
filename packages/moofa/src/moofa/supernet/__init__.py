"""The supernet: elastic layers, the network, channel sorting, norm re-calibration and extraction (Cai et al., ICLR 2020)."""

from moofa.supernet.calibration import calibrate
from moofa.supernet.extraction import extract
from moofa.supernet.network import Supernet
from moofa.supernet.sorting import sort_channels

__all__ = ["Supernet", "calibrate", "extract", "sort_channels"]
