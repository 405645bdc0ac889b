"""Feature extraction: our chain on a stretch against the same numbers by MNE and scipy, window by window.

Run: python benchmarks/tinyeeg/speed.py
The rival filters what came since the last window by scipy.signal.sosfilt with its state, takes the last 4 s, calls
mne.time_frequency.psd_array_welch (2 s Hann segments, 75 % overlap) and
sums the bins of each band; both results must agree. Times are CPU time, the best of several repeats, so that a busy machine tells the same.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import mne
import numpy as np
from edge_shared.files import write_json
from edge_shared.report import environment
from scipy import signal
from tinyeeg import filters, presets
from tinyeeg.stream import StreamingChain

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-speed.json"


def rival(x, chain, count):
    sos, length = filters.sos_of(chain.sections), chain.look_back
    state = np.zeros((len(sos), len(x), 2))
    x = x - x[:, :1]
    filtered, done = np.empty_like(x), 0
    rows = []
    for index in range(count):
        until = index * chain.hop + length
        filtered[:, done:until], state = signal.sosfilt(sos, x[:, done:until], zi=state)
        done = until
        window = filtered[:, index * chain.hop : index * chain.hop + length]
        density, _ = mne.time_frequency.psd_array_welch(
            window, chain.sfreq, n_fft=chain.n_fft, n_per_seg=chain.segment, n_overlap=chain.segment - chain.hop, window="hann",
            remove_dc=False, verbose="error",
        )  # fmt: skip
        sums = [density[:, group.first : group.last + 1].sum(axis=1) for group in chain.groups]
        rows.append(10 * np.log10(np.stack(sums, axis=1) * chain.sfreq / chain.n_fft).ravel())
    return np.array(rows)


def best(function, repeats=5):
    times = []
    for _ in range(repeats):
        began = time.process_time()
        result = function()
        times.append(time.process_time() - began)
    return min(times), result


def main() -> None:
    chain = presets.compact(smooth_s=4.0)
    x = np.random.default_rng(0).normal(size=(4, 256 * 120)).cumsum(axis=1) + 800
    whole, ours = best(lambda: chain.features(x))
    settled = ours[chain.smoothing.frames - 1 :]
    peer, theirs = best(lambda: rival(x, chain, len(settled)), 3)
    stream, _ = best(lambda: run_stream(chain, x), 10)
    count = len(settled)
    document = {
        "command": "python benchmarks/tinyeeg/speed.py", "environment": environment(), "seed": 0, "windows": count,
        "largest_difference_dB": float(np.abs(settled - theirs).max()),
        "us_per_window": {"tinyeeg batch": 1e6 * whole / len(ours), "tinyeeg stream, chunks of 32": 1e6 * stream / len(ours),
                          "mne + scipy per window": 1e6 * peer / count},
        "clock": "CPU time of one thread", "times_faster_than_mne": peer / count / (whole / len(ours)), "stream_times_faster_than_mne": peer / count / (stream / len(ours)),
    }  # fmt: skip
    write_json(OUT, document)
    print(
        {key: document[key] for key in ("largest_difference_dB", "us_per_window", "times_faster_than_mne", "stream_times_faster_than_mne")}
    )


def run_stream(chain, x):
    stream = StreamingChain(chain)
    return [stream.push(x[:, start : start + 32]) for start in range(0, x.shape[1], 32)]


if __name__ == "__main__":
    main()
