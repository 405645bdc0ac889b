"""`edge-ids flow` as users and other tools call it: JSON, exit codes, files, resume, no torch."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from edge_ids.cli import app
from edge_ids.flow.schema import NF_V2
from edge_ids.flow.synthetic import hard_cases
from edge_shared.cli import run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    table = hard_cases(1200, 20)
    columns = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
    columns |= {name: table.features[:, index] for index, name in enumerate(NF_V2)}
    path = tmp_path_factory.mktemp("flows") / "flows.csv"
    pl.DataFrame(columns | {"Label": table.label, "Attack": table.attack}).write_csv(path)
    return path


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "iforest"
    assert run(app, ["flow", "train", "--data", str(data), "--model", "iforest", "--split", "random", "--out", str(out)]) == 0
    return out


def call(capsys, *arguments):
    capsys.readouterr()
    code = run(app, ["flow", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(("model", "split"), [("iforest", "chronological"), ("simpleae", "random"), ("graphids", "random")])
def test_train_prints_one_document(data, tmp_path, capsys, model, split):
    extra = [] if model == "iforest" else ["--epochs", "2"]
    code, out, _ = call(
        capsys, "train", "--data", data, "--model", model, "--split", split, "--seed", 3, "--out", tmp_path / "m", "--json", *extra
    )
    assert code == 0
    document = json.loads(out)
    assert {"pr_auc", "benign_pr_auc", "roc_auc", "macro_f1", "flows_per_second", "training_flows_per_second", "stream"} <= set(
        document["metrics"]
    )
    assert document["metrics"]["flows_per_second"] > 0
    counts = document["data"]["counts"]
    assert counts["train"] + counts["val"] + counts["test"] == 1240
    assert set(document["metrics"]["controls"]) == (set() if model == "iforest" else {"untrained", "iforest"})
    assert document["cost"]["model_bytes"] == (tmp_path / "m" / "model.safetensors").stat().st_size
    files = {path.name for path in (tmp_path / "m").iterdir()}
    assert files == {"config.json", "model.json", "model.safetensors", "result.json", "report.html", "scores.png", "scores.svg",
                     "precision-recall.png", "precision-recall.svg"}  # fmt: skip
    assert json.loads((tmp_path / "m" / "result.json").read_text())["metrics"] == document["metrics"]


def test_same_seed_same_figures(data, tmp_path, capsys):
    figures = []
    for name in "ab":
        _, out, _ = call(capsys, "train", "--data", data, "--model", "edge-aware", "--epochs", 2, "--out", tmp_path / name, "--json")
        metrics = json.loads(out)["metrics"]
        figures.append([metrics["pr_auc"], metrics["macro_f1"], metrics["stream"]["pr_auc"]])
    assert figures[0] == figures[1]


def test_training_resumes_to_the_same_figures(data, tmp_path, capsys, monkeypatch):
    from edge_ids.flow import commands

    arguments = ["--data", data, "--model", "simpleae", "--epochs", 5, "--no-controls", "--json"]
    whole = json.loads(call(capsys, "train", *arguments, "--out", tmp_path / "whole")[1])
    lines = []

    def dying(line):
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands, "say", dying)
    assert call(capsys, "train", *arguments, "--out", tmp_path / "part")[0] == 130
    code, out, _ = call(capsys, "train", "--resume", tmp_path / "part", "--json")
    assert code == 0
    assert len(lines) == 3 + 3, "two epochs were kept"
    part = json.loads(out)
    for name in ("pr_auc", "macro_f1", "threshold"):
        assert part["metrics"][name] == whole["metrics"][name]
    assert (tmp_path / "part" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_run_streams_eve_lines_and_a_summary(trained, data, capsys):
    code, out, _ = call(capsys, "run", "--model", trained, "--csv", data, "--json")
    assert code == 0
    *alerts, summary = [json.loads(line) for line in out.splitlines()]
    assert summary["event_type"] == "summary"
    assert summary["metrics"]["flows"] == summary["metrics"]["scored"] == 1240
    assert summary["metrics"]["alerts"] == len(alerts) > 0
    assert summary["artifacts"] == {}, "nothing was written"
    assert summary["cost"]["peak_rss_bytes"] > 0
    first = alerts[0]
    assert {"timestamp", "event_type", "flow_id", "src_ip", "src_port", "dest_ip", "dest_port", "proto", "alert"} == set(first)
    assert first["alert"]["metadata"]["score"] > first["alert"]["metadata"]["threshold"] == summary["metrics"]["threshold"]
    assert first["alert"]["metadata"]["explanation"]["flow"][0]["feature"] in NF_V2


def test_a_killed_run_resumes_to_the_same_alerts(trained, data, tmp_path, capsys, monkeypatch):
    from edge_ids.flow.monitor import FlowMonitor

    arguments = ["--model", trained, "--batch", 100]
    code, out, _ = call(capsys, "run", *arguments, "--csv", data, "--out", tmp_path / "whole", "--json")
    assert code == 0
    summary = json.loads(out.splitlines()[-1])
    stored = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert summary["artifacts"] == stored["artifacts"] == {"alerts": "alerts.jsonl"}
    feed = FlowMonitor.feed
    seen = []

    def dying(self, table):
        seen.append(len(table))
        if len(seen) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return feed(self, table)

    monkeypatch.setattr(FlowMonitor, "feed", dying)
    assert call(capsys, "run", *arguments, "--csv", data, "--out", tmp_path / "part")[0] == 130
    monkeypatch.setattr(FlowMonitor, "feed", feed)
    # What was written after the saved state is dropped.
    with (tmp_path / "part.partial" / "alerts.jsonl").open("a") as file:
        file.write("half a li")
    assert call(capsys, "run", *arguments, "--resume", tmp_path / "part")[0] == 0

    def alerts(folder):
        lines = [json.loads(line) for line in (folder / "alerts.jsonl").read_text().splitlines()]
        return [line | {"timestamp": None} for line in lines]

    assert alerts(tmp_path / "part") == alerts(tmp_path / "whole") != []


@pytest.mark.slow
def test_export_equals_torch_also_for_pairs_given_once(data, tmp_path, capsys):
    """The ONNX file fed with each host pair once and its count, against the detector's own scores of every flow."""
    import onnxruntime
    from edge_ids.flow import sources
    from edge_ids.flow.detector import load
    from edge_ids.flow.graph import in_means

    arguments = ["--model", "graphids", "--epochs", 1, "--no-controls", "--out", tmp_path / "g"]
    assert call(capsys, "train", "--data", data, *arguments)[0] == 0
    code, out, _ = call(capsys, "export", "--model", tmp_path / "g", "--to", tmp_path / "g.onnx", "--json")
    assert code == 0
    assert json.loads(out)["max_relative_error"] < 1e-3
    detector = load(tmp_path / "g")
    table = next(sources.read(data)).rows(slice(0, 512))
    x = detector.scaler.transform(table.features)
    means = in_means(x, table.dst, len(table.hosts))
    pairs, place, counts = np.unique(np.stack([table.src, table.dst]), axis=1, return_inverse=True, return_counts=True)
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    feed = {
        "source_mean": means[pairs[0]][None], "destination_mean": means[pairs[1]][None], "features": np.zeros((1, len(counts), 41), np.float32),
        "key_bias": np.log(counts).astype(np.float32)[None, None, None],
    }  # fmt: skip
    wanted = {entry.name for entry in session.get_inputs()}
    (scores,) = session.run(None, {name: value for name, value in feed.items() if name in wanted})
    np.testing.assert_allclose(scores[0][place.ravel()], detector.score(x, means, table.src, table.dst), rtol=1e-3)


def test_inspect_and_convert(data, tmp_path, capsys):
    code, out, _ = call(capsys, "convert", "--data", data, "--to", tmp_path / "f.parquet", "--json")
    assert (code, json.loads(out)["flows"]) == (0, 1240)
    reports = [json.loads(call(capsys, "inspect", "--data", path, "--json")[1]) for path in (data, tmp_path / "f.parquet")]
    assert reports[0] == reports[1]
    assert reports[0]["attacks"] == {"Benign": 1200, "new-host": 20, "odd-flow": 20}


def test_bad_input_is_one_line_and_exit_2(trained, data, tmp_path, capsys):
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.pcap").write_bytes(b"nonsense")
    cases = {
        "IPV4_SRC_ADDR": ["train", "--data", tmp_path / "bad.csv", "--out", tmp_path / "x"],
        "no such file": ["train", "--data", tmp_path / "absent.csv", "--out", tmp_path / "x"],
        "--data FILE is missing": ["train", "--out", tmp_path / "x"],
        "--model svm: choose one of": ["train", "--data", data, "--out", tmp_path / "x", "--model", "svm"],
        "--split time: choose one of": ["train", "--data", data, "--out", tmp_path / "x", "--model", "hbos", "--split", "time"],
        "--scaler z: choose": ["train", "--data", data, "--out", tmp_path / "x", "--model", "hbos", "--scaler", "z"],
        "--threshold z: choose": ["train", "--data", data, "--out", tmp_path / "x", "--model", "hbos", "--threshold", "z"],
        "--exclude FOO": ["train", "--data", data, "--out", tmp_path / "x", "--model", "hbos", "--exclude", "FOO"],
        "--false-alarm-rate 2": ["train", "--data", data, "--out", tmp_path / "x", "--model", "hbos", "--threshold", "quantile",
                                 "--false-alarm-rate", 2],
        "give one of --csv": ["run", "--model", trained],
        "no flow model there": ["run", "--model", tmp_path, "--csv", data],
        "no pcap or pcapng": ["run", "--model", trained, "--pcap", tmp_path / "bad.pcap"],
    }  # fmt: skip
    for words, arguments in cases.items():
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, ""), words
        assert words in err
        assert len(err.strip().splitlines()) == 1


def test_a_model_refuses_flows_of_another_extractor(trained, tmp_path, capsys):
    line = {
        "event_type": "flow",
        "src_ip": "10.0.0.1",
        "dest_ip": "10.0.0.2",
        "proto": "TCP",
        "flow": {"start": "2023-11-14T22:13:20+0000"},
    }
    (tmp_path / "eve.json").write_text(json.dumps(line) + "\n")
    code, _, err = call(capsys, "run", "--model", trained, "--eve", tmp_path / "eve.json")
    assert code == 2
    assert "flows of schema conn by suricata, but the model was trained on nf-v2 by nprobe" in err


def test_an_altered_model_is_refused(trained, data, tmp_path, capsys):
    import shutil

    shutil.copytree(trained, tmp_path / "m")
    weights = bytearray((tmp_path / "m" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "m" / "model.safetensors").write_bytes(weights)
    code, _, err = call(capsys, "run", "--model", tmp_path / "m", "--csv", data)
    assert code == 2
    assert "checksum" in err


def test_without_torch(data, tmp_path):
    """A process in which torch cannot be imported trains and runs iforest, and says what graphids needs."""
    block = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, No()); u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from edge_ids.cli import main; sys.exit(main())"
    )

    def process(*arguments):
        return subprocess.run([sys.executable, "-c", block, "flow", *map(str, arguments)], capture_output=True, text=True, check=False)

    assert process("train", "--data", data, "--model", "iforest", "--out", tmp_path / "m", "--json").returncode == 0
    assert process("run", "--model", tmp_path / "m", "--csv", data, "--json").returncode == 0
    failed = process("train", "--data", data, "--model", "graphids", "--out", tmp_path / "g", "--json")
    assert failed.returncode == 2
    assert "edge-ids[torch]" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_importing_the_commands_is_light():
    code = "import sys, edge_ids.cli; sys.exit(any(name in sys.modules for name in ('torch', 'polars', 'sklearn', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_two_hard_cases():
    """GraphIDS cannot rank an odd flow inside a busy pair above benign ones; the edge-aware variant can. Both models are trained alike."""
    from edge_ids.flow.fit import FitConfig, fit

    table = hard_cases(6000, 30)
    rates = {}
    for model in ("graphids", "edge-aware"):
        result = fit(
            FitConfig("synthetic", model, "chronological", preset="own", epochs=4 if model == "graphids" else 30, controls=False), table
        )
        test = table.rows(result.test_rows)
        scores = result.detector.score_table(test)
        cut = np.quantile(scores[test.label == 0], 0.99)
        rates[model] = {name: float((scores[test.attack == name] > cut).mean()) for name in ("odd-flow", "new-host")}
    assert rates["graphids"]["odd-flow"] < 0.3
    assert rates["edge-aware"]["odd-flow"] > 0.8
    assert rates["edge-aware"]["new-host"] > 0.8


def test_bench_measures_both_ways(trained, capsys):
    code, out, _ = call(capsys, "bench", "--model", trained, "--flows", 1500, "--json")
    metrics = json.loads(out)["metrics"]
    assert code == 0
    assert metrics["flows"] == 1500
    assert min(metrics["batch_flows_per_second"], metrics["stream_flows_per_second"], metrics["window_ms_median"]) > 0
    assert metrics["window_ms_p99"] >= metrics["window_ms_median"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_generated_flows_say_that_they_are_synthetic(tmp_path, capsys, suffix):
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        code, out, _ = call(capsys, "generate", "--flows", 500, "--planted", 5, "--seed", 4, "--out", path, "--json")
        assert code == 0
    assert json.loads(out)["classes"] == {"Benign (synthetic)": 490, "new-host (synthetic)": 5, "odd-flow (synthetic)": 5}
    found = json.loads(call(capsys, "inspect", "--data", paths[0], "--json")[1])
    assert (found["flows"], found["attack"], found["extractor"]) == (500, 10, "synthetic-1")
    assert (paths[0].read_bytes() == paths[1].read_bytes()) or suffix == "parquet"
    assert not [path for path in tmp_path.iterdir() if path not in paths]


def test_bad_input_leaves_nothing_behind(trained, data, tmp_path, capsys):
    (tmp_path / "short.csv").write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[:5]))
    (tmp_path / "broken.csv").write_bytes(data.read_bytes().replace(b"64240", b"six", 1))
    before = set(tmp_path.iterdir())
    for name in ("short", "broken"):
        assert call(capsys, "train", "--data", tmp_path / f"{name}.csv", "--model", "hbos", "--out", tmp_path / "x")[0] == 2
        assert set(tmp_path.iterdir()) == before
    arguments = ["run", "--model", trained, "--out", tmp_path / "x"]
    assert call(capsys, *arguments, "--csv", tmp_path / "broken.csv")[0] == 2
    assert call(capsys, *arguments, "--csv", data, "--metrics", "nowhere")[0] == 2
    assert call(capsys, *arguments, "--csv", data, "--syslog", "nowhere")[0] == 2
    assert set(tmp_path.iterdir()) == before
