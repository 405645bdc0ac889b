"""Scoring and training of the three torch models; one loop, in which memory does not grow with the batch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_ids.flow import kernels
from edge_ids.flow.edge_aware import EdgeAware
from edge_ids.flow.flow_model import FlowModel
from edge_ids.flow.graph import SampledMeans
from edge_ids.flow.graphids import GraphIDS, attention_mask
from edge_ids.flow.presets import NeuralConfig
from edge_ids.flow.processes import Processes
from edge_ids.flow.replicas import Piece, Replicas
from edge_ids.flow.simpleae import SimpleAE
from edge_ids.flow.table import Array

CHUNK = 1024
"""Flows that are in the transformer at once: their feed-forward activations fit the cache."""
TRAIN_CHUNK = 4096
"""Likewise in training: measured fastest of 512 to 32,768; attention matrices of so many flows are in memory."""

_MODELS: dict[str, type[GraphIDS] | type[SimpleAE] | type[EdgeAware]] = {
    "graphids": GraphIDS,
    "simpleae": SimpleAE,
    "edge-aware": EdgeAware,
}


def build(kind: str, features: int, config: NeuralConfig, seed: int) -> FlowModel:
    """An untrained model; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _MODELS[kind](features, config)


def parameters(model: FlowModel) -> int:
    """Number of trained parameters; all of them are used (the official count includes layers that never run)."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.inference_mode()
def score(model: FlowModel, x_EF: Array, means_VF: Array, src_E: Array, dst_E: Array, window: int) -> Array:
    """Score flows in windows of `window` in the given order, (E,) float32.

    Args:
        model: a model of this module.
        x_EF: scaled features.
        means_VF: in-flow means of the hosts.
        src_E: row of `means_VF` of each flow's source.
        dst_E: likewise of its destination.
        window: flows per attention window; the last one may be shorter.
    """
    model.eval()
    means = torch.from_numpy(means_VF)
    if not len(src_E):
        return np.zeros(0, np.float32)
    if model.flow_wise:
        return _score_flows(model, x_EF, means, src_E, dst_E, window)
    pair_E = src_E.astype(np.int64) * len(means_VF) + dst_E
    pairs, pair_E = np.unique(pair_E, return_inverse=True)
    src, dst = (torch.from_numpy(part) for part in np.divmod(pairs, len(means_VF)))
    z_PD = model.embed(means, src, dst, None)
    if not model.windowed:
        return model.errors(z_PD[None], None)[0].numpy()[pair_E]
    return _score_pairs(model, z_PD, pair_E, window)


def _score_flows(model: FlowModel, x_EF: Array, means: Tensor, src_E: Array, dst_E: Array, window: int) -> Array:
    scores = np.empty(len(x_EF), np.float32)
    step = max(1, CHUNK // window) * window
    for start in range(0, len(x_EF), step):
        x = torch.from_numpy(np.ascontiguousarray(x_EF[start : start + step]))
        src, dst = (torch.from_numpy(ends[start : start + step].astype(np.int64)) for ends in (src_E, dst_E))
        z = model.embed(means, src, dst, x)
        whole = len(x) // window * window
        parts = [model.errors(z[:whole].unflatten(0, (-1, window)), x[:whole].unflatten(0, (-1, window))).flatten()] if whole else []
        if whole < len(x):
            parts.append(model.errors(z[None, whole:], x[None, whole:])[0])
        scores[start : start + step] = torch.cat(parts).numpy()
    return scores


def _score_pairs(model: FlowModel, z_PD: Tensor, pair_E: Array, window: int) -> Array:
    """Each pair once per window, weighted by its number of flows: equal embeddings attend and are attended to equally."""
    token_E = np.arange(len(pair_E)) // window * len(z_PD) + pair_E
    tokens, token_E, counts = np.unique(token_E, return_inverse=True, return_counts=True)
    window_T, pair_T = np.divmod(tokens, len(z_PD))
    lengths = np.bincount(window_T)
    starts = np.cumsum(lengths) - lengths
    score_T = np.empty(len(tokens), np.float32)
    order = np.argsort(lengths, kind="stable")
    position = 0
    while position < len(order):
        # Windows of similar length share a batch, so that little is padding.
        take = 1
        while position + take < len(order) and (take + 1) * lengths[order[position + take]] <= CHUNK:
            take += 1
        chosen = order[position : position + take]
        position += take
        longest = int(lengths[chosen].max())
        valid_BL = np.arange(longest) < lengths[chosen, None]
        row_BL = np.where(valid_BL, starts[chosen, None] + np.arange(longest), 0)
        key_bias = torch.from_numpy(np.where(valid_BL, np.log(counts[row_BL]), -np.inf).astype(np.float32))[:, None, None]
        errors = model.errors(z_PD[torch.from_numpy(pair_T[row_BL])], None, None, key_bias)
        score_T[row_BL[valid_BL]] = errors.numpy()[valid_BL]
    return score_T[token_E]


@dataclass(frozen=True)
class Training:
    """What a training run did.

    Attributes:
        epochs: epochs run.
        best_epoch: the one that was kept, counted from 1 (0: the untrained model).
        best_pr_auc: its validation PR-AUC; None without labels.
        seconds: in the training loop only, validation excluded.
        flows_per_second: training flows, over all epochs, per second of that.
        loss: mean training loss per epoch.
        validation: validation PR-AUC per epoch.
        precision: number format of the big matrices, see `kernels`.
    """

    epochs: int
    best_epoch: int
    best_pr_auc: float | None
    seconds: float
    flows_per_second: float
    loss: list[float]
    validation: list[float | None]
    precision: str


def train(
    model: FlowModel,
    x_EF: Array,
    src_E: Array,
    dst_E: Array,
    config: NeuralConfig,
    *,
    seed: int,
    validate: Callable[[], float | None],
    precision: str = "auto",
    state: dict[str, Any] | None = None,
    checkpoint: Callable[[dict[str, Any]], None] = lambda state: None,
    on_epoch: Callable[[int, float, float | None], None] = lambda epoch, loss, quality: None,
) -> Training:
    """Train on benign flows; the model holds the best weights afterwards (GraphIDS, section 3.4).

    Under ``torchrun`` or ``fabric run`` each process takes every n-th piece of a batch, and all end with the same weights.

    Args:
        model: from `build`.
        x_EF: scaled features, float32.
        src_E: host numbers from 0.
        dst_E: likewise.
        config: settings.
        seed: of batches, masks and dropout.
        validate: returns the validation PR-AUC of the model as it is; None keeps the last weights.
        precision: ``float32``, ``bfloat16`` or ``auto``, see `kernels.resolve`.
        state: what `checkpoint` got last, to go on from there.
        checkpoint: called after every epoch with all that `state` needs.
        on_epoch: called with epoch, training loss and validation PR-AUC.
    """
    precision = kernels.resolve(precision)
    processes = Processes.connect()
    # Dropout draws from one source of random numbers, which threads would race for.
    pieces = len(_pieces(min(config.batch, len(x_EF)), config.window)) // processes.size
    threads = 1 if config.dropout else max(1, min(torch.get_num_threads(), pieces))
    hosts = int(max(src_E.max(), dst_E.max())) + 1
    means = SampledMeans(x_EF, dst_E, hosts, config.fanout)
    x, src, dst = torch.from_numpy(x_EF), torch.from_numpy(src_E.astype(np.int64)), torch.from_numpy(dst_E.astype(np.int64))
    graph = [parameter for name, parameter in model.named_parameters() if name.startswith("graph.")]
    rest = [parameter for name, parameter in model.named_parameters() if not name.startswith("graph.")]
    groups = [{"params": graph, "weight_decay": config.graph_weight_decay}, {"params": rest, "weight_decay": config.weight_decay}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, fused=True)
    numbers = np.random.default_rng(seed)
    masks = torch.Generator().manual_seed(seed)
    best: dict[str, Any] = {"epoch": 0, "quality": None, "weights": copy.deepcopy(model.state_dict())}
    losses: list[float] = []
    validation: list[float | None] = []
    seconds = 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        numbers.bit_generator.state = state["numpy"]
        masks.set_state(state["masks"])
        best, losses, validation, seconds = state["best"], state["losses"], state["validation"], state["seconds"]
    for epoch in range(len(losses) + 1, config.epochs + 1):
        if best["quality"] is not None and epoch - 1 - best["epoch"] >= config.patience:
            break
        began = time.perf_counter()
        with Replicas.open(model, threads, precision) as replicas:
            losses.append(_epoch(replicas, optimiser, x, src, dst, means, config, numbers, masks, processes))
        seconds += time.perf_counter() - began
        quality = validate()
        validation.append(quality)
        if quality is None or best["quality"] is None or quality >= best["quality"]:
            best = {"epoch": epoch, "quality": quality, "weights": copy.deepcopy(model.state_dict())}
        on_epoch(epoch, losses[-1], quality)
        checkpoint({
            "model": model.state_dict(), "optimiser": optimiser.state_dict(), "numpy": numbers.bit_generator.state, "masks": masks.get_state(),
            "best": best, "losses": losses, "validation": validation, "seconds": seconds,
        })  # fmt: skip
    model.load_state_dict(best["weights"])
    speed = len(x_EF) * len(losses) / seconds if seconds else 0.0
    return Training(len(losses), best["epoch"], best["quality"], seconds, speed, losses, validation, precision)


@dataclass(frozen=True)
class _Batch:
    """A batch's embeddings (E, D) without their graph, the loss's gradient by them, features (E, F), attention mask, and seed of dropout.

    The autoencoder runs in pieces on leaves; their gradient then goes through the graph encoder once. The sum is the same.
    """

    z: Tensor
    grad: Tensor
    x: Tensor | None
    bias: Tensor | None
    key: int | None

    def backward(self, model: FlowModel, piece: Piece) -> float:
        """Forward and backward of the windows of `piece`; returns their part of the mean loss."""
        start, stop, length = piece
        if self.key is not None:
            torch.manual_seed(self.key + 1 + start)
        leaf = self.z[start:stop].unflatten(0, (-1, length)).requires_grad_()
        target = None if self.x is None else self.x[start:stop].unflatten(0, (-1, length))
        bias = self.bias if self.bias is None or len(self.bias) == length else self.bias[:length, :length]
        loss = model.errors(leaf, target, bias).sum() / len(self.z)
        loss.backward()
        assert leaf.grad is not None
        self.grad[start:stop] = leaf.grad.flatten(0, 1)
        return loss.item()


def _pieces(flows: int, window: int) -> list[Piece]:
    """Whole windows, `TRAIN_CHUNK` flows at once; what is left is a shorter one."""
    whole = flows // window * window
    step = max(1, TRAIN_CHUNK // window) * window
    pieces = [(start, min(start + step, whole), window) for start in range(0, whole, step)]
    return pieces + [(whole, flows, flows - whole)] * (whole < flows)


def _epoch(
    replicas: Replicas, optimiser: torch.optim.Optimizer, x: Tensor, src: Tensor, dst: Tensor, means: SampledMeans, config: NeuralConfig,
    numbers: np.random.Generator, masks: torch.Generator, processes: Processes,
) -> float:  # fmt: skip
    model = replicas.models[0]
    for each in replicas.models:
        each.train()
    order = torch.from_numpy(numbers.permutation(len(x)))
    total = 0.0
    for rows in order.split(config.batch):
        optimiser.zero_grad(set_to_none=True)
        x_EF = x[rows] if model.flow_wise else None
        # Dropout is a matter of the batch and the piece, so that it does not matter which process takes which piece.
        key = int(numbers.integers(1 << 48))
        torch.manual_seed(key)
        z_ED = model.embed(torch.from_numpy(means.draw(numbers)), src[rows], dst[rows], x_EF)
        bias = attention_mask(min(config.window, len(rows)), config.mask, masks) if model.windowed and config.mask else None
        batch = _Batch(z_ED.detach(), torch.zeros_like(z_ED), x_EF, bias, key if config.dropout else None)
        loss = replicas.backward(_pieces(len(rows), config.window)[processes.rank :: processes.size], batch.backward)
        z_ED.backward(batch.grad)
        loss = processes.add_up(model.parameters(), loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
        total += loss * len(rows)
    return total / len(x)


def config_json(config: NeuralConfig) -> dict[str, Any]:
    """Plain data of `config`."""
    return asdict(config)
