"""Live sources without hardware: an LSL outlet in a second thread, and BrainFlow's synthetic board."""

from __future__ import annotations

import threading
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from edge_shared.errors import InputError
from tinyeeg import live, presets, protocols, synthetic, training
from tinyeeg.table import extract

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.fixture(scope="module")
def recordings():
    return synthetic.generate(subjects=2, sessions=1, seconds=12)


def fitted(recordings, chain):
    table = extract(recordings, chain)
    evaluation = protocols.time_only(table.windows, "cross-subject")
    return training.fit_all(table, replace(evaluation, model="lda", normalise="global"), tune=False, seed=0)


@pytest.mark.skipif(find_spec("mne_lsl") is None, reason="no mne-lsl")
def test_lsl_loopback_decides_as_offline_and_counts_what_was_lost(recordings):
    from mne_lsl.lsl import StreamInfo, StreamOutlet, local_clock

    deployed = fitted(recordings, presets.compact())
    signal = recordings[1].signal
    names = ["TP10", "AF8", "AF7", "TP9"]  # another order than the model's
    info = StreamInfo("tinyeeg-loopback", "EEG", 4, 256.0, "float64", "tinyeeg-test")
    info.set_channel_names(names)
    info.set_channel_units(["volts"] * 4)
    ready = threading.Event()

    def play():
        outlet = StreamOutlet(info)
        ready.set()
        assert outlet.wait_for_consumers(20)
        began = local_clock()
        for start in range(0, signal.shape[1], 64):
            if start == 1536:
                continue  # lost on the way
            stamps = began + (start + np.arange(64)) / 256
            outlet.push_chunk(np.ascontiguousarray(signal[::-1, start : start + 64].T * 1e-6), stamps)
        done.wait(20)
        del outlet

    done = threading.Event()
    player = threading.Thread(target=play)
    player.start()
    try:
        assert ready.wait(20)
        decisions = []
        length = (signal.shape[1] - 1) / 256
        summary = live.decide(live.from_lsl("tinyeeg-loopback", deployed.chain, length), deployed, on_decision=decisions.append)
    finally:
        done.set()
        player.join(20)
    assert summary.samples == signal.shape[1] - 64
    assert (summary.dropped, summary.gaps) == (64, 1)
    wanted = [deployed.predict(deployed.chain.features(part)) for part in (signal[:, :1536], signal[:, 1600:])]
    assert [decision.state for decision in decisions] == [deployed.classes[index] for index in np.concatenate(wanted)]
    assert [decision.after_gap for decision in decisions].count(True) == 1
    assert decisions[0].time_s == pytest.approx(511 / 256, abs=1e-3)


@pytest.mark.skipif(find_spec("mne_lsl") is None, reason="no mne-lsl")
def test_a_stream_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no-such-stream: no such stream"):
        live.from_lsl("no-such-stream", presets.compact())


@pytest.mark.skipif(find_spec("brainflow") is None, reason="no brainflow")
def test_brainflow_synthetic_board():
    from brainflow.board_shim import BoardIds, BoardShim

    live.without_pkg_resources()
    board = BoardIds.SYNTHETIC_BOARD.value
    names, rate = BoardShim.get_eeg_names(board)[:2], BoardShim.get_sampling_rate(board)
    rng = np.random.default_rng(0)
    made = [
        replace(recording, signal=rng.normal(size=(2, 2000)) * 20 * (1 + index % 3), channels=tuple(names), sfreq=float(rate), spans=(
            replace(recording.spans[0], stop=2000),))
        for index, recording in enumerate(synthetic.generate(subjects=2, sessions=1, seconds=2))
    ]  # fmt: skip
    deployed = fitted(made, presets.compact(float(rate), tuple(names)))
    decisions = []
    summary = live.decide(live.from_brainflow(board, deployed.chain, 3.0), deployed, on_decision=decisions.append)
    assert summary.samples >= 3 * rate
    assert summary.decisions == len(decisions) >= 2
    assert summary.dropped == 0
    with pytest.raises(InputError, match="has no channel TP9"):
        live.from_brainflow(board, presets.compact(float(rate)))
