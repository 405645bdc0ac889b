"""Training, inference and ingest speed and peak memory, on rows replicated from NF-BoT-IoT-v2 with noise (SYNTHETIC; for timing only).

Run: python benchmarks/edge-ids/flow_speed.py [models|arithmetic|ingest|whole-training|stream-memory|against-official ...]
The official GraphIDS (PyG branch, UNSW-v2 settings, batch 32,768, 2 threads, 100,000 flows, this kind of machine): 17,500 flows/s training loop only,
29,000 to 42,000 flows/s inference with sampling, 3.0 GB peak. Other programs ran on this machine at the same time, so CPU seconds stand beside wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from edge_ids.flow.commands import _peak_rss
from edge_ids.flow.fit import FitConfig, read_all
from edge_shared.files import read_json, write_json
from edge_shared.report import environment

ROOT = Path(__file__).parents[2]
OUT = Path(os.environ.get("EDGEWISE_RESULTS") or ROOT / "benchmarks" / "results") / "edge-ids-flow-speed.json"
FILE = ROOT.parent / "shared" / "data" / "ids" / "netflow_nf_botiot_v2" / "botiot_mini.csv.gz"
OFFICIAL = {"training_flows_per_second": 17_500, "inference_flows_per_second": [29_000, 42_000], "peak_bytes": 3.0e9, "threads": 2}


def timed(function, count):
    began, cpu = time.perf_counter(), time.process_time()
    function()
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    return {
        "flows": count,
        "wall_seconds": wall,
        "cpu_seconds": used,
        "flows_per_second": count / wall,
        "flows_per_cpu_second": count / used,
    }


def models(flows: int, threads: int) -> dict:
    """One process: scale, train one epoch, score."""
    import torch
    from edge_ids.flow import kernels, neural
    from edge_ids.flow.graph import in_means
    from edge_ids.flow.presets import PAPER, preset
    from edge_ids.flow.scaling import Scaler
    from edge_ids.flow.synthetic import replicate

    torch.set_num_threads(threads)
    table = replicate(read_all(FitConfig(str(FILE))), flows)
    x = Scaler.fit(table.features, "minmax").transform(table.features)
    settings = {
        "graphids unsw-v2": ("graphids", PAPER["unsw-v2"]), "graphids cse-v2": ("graphids", PAPER["cse-v2"]),
        "simpleae": ("simpleae", preset("own", "simpleae", "nf-v2")), "edge-aware": ("edge-aware", preset("own", "edge-aware", "nf-v2")),
    }  # fmt: skip
    rows = {}
    hosts = len(table.hosts)
    for name, (kind, config) in settings.items():
        from dataclasses import replace

        model = neural.build(kind, 41, config, 0)
        warm = slice(0, min(flows, 2 * config.batch))
        neural.train(
            model, x[warm][:4096], table.src[warm][:4096], table.dst[warm][:4096], replace(config, epochs=1), seed=0, validate=lambda: None
        )

        one = replace(config, epochs=1)

        def once(precision: str, model=model, one=one) -> None:
            neural.train(model, x, table.src, table.dst, one, seed=0, validate=lambda: None, precision=precision)

        train = timed(lambda: once("auto"), flows)
        exact = None if kind != "graphids" else train if kernels.resolve("auto") == "float32" else timed(lambda: once("float32"), flows)
        score = timed(lambda: neural.score(model, x, in_means(x, table.dst, hosts), table.src, table.dst, config.window), flows)  # noqa: B023
        # Every pair of hosts differs: the pairs-once shortcut gains nothing.
        worst_src, worst_dst = np.arange(flows), flows + np.arange(flows)
        few = min(flows, 20_480)
        means = np.zeros((2 * flows, 41), np.float32)
        worst = timed(lambda: neural.score(model, x[:few], means, worst_src[:few], worst_dst[:few], config.window), few)  # noqa: B023
        rows[name] = {
            "training": train,
            "training_float32": exact,
            "precision": kernels.resolve("auto"),
            "inference": score,
            "inference_all_pairs_differ": worst,
        }
        print(
            name,
            threads,
            {key: round(value["flows_per_cpu_second"]) for key, value in rows[name].items() if isinstance(value, dict)},
            file=sys.stderr,
            flush=True,
        )
    return {"threads": threads, "rows": rows, "peak_rss_bytes": _peak_rss()}


def arithmetic(flows: int) -> dict:
    """What an epoch of GraphIDS consists of on one thread in float32 (UNSW-v2 settings), against the products that any float32 program has to compute.

    The ceiling is the speed of a program that did nothing but those products, as fast as the processor multiplies two large square matrices.
    """
    from dataclasses import replace

    import torch
    from edge_ids.flow import neural
    from edge_ids.flow.presets import PAPER
    from edge_ids.flow.scaling import Scaler
    from edge_ids.flow.synthetic import replicate
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.profiler import profile
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    config = replace(PAPER["unsw-v2"], epochs=1)
    model = neural.build("graphids", 41, config, 0)
    z = torch.randn(1, config.window, config.embedding, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as needed:
        model.errors(z, None, torch.zeros(config.window, config.window)).sum().backward()
    per_flow = needed.get_total_flops() / config.window
    size = 2048
    left, right = torch.randn(2, size, size)
    best = min(timed(lambda: left @ right, 1)["cpu_seconds"] for _ in range(8))
    table = replicate(read_all(FitConfig(str(FILE))), flows)
    x = Scaler.fit(table.features, "minmax").transform(table.features)

    def epoch() -> None:
        neural.train(model, x, table.src, table.dst, config, seed=0, validate=lambda: None, precision="float32")

    epoch()
    plain = timed(epoch, flows)
    with profile() as seen:
        epoch()
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in seen.key_averages()}
    # The profiler's clock also runs while other programs do, so it tells shares; seconds are of CPU time, without it.
    share = sum(spent[name] for name in ("aten::mm", "aten::bmm", "aten::addmm")) / sum(spent.values())
    rate = 2 * size**3 / best
    return {
        "cpu": cpu(),
        "training": plain,
        "flop_per_flow": per_flow,
        "square_product_flop_per_second": rate,
        "products_share": share,
        "products_flop_per_second": per_flow * flows / (share * plain["cpu_seconds"]),
        "ceiling_flows_per_cpu_second": rate / per_flow,
    }


def cpu() -> str:
    """Vector instructions that torch uses, as far as they matter here."""
    import torch
    from edge_ids.flow import kernels

    return torch.backends.cpu.get_cpu_capability() + " with bfloat16" * (kernels.resolve("auto") == "bfloat16")


def ingest(flows: int) -> dict:
    import polars as pl
    from edge_ids.flow.netflow import read_netflow
    from edge_ids.flow.synthetic import replicate

    table = replicate(read_all(FitConfig(str(FILE))), flows, noise=0.0)
    columns = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
    columns |= {name: table.features[:, index] for index, name in enumerate(table.schema.features)}
    whole = [name for name in columns if name in table.schema.features and "SECOND_BYTES" not in name and "L7" not in name]
    frame = pl.DataFrame(columns | {"Label": table.label, "Attack": table.attack}).with_columns(pl.col(whole).cast(pl.Int64))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("csv", "parquet"):
            path = Path(folder) / f"flows.{name}"
            (frame.write_csv if name == "csv" else frame.write_parquet)(path)
            rows[name] = min((timed(lambda: [None for _ in read_netflow(path)], flows) for _ in range(3)), key=lambda r: r["wall_seconds"])  # noqa: B023
            rows[name]["file_bytes"] = path.stat().st_size
    return rows


def watched(command: list[str]) -> tuple[int, dict]:
    """Largest anonymous memory of a process, looked at every 50 ms, and its JSON: pages of the file that it reads, which the system may drop, do not count."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        peak, status = 0, Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            held = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
            peak = max(peak, *(int(value) * 1024 for value in held), 0)
            time.sleep(0.05)
        out.seek(0)
        return peak, json.loads(out.read().splitlines()[-1])


def memory(copies: tuple[int, ...], rows: list[dict]) -> Iterator[list[dict]]:
    """Peak memory of commands on growing files, each in a process of its own: 50,000 flows, again and again. What `rows` has is not run again."""
    import polars as pl
    from edge_ids.flow.fit import fit
    from edge_ids.flow.netflow import columns_of
    from edge_ids.flow.synthetic import replicate

    base = read_all(FitConfig(str(FILE)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in ("graphids", "hbos"):
            fit(FitConfig(str(FILE), model, epochs=1, controls=False), base).detector.save(folder / model)
        pl.DataFrame(columns_of(replicate(base, 50_000, noise=0.0))).write_parquet(folder / "one.parquet", row_group_size=16_384)
        for count in copies:
            done = {row["command"] for row in rows if row["flows"] == 50_000 * count}
            if len(done) == 3:
                continue
            for suffix in ("parquet", "csv"):
                path = folder / f"flows.{suffix}"
                frame = pl.concat([pl.scan_parquet(folder / "one.parquet")] * count)
                (frame.sink_parquet(path, row_group_size=16_384) if suffix == "parquet" else frame.sink_csv(path))
            commands = {
                "run hbos": ["run", "--model", folder / "hbos", "--csv", folder / "flows.csv", "--json"],
                "train hbos --sample 20000": [
                    "train", "--model", "hbos", "--sample", 20_000, "--no-controls", "--data", folder / "flows.csv", "--out", folder / f"t{count}", "--json",
                ],
                "run graphids": ["run", "--model", folder / "graphids", "--csv", folder / "flows.parquet", "--json"],
            }  # fmt: skip
            for what, arguments in commands.items():
                if what in done:
                    continue
                command = [sys.executable, "-c", "from edge_ids.cli import main; main()", "flow", *map(str, arguments)]
                peak, document = watched(command)
                rows.append({"command": what, "flows": 50_000 * count, "table_bytes": 50_000 * count * 41 * 8, "peak_anonymous_bytes": peak,
                             "peak_rss_bytes": document["cost"]["peak_rss_bytes"]})  # fmt: skip
                print(rows[-1], file=sys.stderr, flush=True)
                yield rows


def whole_training(flows: int, benign: int) -> list[dict]:
    """`flow train` on as many flows, and as few benign ones, as the reduced NF-BoT-IoT-v2 has; controls, report and all."""
    import polars as pl

    table = read_all(FitConfig(str(FILE)))
    random = np.random.default_rng(0)
    good, bad = np.flatnonzero(table.label == 0), np.flatnonzero(table.label == 1)
    table = table.rows(random.permutation(np.concatenate([random.choice(good, benign), random.choice(bad, flows - benign)])))
    columns = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
    columns |= {name: table.features[:, index] for index, name in enumerate(table.schema.features)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flows.csv"
        pl.DataFrame(columns | {"Label": table.label, "Attack": table.attack}).write_csv(path)
        for model in ("iforest", "simpleae", "graphids", "edge-aware"):
            command = [sys.executable, "-c", "from edge_ids.cli import main; main()", "flow", "train", "--data", str(path), "--model", model,
                       "--split", "random", "--seed", "0", "--out", str(Path(folder) / model), "--json"]  # fmt: skip
            began = time.perf_counter()
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds = time.perf_counter() - began
            document = json.loads(out)
            rows.append({"model": model, "flows": flows, "benign": benign, "wall_seconds": seconds, "peak_rss_bytes": document["cost"]["peak_rss_bytes"],
                         "epochs": (document["metrics"]["training"] or {}).get("epochs")})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def against_official(folder: str, earlier: list[dict]) -> Iterator[list[dict]]:
    """Ours and the official code in turns, one process each, with the same malloc settings: as they are, and large blocks kept for use again."""
    from edge_ids.flow import kernels

    rows = earlier
    kept = {"MALLOC_MMAP_THRESHOLD_": str(1 << 33), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
    for threads in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
        for name, malloc in (("kept", kept), ("default", {})):
            for which in dict.fromkeys((folder, kernels.resolve("auto"), "float32")):
                environ = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"} | malloc
                command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("flow_official.py")), which, str(threads)]
                lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ).stdout.splitlines()
                rows.append(json.loads(lines[-1]) | {"malloc": name, "cpu": cpu(), "load_average": os.getloadavg()})
                print(rows[-1], file=sys.stderr, flush=True)
                yield rows


def ratios(rows: list[dict]) -> list[dict]:
    """Median of each by processor, threads and malloc setting, per second of wall time and of CPU time; ratios of ours (as ``auto`` takes it) to the official."""
    found = []
    for key in sorted({_cell(row) for row in rows}):
        cell = {"name": ", ".join(map(str, key))} | dict(zip(("cpu", "threads", "malloc"), key, strict=True))
        ours = "bfloat16" if "bfloat16" in cell["cpu"] else "float32"
        for what in ("training", "inference"):
            for unit in ("flows_per_second", "flows_per_cpu_second"):
                seen = {
                    which: [row[what][unit] for row in rows if (*_cell(row), row["which"]) == (*key, which)]
                    for which in ("official", "bfloat16", "float32")
                }
                speed = {which: float(np.median(values)) for which, values in seen.items() if values}
                cell[f"{what}_{unit}"] = speed | ({"ratio": speed[ours] / speed["official"]} if {ours, "official"} <= set(speed) else {})
        found.append(cell)
    return found


def _cell(row: dict) -> tuple[str, int, str]:
    # The first runs, which name no processor, are from one with bfloat16.
    return row.get("cpu", "AVX512 with bfloat16"), row["threads"], row["malloc"]


def one_process(flows: int, threads: int) -> dict:
    command = [sys.executable, __file__, "--threads", str(threads), "--flows", str(flows)]
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--official", help="folder with the official code, for the part against-official, see flow_official.py")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        print(json.dumps(models(arguments.flows, arguments.threads)))
        return
    parts = {
        "models": lambda: [one_process(arguments.flows, threads) for threads in (1, 2)],
        "arithmetic": lambda: arithmetic(65_536),
        "ingest": lambda: ingest(500_000),
        "whole-training": lambda: whole_training(278_781, 1_285),
        "stream-memory": lambda: memory((2, 10, 40), document.get("stream_memory", [])),
    }
    document = read_json(OUT) if OUT.is_file() else {}
    document |= {
        "command": "python benchmarks/edge-ids/flow_speed.py", "synthetic": True, "flows": arguments.flows, "official": OFFICIAL,
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}, "environment": environment(),
    }  # fmt: skip
    loads = document["load_average"] if isinstance(document.get("load_average"), dict) else {}
    if "against-official" in arguments.parts:
        arguments.parts.remove("against-official")
        for rows in against_official(arguments.official, document.get("against_official", {}).get("runs", [])):
            write_json(OUT, (read_json(OUT) if OUT.is_file() else document) | {"against_official": {"runs": rows, "ratios": ratios(rows)}})
        if not arguments.parts:
            return
    for name in arguments.parts or parts:
        result = parts[name]()
        for found in result if isinstance(result, Iterator) else [result]:
            loads[name] = os.getloadavg()
            # Another part may have been written meanwhile.
            write_json(OUT, document | (read_json(OUT) if OUT.is_file() else {}) | {name.replace("-", "_"): found, "load_average": loads})


if __name__ == "__main__":
    main()
