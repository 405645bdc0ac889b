"""Memory of inference and training: predicted from a `Network`, and measured (`edge_shared.memory.measure`, needs torch)."""

from edge_shared.memory.flash import TINYENGINE_CODE, flash
from edge_shared.memory.inference import LayerMemory, MemoryModel, Peak, lifetimes, peak
from edge_shared.memory.tinyengine import TinyEngineSram, sram

__all__ = ["TINYENGINE_CODE", "LayerMemory", "MemoryModel", "Peak", "TinyEngineSram", "flash", "lifetimes", "peak", "sram"]
