"""Models as files: `model.safetensors` + `recipe.json` rebuild the module, `model.onnx` is held against it. Never a pickle.

`save_model`, `load_model`, `load_artifact`, `load_weights`   a folder per model
`to_recipe`, `from_recipe`, `register_builder`                 architecture as plain data
`export_onnx`, `quantize_onnx`                                 for ONNX Runtime, verified
"""

from edge_shared.artifacts.builders import register_builder
from edge_shared.artifacts.model import Artifact, load_artifact, load_model, load_weights, save_model
from edge_shared.artifacts.onnx import export_onnx, quantize_onnx
from edge_shared.artifacts.recipe import from_recipe, to_recipe

__all__ = [
    "Artifact",
    "export_onnx",
    "from_recipe",
    "load_artifact",
    "load_model",
    "load_weights",
    "quantize_onnx",
    "register_builder",
    "save_model",
    "to_recipe",
]
