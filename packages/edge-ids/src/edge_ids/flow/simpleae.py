"""SimpleAE, the ablation of GraphIDS (table 3): the same graph encoder, then a two-layer encoder and a two-layer decoder.

Neither the paper nor the notes give the hidden width; we take the mean of embedding and bottleneck.
A score needs one product per host pair: the model for small devices.
"""

from __future__ import annotations

from torch import Tensor, nn

from edge_ids.flow.flow_model import FlowModel
from edge_ids.flow.graphids import GraphEncoder
from edge_ids.flow.presets import NeuralConfig


class SimpleAE(FlowModel):
    """Graph encoder and MLP autoencoder; the score is the mean squared error of the embedding."""

    flow_wise = False
    windowed = False

    def __init__(self, features: int, config: NeuralConfig) -> None:
        super().__init__()
        self.graph = GraphEncoder(features, config.embedding, config.graph_dropout)
        hidden = (config.embedding + config.width) // 2
        self.autoencoder = nn.Sequential(
            nn.Linear(config.embedding, hidden), nn.ReLU(), nn.Linear(hidden, config.width), nn.ReLU(),
            nn.Linear(config.width, hidden), nn.ReLU(), nn.Linear(hidden, config.embedding),
        )  # fmt: skip

    def embed(self, means_VF: Tensor, src_E: Tensor, dst_E: Tensor, x_EF: Tensor | None) -> Tensor:
        """Embeddings, (E, D); `x_EF` is ignored."""
        return self.graph(means_VF, src_E, dst_E)

    def errors(self, z_BLD: Tensor, x_BLF: Tensor | None, bias: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Score per flow, (B, L); flows do not see each other."""
        return (self.autoencoder(z_BLD) - z_BLD).square().mean(-1)
