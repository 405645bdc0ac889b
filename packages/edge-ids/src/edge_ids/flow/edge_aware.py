"""Our variant of GraphIDS for what it cannot see: one odd flow inside a busy pair of hosts.

GraphIDS embeds a pair of hosts, not a flow, and learns the target that it reconstructs. Here (a) a flow's own features enter its embedding:
z = W2 [h_u; h_v; h_e] with h_e = ReLU(W3 x_e + b3); (b) the target is the flow's features x_e, which training cannot shrink; (c) in training each feature of the flow
is hidden with probability `HIDE`, so that the model must infer it from the rest, the hosts and the window, not copy it. The score is the mean squared error over the
features, so that each feature's part of it is the explanation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ids.flow.flow_model import FlowModel
from edge_ids.flow.graphids import EncoderLayer
from edge_ids.flow.presets import NeuralConfig

HIDE = 0.3


class EdgeAware(FlowModel):
    """Edge features, both hosts' means and the window, through a bottleneck, to the edge features."""

    flow_wise = True
    windowed = True

    def __init__(self, features: int, config: NeuralConfig) -> None:
        super().__init__()
        self.node = nn.Linear(features, config.embedding)
        self.flow = nn.Linear(features, 2 * config.embedding)
        self.join = nn.Linear(4 * config.embedding, config.width)
        self.encoder = EncoderLayer(config.width, config.heads, config.feed_forward, config.dropout)
        self.decode = nn.Sequential(nn.Linear(config.width, 2 * config.embedding), nn.ReLU(), nn.Linear(2 * config.embedding, features))
        self.dropout = config.graph_dropout
        nn.init.xavier_uniform_(self.encoder.self_attn.in_proj_weight)

    def embed(self, means_VF: Tensor, src_E: Tensor, dst_E: Tensor, x_EF: Tensor | None) -> Tensor:
        """Embeddings, (E, D)."""
        assert x_EF is not None
        if self.training:
            x_EF = x_EF * (torch.rand_like(x_EF) >= HIDE)
        h_VD = F.dropout(F.relu(self.node(means_VF)), self.dropout, self.training)
        width = h_VD.shape[1]
        as_src, as_dst = F.linear(h_VD, self.join.weight[:, :width]), F.linear(h_VD, self.join.weight[:, width : 2 * width])
        own = F.linear(F.relu(self.flow(x_EF)), self.join.weight[:, 2 * width :], self.join.bias)
        return as_src[src_E] + as_dst[dst_E] + own

    def errors(self, z_BLD: Tensor, x_BLF: Tensor | None, bias: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Score per flow, (B, L)."""
        assert x_BLF is not None
        return self.feature_errors(z_BLD, x_BLF, bias, key_bias).mean(-1)

    def feature_errors(self, z_BLD: Tensor, x_BLF: Tensor, bias: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Squared error of each feature, (B, L, F)."""
        return (self.decode(self.encoder(z_BLD, bias, key_bias)) - x_BLF).square()
