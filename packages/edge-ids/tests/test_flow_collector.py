"""NetFlow v5, v9 and IPFIX datagrams: built by hand, damaged, and sent over a real socket."""

import json
import socket
import struct
import threading
import time
from ipaddress import ip_address

import pytest
from edge_ids.cli import app
from edge_ids.flow.collector import Collector
from edge_ids.flow.netflow_wire import TEMPLATES, Decoder, flows_table
from edge_shared.cli import run
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_700_000_000.0
A, B = ip_address("10.0.0.1").packed, ip_address("10.0.0.2").packed


def v5(count=1, octets=840):
    head = struct.pack(">HHIIIIBBH", 5, count, 100_000, int(NOW), 0, 7, 0, 0, 0)
    record = A + B + bytes(8) + struct.pack(">IIII", 6, octets, 90_000, 98_000) + struct.pack(">HHxBBB", 40_000, 443, 0x1B, 6, 0) + bytes(8)
    assert len(record) == 48
    return head + record * count


def flow_set(number, body):
    return struct.pack(">HH", number, len(body) + 4) + body


def fields(*pairs):
    return b"".join(struct.pack(">HH", *pair) for pair in pairs)


V9_FIELDS = ((8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (6, 1), (1, 4), (2, 4), (23, 4), (24, 4), (22, 4), (21, 4))
V9_TEMPLATE = flow_set(0, struct.pack(">HH", 260, len(V9_FIELDS)) + fields(*V9_FIELDS))
V9_RECORD = A + B + struct.pack(">HHBBIIIIII", 5000, 53, 17, 0, 70, 1, 130, 2, 90_000, 90_500)


def v9(*sets):
    return struct.pack(">HHIIII", 9, len(sets), 100_000, int(NOW), 1, 5) + b"".join(sets)


def ipfix(*sets):
    body = b"".join(sets)
    return struct.pack(">HHIII", 10, 16 + len(body), int(NOW), 1, 9) + body


IPFIX_TEMPLATE = flow_set(
    2,
    struct.pack(">HH", 300, 8)
    + fields((27, 16), (28, 16), (7, 2), (11, 2), (4, 1), (96, 65_535), (1, 8))
    + struct.pack(">HHI", 0x8000 | 1, 8, 29_305),
)


def ipfix_record(name):
    ends = ip_address("2001:db8::1").packed + ip_address("2001:db8::2").packed
    return ends + struct.pack(">HHB", 6000, 22, 6) + name + struct.pack(">QQ", 1000, 9000)


def test_v5():
    decoder = Decoder()
    flow, twin = decoder.decode(v5(2), "192.0.2.1", NOW)
    assert flow == twin
    assert (flow.src, flow.dst, flow.sport, flow.dport, flow.protocol) == ("10.0.0.1", "10.0.0.2", 40_000, 443, 6)
    assert (flow.in_bytes, flow.in_packets, flow.out_bytes) == (840, 6, 0)
    assert (flow.start, flow.end) == (NOW - 10, NOW - 2)
    table = flows_table([flow], str(decoder.accept))
    assert (table.schema.name, table.extractor) == ("conn", "netflow-v5")
    assert table.features[0].tolist() == [40_000, 443, 6, 8, 840, 0, 6, 0, 140, 0, 1, 0]


def test_v9_needs_its_template_from_the_same_exporter():
    decoder = Decoder()
    data = v9(flow_set(260, V9_RECORD + bytes(2)))
    assert decoder.decode(data, "192.0.2.1", NOW) == []
    assert decoder.counts.unknown_template == 1
    assert decoder.decode(v9(V9_TEMPLATE), "192.0.2.1", NOW) == []
    assert decoder.decode(data, "192.0.2.2", NOW) == []
    (flow,) = decoder.decode(data, "192.0.2.1", NOW)
    assert (flow.in_bytes, flow.in_packets, flow.out_bytes, flow.out_packets, flow.protocol) == (70, 1, 130, 2, 17)
    assert (flow.start, flow.end) == (NOW - 10, NOW - 9.5)
    assert decoder.counts.malformed == 0


def test_v9_options_are_passed_over():
    options = flow_set(1, struct.pack(">HHH", 261, 4, 8) + fields((1, 4), (34, 4), (35, 1)) + bytes(2))
    decoder = Decoder()
    assert decoder.decode(v9(options, flow_set(261, bytes(9)), V9_TEMPLATE, flow_set(260, V9_RECORD)), "x", NOW) != []
    assert (decoder.counts.templates, decoder.counts.malformed, decoder.counts.no_address) == (2, 0, 0)


def test_ipfix_variable_length_reverse_fields_and_withdrawal():
    decoder = Decoder()
    records = ipfix_record(b"\x03ssh") + ipfix_record(b"\xff\x01\x00" + bytes(256)) + ipfix_record(b"\x00")
    found = decoder.decode(ipfix(IPFIX_TEMPLATE, flow_set(300, records)), "x", NOW)
    assert [(flow.src, flow.dst, flow.dport, flow.in_bytes, flow.out_bytes) for flow in found] == [
        ("2001:db8::1", "2001:db8::2", 22, 1000, 9000)
    ] * 3
    assert decoder.accept == "ipfix"
    decoder.decode(ipfix(flow_set(2, struct.pack(">HH", 300, 0))), "x", NOW)
    assert decoder.counts.templates == 0


@pytest.mark.parametrize("data", [
    b"", b"\x00\x05", v5(1)[:-1], b"\x00\x07" + bytes(60), v9(struct.pack(">HH", 260, 0)), v9(struct.pack(">HH", 0, 400)),
    v9(flow_set(0, struct.pack(">HH", 260, 65_535))), v9(flow_set(0, struct.pack(">HH", 12, 1) + fields((8, 4)))),
    v9(flow_set(0, struct.pack(">HH", 260, 1) + fields((8, 0)))), ipfix(IPFIX_TEMPLATE)[:-3],
    ipfix(IPFIX_TEMPLATE, flow_set(300, ipfix_record(b"\xff\xff\xff") + bytes(20))),
])  # fmt: skip
def test_what_contradicts_itself_is_counted(data):
    decoder = Decoder()
    assert decoder.decode(data, "x", NOW) == []
    assert decoder.counts.malformed == 1
    assert decoder.decode(v5(), "x", NOW) != []


def test_templates_are_bounded_and_the_busy_one_stays():
    decoder = Decoder()
    decoder.decode(v9(V9_TEMPLATE), "good", NOW)
    for number in range(3 * TEMPLATES):
        body = struct.pack(">HH", 256 + number % 60_000, 1) + fields((8, 4))
        decoder.decode(v9(flow_set(0, body)), f"bad{number // 60_000}", NOW)
        if number % 1000 == 0:
            decoder.decode(v9(flow_set(260, V9_RECORD)), "good", NOW)
    assert decoder.counts.templates == TEMPLATES
    assert len(decoder.decode(v9(flow_set(260, V9_RECORD)), "good", NOW)) == 1


def test_other_versions_and_wrong_clocks_do_not_disturb():
    decoder = Decoder("netflow-v5")
    assert decoder.decode(v9(V9_TEMPLATE), "x", NOW) == []
    assert decoder.counts.other_version == 1
    for wrong in (0.0, NOW - 1e6, NOW + 1e6):
        (flow,) = decoder.decode(v5(), "x", wrong)
        assert (flow.start, flow.end) == (wrong - 8, wrong)


SEEDS = (v5(2), v9(V9_TEMPLATE, flow_set(260, V9_RECORD)), ipfix(IPFIX_TEMPLATE, flow_set(300, ipfix_record(b"\x03ssh"))))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=6)), max_size=4),
    st.binary(max_size=64),
)
def test_no_datagram_is_fatal(data, edits, tail):
    for place, drop, insert in edits:
        start = int(place * len(data))
        data = data[:start] + insert + data[start + drop :]
    decoder = Decoder()
    for part in (data, tail, data + tail, SEEDS[1]):
        flows = decoder.decode(part, "x", NOW)
        assert all(NOW - 2 * 86_400 <= flow.start <= flow.end <= NOW for flow in flows)
        if flows:
            flows_table(flows, "x")
    assert decoder.counts.datagrams == 4


def test_bad_addresses():
    for address in ("x", "1.2.3.4:99999", "nowhere.invalid:2055", "192.0.2.77:0"):
        with pytest.raises(InputError, match="--netflow"):
            Collector(address)


def send(port, stop):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        number = 0
        while not stop.is_set():
            number += 1
            sender.sendto(v5(30, 800 + number % 50), ("127.0.0.1", port))
            sender.sendto(b"hostile", ("127.0.0.1", port))
            time.sleep(0.02)


def test_record_train_and_watch_over_a_socket(tmp_path, capsys):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = threading.Event()
    sender = threading.Thread(target=send, args=(port, stop))
    sender.start()
    try:
        assert run(app, ["flow", "collect", "--netflow", str(port), "--seconds", "1.5", "--to", str(tmp_path / "f.parquet"), "--json"]) == 0
        recorded = json.loads(capsys.readouterr().out)
        assert recorded["flows"] == recorded["metrics"]["flows"] > 100
        assert recorded["metrics"]["malformed"] > 0
        train = ["flow", "train", "--data", str(tmp_path / "f.parquet"), "--model", "hbos", "--out", str(tmp_path / "m"), "--no-controls"]
        assert run(app, train) == 0
        capsys.readouterr()
        assert run(app, ["flow", "run", "--model", str(tmp_path / "m"), "--netflow", str(port), "--seconds", "1.5", "--json"]) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["metrics"]["flows"] == summary["metrics"]["scored"] > 100
        assert summary["metrics"]["malformed"] > 0
    finally:
        stop.set()
        sender.join()


def test_a_model_of_other_flows_does_not_listen(tmp_path, capsys):
    assert run(app, ["flow", "generate", "--flows", "1500", "--out", str(tmp_path / "f.csv")]) == 0
    assert (
        run(app, ["flow", "train", "--data", str(tmp_path / "f.csv"), "--model", "hbos", "--out", str(tmp_path / "m"), "--no-controls"])
        == 0
    )
    capsys.readouterr()
    for source in (["--netflow", "0"], ["--interface", "lo"]):
        arguments = ["flow", "run", "--model", str(tmp_path / "m"), *source, "--seconds", "1", "--out", str(tmp_path / "r")]
        assert run(app, arguments) == 2
        assert f"{source[0]}: the model was trained on flows by synthetic-1" in capsys.readouterr().err
    assert not list(tmp_path.glob("r*"))
