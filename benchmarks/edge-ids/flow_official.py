"""One process of the comparison with the official GraphIDS: train and score the same flows with its code or with ours, and print the figures as JSON.

Run by flow_speed.py against-official --official DIR, where DIR holds the branch PyG of github.com/lorenzo9uerra/GraphIDS (measured: 2708fbd), and torch-geometric can be imported.
Its own loop `utils.trainers.train_encoder` and `test` run unchanged on the CPU. Its neighbour loader needs pyg-lib, which no registry ships: the batches are made here, before
the clock starts, each holding all in-flows (no host exceeds the fan-out by enough to matter). Our figures include our sampling. UNSW-v2 settings, whole batches only, no compile.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from edge_ids.flow import neural
from edge_ids.flow.commands import _peak_rss
from edge_ids.flow.fit import FitConfig, read_all
from edge_ids.flow.graph import in_means
from edge_ids.flow.presets import PAPER
from edge_ids.flow.scaling import Scaler
from edge_ids.flow.synthetic import replicate

FILE = Path(__file__).parents[3] / "shared" / "data" / "ids" / "netflow_nf_botiot_v2" / "botiot_mini.csv.gz"
BATCH = 32_768
BATCHES = 2
EPOCHS = 2


class Clock:
    """Wall and CPU seconds of each call or loop."""

    def __init__(self) -> None:
        self.spent: list[tuple[float, float]] = []

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.spent.append((time.perf_counter() - self._began[0], time.process_time() - self._began[1]))

    def figures(self, flows: int) -> dict[str, float]:
        """The last one: those before warm up."""
        wall, used = self.spent[-1]
        return {"wall_seconds": wall, "cpu_seconds": used, "flows_per_second": flows / wall, "flows_per_cpu_second": flows / used}


class Loader:
    """Ready batches; the clock runs while the loop that asks for them works."""

    def __init__(self, batches: list, clock: Clock | None = None) -> None:
        self.batches, self.clock = batches, clock

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        if self.clock is not None:
            self.clock.start()
        yield from self.batches
        if self.clock is not None:
            self.clock.stop()


class Batch(SimpleNamespace):
    """What the official loop reads of torch-geometric's batches."""

    def to(self, device: str) -> Batch:
        return self


def official(folder: str, x: np.ndarray, src: np.ndarray, dst: np.ndarray, hosts: int) -> dict:
    sys.path.insert(0, folder)
    from models.GraphIDS import GraphIDS
    from utils import trainers

    config = PAPER["unsw-v2"]
    torch.manual_seed(0)
    model = GraphIDS(
        41,
        41,
        config.embedding,
        config.width,
        config.heads,
        1,
        config.window,
        config.graph_dropout,
        config.dropout,
        None,
        1,
        "mean",
        config.mask,
    )
    edges, features = torch.from_numpy(np.stack([src, dst]).astype(np.int64)), torch.from_numpy(x)
    order = torch.randperm(len(x))

    def batch(rows: torch.Tensor) -> Batch:
        label = torch.zeros(len(rows), dtype=torch.long)
        label[::7] = 1
        return Batch(x=torch.ones(hosts, 41), edge_index=edges, edge_attr=features, edge_label_index=edges[:, rows], edge_label=label)

    clock, scoring = Clock(), Clock()
    batches = [batch(rows) for rows in order.split(BATCH)]
    small = Loader([batch(order[:1024])])
    optimiser = torch.optim.AdamW(
        [{"params": model.encoder.parameters(), "weight_decay": config.graph_weight_decay},
         {"params": model.transformer.parameters(), "weight_decay": config.weight_decay}], lr=config.lr)  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        trainers.train_encoder(
            model, config.window, 1.0, 64, Loader(batches, clock), small, small, 0, EPOCHS, optimiser, SimpleNamespace(log=lambda row: None),
            config.patience, f"{place}/checkpoint", "cpu",
        )  # fmt: skip
    trainers.test(model, Loader(batches[:1], scoring), 64, config.window, "cpu", 0.1)
    return {"training": clock.figures(BATCH * BATCHES), "inference": scoring.figures(BATCH), "peak_rss_bytes": _peak_rss()}


def ours(x: np.ndarray, src: np.ndarray, dst: np.ndarray, hosts: int, precision: str) -> dict:
    config = replace(PAPER["unsw-v2"], epochs=EPOCHS)
    model = neural.build("graphids", 41, config, 0)
    clock, scoring = Clock(), Clock()
    epoch = neural._epoch

    def timed(*arguments):
        clock.start()
        loss = epoch(*arguments)
        clock.stop()
        return loss

    neural._epoch = timed
    neural.train(model, x, src, dst, config, seed=0, validate=lambda: None, precision=precision)
    for _ in range(2):
        scoring.start()
        neural.score(model, x[:BATCH], in_means(x, dst, hosts), src[:BATCH], dst[:BATCH], config.window)
        scoring.stop()
    return {"training": clock.figures(BATCH * BATCHES), "inference": scoring.figures(BATCH), "peak_rss_bytes": _peak_rss()}


def main() -> None:
    which, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    table = replicate(read_all(FitConfig(str(FILE))), BATCH * BATCHES)
    x = Scaler.fit(table.features, "minmax").transform(table.features)
    arguments = (x, table.src, table.dst, len(table.hosts))
    found = ours(*arguments, which) if which in ("float32", "bfloat16") else official(which, *arguments)
    print(json.dumps(found | {"which": which if which in ("float32", "bfloat16") else "official", "threads": threads}))


if __name__ == "__main__":
    main()
