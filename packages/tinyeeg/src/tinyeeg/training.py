"""From recordings to a scored and deployable model: what `tinyeeg train` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyeeg import cost, presets, protocols
from tinyeeg.chain import Chain
from tinyeeg.deployed import Deployed, from_sklearn
from tinyeeg.protocols import Evaluation
from tinyeeg.recording import Recording
from tinyeeg.table import Table, common_channels, common_rate, extract

ACI_SITES = presets.ACI_CHANNELS


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        table: features of all recordings.
        evaluation: score under the protocol.
        clock: score of the time-only rival under the same folds.
        without_person: score with `global` normalisation where a fold used another, else None.
        model: the pipeline fitted on all windows, as plain data.
    """

    table: Table
    evaluation: Evaluation
    clock: Evaluation
    without_person: Evaluation | None
    model: Deployed

    def summary(self) -> dict[str, Any]:
        """The JSON document of `tinyeeg train`."""
        e = self.evaluation
        windows = self.table.windows
        return {
            "protocol": e.protocol,
            "model": e.model,
            "normalise": e.normalise,
            "preset": self.table.chain.name,
            "channels": self.table.chain.channels,
            "sfreq": self.table.chain.sfreq,
            "classes": e.classes,
            "synthetic": self.table.synthetic,
            "data_fingerprint": self.table.fingerprint,
            "windows": len(windows),
            "windows_never_tested": int((e.predicted < 0).sum()),
            "subjects": len(np.unique(windows.subject)),
            "recordings": len(np.unique(windows.recording)),
            "metrics": {
                "balanced_accuracy": e.balanced_accuracy,
                "accuracy": e.accuracy,
                "chance": 1 / len(e.classes),
                "majority_accuracy": e.majority,
                "time_only_balanced_accuracy": self.clock.balanced_accuracy,
                "balanced_accuracy_without_person": None if self.without_person is None else self.without_person.balanced_accuracy,
                "folds": e.folds,
            },
            "cost": cost.estimate(self.model).summary(),
            "notes": self.table.notes,
        }


def chain_for(recordings: Sequence[Recording], preset: str, channels: tuple[str, ...] | None = None) -> Chain:
    """The preset's chain for these recordings: their common rate, and the channels asked for.

    By default these are all common channels; the aci2019-stft preset takes its seven sites where the recordings have them.

    Raises:
        InputError: for an unknown preset, a channel that is not there, or a rate that the preset cannot take.
    """
    found = common_channels(recordings)
    if channels is None and preset == "aci2019-stft" and all(site in found for site in ACI_SITES):
        channels = ACI_SITES
    if channels is not None:
        for recording in recordings:
            recording.pick(channels)
    return presets.preset(preset, common_rate(recordings), channels or found)


def train(
    recordings: Sequence[Recording],
    *,
    chain: Chain,
    protocol: str = "cross-subject",
    model: str = "lda",
    normalise: str = "auto",
    tune: bool = False,
    calibration_s: float = 20.0,
    seed: int = 0,
) -> Trained:
    """Score a model under a protocol, then fit it on all windows.

    Args:
        recordings: labelled recordings.
        chain: preprocessing.
        protocol: see `tinyeeg.splits`.
        model: see `tinyeeg.models`.
        normalise: see `tinyeeg.protocols`.
        tune: nested search of the model's grid.
        calibration_s: labelled seconds per state of a new person, for ``adaptable``.
        seed: of every random choice.
    """
    table = extract(recordings, chain)
    common = {"calibration_s": calibration_s, "seed": seed}
    evaluation = protocols.evaluate(table, protocol, model=model, normalise=normalise, tune=tune, **common)  # type: ignore[arg-type]
    clock = protocols.time_only(table.windows, protocol, **common)  # type: ignore[arg-type]
    plain = None
    if any(fold.parameters.get("normalise", evaluation.normalise) != "global" for fold in evaluation.folds):
        plain = protocols.evaluate(table, protocol, model=model, normalise="global", tune=tune, **common)  # type: ignore[arg-type]
    return Trained(table, evaluation, clock, plain, fit_all(table, evaluation, tune=tune, seed=seed))


def fit_all(table: Table, evaluation: Evaluation, *, tune: bool, seed: int) -> Deployed:
    """Fit the evaluated pipeline on every window and turn it into plain data."""
    windows, person = table.windows, evaluation.normalise != "global"
    X = protocols.centred(table.X, windows, evaluation.normalise, evaluation.protocol)
    pipeline, parameters = protocols.fit(X, windows, evaluation.protocol, model=evaluation.model, tune=tune, seed=seed)
    baseline = pipeline.named_steps["baseline"]
    center = baseline.center_
    if person:
        # Until it is calibrated, a device assumes the average person.
        keys = protocols.wearers(windows, evaluation.normalise, evaluation.protocol)
        center = center + np.mean([table.X[keys == key].mean(axis=0) for key in np.unique(keys)], axis=0)
    return Deployed(
        chain=table.chain,
        classes=windows.classes,
        center=center,
        scale=baseline.scale_,
        clip=baseline.clip,
        person=person,
        model=from_sklearn(pipeline.named_steps["model"], table.X.shape[1], len(windows.classes)),
        provenance={
            "data_fingerprint": table.fingerprint,
            "synthetic": table.synthetic,
            "protocol": evaluation.protocol,
            "model": evaluation.model,
            "normalise": evaluation.normalise,
            "balanced_accuracy": evaluation.balanced_accuracy,
            "parameters": parameters,
            "seed": seed,
        },
    )
