"""What training and scoring ask of a torch model."""

from __future__ import annotations

from torch import Tensor, nn


class FlowModel(nn.Module):
    """Flows to embeddings, embeddings to scores.

    Attributes:
        flow_wise: whether a flow's own features reach its embedding; if not, flows of one pair of hosts are alike.
        windowed: whether flows of a window see each other.
    """

    flow_wise: bool
    windowed: bool

    def embed(self, means_VF: Tensor, src_E: Tensor, dst_E: Tensor, x_EF: Tensor | None) -> Tensor:
        """Embeddings, (E, D), from the hosts' in-flow means, both ends and (if `flow_wise`) the flows' features."""
        raise NotImplementedError

    def errors(self, z_BLD: Tensor, x_BLF: Tensor | None, bias: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Score per flow, (B, L); `bias` and `key_bias` as in `graphids.MaskedAutoencoder`."""
        raise NotImplementedError
