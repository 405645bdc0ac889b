"""Packets written by hand, damaged files, Zeek and Suricata lines, and the real captures."""

import gzip
import json
import os
import socket
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from edge_ids.flow import sources
from edge_ids.flow.meter import FlowMeter, read_pcap
from edge_ids.flow.packets import Frame, Packet, decode, read_frames
from edge_ids.flow.schema import NF_V2
from edge_ids.flow.table import concatenate
from edge_ids.flow.textlog import read_eve, read_zeek
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st

PCAPS = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "ids" / "pcap"


def ipv4(src, dst, protocol, body, ttl=64):
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, ttl, protocol, 0)
    return head + socket.inet_aton(src) + socket.inet_aton(dst) + body


def tcp(src, dst, sport, dport, flags, seq=0, payload=b"", window=1000):
    return ipv4(src, dst, 6, struct.pack(">HHIIBBHHH", sport, dport, seq, 0, 0x50, flags, window, 0, 0) + payload)


def udp(src, dst, sport, dport, payload=b""):
    return ipv4(src, dst, 17, struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload)


def ethernet(packet, kind=0x0800):
    return bytes(12) + kind.to_bytes(2, "big") + packet


def pcap(packets, order="<", magic=0xA1B2C3D4, link=1):
    unit = 1e9 if magic == 0xA1B23C4D else 1e6
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for time, packet in packets:
        data += struct.pack(order + "IIII", int(time), round(time % 1 * unit), len(packet), len(packet)) + packet
    return data


def pcapng(packets):
    def block(kind, body):
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

    data = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack("<HHI", 1, 0, 0))
    for time, packet in packets:
        ticks = round(time * 1e6)
        data += block(6, struct.pack("<IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), len(packet)) + packet)
    return data


A, B = "10.0.0.1", "10.0.0.2"
SESSION = [
    (100.0, ethernet(tcp(A, B, 5000, 80, 2, 10, window=4000))),
    (100.1, ethernet(tcp(B, A, 80, 5000, 18, 70))),
    (100.2, ethernet(tcp(A, B, 5000, 80, 16, 11, b"x" * 100))),
    (100.5, ethernet(tcp(A, B, 5000, 80, 16, 11, b"x" * 100))),
    (100.9, ethernet(tcp(B, A, 80, 5000, 17, 71, b"y" * 1200))),
    (101.0, ethernet(tcp(A, B, 5000, 80, 17, 111))),
]


@pytest.mark.parametrize(
    "data", [pcap(SESSION), pcap(SESSION, ">"), pcap(SESSION, magic=0xA1B23C4D), pcapng(SESSION), gzip.compress(pcap(SESSION))]
)
def test_a_tcp_session_by_hand(tmp_path, data):
    (tmp_path / "a.pcap").write_bytes(data)
    (table,) = read_pcap(tmp_path / "a.pcap")
    assert len(table) == 1
    row = dict(zip(NF_V2, table.features[0], strict=True))
    expected = {
        "L4_SRC_PORT": 5000, "L4_DST_PORT": 80, "PROTOCOL": 6, "IN_PKTS": 4, "OUT_PKTS": 2, "IN_BYTES": 4 * 40 + 200, "OUT_BYTES": 80 + 1200,
        "TCP_FLAGS": 19, "CLIENT_TCP_FLAGS": 19, "SERVER_TCP_FLAGS": 19, "MIN_IP_PKT_LEN": 40, "MAX_IP_PKT_LEN": 1240, "TCP_WIN_MAX_IN": 4000,
        "TCP_WIN_MAX_OUT": 1000, "RETRANSMITTED_IN_PKTS": 1, "RETRANSMITTED_IN_BYTES": 140, "RETRANSMITTED_OUT_PKTS": 0,
        "NUM_PKTS_UP_TO_128_BYTES": 3, "NUM_PKTS_128_TO_256_BYTES": 2, "NUM_PKTS_1024_TO_1514_BYTES": 1, "MIN_TTL": 64, "MAX_TTL": 64,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["FLOW_DURATION_MILLISECONDS"] == pytest.approx(1000)
    assert row["DURATION_OUT"] == pytest.approx(800)
    assert (table.hosts[table.src[0]], table.hosts[table.dst[0]]) == (A, B)
    assert table.start[0] == pytest.approx(100.0)


def test_dns_icmp_vlan_ipv6(tmp_path):
    query = struct.pack(">HHHHHH", 77, 0x100, 1, 0, 0, 0) + b"\x01a\x02bc\x00" + struct.pack(">HH", 28, 1)
    answer = struct.pack(">HHHHHH", 77, 0x8180, 1, 1, 0, 0) + query[12:] + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 300, 4) + bytes(4)
    six = struct.pack(">IHBB", 6 << 28, 12, 17, 9) + bytes(15) + b"\x01" + bytes(15) + b"\x02" + struct.pack(">HHHH", 1, 2, 12, 0) + b"abcd"
    packets = [
        (1.0, ethernet(udp(A, B, 4000, 53, query))),
        (1.1, ethernet(udp(B, A, 53, 4000, answer))),
        (1.2, ethernet(b"\x00\x05\x08\x00" + ipv4(A, B, 1, b"\x03\x04" + bytes(6)), 0x8100)),
        (1.3, ethernet(six, 0x86DD)),
        (1.4, ethernet(b"\x00\x01", 0x0806)),
    ]
    (tmp_path / "a.pcap").write_bytes(pcap(packets))
    (table,) = read_pcap(tmp_path / "a.pcap")
    assert len(table) == 3
    dns, icmp, v6 = (dict(zip(NF_V2, row, strict=True)) for row in table.features)
    assert (dns["DNS_QUERY_ID"], dns["DNS_QUERY_TYPE"], dns["DNS_TTL_ANSWER"]) == (77, 28, 300)
    assert (icmp["ICMP_TYPE"], icmp["ICMP_IPV4_TYPE"]) == (3 * 256 + 4, 3)
    assert (v6["PROTOCOL"], v6["L4_DST_PORT"], v6["IN_BYTES"], v6["MIN_TTL"]) == (17, 2, 52, 9)
    assert table.hosts[table.src[2]] == "::1"


def packet(time, src="a", dst="b", sport=1, flags=0, protocol=6):
    return Packet(time, src, dst, protocol, 64, 40, sport, 80, flags)


def test_flows_end_by_idle_active_and_close():
    meter = FlowMeter(idle=10, active=30)
    assert not meter.add(packet(0))
    assert [flow.last for flow in meter.add(packet(11))] == [0]
    for time in range(12, 42):
        assert not meter.add(packet(time))
    assert len(meter.add(packet(42))) == 1, "the active timeout"
    meter.add(packet(43, flags=4))
    assert len(meter.add(packet(44, sport=9))) == 1, "a reset closes at once"
    assert len(meter.flush()) == 1


def test_the_meter_is_bounded():
    meter = FlowMeter(capacity=100)
    done = sum(len(meter.add(packet(i * 1e-4, src=f"h{i}"))) for i in range(5000))
    assert len(meter) == 100
    assert done == meter.evicted == 4900


def test_a_backward_clock_does_not_stop_it():
    meter = FlowMeter(idle=10)
    meter.add(packet(100))
    meter.add(packet(50, sport=2))
    (first, second) = sorted(flow.row() for flow in meter.flush())
    assert min(first + second) >= 0


@pytest.mark.parametrize("data", [pcap(SESSION), pcapng(SESSION)])
def test_every_cut_of_a_capture_is_an_error_with_its_byte(tmp_path, data):
    path = tmp_path / "a.pcap"
    whole = []
    for size in range(4, len(data), 7):
        path.write_bytes(data[:size])
        kept = len(list(read_frames(path, allow_truncated=True)))
        try:
            assert len(list(read_frames(path))) == kept
            whole.append(size)
        except InputError as error:
            assert f"truncated at byte {size}" in str(error)  # noqa: PT017
    assert len(whole) < 10


def test_hostile_sizes(tmp_path):
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([])[:24] + struct.pack("<IIII", 0, 0, 0xFFFFFFF0, 60) + bytes(100))
    with pytest.raises(InputError, match="damaged at byte 40: a packet of 4,294,967,280 bytes"):
        list(read_frames(path))
    path.write_bytes(pcapng([])[:-4] + struct.pack("<III", 20, 6, 0xFFFFFFF0) + bytes(50))
    with pytest.raises(InputError, match="a block of"):
        list(read_frames(path))
    path.write_bytes(pcapng([])[:28] + struct.pack("<II", 6, 44) + bytes(32) + struct.pack("<I", 44))
    with pytest.raises(InputError, match="names no interface"):
        list(read_frames(path))
    path.write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="no pcap"):
        list(read_frames(path))
    path.write_bytes(pcap([(1.0, ethernet(b"\x00", 0x0806))]))
    with pytest.raises(InputError, match="none of them an IP packet"):
        list(read_pcap(path))


@given(st.binary(max_size=120), st.sampled_from([0, 1, 12, 101, 113, 276]))
@settings(max_examples=300, deadline=None)
def test_no_bytes_break_the_decoder(data, link):
    for prefix in (b"", bytes(12) + b"\x08\x00\x45", bytes(12) + b"\x86\xdd\x60"):
        found = decode(Frame(0.0, link, prefix + data, len(prefix + data)))
        if found is not None:
            FlowMeter().add(found)


@given(st.integers(24, 10_000), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_end_in_flows_or_one_clear_error(tmp_path_factory, place, value):
    data = bytearray(pcap(SESSION))
    data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "flip.pcap"
    path.write_bytes(data)
    try:
        list(read_pcap(path))
    except InputError as error:
        assert "flip.pcap" in str(error)  # noqa: PT017


@pytest.mark.skipif(not PCAPS.is_dir(), reason="needs shared/data")
@pytest.mark.parametrize(("name", "flows", "hosts"), [
    ("WebattackSQLinj.pcap", 9, 2), ("malware.pcap", 6, 6), ("modbus.pcap", 1, 2), ("tcp_scan.pcapng", 7, 2),
])  # fmt: skip
def test_real_captures_agree_with_nfstream(name, flows, hosts):
    """Flow counts of nfstream 6.6.0 on the same captures."""
    table = concatenate(list(read_pcap(PCAPS / name)))
    assert len(table) == flows
    assert len(table.hosts) == hosts
    assert np.isfinite(table.features).all()


def test_nfstream_measures_what_our_meter_measures(tmp_path, capsys):
    """The same flows, packets, bytes, flags, TTL and sizes; times differ by nfstream's milliseconds."""
    pytest.importorskip("nfstream")
    from edge_ids.flow import nfstream_meter

    (tmp_path / "s.pcap").write_bytes(pcap(SESSION))
    (ours,) = read_pcap(tmp_path / "s.pcap")
    (theirs,) = nfstream_meter.read_pcap(tmp_path / "s.pcap")
    assert (theirs.extractor, theirs.hosts.tolist()) == ("nfstream-meter-1", ours.hosts.tolist())
    timed = [name for name in NF_V2 if "DURATION" in name or "SECOND_BYTES" in name or "THROUGHPUT" in name]
    kept = [index for index, name in enumerate(NF_V2) if name not in timed]
    np.testing.assert_array_equal(theirs.features[:, kept], ours.features[:, kept])
    assert np.abs(theirs.start - ours.start).max() < 1e-3
    assert capsys.readouterr().out == ""
    (tmp_path / "cut.pcap").write_bytes(pcap(SESSION)[:-3])
    with pytest.raises(InputError, match=r"cut\.pcap"):
        list(nfstream_meter.read_pcap(tmp_path / "cut.pcap"))
    with pytest.raises(InputError, match="--interface none9: nfstream ended"), closing(nfstream_meter.NfstreamFlows("none9")) as live:
        list(live.read(60))


@pytest.mark.skipif(not PCAPS.is_dir(), reason="needs shared/data")
def test_nfstream_counts_the_packets_of_every_real_capture():
    pytest.importorskip("nfstream")
    from edge_ids.flow import nfstream_meter

    for path in sorted(PCAPS.iterdir()):
        ours, theirs = (concatenate(list(reader(path))) for reader in (read_pcap, nfstream_meter.read_pcap))
        for name in ("IN_PKTS", "OUT_PKTS", "IN_BYTES", "OUT_BYTES"):
            column = NF_V2.index(name)
            assert theirs.features[:, column].sum() == ours.features[:, column].sum(), (path.name, name)


def test_nfstream_absent_is_said(tmp_path):
    import importlib.util

    if importlib.util.find_spec("nfstream") is not None:
        pytest.skip("nfstream is here")
    (tmp_path / "s.pcap").write_bytes(pcap(SESSION))
    with pytest.raises(InputError, match=r"edge-ids\[nfstream\]"):
        list(sources.read(tmp_path / "s.pcap", "nfstream"))


ZEEK = """#separator \\x09
#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\torig_ip_bytes\tresp_ip_bytes\torig_pkts\tresp_pkts\tconn_state
1700000000.5\tC1\t10.0.0.1\t5000\t10.0.0.2\t80\ttcp\t2.5\t400\t1200\t4\t3\tSF
garbage
1700000001.0\tC2\t10.0.0.3\t5001\t10.0.0.2\t22\ttcp\t-\t60\t0\t1\t0\tS0
#close
"""


def eve_line(**changes):
    flow = {"start": "2023-11-14T22:13:20.500000+0000", "end": "2023-11-14T22:13:23.000000+0000", "bytes_toserver": 400, "bytes_toclient": 1200,
            "pkts_toserver": 4, "pkts_toclient": 3, "state": "closed"}  # fmt: skip
    record = {
        "event_type": "flow",
        "src_ip": "10.0.0.1",
        "src_port": 5000,
        "dest_ip": "10.0.0.2",
        "dest_port": 80,
        "proto": "TCP",
        "flow": flow,
    }
    return json.dumps(record | changes)


def test_zeek_and_suricata_say_the_same_of_one_connection(tmp_path, capsys):
    (tmp_path / "conn.log").write_text(ZEEK)
    lines = [line.split("\t") for line in ZEEK.splitlines() if line.startswith(("#fields", "17"))]
    record = dict(zip(lines[0][1:], lines[1], strict=True)) | {"ts": 1700000000.5, "duration": 2.5, "id.orig_p": 5000}
    (tmp_path / "json.log").write_text(json.dumps(record) + "\n")
    (tmp_path / "eve.json").write_text("{}\n" + eve_line() + "\nnot json\n" + eve_line(event_type="dns") + "\n")
    (zeek,) = read_zeek(tmp_path / "conn.log")
    (other,) = read_zeek(tmp_path / "json.log")
    (eve,) = read_eve(tmp_path / "eve.json")
    assert [len(zeek), len(other), len(eve)] == [2, 1, 1]
    assert zeek.features[0].tolist() == other.features[0].tolist() == eve.features[0].tolist()
    assert zeek.features[0].tolist() == [5000, 80, 6, 2.5, 400, 1200, 4, 3, 100, 400, 1, 0]
    assert zeek.features[1, -2:].tolist() == [0, 1]
    assert (zeek.extractor, eve.extractor) == ("zeek", "suricata")
    assert (zeek.start[0], zeek.end[0]) == (eve.start[0], eve.end[0]) == (1700000000.5, 1700000003.0)
    assert "1 lines are no" in capsys.readouterr().err
    assert [sources.detect(tmp_path / name) for name in ("conn.log", "json.log", "eve.json")] == ["zeek", "zeek", "eve"]
    (tmp_path / "empty.json").write_text("{}\n")
    with pytest.raises(InputError, match="no suricata flow events"):
        list(read_eve(tmp_path / "empty.json"))


def test_live_flows_of_the_loopback_interface():
    from edge_ids.flow.live import LiveFlows

    try:
        live = LiveFlows("lo", idle=0.2)
    except InputError as error:
        pytest.skip(str(error))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in (45_001, 45_001, 45_002):
            sender.sendto(b"x" * 300, ("127.0.0.1", port))
        tables = [table for table in live.read(1.5) if table is not None]
    live.close()
    table = concatenate(tables)
    rows = [dict(zip(NF_V2, row, strict=True)) for row in table.features]
    found = {row["L4_DST_PORT"]: (row["IN_PKTS"], row["IN_BYTES"]) for row in rows if row["PROTOCOL"] == 17}
    assert found[45_001] == (2, 656)
    assert found[45_002] == (1, 328)
    with pytest.raises(InputError, match="--interface none9"):
        LiveFlows("none9")
