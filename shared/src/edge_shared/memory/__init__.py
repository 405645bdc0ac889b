"""Memory of inference and training: predicted from a `Network`, and measured (`edge_shared.memory.measure`, needs torch)."""

from edge_shared.memory.arena import Arena, arena
from edge_shared.memory.flash import TINYENGINE_CODE, flash
from edge_shared.memory.inference import LayerMemory, MemoryModel, Peak, lifetimes, peak
from edge_shared.memory.tinyengine import TinyEngineSram, sram

__all__ = [
    "TINYENGINE_CODE",
    "Arena",
    "LayerMemory",
    "MemoryModel",
    "Peak",
    "TinyEngineSram",
    "arena",
    "flash",
    "lifetimes",
    "peak",
    "sram",
]
