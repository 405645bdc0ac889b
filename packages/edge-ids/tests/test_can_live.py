"""The command and the service as a user runs them: train, replay, live on python-can's virtual bus, reload, bad input."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_ids.alerts import EveWriter, MetricsServer
from edge_ids.can.commands import ATTACKS
from edge_ids.can.frames import Frames, concat
from edge_ids.can.generate import generate
from edge_ids.can.inject import KINDS, Attack, inject
from edge_ids.can.profile import train
from edge_ids.can.service import Service, open_bus
from edge_ids.can.writers import messages, write_frames
from edge_ids.cli import app
from edge_shared.cli import run
from edge_shared.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, a benign trace and a labelled attacked one."""
    folder = tmp_path_factory.mktemp("can")
    frames, _ = generate(60, seed=1)
    cut = len(frames) // 2
    write_frames(frames.take(slice(0, cut)), folder / "train.log")
    benign = frames.take(slice(cut, None))
    write_frames(benign, folder / "benign.log")
    write_frames(inject(benign, Attack("fabrication", 5, 10, 0x280), seed=1).frames, folder / "attacked.csv")
    assert run(app, ["can", "train", "--data", str(folder / "train.log"), "--out", str(folder / "model")]) == 0
    return folder


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_train_says_what_it_did(folder: Path) -> None:
    result = json.loads((folder / "model" / "result.json").read_text())
    assert result["profile"]["ids"] == 20
    assert result["profile"]["mature"] is False
    assert result["metrics"]["false_alarms"] == 0
    assert {"profile.json", "profile.npz", "report.html", "detectors.png", "timeline.png"} <= set(result["artifacts"])
    assert all((folder / "model" / name).is_file() for name in result["artifacts"])
    assert result["metrics"]["attacks"]["fabrication"]["event_recall"] == 1
    page = (folder / "model" / "report.html").read_text()
    assert "made up by a program" not in page or result["data"]["synthetic"]
    assert "Held-out traffic" in page


def test_replay_contract(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(app, ["can", "run", "--model", str(folder / "model"), "--replay", str(folder / "benign.log"), "--json"]) == 0
    (summary,) = lines(capsys.readouterr().out)
    assert (summary["alerts"], summary["malformed"], summary["dropped"]) == (0, 0, 0)
    assert summary["frames_per_second"] > 0
    assert summary["metrics"] == {}
    assert summary["cost"]["state_bytes"] > 0
    assert summary["artifacts"] == []
    assert run(app, ["can", "run", "--model", str(folder / "model"), "--replay", str(folder / "attacked.csv"), "--json"]) == 0
    *alerts, summary = lines(capsys.readouterr().out)
    assert len(alerts) == summary["alerts"] > 0
    assert alerts[0]["event_type"] == "alert"
    assert alerts[0]["can"]["id"] == "0x280"
    assert (summary["metrics"]["event_recall"], summary["metrics"]["false_alarms"]) == (1, 0)


def test_resumed_replay_gives_the_alerts_of_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    class List:
        def __init__(self) -> None:
            self.alerts: list = []

        def write(self, alert: object) -> None:
            self.alerts.append(alert)

        def close(self) -> None:
            pass

    whole, parts = List(), List()
    Service(folder / "model", [whole]).replay(folder / "attacked.csv")
    assert len(whole.alerts) > 0
    service = Service(folder / "model", [parts], state=tmp_path / "state")

    def stop_in_the_middle(chunk: Frames) -> Frames:
        service.stop()
        return chunk.take(slice(0, 5000))

    first = service.replay(folder / "attacked.csv", relabel=stop_in_the_middle)
    assert first["frames"] == 5000
    second = Service(folder / "model", [parts], state=tmp_path / "state").replay(folder / "attacked.csv")
    assert second["resumed_at"] == 5000
    assert [(a.time, a.signature_id) for a in parts.alerts] == [(a.time, a.signature_id) for a in whole.alerts]


def live(service: Service, name: str, frames: Frames, then: float = 0.6) -> dict:
    can = pytest.importorskip("can")
    result: list[dict] = []
    with can.Bus(name, interface="virtual", preserve_timestamps=True) as sender, can.Bus(name, interface="virtual") as bus:
        thread = threading.Thread(target=lambda: result.append(service.live(bus)))
        thread.start()
        for message in messages(frames):
            sender.send(message)
        deadline = time.monotonic() + 30
        while service.frames + service.dropped + sum(service.malformed.values()) < len(frames) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(then)
        service.stop()
        thread.join(timeout=10)
    return result[0]


def test_live_run_raises_the_alerts_of_the_replay(folder: Path, tmp_path: Path) -> None:
    from edge_ids.can.readers import read_frames

    frames = read_frames(folder / "attacked.csv")[0].take(slice(0, 8000))
    replayed = Service(folder / "model")
    replayed._take(frames)
    sink = EveWriter(tmp_path / "eve.json")
    service = Service(folder / "model", [sink])
    server = MetricsServer(service.metrics, "0")
    summary = live(service, "test-live", frames, then=0)
    sink.close()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as reply:
        page = reply.read().decode()
    server.close()
    assert (summary["frames"], summary["dropped"]) == (8000, 0)
    timing = {name: count for name, count in summary["alerts_by_detector"].items() if name != "silence"}
    assert timing == dict(replayed.alerts)
    assert "edge_ids_can_frames_total 8000" in page
    assert 'edge_ids_can_alerts_total{detector="timing"}' in page
    written = [record["alert"]["metadata"]["detector"] for record in lines((tmp_path / "eve.json").read_text())]
    assert len(written) == summary["alerts"]


SENDER = """
import sys, time, can
from edge_ids.can.readers import read_frames
from edge_ids.can.writers import messages
frames, _ = read_frames(sys.argv[1])
with can.Bus(sys.argv[2], interface=sys.argv[3]) as bus:
    for message in messages(frames.take(slice(0, 4000))):
        bus.send(message)
        time.sleep(0.0002)
"""


def second_process_bus(interface: str, channel: str) -> Any:
    """A bus that another process can reach, or a skip that says what this machine lacks."""
    can = pytest.importorskip("can")
    try:
        bus = can.Bus(channel, interface=interface)
        if interface == "udp_multicast":  # the kernel may take the socket and carry nothing
            with can.Bus(channel, interface=interface) as probe:
                probe.send(can.Message(arbitration_id=1, is_extended_id=False))
                if bus.recv(timeout=2) is None:
                    bus.shutdown()
                    pytest.skip("this network carries no multicast")
    except Exception as error:
        pytest.skip(f"{interface} is not possible here: {' '.join(str(error).split())[:100]}")
    return bus


@pytest.mark.parametrize(("interface", "channel"), [("udp_multicast", "239.74.163.2"), ("socketcan", "vcan0")])
def test_frames_of_a_real_second_process(folder: Path, interface: str, channel: str) -> None:
    """Another process sends on a bus that the kernel carries; every frame arrives, and the attack is found."""
    bus = second_process_bus(interface, channel)
    service = Service(folder / "model")
    result: list[dict] = []
    with bus:
        thread = threading.Thread(target=lambda: result.append(service.live(bus)))
        thread.start()
        subprocess.run([sys.executable, "-c", SENDER, str(folder / "attacked.csv"), channel, interface], check=True, timeout=120)
        deadline = time.monotonic() + 10
        while service.frames < 4000 and time.monotonic() < deadline:
            time.sleep(0.05)
        service.stop()
        thread.join(timeout=10)
    assert (result[0]["frames"], result[0]["dropped"], result[0]["malformed"]) == (4000, 0, 0)
    assert result[0]["unknown_id_frames"] == 0


def test_silent_bus_is_noticed_by_the_timer_and_a_full_queue_drops(folder: Path) -> None:
    from edge_ids.can.readers import read_frames

    frames = read_frames(folder / "benign.log")[0].take(slice(0, 3000))
    service = Service(folder / "model")
    summary = live(service, "test-silent", frames, then=2.0)  # the whole bus at once: switched off, and no attack
    assert summary["anomalies_by_detector"].get("silence", 0) > 0
    assert summary["alerts_by_detector"].get("silence", 0) == 0
    small = Service(folder / "model", queue=1)
    summary = live(small, "test-drop", frames, then=0)
    assert summary["frames"] + summary["dropped"] == 3000
    assert summary["dropped"] > 0


def test_hot_reload_keeps_what_is_known_and_refuses_a_broken_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import shutil

    from edge_ids.can.readers import read_frames

    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    service = Service(model)
    frames = read_frames(folder / "benign.log")[0]
    service._take(frames.take(slice(0, 4000)))
    last = service.detector.state.last_K.copy()
    assert service.reload()
    np.testing.assert_array_equal(service.detector.state.last_K, last)
    (model / "profile.npz").write_bytes(b"half")
    assert not service.reload()
    assert "not reloaded" in capsys.readouterr().err
    service._take(frames.take(slice(4000, None)))
    assert sum(service.alerts.values()) == 0


def test_alerts_name_the_bus_of_a_trace_of_several(tmp_path: Path) -> None:
    names = ("can0", "can1")
    quiet, attacked = (generate(10, seed=seed)[0] for seed in (1, 2))
    attacked = inject(attacked, Attack("fabrication", 3, 6, 0x280), seed=1).frames

    def both(first: Frames, second: Frames) -> Frames:
        parts = [replace(part, channel=np.full(len(part), number, np.uint8), channels=names) for number, part in enumerate((first, second))]
        frames = concat([replace(part, capture=np.zeros(len(part), np.int32), captures=("x",)) for part in parts])
        return frames.take(np.argsort(frames.time_us, kind="stable"))

    train(both(*(generate(10, seed=seed)[0] for seed in (1, 2)))).save(tmp_path)
    path = write_frames(both(quiet, attacked), tmp_path / "attacked.log")
    text = io.StringIO()
    assert Service(tmp_path, [EveWriter(text)]).replay(path)["alerts"] > 0
    assert {(alert["can"]["channel"], alert["can"]["id"]) for alert in lines(text.getvalue())} == {("can1", "0x280")}


def test_help_names_every_attack() -> None:
    assert ", ".join(KINDS) == ATTACKS


def test_inspect_convert_label_and_generate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "made"
    attack = ["--attack", "masquerade:5:10:110:XXXXFFFF"]
    assert run(app, ["can", "generate", "--out", str(out), "--seconds", "15", *attack, "--name", "cap", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["synthetic"] is True
    labels = [
        *["can", "label", "--data", str(out / "cap.log"), "--metadata", str(out / "capture_metadata.json")],
        "--to",
        str(tmp_path / "l.parquet"),
    ]
    assert run(app, [*labels, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"]["masquerade"] == made["attack_frames"] > 0
    assert run(app, ["can", "convert", str(tmp_path / "l.parquet"), "--to", str(tmp_path / "l.csv"), "--json"]) == 0
    capsys.readouterr()
    assert run(app, ["can", "inspect", str(tmp_path / "l.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"]["attack"] == made["attack_frames"]


def test_generated_traffic_is_known_by_what_lies_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A candump log has no room for the word; the generator's result.json has, and a copy elsewhere is a log like any other."""
    assert run(app, ["can", "generate", "--out", str(tmp_path / "made"), "--seconds", "5"]) == 0
    (tmp_path / "copy.log").write_bytes((tmp_path / "made" / "synthetic.log").read_bytes())
    capsys.readouterr()
    for path, synthetic in ((tmp_path / "made" / "synthetic.log", True), (tmp_path / "copy.log", False)):
        assert run(app, ["can", "inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["synthetic"] is synthetic


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EAFNOSUPPORT, "modprobe"), (errno.ENODEV, "ip link add dev vcan7"), (errno.ENETDOWN, "ip link set vcan7 up")],
)
def test_a_can_interface_that_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    import can

    def fail(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(can, "Bus", fail)
    with pytest.raises(InputError, match=f"socketcan channel vcan7: .*{advice}"):
        open_bus("vcan7", "socketcan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "{f}/none.log", "--out", "{t}/m"], "no such file"),
        (["train", "--data", "{f}/train.log"], "--out DIR"),
        (["train", "--data", "{t}/junk", "--out", "{t}/m"], "no CAN trace"),
        (["run", "--model", "{t}/none", "--replay", "{f}/benign.log"], r"no profile.json"),
        (["run", "--model", "{f}/model"], "either --replay FILE or --channel"),
        (["run", "--model", "{f}/model", "--replay", "{t}/junk"], "no CAN trace"),
        (["run", "--model", "{f}/model", "--replay", "{f}/benign.log", "--state", "{t}/junk"], "no state"),
        (["run", "--model", "{f}/model", "--replay", "{f}/benign.log", "--metadata", "{t}/junk"], "is no JSON"),
        (["run", "--model", "{f}/model", "--channel", "x", "--interface", "nonsense"], "cannot open nonsense"),
        (["run", "--model", "{f}/model", "--replay", "{f}/benign.log", "--duration", "2"], "--duration needs --channel"),
        (["run", "--model", "{f}/model", "--channel", "x", "--speed", "2"], "--speed needs --replay"),
        (["run", "--model", "{f}/model", "--replay", "{f}/benign.log", "--syslog", "{t}/none"], "no socket there"),
        (["generate", "--out", "{t}/g", "--write", "docx"], "--write 'docx' is unknown"),
        (["generate", "--out", "{t}/g", "--attack", "fuzz"], "KIND:START:END"),
        (["generate", "--out", "{t}/g", "--seconds", "5", "--attack", "fuzzing:9:10"], "not inside the trace"),
        (["convert", "{f}/benign.log", "--to", "{t}/x.docx"], "cannot write that format"),
        (["compare", "--data", "{f}/benign.log"], "label for every frame"),
        (["compare", "--data", "{f}/attacked.csv", "--models", "random-forest,magic"], "'magic' is unknown"),
        (["compare", "--data", "{f}/attacked.csv", "--models", ","], "no model is given"),
        (["compare", "--data", "{f}/attacked.csv", "--models", "streaming", "--protocol", "paper"], "no protocol paper"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "junk").write_text("this is nothing\n")
    arguments = [argument.format(f=folder, t=tmp_path) for argument in arguments]
    assert run(app, ["can", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
