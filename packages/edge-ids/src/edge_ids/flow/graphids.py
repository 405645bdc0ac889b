"""GraphIDS (Guerra et al., NeurIPS 2025, arXiv 2509.16625): a graph encoder of flows, then a masked transformer autoencoder.

Shapes: B windows, L flows per window, E flows, V hosts, F features, D embedding, H heads. The encoder layers hold the same weights
under the same names as `torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer`, which the tests use as oracle.

Two things differ from the official code and change no result. It builds a sampled subgraph per batch; the means do not depend on the weights,
so `graph.SampledMeans` takes them beforehand. It runs every flow through the transformer; flows of one host pair have one embedding and no position,
so `errors` takes each pair of a window once and counts it `exp(log_count)` times in the attention.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ids.flow import kernels
from edge_ids.flow.flow_model import FlowModel
from edge_ids.flow.presets import NeuralConfig


class GraphEncoder(nn.Module):
    """E-GraphSAGE variant: h_v = ReLU(W1 m_v + b1), z_uv = dropout(W2 [h_u; h_v] + b2) (section 3.2).

    m_v is the mean over the features of v's incoming flows. The flow's own features are not an input: all flows of one pair of hosts
    have one embedding.
    """

    def __init__(self, features: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.node = nn.Linear(features, features)
        self.edge = nn.Linear(2 * features, embedding)
        self.dropout = dropout
        gain = nn.init.calculate_gain("relu")
        nn.init.xavier_normal_(self.node.weight, gain)
        nn.init.xavier_normal_(self.edge.weight, gain)

    def forward(self, means_VF: Tensor, src_E: Tensor, dst_E: Tensor) -> Tensor:
        """Embed flows from the means of both ends, (E, D)."""
        h_VF = F.relu(self.node(means_VF))
        width = h_VF.shape[1]
        # W2 [h_u; h_v] = W2a h_u + W2b h_v: two products per host instead of one per flow.
        as_src_VD = F.linear(h_VF, self.edge.weight[:, :width])
        as_dst_VD = F.linear(h_VF, self.edge.weight[:, width:], self.edge.bias)
        z_ED = as_src_VD[src_E] + as_dst_VD[dst_E]
        if self.training and self.dropout:
            # `F.dropout` takes three times as long on a CPU.
            z_ED = z_ED * (torch.rand_like(z_ED) >= self.dropout).to(z_ED.dtype).div_(1 - self.dropout)
        return z_ED


class Attention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.own: kernels.Workspace | None = None
        self.shared: kernels.Workspace | None = None
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query_BLD: Tensor, memory_BLD: Tensor, bias: Tensor | None) -> Tensor:
        """Attend from `query` to `memory`; `bias` is added to the logits, broadcast to (B, H, L, L)."""
        if self.training and self.own is not None and self.shared is not None and not self.dropout:
            return kernels.attention(
                query_BLD, None if memory_BLD is query_BLD else memory_BLD, self.in_proj_weight, self.in_proj_bias, self.out_proj.weight,
                self.out_proj.bias, bias, self.heads, self.own, self.shared,
            )  # fmt: skip
        width = query_BLD.shape[-1]
        if query_BLD is memory_BLD:
            q, k, v = F.linear(query_BLD, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            q = F.linear(query_BLD, self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(memory_BLD, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)

        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(q), split(k), split(v), bias, self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = dropout
        self.own: kernels.Workspace | None = None
        self.shared: kernels.Workspace | None = None

    def drop(self, x: Tensor) -> Tensor:
        """Dropout in training."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def feed_forward(self, x: Tensor) -> Tensor:
        """The two linear layers with ReLU between."""
        if self.training and self.own is not None and self.shared is not None and not self.dropout:
            first, second = self.linear1, self.linear2
            return kernels.feed_forward(x, first.weight, first.bias, second.weight, second.bias, self.own, self.shared)
        return self.drop(self.linear2(self.drop(F.relu(self.linear1(x)))))

    def forward(self, x: Tensor, bias: Tensor | None, key_bias: Tensor | None) -> Tensor:
        """Encode (B, L, D)."""
        x = self.norm1(x + self.drop(self.self_attn(x, x, _sum(bias, key_bias))))
        return self.norm2(x + self.feed_forward(x))


class DecoderLayer(EncoderLayer):
    """Post-norm transformer decoder layer: attention within the query, then to the encoder's output."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__(width, heads, feed_forward, dropout)
        self.multihead_attn = Attention(width, heads, dropout)
        self.norm3 = nn.LayerNorm(width)

    def decode(self, x: Tensor, memory: Tensor, bias: Tensor | None, key_bias: Tensor | None) -> Tensor:
        """Decode (B, L, D); the attention mask `bias` does not apply to the attention to `memory`."""
        x = self.norm1(x + self.drop(self.self_attn(x, x, _sum(bias, key_bias))))
        x = self.norm2(x + self.drop(self.multihead_attn(x, memory, key_bias)))
        return self.norm3(x + self.feed_forward(x))


class MaskedAutoencoder(nn.Module):
    """Transformer autoencoder over windows of embeddings, without positions (section 3.3)."""

    def __init__(self, embedding: int, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(embedding, width)
        self.encoder = EncoderLayer(width, heads, feed_forward, dropout)
        self.decoder = DecoderLayer(width, heads, feed_forward, dropout)
        self.output = nn.Linear(width, embedding)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, z_BLD: Tensor, bias: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Reconstruct (B, L, D).

        Args:
            z_BLD: embeddings.
            bias: attention mask, (L, L), 0 or -inf.
            key_bias: logarithm of how often each embedding occurs in the window, (B, 1, 1, L); -inf for padding.
        """
        x = self.input(z_BLD)
        return self.output(self.decoder.decode(x, self.encoder(x, bias, key_bias), bias, key_bias))


class GraphIDS(FlowModel):
    """The published model; a flow's score is the mean squared error of its embedding's reconstruction."""

    flow_wise = False
    windowed = True

    def __init__(self, features: int, config: NeuralConfig) -> None:
        super().__init__()
        self.graph = GraphEncoder(features, config.embedding, config.graph_dropout)
        self.autoencoder = MaskedAutoencoder(config.embedding, config.width, config.heads, config.feed_forward, config.dropout)

    def embed(self, means_VF: Tensor, src_E: Tensor, dst_E: Tensor, x_EF: Tensor | None) -> Tensor:
        """Embeddings, (E, D); `x_EF` is ignored."""
        return self.graph(means_VF, src_E, dst_E)

    def errors(self, z_BLD: Tensor, x_BLF: Tensor | None, bias: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Score per flow, (B, L); `x_BLF` is ignored. The paper's norm (eq. 1) is D times as large."""
        return (self.autoencoder(z_BLD, bias, key_bias) - z_BLD).square().mean(-1)


def attention_mask(length: int, closed: float, generator: torch.Generator) -> Tensor:
    """Random symmetric mask with open diagonal: 0 where attention may flow, -inf elsewhere, (L, L)."""
    upper = (torch.rand(length, length, generator=generator) < closed).triu(1)
    return torch.zeros(length, length).masked_fill_(upper | upper.T, -math.inf)


def _sum(bias: Tensor | None, key_bias: Tensor | None) -> Tensor | None:
    return bias if key_bias is None else key_bias if bias is None else bias + key_bias
