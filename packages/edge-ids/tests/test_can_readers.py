"""Readers: exact values from the formats' own examples, bad lines by kind, and fuzzing with independent oracles."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest
from edge_ids.can.frames import ERROR, EXTENDED, FD, REMOTE, Frames, concat, make_frames
from edge_ids.can.readers import TraceReader, read_frames
from edge_ids.can.readers._candump import keep_monotone
from edge_ids.can.writers import write_frames
from edge_shared.errors import InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DATA = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "ids"
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(tmp_path: Path, text: str | bytes, name: str = "trace.log", format: str | None = None) -> tuple[Frames, dict[str, int]]:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_frames(path, format)


def payload(frames: Frames, row: int = 0) -> str:
    return frames.data[row, : frames.length[row]].tobytes().hex()


def test_candump_line(tmp_path: Path) -> None:
    frames, bad = read(tmp_path, "(1398128223.803317) can0 166#D0320009\n")
    assert (frames.time_us[0], frames.id[0], payload(frames)) == (1398128223803317, 0x166, "d0320009")
    assert (frames.flags[0], frames.channels, bad) == (0, ("can0",), {})


@pytest.mark.parametrize(
    ("line", "flags", "ident", "length", "data"),
    [
        ("18FEF100#0102", EXTENDED, 0x18FEF100, 2, "0102"),
        ("123#R", REMOTE, 0x123, 0, ""),
        ("123#R7", REMOTE, 0x123, 7, None),
        ("20000004#0000000000000000", EXTENDED | ERROR, 4, 8, "00" * 8),
        ("123##1" + "AB" * 12, FD, 0x123, 12, "ab" * 12),
        ("123##0", FD, 0x123, 0, ""),
        ("7FF#", 0, 0x7FF, 0, ""),
        ("123#1122334455667788_E", 0, 0x123, 8, "1122334455667788"),
        ("123#11 R", 0, 0x123, 1, "11"),
    ],
)
def test_candump_kinds_of_frames(tmp_path: Path, line: str, flags: int, ident: int, length: int, data: str | None) -> None:
    frames, bad = read(tmp_path, f"(1.5) vcan0 {line}\r\n")
    assert bad == {}
    assert (int(frames.flags[0]), int(frames.id[0]), int(frames.length[0])) == (flags, ident, length)
    if data is not None:
        assert payload(frames) == data


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("(2.0) can0 123#112", "odd_hex"),
        ("(2.0) can0 123#11GG", "not_hex"),
        ("(2.0) can0 123#112233445566778899", "too_long"),
        ("(nan) can0 123#11", "time"),
        ("(-1.0) can0 123#11", "time"),
        ("hello", "time"),
        ("(2.0", "truncated"),
        ("(2.0) can0", "truncated"),
        ("(2.0) can0 123", "truncated"),
        ("(2.0) can0 800#11", "id"),
        ("(2.0) can0 FFFFFFFF#11", "id"),
        ("(2.0) can0 123 11", "no_separator"),
        ("(2.0) can0 123##1" + "11" * 9, "fd_length"),
        ("(2.0) can0 123#11 banana", "extra_columns"),
        ("(0.5) can0 123#11", "backward_time"),
    ],
)
def test_candump_bad_lines_are_counted_and_skipped(tmp_path: Path, line: str, kind: str) -> None:
    frames, bad = read(tmp_path, f"(1.0) can0 100#00\n{line}\n(3.0) can0 101#01\n")
    assert bad == {kind: 1}
    assert frames.id.tolist() == [0x100, 0x101]
    assert payload(frames, 1) == "01"


@pytest.mark.parametrize(("columns", "label"), [("\tFalse\tFalse", 0), ("\tTrue\tFalse", 1), (" 0 1", 1), (" 0", 0)])
def test_candump_label_columns(tmp_path: Path, columns: str, label: int) -> None:
    frames, bad = read(tmp_path, f"(1.0) can0 100#00{columns}\n")
    assert (frames.label.tolist(), bad) == ([label], {})


@pytest.mark.parametrize(
    "text", ["(1.0) can0 123#01\r\n", "1.0,0123,1,01,R\r\n", "timestamp,arbitration_id,data_field,attack\r\n1.0,123,01,0\r\n"]
)
def test_a_byte_order_mark_costs_no_line(tmp_path: Path, text: str) -> None:
    frames, bad = read(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert (frames.id.tolist(), frames.time_us.tolist(), bad) == ([0x123], [1_000_000], {})


def test_other_text_formats(tmp_path: Path) -> None:
    crysys, _ = read(tmp_path, "1483093132.049686        0380    000    8    30 bb 82 00 9d 53 00 81\n")
    assert (crysys.time_us[0], crysys.id[0], payload(crysys)) == (1483093132049686, 0x380, "30bb82009d530081")
    hacking, _ = read(tmp_path, "1478198376.389427,0316,8,05,21,68,09,21,21,00,6f,R\n1478198376.389636,018f,2,fe,5b,T\n")
    assert (hacking.label.tolist(), payload(hacking, 1), hacking.length.tolist()) == ([0, 1], "fe5b", [8, 2])
    otids, _ = read(tmp_path, "Timestamp: 1479121434.850202        ID: 0350    000    DLC: 8    05 28 84 66 6d 00 00 a2\n")
    assert (otids.id[0], payload(otids)) == (0x350, "052884666d0000a2")
    verbose, _ = read(tmp_path, " (1436509052.249713)  vcan0  044   [8]  2A 36 6C 2B BA 7B 3F 0E\n")
    assert (verbose.id[0], payload(verbose), verbose.channels) == (0x44, "2a366c2bba7b3f0e", ("vcan0",))
    padded, bad = read(tmp_path, " (1436509052.249713)  vcan0  044   [ 8]  2A 36 6C 2B BA 7B 3F 0E\n")
    assert (payload(padded), bad) == ("2a366c2bba7b3f0e", {})


def test_csv_with_header(tmp_path: Path) -> None:
    tat, _ = read(tmp_path, "timestamp,arbitration_id,data_field,attack\n1.25,0C9,80000000FFFF0000,0\n1.26,18FEF100,11,1\n", "a.csv")
    assert (tat.id.tolist(), tat.label.tolist(), tat.time_us.tolist()) == ([0xC9, 0x18FEF100], [0, 1], [1250000, 1260000])
    vehicle, _ = read(
        tmp_path, "Timestamp,Arbitration_ID,DLC,Data,Class,SubClass\n1.0,153,2,20 A1,Attack,Flooding\n1.1,220,1,13,Normal,Normal\n"
    )
    assert [vehicle.classes[code] for code in vehicle.label] == ["flooding", "benign"]
    syncan, _ = read(
        tmp_path, "Label,Time,ID,Signal1_of_ID,Signal2_of_ID,Signal3_of_ID,Signal4_of_ID\n0,1.5,id2,0.5,1,,\n1,2.25,id10,0.0,,,\n"
    )
    assert (syncan.id.tolist(), syncan.time_us.tolist(), syncan.label.tolist()) == ([2, 10], [1500, 2250], [0, 1])
    assert payload(syncan) == "8000ffff"  # round(65535 * 0.5) = 32768 (ties to even)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1.5,0316,8,05,21", "length"),
        ("1.5,0316", "truncated"),
        ("nan,0316,0,R", "time"),
        ("1.5,zz,0,R", "id"),
        ("1.5,0316,1,GG,R", "not_hex"),
        ("1.5,0316,9,1,2,3,4,5,6,7,8,9,R", "too_long"),
        ("1.5,0316,2,1,+f,R", "not_hex"),
        ("1_5,0316,1,1,R", "time"),
        ("1.5,0316,1,1,Q", "label"),
    ],
)
def test_car_hacking_bad_lines(tmp_path: Path, line: str, kind: str) -> None:
    frames, bad = read(tmp_path, f"1.0,0316,1,05,R\n{line}\n2.0,0316,1,06,R\n", format="car-hacking")
    assert (bad, len(frames)) == ({kind: 1}, 2)


def test_clock_that_is_set_back_is_followed_and_a_wild_time_is_not() -> None:
    times = np.array([100, 200, 10**15, *range(300, 400), 5, 6], np.int64)
    keep = np.zeros(len(times), np.bool_)
    state = np.tile(np.array([-1, 0, 0], np.int64), (256, 1))
    dropped = keep_monotone(times, np.zeros(len(times), np.uint8), state, keep)
    assert dropped == 15 + 2  # 15 frames until the clock is believed, then two single ones of the past
    assert keep[3 + 15 : 103].all()


frame = st.builds(
    lambda time, ident, extended, data: (time, ident if extended else ident % 0x800, extended, data),
    st.integers(0, 10**13), st.integers(0, 0x1FFFFFFF), st.booleans(), st.binary(max_size=8),
)  # fmt: skip


def table(rows: list[tuple[int, int, bool, bytes]]) -> Frames:
    rows = sorted(rows, key=lambda row: row[0])
    return make_frames(
        [r[0] for r in rows], [r[1] for r in rows], [r[3] for r in rows], [len(r[3]) for r in rows],
        flags=[EXTENDED if r[2] else 0 for r in rows], label=0,
    )  # fmt: skip


@fuzz
@given(rows=st.lists(frame, min_size=1, max_size=20), suffix=st.sampled_from([".log", ".log.gz", ".csv", ".csv.gz", ".parquet", ".arrow"]))
def test_round_trip(tmp_path: Path, rows: list, suffix: str) -> None:
    frames = table(rows)
    back, bad = read_frames(write_frames(frames, tmp_path / f"x{suffix}"))
    assert bad == {}
    for name in ("time_us", "id", "flags", "length", "data"):
        np.testing.assert_array_equal(getattr(back, name), getattr(frames, name))


@pytest.mark.parametrize("suffix", [".asc", ".blf", ".trc"])
def test_same_frames_through_python_can(tmp_path: Path, suffix: str) -> None:
    frames = table([(10**12 + 1000 * i, 0x100 + i if i % 3 else 0x18FEF100, i % 3 == 0, bytes(range(i % 9))) for i in range(40)])
    back, bad = read_frames(write_frames(frames, tmp_path / f"x{suffix}"))
    assert bad == {}
    for name in ("id", "flags", "length", "data"):
        np.testing.assert_array_equal(getattr(back, name), getattr(frames, name))
    relative = np.diff(back.time_us - back.time_us[0]) - np.diff(frames.time_us - frames.time_us[0])
    assert abs(relative).max() <= 200  # TRC keeps tenths of milliseconds


@fuzz
@given(frames=st.lists(st.lists(frame, max_size=6), min_size=1, max_size=4))
def test_concat_keeps_order_and_names(frames: list) -> None:
    parts = [table(rows) for rows in frames]
    joined = concat(parts)
    assert len(joined) == sum(map(len, parts))
    np.testing.assert_array_equal(joined.id, np.concatenate([part.id for part in parts]))


_GOOD = re.compile(
    rb"\((\d{1,12})(?:\.(\d*))?\)[ \t]+(\S{1,16})[ \t]+([0-9A-Fa-f]{1,8})#((?:[0-9A-Fa-f]{2}){0,8})(?:[ \t]+(?:[01RTrt]|[Tt]..[Ee]|[Ff]...[Ee]))*[ \t]*"
)
piece = st.sampled_from(
    [
        b"(",
        b")",
        b"1.5",
        b"12",
        b" can0 ",
        b"123",
        b"#",
        b"##1",
        b"R",
        b"7FF",
        b"18FEF100",
        b"11",
        b"aB",
        b"\t1",
        b" False",
        b"\xff",
        b"\0",
        b"nan",
        b"_9",
    ]
)


@fuzz
@given(lines=st.lists(st.lists(piece, max_size=9).map(b"".join), max_size=12))
def test_candump_against_a_regular_expression(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "fuzz.log"
    path.write_bytes(b"(0.0) can0 000#\n" + b"\n".join(lines) + b"\n")
    reader = TraceReader(path, "candump")
    frames = reader.read()
    special = [line for line in lines if b"##" in line or b"R" in line or b"_" in line]
    matches = [m for line in lines if (m := _GOOD.fullmatch(line.strip(b" \t"))) and line not in special]
    good = [m for m in matches if len(m[4]) > 4 or int(m[4], 16) <= 0x7FF]
    plain = [
        (int(i), payload(frames, row)) for row, i in enumerate(frames.id[1:].tolist(), 1) if not frames.flags[row] & (FD | REMOTE | ERROR)
    ]
    if (
        not special
        and all(float(m[1] + b"." + (m[2] or b"0")) in (1.5, 12.0, 121.5, 1212.0) for m in good)
        and "backward_time" not in reader.malformed
    ):
        assert plain == [(int(m[4], 16) & 0x1FFFFFFF, m[5].decode().lower()) for m in good]
    counted = sum(reader.malformed.values())
    assert len(frames) - 1 + counted == sum(bool(line.strip(b" \t\r")) for line in b"\n".join(lines).split(b"\n"))


@fuzz
@given(raw=st.binary(max_size=400), name=st.sampled_from(["x.log", "x.csv", "x.txt", "x.log.gz", "x.parquet", "x.asc", "x.trc", "x.blf"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, raw: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") and raw[:1] < b"\x80" else raw)
    try:
        frames, _ = read_frames(path)
    except InputError:
        return
    assert (frames.length <= frames.data.shape[1]).all()
    assert (frames.id <= 0x1FFFFFFF).all()


line = st.text(alphabet="0123456789abcdefRT,. :#()nDLCITimestamp-", max_size=60)


@fuzz
@given(lines=st.lists(line, max_size=8), format=st.sampled_from(["crysys", "otids", "car-hacking", "candump-verbose", "csv", "syncan"]))
def test_text_parsers_never_crash(tmp_path: Path, lines: list[str], format: str) -> None:
    head = {"csv": "timestamp,id,data", "syncan": "Label,Time,ID,Signal1_of_ID"}.get(format)
    path = tmp_path / "x.txt"
    path.write_text("\n".join(([head] if head else []) + lines) + "\n")
    try:
        frames = TraceReader(path, format).read()
    except InputError:
        return
    assert (frames.length <= 64).all()
    assert (np.diff(frames.time_us) >= 0).all()


def test_blocks_of_any_size_give_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = table([(1000 * i, i % 0x7FF, False, bytes([i % 256] * (i % 9))) for i in range(500)])
    path = write_frames(frames, tmp_path / "x.log")
    for size in (7, 64, 1000):
        monkeypatch.setattr("edge_ids.can.readers.CHUNK_BYTES", size)
        back, bad = read_frames(path, "candump")
        assert bad == {}
        np.testing.assert_array_equal(back.id, frames.id)
        np.testing.assert_array_equal(back.data, frames.data)


def test_a_line_without_end_is_dropped_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_ids.can.readers.CHUNK_BYTES", 1 << 12)
    frames, bad = read(tmp_path, "(1.0) can0 100#00\n" + "x" * 300_000 + "\n(2.0) can0 101#00\n")
    assert (frames.id.tolist(), bad) == ([0x100, 0x101], {"line_too_long": 1})


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.log", b"", "is empty"),
        ("x.log", b"\n\n", "is empty"),
        ("x.log", b"hello\nworld\n", "no CAN trace"),
        ("x.json", b'{"a": 1}\n', "no CAN trace"),
        ("x.log.gz", b"no gzip", "cannot read"),
        ("x.blf", b"LOGG" + b"\0" * 50, "cannot be read as blf"),
        ("x.parquet", b"PAR1 not", "frame table"),
        ("x.csv", b"timestamp,arbitration_id,data_field,attack\nx,y,z,w\n", "no readable CAN frame"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, raw, name)


def test_missing_file_folder_and_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_frames(tmp_path / "none.log")
    with pytest.raises(InputError, match="is a folder"):
        read_frames(tmp_path)
    with pytest.raises(InputError, match="format 'nope' is unknown"):
        read(tmp_path, "x", format="nope")


@pytest.mark.skipif(not DATA.exists(), reason="real traces are not here")
def test_real_files() -> None:
    trace, bad = read_frames(DATA / "can_crysys_trace48" / "48.csv")
    assert (len(trace), len(np.unique(trace.id)), bad) == (34_894, 20, {})
    icsim, bad = read_frames(DATA / "can_icsim" / "sample-can.log")
    assert (len(icsim), len(np.unique(icsim.id)), bad) == (6_158, 34, {})
    folder = DATA / "can_pythoncan_testdata"
    plain, _ = read_frames(folder / "test_CanMessage.asc")
    zipped, _ = read_frames(folder / "test_CanMessage.asc.gz")
    np.testing.assert_array_equal(plain.data, zipped.data)
    fd, _ = read_frames(folder / "issue_1905.blf")
    assert (fd.length == 64).all()
    assert (fd.flags & FD > 0).all()


# --- ROAD signal extractions


@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_sixteen_bits_keep_the_order_of_signals(values: list[float]) -> None:
    from edge_ids.can.readers._lines import ordered16

    codes = [ordered16(value) for value in sorted(values)]
    assert codes == sorted(codes)
    assert all(0 <= code <= 0xFFFF for code in codes)
    if max(values) > 1 and max(values) > 1.02 * sorted(values)[-2] > 0:
        assert codes[-1] > codes[-2]


def test_road_signals_in_any_column_order(tmp_path: Path) -> None:
    from edge_ids.can.road import read_signals

    text = "Label,Time,ID,Signal_1_of_ID,Signal_2_of_ID,Signal_10_of_ID\n0,0.5,208,1.0,2.5,\n1,0.51,1760,-3,,\n0,0.52,208,x,1,2\n0,0.53,208,1\n"
    frames, bad = read(tmp_path, text, "max_speedometer_attack_1_masquerade.csv")
    assert bad == {"signal": 1, "truncated": 1}
    assert frames.id.tolist() == [0xD0, 0x6E0]
    assert frames.time_us.tolist() == [500_000, 510_000]
    assert frames.label.tolist() == [0, 1]
    assert frames.length.tolist() == [4, 2]
    assert int.from_bytes(frames.data[0, :2].tobytes(), "big") > 0x8000 > int.from_bytes(frames.data[1, :2].tobytes(), "big")
    other = "ID,Signal_2_of_ID,Time,Label,Signal_1_of_ID,Signal_10_of_ID\n208,2.5,0.5,0,1.0,\n"
    assert read(tmp_path, other, "b.csv")[0].data[0].tolist() == frames.data[0].tolist()
    many = "Label,Time,ID," + ",".join(f"Signal_{i}_of_ID" for i in range(1, 23)) + "\n0,1,7," + ",".join(map(str, range(22))) + "\n"
    wide, _ = read(tmp_path, many, "c.csv")
    assert (wide.length[0], bool(wide.flags[0] & FD)) == (48, True)
    (tmp_path / "d.csv").write_text(other)
    table = read_signals(tmp_path / "d.csv")
    assert table.columns == ["time", "id", "label", "signal_1", "signal_2", "signal_10"]
    assert table.row(0) == (0.5, 208, 0, 1.0, 2.5, None)
    (tmp_path / "e.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no header of ROAD signals"):
        read_signals(tmp_path / "e.csv")


def test_mf4_round_trip(tmp_path: Path) -> None:
    """Needs asammdf (extra ``mf4``); python-can writes the file."""
    pytest.importorskip("asammdf")
    can = pytest.importorskip("can")
    sent = [
        can.Message(timestamp=1000.0 + i / 100, arbitration_id=0x100 + i, data=bytes([i, 2, 3]), is_extended_id=False) for i in range(5)
    ]
    with can.Logger(str(tmp_path / "trace.mf4")) as logger:
        for message in sent:
            logger(message)
    frames, bad = read_frames(tmp_path / "trace.mf4")
    assert bad == {}
    assert frames.id.tolist() == [0x100 + i for i in range(5)]
    assert [payload(frames, row) for row in range(5)] == [bytes([i, 2, 3]).hex() for i in range(5)]
    np.testing.assert_allclose(np.diff(frames.time_us), 10_000, atol=20)


def test_mf4_without_its_reader_says_what_to_install(tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("asammdf"):
        pytest.skip("asammdf is installed")
    (tmp_path / "x.mf4").write_bytes(b"MDF     4.10    ")
    with pytest.raises(InputError, match=r"edge-ids\[can,mf4\]"):
        read_frames(tmp_path / "x.mf4")


GOOD_ASC = "   {t:.6f} 1  {id:X}             Rx   d 8 {data}  Length = 220000 BitCount = 114 ID = {id}"
GOOD_TRC = "{n:6d})  {ms:10.1f}  Rx     {id:04X}  8  {data}"
BAD_ASC = {
    "not_hex": "0.05 1 100 Rx d 8 11 22 ZZ 44 55 66 77 88",
    "truncated": "0.05 1 100 Rx d 8 11 22",
    "too_long": "0.05 1 100 Rx d 9 11 22 33 44 55 66 77 88 99",
    "odd_hex": "0.05 1 100 Rx d 3 11 2 3",
    "length": "0.05 1 100 Rx d 2 11 22 33",
    "id": "0.05 1 900 Rx d 2 11 22",
    "time": "nan 1 100 Rx d 2 11 22",
}
BAD_TRC = {
    "not_hex": " 6) 50.0 Rx 0100 8 11 22 ZZ 44 55 66 77 88",
    "truncated": " 6) 50.0 Rx 0100 8 11 22",
    "too_long": " 6) 50.0 Rx 0100 9 11 22 33 44 55 66 77 88 99",
    "odd_hex": " 6) 50.0 Rx 0100 3 11 2 3",
    "length": " 6) 50.0 Rx 0100 2 11 22 33",
    "id": " 6) 50.0 Rx 0900 2 11 22",
    "time": "nothing of the kind",
}


@pytest.mark.parametrize(("suffix", "kind"), [(".asc", kind) for kind in BAD_ASC] + [(".trc", kind) for kind in BAD_TRC])
@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_bad_line_of_asc_and_trc_costs_that_line_only(tmp_path: Path, suffix: str, kind: str, at: int) -> None:
    """Wherever it stands, also before the first frame: python-can alone would end the file there, or take the line."""
    header = "date Mon Jan 6 12:00:00.000 2025\nbase hex  timestamps absolute\ninternal events logged\n// version 9.0\n"
    if suffix == ".trc":
        header = ";$FILEVERSION=1.1\n;$STARTTIME=43840.5\n"
    form = GOOD_ASC if suffix == ".asc" else GOOD_TRC
    lines = [form.format(t=0.01 * n, ms=10.0 * n, n=n + 1, id=0x100 + n, data=f"{n:02X} " * 7 + "FF") for n in range(10)]
    bad = (BAD_ASC if suffix == ".asc" else BAD_TRC)[kind]
    lines.insert(at, bad.replace("0.05 ", f"{0.01 * at:.2f} ").replace("50.0", f"{10.0 * at:.1f}"))
    path = tmp_path / f"dirty{suffix}"
    path.write_text(header + "\n".join(lines) + "\n")
    frames, malformed = read_frames(path)
    assert malformed == {kind: 1}
    assert frames.id.tolist() == [0x100 + n for n in range(10)]
    assert np.diff(frames.time_us).tolist() == [10_000] * 9


def test_events_of_asc_and_trc_are_no_bad_lines(tmp_path: Path) -> None:
    asc = tmp_path / "events.asc"
    asc.write_text(
        "date Mon Jan 6 12:00:00.000 2025\nbase hex  timestamps absolute\nno internal events logged\n"
        "Begin Triggerblock Mon Jan 6 12:00:00.000 2025\n   0.000000 Start of measurement\n   0.0 CAN 1 Status:chip status error active\n"
        "   0.1 1  100  Rx d 2 11 22\n   0.2 1 Statistic: D 2 R 0 XD 0 XR 0 E 0 O 0 B 0.1%\n   0.3 1 ErrorFrame\nEnd TriggerBlock\n"
    )
    trc = tmp_path / "events.trc"
    trc.write_text(";$FILEVERSION=1.1\n;$STARTTIME=43840.5\n 1) 10.0 Rx 0100 2 11 22\n 2) 11.0 Warng FFFFFFFF 4 00 00 00 08 BUSHEAVY\n")
    for path, count in ((asc, 2), (trc, 1)):
        frames, malformed = read_frames(path)
        assert (len(frames), malformed) == (count, {})


def test_an_asc_file_of_bad_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.asc"
    path.write_text("date Mon Jan 6 12:00:00.000 2025\nbase hex timestamps absolute\ninternal events logged\n0.1 1 100 Rx d 2 ZZ 22\n")
    with pytest.raises(InputError, match=r"no readable CAN frame as python-can \(not_hex 1\)"):
        read_frames(path)
