"""A tiny int8 network on what the streaming detectors see: 18 inputs, 12 hidden units, 240 bytes of weights.

It is trained without a single labelled attack of the user's: the second half of the benign training traffic is attacked by
the project's own injectors, a model of the first half is run over it, and the network learns which mixtures of evidence mean
an attack. All of inference is integer arithmetic (int8 weights and inputs, 32-bit sums), the same in Python and in C99.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from edge_shared.errors import InputError

from edge_ids.can import engine
from edge_ids.can._jit import compiled
from edge_ids.can.engine import FEATURES, HIDDEN
from edge_ids.can.frames import Array, Frames
from edge_ids.can.inject import Attack, inject

SEGMENT_SECONDS = 30.0
TARGETS = 6
KINDS = ("fabrication", "masquerade", "masquerade-constant", "masquerade-replay", "masquerade-offset", "replay")
INPUT_SCALE = 32
LEAST_ROWS = 50


@compiled
def record_features(m: Any, s: Any, keys_K: Any, time_N: Any, key_N: Any, length_N: Any, payload_N: Any, x_NF: Any) -> None:
    """Run the engine and keep the network's inputs of every frame (zero for frames it is not asked about)."""
    out, zero = np.zeros((64, 6), np.int64), np.int64(0)  # a literal 0 would be a type of its own, and the engine compiled again for it
    for i in range(len(time_N)):
        s.features_F[:] = 0
        engine.step(m, s, keys_K, time_N[i], key_N[i], zero, length_N[i], payload_N[i], out, zero)
        for f in range(len(s.features_F)):  # copying a whole row would compile Numba's shape messages: seconds
            x_NF[i, f] = s.features_F[f]


def network_on(tables: dict[str, Array]) -> dict[str, Array]:
    """The same tables with the network asked about every frame."""
    return tables | {"tiny_meta": np.r_[1, tables["tiny_meta"][1:]].astype(np.int64)}


def features_of(profile: Any, frames: Frames) -> Array:
    """int64 (N, 18): inputs of the network for each frame.

    Args:
        profile: whose network is on (its weights do not matter).
        frames: in order.
    """
    from edge_ids.can.profile import keys_of, payloads

    x_NF = np.zeros((len(frames), FEATURES), np.int64)
    record_features(
        profile.model, engine.new_state(len(profile.keys_K), profile.memories), profile.keys_K, frames.time_us,
        keys_of(frames, profile.channels), frames.length.astype(np.int64), payloads(frames), x_NF,
    )  # fmt: skip
    return x_NF


def examples(profile: Any, benign: Frames, seed: int = 0) -> tuple[Array, Array]:
    """Inputs (N, 18) and labels (N) of benign and attacked frames that gave any evidence.

    Args:
        profile: of earlier traffic, thresholds off, network on.
        benign: traffic to attack.
        seed: of targets and injections.
    """
    x, y = [features_of(profile, benign)], [np.zeros(len(benign), np.bool_)]
    begin = int(benign.time_us[0])
    segment = benign.take(benign.time_us < begin + int(SEGMENT_SECONDS * 1e6))
    rng = np.random.default_rng(seed)
    ids, counts = np.unique(segment.id, return_counts=True)
    frequent = ids[counts >= 10]
    for kind in KINDS:
        for target in rng.permutation(frequent)[:TARGETS].tolist():
            attack = Attack(kind, segment.seconds * 0.4, segment.seconds * 0.7, target)
            try:
                frames = inject(segment, attack, seed=seed).frames
            except InputError:
                continue  # this ID has no byte that moves, or was not there before
            if kind.startswith("masquerade") and not (frames.data != segment.data).any():
                continue
            hit = frames.attack
            x.append(features_of(profile, frames)[hit])
            y.append(hit[hit])
    inputs, labels = np.concatenate(x), np.concatenate(y)
    said = inputs.any(axis=1)
    return inputs[said], labels[said]


def fit_tiny(x_NF: Array, y_N: Array, seed: int = 0) -> dict[str, Array] | None:
    """Train the network and make integers of it.

    Args:
        x_NF: inputs, 0 to 127.
        y_N: attack or not.
        seed: of the initialisation.

    Returns:
        The `tiny_` tables of `engine.Model`, or None with fewer than 50 examples of either class. The output is the
        log-likelihood ratio of attack against benign in 1/16 bit.
    """
    from sklearn.neural_network import MLPClassifier

    if min(int(y_N.sum()), int((~y_N).sum())) < LEAST_ROWS:
        return None
    rng = np.random.default_rng(seed)
    share = min(int(y_N.sum()), int((~y_N).sum()) * 4, 8_000)
    rows = np.r_[rng.permutation(np.flatnonzero(y_N))[:share], rng.permutation(np.flatnonzero(~y_N))[: 4 * share]]
    x, y = x_NF[rows] / INPUT_SCALE, y_N[rows]
    model = MLPClassifier((HIDDEN,), alpha=1e-3, batch_size=256, max_iter=20, tol=0.0, n_iter_no_change=21, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops after 20 passes by design
        model.fit(x, y)
    prior = np.log(y.mean() / (1 - y.mean()))
    return quantise(model.coefs_[0], model.intercepts_[0], model.coefs_[1][:, 0], float(model.intercepts_[1][0] - prior), x_NF[rows])


def quantise(weight_FM: Array, bias_M: Array, out_M: Array, out_bias: float, x_NF: Array) -> dict[str, Array]:
    """Integers of a float network whose inputs are ``x / 32`` and whose output is in nats.

    Args:
        weight_FM, bias_M, out_M, out_bias: the network.
        x_NF: integer inputs that set the range of the hidden layer.
    """
    scale = 127 / max(float(np.abs(weight_FM).max()), 1e-9)
    weight_MF = np.rint(weight_FM.T * scale).astype(np.int64, order="C")  # the layout of a loaded profile: compiled once
    bias = np.rint(bias_M * scale * INPUT_SCALE).astype(np.int64)
    hidden_NM = np.maximum(x_NF @ weight_MF.T + bias, 0)
    shift = max(int(np.ceil(np.log2(max(float(np.quantile(hidden_NM, 0.9999)), 1) / 127))), 0)
    out_scale = 127 / max(float(np.abs(out_M).max()), 1e-9)
    out = np.rint(out_M * out_scale).astype(np.int64)
    unit = out_scale * scale * INPUT_SCALE / 2**shift  # of the 32-bit output, per nat
    multiplier = round(65536 * 16 / np.log(2) / unit)
    meta = np.array([1, shift, round(out_bias * unit), max(multiplier, 1)], np.int64)
    return {"tiny_MF": weight_MF, "tiny_bias_M": bias, "tiny_out_M": out, "tiny_meta": meta}
