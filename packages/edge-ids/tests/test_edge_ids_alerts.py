"""Alerts and metrics: shapes that Suricata, syslog and Prometheus read."""

from __future__ import annotations

import io
import json
import re
import socket
import urllib.request

import pytest
from edge_ids.alerts import Alert, EveWriter, Metrics, MetricsServer, SyslogWriter, eve, timestamp
from edge_shared.errors import InputError

ALERT = Alert(1483093132.049686, 7, "unknown identifier", "fuzzing", 1, fields={"can": {"id": "0x123"}}, details={"score": float("nan")})


def test_eve_record_has_suricatas_shape() -> None:
    record = eve(ALERT)
    assert record["timestamp"] == "2016-12-30T10:18:52.049686+0000"
    assert record["event_type"] == "alert"
    assert {"action", "gid", "signature_id", "rev", "signature", "category", "severity"} <= set(record["alert"])
    assert record["can"] == {"id": "0x123"}
    assert record["alert"]["metadata"] == {"score": None}


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "1970-01-01T00:00:00.000000+0000"), (1e30, "9999-12-31T23:59:59.000000+0000")])
def test_timestamp(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


def test_eve_writer_appends_lines(tmp_path) -> None:
    for _ in range(2):
        writer = EveWriter(tmp_path / "new" / "eve.json")
        writer.write(ALERT)
        writer.close()
    assert len([json.loads(line) for line in (tmp_path / "new" / "eve.json").read_text().splitlines()]) == 2
    stream = io.StringIO()
    EveWriter(stream).write(ALERT)
    assert stream.getvalue().count("\n") == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write alerts"):
        EveWriter(tmp_path / "file" / "eve.json")


def test_syslog_line_is_rfc5424_and_arrives() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        writer = SyslogWriter(f"127.0.0.1:{server.getsockname()[1]}")
        writer.write(ALERT)
        line = server.recv(65536).decode()
        writer.close()
    match = re.fullmatch(r"<(\d+)>1 (\S+) (\S+) edge-ids - 7 - (\{.*\})", line)
    assert match is not None
    assert int(match[1]) == 10 * 8 + 1
    assert match[2] == "2016-12-30T10:18:52.049686Z"
    assert json.loads(match[4])["alert"]["signature_id"] == 7


@pytest.mark.parametrize("address", ["nowhere", "host:", "host:99999", ":514", "/no/such/socket"])
def test_bad_syslog_address(address: str) -> None:
    with pytest.raises(InputError, match="--syslog"):
        SyslogWriter(address)


def test_syslog_that_goes_down_only_counts(tmp_path, capsys) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        writer = SyslogWriter(str(tmp_path / "log"))
    writer.write(ALERT)
    writer.close()
    assert (writer.failed, capsys.readouterr().err) == (1, "warning: 1 alerts did not reach syslog\n")


def _metrics() -> Metrics:
    metrics = Metrics()
    metrics.counter("frames_total", "Frames read.")
    metrics.counter("alerts_total", "Alerts.")
    metrics.gauge("queue_depth", "Frames waiting.")
    metrics.histogram("latency_seconds", "Latency.", [0.001, 0.01])
    metrics.add("alerts_total", detector='tim"ing')
    metrics.add("alerts_total", 2, detector='tim"ing')
    metrics.set("queue_depth", 5)
    metrics.observe("latency_seconds", 0.001)
    metrics.observe("latency_seconds", 0.005)
    metrics.observe("latency_seconds", 7, count=2)
    return metrics


def test_prometheus_text() -> None:
    lines = _metrics().render().splitlines()
    assert "edge_ids_frames_total 0" in lines
    assert 'edge_ids_alerts_total{detector="tim\\"ing"} 3' in lines
    assert "# TYPE edge_ids_latency_seconds histogram" in lines
    assert [line for line in lines if "_bucket" in line] == [
        'edge_ids_latency_seconds_bucket{le="0.001"} 1',
        'edge_ids_latency_seconds_bucket{le="0.01"} 2',
        'edge_ids_latency_seconds_bucket{le="+Inf"} 4',
    ]
    assert "edge_ids_latency_seconds_count 4" in lines


def test_metrics_server_on_loopback() -> None:
    server = MetricsServer(_metrics(), "0")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as reply:
            assert "edge_ids_queue_depth 5" in reply.read().decode()
        with pytest.raises(InputError, match=r"metrics address .* in use"):
            MetricsServer(_metrics(), f"127.0.0.1:{server.port}")
    finally:
        server.close()
    with pytest.raises(InputError, match="host:port"):
        MetricsServer(_metrics(), "localhost:http")
