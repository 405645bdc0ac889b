"""Decisions on a stream: a replayed recording, LSL, or a BrainFlow board."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError, require
from numpy.typing import NDArray

from tinyeeg.chain import Chain
from tinyeeg.deployed import Deployed
from tinyeeg.stream import StreamingChain


@dataclass(frozen=True)
class Chunk:
    """Samples that arrived together.

    Attributes:
        samples: microvolts, shape (C, n), channels in the chain's order.
        time_s: time of the last sample since the start, seconds.
        dropped: samples lost just before this chunk; the chain restarts if there are any.
    """

    samples: NDArray[np.float64]
    time_s: float
    dropped: int = 0


@dataclass(frozen=True)
class Decision:
    """One decision.

    Attributes:
        time_s: stream time in seconds.
        state: its name.
        scores: one per class.
        latency_ms: from the arrival of the chunk to the decision.
        after_gap: True for the first decision after dropped samples.
        calibrating: True while the person's mean is still being taken.
    """

    time_s: float
    state: str
    scores: list[float]
    latency_ms: float
    after_gap: bool
    calibrating: bool


@dataclass(frozen=True)
class Summary:
    """Totals of a stream; latencies are those of this computer."""

    decisions: int
    samples: int
    dropped: int
    gaps: int
    latency_ms_mean: float | None
    latency_ms_worst: float | None
    states: dict[str, int]


def decide(source: Iterator[Chunk], deployed: Deployed, *, calibrate_s: float = 0.0, on_decision: Callable[[Decision], None]) -> Summary:
    """Run a model on a stream until it ends.

    Args:
        source: chunks.
        deployed: the model.
        calibrate_s: seconds from the start whose mean feature vector becomes the person's; 0 keeps the average person's.
        on_decision: called for every decision.

    Raises:
        InputError: a calibration asked of a model that does not use one.
    """
    if calibrate_s and not deployed.person:
        raise InputError("--calibrate: this model was trained with --normalise global and takes no calibration; leave it out")
    chain, center = StreamingChain(deployed.chain), deployed.center
    # Once on silence: what Python loads at first use must not delay the first decision.
    deployed.scores(chain.push(np.zeros((len(deployed.chain.channels), deployed.chain.segment))))
    chain.reset()
    seen: list[NDArray[np.float64]] = []
    latencies: list[float] = []
    states = dict.fromkeys(deployed.classes, 0)
    samples = dropped = gaps = 0
    after_gap = False
    for chunk in source:
        arrived = time.perf_counter()
        samples += chunk.samples.shape[1]
        if chunk.dropped:
            dropped, gaps, after_gap = dropped + chunk.dropped, gaps + 1, True
            chain.reset()
        vectors = chain.push(chunk.samples)
        calibrating = chunk.time_s <= calibrate_s
        for index, vector in enumerate(vectors):
            if calibrating:
                seen.append(vector)
            elif seen:
                center, seen = np.mean(seen, axis=0), []
            scores = deployed.scores(vector[None], center)[0]
            state = deployed.classes[int(np.argmax(scores))]
            states[state] += 1
            latencies.append(1000 * (time.perf_counter() - arrived))
            # Vectors of one chunk end a hop apart; the last one ends within a hop of the chunk's last sample.
            when = chunk.time_s - (len(vectors) - 1 - index) * deployed.chain.hop / deployed.chain.sfreq
            on_decision(Decision(when, state, scores.tolist(), latencies[-1], after_gap, calibrating))
            after_gap = False
    return Summary(
        len(latencies), samples, dropped, gaps, float(np.mean(latencies)) if latencies else None, max(latencies, default=None), states
    )


def replay(path: str | Path, chain: Chain, *, chunk: int = 32, realtime: bool = False, sfreq: float | None = None) -> Iterator[Chunk]:
    """Play a recording; its gaps become dropped samples.

    Args:
        path: any file that `tinyeeg.readers.read` takes.
        chain: gives channels and rate; a recording at another rate is resampled.
        chunk: samples per chunk.
        realtime: wait as the samples did.
        sfreq: for CSV files without times.
    """
    from tinyeeg import readers

    recording = readers.read(path, sfreq=sfreq).resampled(chain.sfreq).pick(chain.channels)
    edges = [0, *recording.gaps, recording.n_times]
    lost = [0.0, *recording.gap_s]

    def chunks() -> Iterator[Chunk]:
        began = time.perf_counter()
        for low, high, gap in zip(edges, edges[1:], lost, strict=False):
            for start in range(low, high, chunk):
                stop = min(start + chunk, high)
                when = float(recording.time_of(np.array(stop - 1))) + 1 / chain.sfreq
                if realtime:
                    time.sleep(max(0.0, began + when - time.perf_counter()))
                dropped = max(1, round(gap * chain.sfreq) - 1) if low and start == low else 0
                yield Chunk(recording.signal[:, start:stop], when, dropped)

    return chunks()


def from_lsl(name: str, chain: Chain, seconds: float | None = None) -> Iterator[Chunk]:
    """Chunks of a live LSL stream in microvolts (needs mne-lsl); a jump of the time stamps marks dropped samples."""
    require("mne_lsl", "tinyeeg[lsl]")
    from mne_lsl.lsl import StreamInlet, resolve_streams

    found = resolve_streams(timeout=5, name=name)
    if not found:
        raise InputError(f"--lsl {name}: no such stream within 5 s")
    inlet = StreamInlet(found[0])
    inlet.open_stream()
    info = inlet.get_sinfo()
    names = list(info.get_channel_names() or [])
    _same_rate(float(info.sfreq), chain, f"LSL stream {name}")
    rows = _rows(names, chain, f"LSL stream {name}")
    factor = {"volts": 1e6, "v": 1e6, "millivolts": 1e3}.get(str((info.get_channel_units() or ["microvolts"])[0]).casefold(), 1.0)

    def chunks() -> Iterator[Chunk]:
        first = last = None
        while True:
            data, stamps = inlet.pull_chunk(timeout=0.2)
            if not len(stamps):
                continue
            # What arrives together may hold a hole: LSL hands over all that came since the last call.
            first = stamps[0] if first is None else first
            lost = np.round(np.diff(stamps, prepend=stamps[0] - 1 / chain.sfreq if last is None else last) * chain.sfreq).astype(int) - 1
            edges = [0, *(np.flatnonzero(lost[1:] > 2) + 1).tolist(), len(stamps)]
            samples = np.asarray(data, dtype=np.float64).T[rows] * factor
            for low, high in itertools.pairwise(edges):
                yield Chunk(samples[:, low:high], float(stamps[high - 1] - first), int(lost[low]) if lost[low] > 2 else 0)
            last = stamps[-1]
            if seconds is not None and last - first >= seconds:
                return

    return chunks()


def from_brainflow(board: int, chain: Chain, seconds: float | None = None) -> Iterator[Chunk]:
    """Chunks of a BrainFlow board in microvolts (needs brainflow); a jump of the package counter marks dropped samples."""
    require("brainflow", "tinyeeg[brainflow]")
    from brainflow.board_shim import BoardShim, BrainFlowError, BrainFlowInputParams

    without_pkg_resources()
    BoardShim.disable_board_logger()
    try:
        names, eeg = BoardShim.get_eeg_names(board), BoardShim.get_eeg_channels(board)
        _same_rate(float(BoardShim.get_sampling_rate(board)), chain, f"BrainFlow board {board}")
        shim = BoardShim(board, BrainFlowInputParams())
        shim.prepare_session()
    except BrainFlowError as error:
        raise InputError(f"--brainflow {board}: {error}") from error
    rows = [eeg[row] for row in _rows(names, chain, f"BrainFlow board {board}")]
    counter = BoardShim.get_package_num_channel(board)

    def chunks() -> Iterator[Chunk]:
        count, last = 0, None
        shim.start_stream()
        try:
            while seconds is None or count < seconds * chain.sfreq:
                time.sleep(0.05)
                data: Any = shim.get_board_data()
                if not data.shape[1]:
                    continue
                lost = 0 if last is None else (int(data[counter, 0]) - last - 1) % 256
                last = int(data[counter, -1])
                count += data.shape[1]
                yield Chunk(data[rows], count / chain.sfreq, lost)
        finally:
            shim.stop_stream()
            shim.release_session()

    return chunks()


def without_pkg_resources() -> None:
    """Let brainflow 5 find its library on Python 3.11, where it asks pkg_resources, which setuptools no longer has: give it that function."""
    import sys
    from importlib.util import find_spec
    from types import ModuleType

    if "pkg_resources" in sys.modules or find_spec("pkg_resources") is not None:
        return

    def resource_filename(module: str, path: str) -> str:
        return str(Path(str(sys.modules[module].__file__)).parent / path)

    stand_in = ModuleType("pkg_resources", "The one function of it that brainflow calls.")
    stand_in.resource_filename = resource_filename  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stand_in


def _same_rate(sfreq: float, chain: Chain, what: str) -> None:
    if abs(sfreq - chain.sfreq) > 0.01 * chain.sfreq:
        raise InputError(f"{what} has {sfreq:g} Hz, the model was trained for {chain.sfreq:g} Hz; train a model at this rate")


def _rows(names: list[str], chain: Chain, what: str) -> list[int]:
    known = {name.casefold(): index for index, name in enumerate(names)}
    missing = [name for name in chain.channels if name.casefold() not in known]
    if missing:
        raise InputError(f"{what} has no channel {', '.join(missing)}; it has {', '.join(names) or 'no names'}")
    return [known[name.casefold()] for name in chain.channels]
