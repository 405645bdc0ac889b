"""The chain against sines of known power, a brute-force Fourier transform, its own stream, and Parseval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from tinyeeg import presets
from tinyeeg.chain import Chain, Group, Smoothing
from tinyeeg.stream import StreamingChain


def bands(chain, features):
    """Linear power by group of the first channel's last frame."""
    names = [group.name for group in chain.groups]
    return dict(zip(names, 10 ** (features[-1, : len(names)] / 10), strict=True))


def test_a_sine_has_half_its_squared_amplitude_in_its_band_only():
    chain = replace(presets.compact(256.0, ("Cz",)), sections=())
    t = np.arange(256 * 20) / 256
    power = bands(chain, chain.features(7.0 * np.sin(2 * np.pi * 10 * t)[None]))
    assert power["alpha"] == pytest.approx(7.0**2 / 2, rel=0.01)
    assert max(power["theta"], power["beta"]) < 0.01 * power["alpha"]
    twice = bands(chain, chain.features(14.0 * np.sin(2 * np.pi * 10 * t)[None]))
    assert 10 * np.log10(twice["alpha"] / power["alpha"]) == pytest.approx(6.0206, abs=1e-3)


def test_parseval_for_a_rectangular_window():
    chain = Chain("all", 128.0, ("Cz",), 256, 256, 256, "boxcar", (Group("all", 1, 127),))
    x = np.random.default_rng(1).normal(size=256)
    spectrum = np.fft.rfft(x)
    without_ends = x - x.mean() - np.fft.irfft(np.where(np.arange(129) == 128, spectrum, 0), 256)
    assert 10 ** (chain.features(x[None])[0, 0] / 10) == pytest.approx(np.mean(without_ends**2), rel=1e-6)


def test_aci_preset_equals_a_direct_fourier_sum():
    chain = presets.aci2019_stft()
    x = np.random.default_rng(2).normal(size=(7, 128 * 40)) * 20 + 4200
    found = chain.features(x)
    assert found.shape == (chain.n_frames(x.shape[1]), 252) == ((x.shape[1] - 1920) // 128 + 1, 252)
    steps = np.floor(x / chain.lsb_uv + 0.5)
    y = (steps - steps[:, :1]) * chain.lsb_uv
    window, n = signal.get_window("blackman", 1920), np.arange(1920)
    basis = np.exp(-2j * np.pi * np.outer(np.arange(1, 37) * 0.5, n) / 128)
    power = np.array([[np.abs(basis @ (channel[s : s + 1920] * window)) ** 2 for channel in y] for s in range(0, y.shape[1] - 1919, 128)])
    smooth = np.array([power[max(0, i - 14) : i + 1].mean(axis=0) for i in range(len(power))])
    # Same numbers but for the constant that turns |X|^2 into microvolts squared.
    np.testing.assert_allclose(found, 10 * np.log10(smooth * 2 / (256 * np.sum(window**2))).reshape(len(power), -1), atol=1e-8)
    assert chain.feature_names()[36 * 3 + 20] == "O1_10.5Hz_dB"
    assert len(set(chain.feature_names())) == 252


CHAINS = {
    "compact": presets.compact(),
    "exponential": replace(presets.compact(), smoothing=Smoothing("exponential", 8)),
    "plain": replace(presets.compact(), smoothing=Smoothing()),
    "aci": presets.aci2019_stft(channels=("a", "b", "c", "d")),
    "quantised": replace(presets.aci2019_stft(channels=("a", "b", "c", "d")), segment=100, hop=30, n_fft=64, groups=(Group("x", 2, 9),)),
}


@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=8, deadline=None)
@given(chunk=st.sampled_from([1, 7, 32, 1000]), seed=st.integers(0, 99), length=st.integers(0, 6000))
def test_stream_equals_batch(name, chunk, seed, length):
    chain = CHAINS[name]
    x = np.random.default_rng(seed).normal(size=(4, length)).cumsum(axis=1) + 800
    stream = StreamingChain(chain)
    rows = [stream.push(x[:, start : start + chunk]) for start in range(0, length, chunk)]
    found = np.concatenate([np.zeros((0, chain.n_features)), *rows])
    wanted = chain.features(x)
    assert found.shape == wanted.shape == (max(0, (length - chain.segment) // chain.hop + 1), chain.n_features)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_an_artefact_leaves_later_frames_exact():
    chain = replace(presets.compact(256.0, ("Cz",)), sections=())
    x = np.random.default_rng(3).normal(size=(1, 256 * 60)) * 0.01
    x[0, 0] = 0
    loud = x.copy()
    loud[0, 300:400] += 1e6
    after = (300 + 100 + chain.look_back) // chain.hop + 1
    np.testing.assert_allclose(chain.features(loud)[after:], chain.features(x)[after:], atol=1e-9)


def test_json_round_trip_and_refusals():
    chain = presets.aci2019_stft()
    assert Chain.from_json(chain.to_json()) == chain
    with pytest.raises(InputError, match="no chain"):
        Chain.from_json({"channels": [], "groups": [], "sections": [], "smoothing": {}})
    with pytest.raises(InputError, match="4 channels"):
        presets.compact().features(np.zeros((3, 5000)))
    with pytest.raises(InputError, match="NaN"):
        presets.compact().features(np.full((4, 5000), np.nan))
    with pytest.raises(InputError, match="power of two"):
        presets.aci2019_stft(250.0)
    with pytest.raises(InputError, match="hop"):
        replace(presets.compact(), hop=10_000)
    with pytest.raises(InputError, match="not known"):
        presets.preset("wang2023", 128.0, ("Cz",))
