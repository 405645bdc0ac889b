"""The gateway as a process tree: one merged stream, one source dying alone, resume, pages that refuse what they should."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from edge_ids.can.generate import generate
from edge_ids.can.inject import Attack, inject
from edge_ids.can.profile import train
from edge_ids.can.writers import write_frames
from edge_ids.cli import app as edge_ids_app
from edge_ids.flow.schema import NF_V2
from edge_ids.flow.synthetic import hard_cases
from edge_shared.cli import run
from edge_shared.errors import InputError
from pi_gateway.cli import app
from pi_gateway.gateway import run_gateway
from pi_gateway.source import Source
from pi_gateway.supervisor import Policy, Supervisor, labelled
from pi_gateway.unit import unit_file
from pi_gateway.web import LARGEST_HEAD, Web

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of both halves, an attacked trace and a table of flows."""
    folder = tmp_path_factory.mktemp("gateway")
    frames, _ = generate(40, seed=1)
    cut = len(frames) // 2
    (folder / "can").mkdir()
    train(frames.take(slice(0, cut))).save(folder / "can")
    attacked = inject(frames.take(slice(cut, None)), Attack("fabrication", 4, 8, 0x280), seed=1).frames
    write_frames(inject(attacked, Attack("fuzzing", 12, 15), seed=2).frames, folder / "attacked.log")
    table = hard_cases(1200, 20)
    columns = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
    columns |= {name: table.features[:, index] for index, name in enumerate(NF_V2)}
    pl.DataFrame(columns | {"Label": table.label, "Attack": table.attack}).write_csv(folder / "flows.csv")
    arguments = ["flow", "train", "--data", str(folder / "flows.csv"), "--model", "pca", "--split", "random", "--out", str(folder / "flow")]
    assert run(edge_ids_app, arguments) == 0
    return folder


def sources(data: Path) -> list[Source]:
    return [
        Source("can", "can-replay", str(data / "attacked.log"), data / "can"),
        Source("flow", "flow-file", str(data / "flows.csv"), data / "flow"),
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What tells alerts apart; flows of a table without times are stamped with the time of day, so that is left out."""
    stamp = {"can": lambda r: r["timestamp"], "flow": lambda r: r["flow_id"]}
    return sorted(
        (r["gateway"]["source"], *r["gateway"]["sequence"], str(stamp[r["gateway"]["source"]](r)), r["alert"]["signature"]) for r in records
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run_gateway(sources(data), out)


def test_both_halves_in_one_stream(whole: tuple[Path, dict[str, Any]]) -> None:
    out, summary = whole
    records = lines(out / "alerts.jsonl")
    by_source = {name: [r for r in records if r["gateway"]["source"] == name] for name in ("can", "flow")}
    assert {r["alert"]["signature"].split(":")[0] for r in by_source["can"]} >= {"timing", "unknown-id"}
    assert by_source["flow"]
    assert all("src_ip" in r for r in by_source["flow"] if r["event_type"] == "alert")
    assert summary["alerts"] == len(records) == sum(row["alerts"] for row in summary["sources"])
    # Nothing is lost on the way from the detectors, also where a window of flows raises several alerts.
    assert [len(by_source[name]) for name in ("can", "flow")] == [row["summary"]["alerts"] for row in summary["sources"]]
    assert [row["state"] for row in summary["sources"]] == ["finished", "finished"]
    assert summary["sources"][1]["items"] == 1240
    assert json.loads((out / "result.json").read_text())["alerts"] == len(records)


def test_a_worker_that_is_killed_goes_on_and_the_other_does_not_notice(
    data: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Killed in the middle of a paced replay: the alerts are those of an undisturbed run, each once."""
    holder: list[Supervisor] = []
    slow = [Source("can", "can-replay", str(data / "attacked.log"), data / "can", speed=4.0), sources(data)[1]]

    def kill() -> None:
        while not (holder and holder[0].watched[0].alerts):
            time.sleep(0.02)
        process = holder[0].watched[0].process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = run_gateway(slow, tmp_path / "run", policy=Policy(first=0.1), ready=lambda supervisor, _: holder.append(supervisor))
    thread.join()
    can, flow = summary["sources"]
    assert (can["restarts"], can["state"], flow["restarts"], flow["state"]) == (1, "finished", 0, "finished")
    assert "code -9" in can["error"]
    assert keys(lines(tmp_path / "run" / "alerts.jsonl")) == keys(lines(whole[0] / "alerts.jsonl"))


def test_a_source_that_keeps_failing_is_given_up_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.log").write_text("this is no trace\n")
    broken = Source("bad", "can-replay", str(tmp_path / "junk.log"), data / "can")
    summary = run_gateway([broken, sources(data)[1]], policy=Policy(first=0.05, attempts=2))
    bad, flow = summary["sources"]
    assert (bad["state"], bad["restarts"], flow["state"]) == ("failed", 1, "finished")
    assert "no CAN trace" in bad["error"]
    assert flow["alerts"] > 0


def test_interrupted_gateway_resumes_to_the_same_alerts(data: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    slow = [Source("can", "can-replay", str(data / "attacked.log"), data / "can", speed=4.0), sources(data)[1]]
    out = tmp_path / "run"

    def stop_at_the_first_can_alert(supervisor: Supervisor, _: Any) -> None:
        def wait() -> None:
            while not supervisor.watched[0].alerts:
                time.sleep(0.02)
            supervisor.stop()

        threading.Thread(target=wait).start()

    first = run_gateway(slow, out, ready=stop_at_the_first_can_alert)
    assert first["sources"][0]["state"] == "stopped"
    with (out / "alerts.jsonl").open("a") as file:
        file.write('{"timestamp": "cut off by a cra')
    run_gateway(sources(data), out, resumed=True)
    assert keys(lines(out / "alerts.jsonl")) == keys(lines(whole[0] / "alerts.jsonl"))


@pytest.fixture
def pages(data: Path) -> Any:
    supervisor = Supervisor(sources(data))
    supervisor.watched[0].page = '# HELP x_total X.\n# TYPE x_total counter\nx_total 3\nx_total{kind="a"} 4\n'
    supervisor.watched[1].page = "# HELP x_total X.\n# TYPE x_total counter\nx_total 5\n"
    web = Web(supervisor, "0")
    yield supervisor, web
    web.close()


def ask(web: Web, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=5)
    connection.request(method, path, body, headers or {})
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def test_pages_and_what_they_refuse(pages: Any) -> None:
    _, web = pages
    code, page = ask(web, "GET", "/metrics")
    assert code == 200
    assert page.count("# TYPE x_total counter") == 1
    assert 'x_total{source="can"} 3' in page
    assert 'x_total{kind="a",source="can"} 4' in page
    assert 'x_total{source="flow"} 5' in page
    code, text = ask(web, "GET", "/api/status?after=0")
    assert (code, json.loads(text)["health"]) == (200, "ok")
    assert [ask(web, "GET", path)[0] for path in ("/", "/dashboard.js", "/dashboard.css")] == [200, 200, 200]
    assert "http" not in ask(web, "GET", "/")[1].replace("http-equiv", "")  # nothing is fetched from elsewhere
    assert ask(web, "GET", "/../../etc/passwd")[0] == 404
    assert ask(web, "GET", "/" + "a" * 2000)[0] == 414
    assert ask(web, "GET", "/", body=b"x")[0] == 413
    assert ask(web, "GET", "/", {"Host": "evil.example"})[0] == 403
    assert ask(web, "POST", "/")[0] == 501
    with socket.create_connection(("127.0.0.1", web.port), timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * (LARGEST_HEAD // 6) + b"\r\n")
        assert b" 431 " in raw.recv(100)


def test_labels_are_added_to_samples() -> None:
    assert labelled("a_total 1", "s") == 'a_total{source="s"} 1'
    assert labelled('a{x="1 2"} 1.5', "s") == 'a{x="1 2",source="s"} 1.5'


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_dashboard_in_a_browser(pages: Any, tmp_path: Path) -> None:
    """The page shows what the status says; what comes from outside stays text."""
    supervisor, web = pages
    record = {
        "timestamp": "2026-01-02T03:04:05.000000+0000", "event_type": "alert", "can": {"channel": "can0", "id": "0x280"},
        "alert": {"signature": "timing: <img src=x onerror=alert(1)>", "severity": 1}, "gateway": {"source": "can", "sequence": [1, 0]},
    }  # fmt: skip
    supervisor._keep(supervisor.watched[0], record)
    supervisor.watched[1].state, supervisor.watched[1].error = "waiting", "the process ended with code -9"
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=2500", "--dump-dom",
         f"http://127.0.0.1:{web.port}/"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    page = done.stdout
    assert "degraded" in page
    assert "can0 0x280" in page
    assert "the process ended with code -9" in page
    assert "&lt;img src=x" in page
    assert "<img" not in page


def test_command_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--can-replay", str(data / "attacked.log"), "--can-model", str(data / "can"), "--json"]
    assert run(app, arguments) == 0
    *alerts, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert summary["event_type"] == "summary"
    assert summary["alerts"] == len(alerts) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "nothing to watch"),
        (["run", "--can-replay", "{d}/attacked.log"], "--can-model DIR"),
        (["run", "--can-replay", "{d}/none.log", "--can-model", "{d}/can"], "no such file"),
        (["run", "--flow-csv", "{d}/flows.csv", "--flow-model", "{d}/can"], "no model.json"),
        (["run", "--flow-csv", "{d}/flows.csv", "--flow-model", "{d}/flow", "--serve", "x"], "host:port"),
        (["run", "--flow-csv", "{d}/flows.csv", "--flow-model", "{d}/flow", "--resume", "{d}/none"], "no alerts.jsonl"),
        (["unit", "--arguments", "--can-channel $(reboot)"], "must not hold"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(data: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [argument.format(d=data) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]


def test_a_port_in_use_is_one_line_and_leaves_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["run", "--can-replay", f"{data}/attacked.log", "--can-model", f"{data}/can", "--out", str(tmp_path / "out")]
        assert run(app, [*arguments, "--serve", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "in use" in error[0]
    assert not (tmp_path / "out").exists()


def test_unit_file_is_one_that_systemd_takes(tmp_path: Path) -> None:
    path = tmp_path / "pi-gateway.service"
    path.write_text(unit_file("--can-channel can0 --can-model /var/lib/pi-gateway/can", "root"))
    assert "run --can-channel can0" in path.read_text()
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here to check the unit with")
    done = subprocess.run([tool, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pauses_double_up_to_a_minute() -> None:
    policy = Policy()
    assert [policy.pause(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_names_must_differ(data: Path) -> None:
    with pytest.raises(InputError, match="same name"):
        Supervisor([sources(data)[0], sources(data)[0]])


def test_workers_do_not_outlive_a_killed_gateway(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", "import sys; from pi_gateway.cli import main; sys.exit(main())", "run", "--can-replay",
        str(data / "attacked.log"), "--can-model", str(data / "can"), "--speed", "0.2", "--out", str(tmp_path / "run"), "--serve", "0",
    ]  # fmt: skip
    import psutil

    gateway = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert gateway.stderr is not None
    port = int(gateway.stderr.readline().rsplit(":", 1)[1].strip(" /\n"))
    until = time.monotonic() + 200
    pid = None
    while pid is None or not np.isfinite(pid):
        assert time.monotonic() < until
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/api/status")
        row = json.loads(connection.getresponse().read())["sources"][0]
        pid = row["pid"] if row["state"] == "running" else None
        time.sleep(0.1)
    worker = psutil.Process(pid)
    gateway.kill()
    gateway.wait()
    gateway.stderr.close()
    assert psutil.wait_procs([worker], timeout=20)[1] == []
