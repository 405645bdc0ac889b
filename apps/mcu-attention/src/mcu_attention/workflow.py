"""Build a firmware from recordings of several people; run it on a recording of another one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray
from tinyeeg import protocols, readers, synthetic, training
from tinyeeg.chain import Chain
from tinyeeg.recording import Recording
from tinyeeg.table import extract

from mcu_attention import calibration, firmware
from mcu_attention import recordings as cutting
from mcu_attention.firmware import Output

TRAINING_PEOPLE = 4  # of the synthetic people; the fifth wears the device


@dataclass(frozen=True)
class Built:
    """A firmware.

    Attributes:
        files: names.
        cross_subject: balanced accuracy of the classifier on people it has not seen, centred on their unlabelled mean.
        people: that it was trained on.
        synthetic: whether they are made up.
        size: ``flash_bytes``, ``ram_bytes``; None without a cross compiler.
    """

    files: list[str]
    cross_subject: float
    people: list[str]
    synthetic: bool
    size: dict[str, int] | None


@dataclass(frozen=True)
class Ran:
    """A run of the firmware.

    Attributes:
        calibrated, shipped: the output with the calibration and with the layer as shipped, on the same unlabelled stretches.
        truth: state of each unlabelled decision, shape (N,).
        classes: names.
        chain: of the model.
        equal: whether decisions equal the Python reference's, and the largest difference of the calibrated weights.
        synthetic: whether the recording is made up.
    """

    calibrated: Output
    shipped: Output
    truth: NDArray[np.int64]
    classes: tuple[str, ...]
    chain: Chain
    equal: dict[str, Any]
    synthetic: bool

    def accuracy(self) -> dict[str, float]:
        """Balanced accuracy of both, and chance."""
        scores = {
            name: balanced(self.truth, output.decisions) for name, output in (("calibrated", self.calibrated), ("shipped", self.shipped))
        }
        return {**scores, "chance": 1 / len(np.unique(self.truth))}


def balanced(truth: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Mean over states of the share of decisions that are right."""
    return float(np.mean([np.mean(found[truth == state] == state) for state in np.unique(truth)]))


def read(source: str, *, wearer: bool, person: str | None = None, seed: int = 0) -> list[Recording]:
    """Recordings of a path, or synthetic ones.

    Args:
        source: ``synthetic``, a file or a folder.
        wearer: of ``synthetic``, the person who is not in the training set instead of those who are.
        person: keep this person's only.
        seed: of ``synthetic``.
    """
    if source == "synthetic":
        made = synthetic.generate(subjects=TRAINING_PEOPLE + 1, sessions=1, seconds=60, seed=seed)
        last = made[-1].subject
        return [recording for recording in made if (recording.subject == last) == wearer]
    found = list(readers.read_folder(source).recordings)
    if person is not None:
        kept = [recording for recording in found if recording.subject == person]
        if not kept:
            raise InputError(
                f"--person {person}: not in {source}; there are {', '.join(sorted({recording.subject for recording in found}))}"
            )
        return kept
    return found


def build(people: Sequence[Recording], folder: str | Path, *, preset: str = "compact", prior_weight: float = 40.0, seed: int = 0) -> Built:
    """Train tinyeeg's LDA on these people and write the firmware.

    Args:
        people: labelled recordings of two people or more.
        folder: written to.
        preset: of tinyeeg.
        prior_weight: see `calibration.Prior`.
        seed: of the training.
    """
    chain = training.chain_for(people, preset)
    # The device measures its wearer's mean, so people are centred here too, whatever that is worth between them.
    centre = protocols.resolve("auto", "cross-subject", extract(people, chain).windows)
    trained = training.train(people, chain=chain, normalise=centre, seed=seed)
    deployed = trained.model if trained.model.person else replace(trained.model, person=True)
    prior = calibration.prior_of(trained.table, trained.evaluation, prior_weight)
    files = firmware.write(folder, deployed, prior)
    names = sorted({recording.subject for recording in people})
    return Built(files, trained.evaluation.balanced_accuracy, names, trained.table.synthetic, firmware.size(folder))


def run(folder: str | Path, wearer: Sequence[Recording], *, calibrate_s: float = 60.0, target: str = "qemu") -> Ran:
    """Run a firmware on the wearer's recordings, with the calibration and as shipped, and hold it against the Python reference.

    Args:
        folder: of `build`; its sources are compiled in a copy.
        wearer: recordings of one person.
        calibrate_s: labelled seconds in all.
        target: ``qemu`` or ``host``.
    """
    firmware.tools(target)
    deployed, prior = firmware.load(folder)
    chain = deployed.chain
    stretches = cutting.plan(wearer, chain, deployed.classes, calibrate_s)
    untold = [stretch for stretch in stretches if not stretch.labelled]
    with tempfile.TemporaryDirectory() as temporary:
        firmware.write(temporary, deployed, prior)
        calibrated = firmware.run(temporary, cutting.encode(stretches), target)
        shipped = firmware.run(temporary, cutting.encode(untold), target)
    features = [chain.features(stretch.samples.astype(np.float64)) for stretch in stretches]
    told = [(rows, stretch.state) for rows, stretch in zip(features, stretches, strict=True) if stretch.labelled]
    layer = calibration.solve(prior)
    if told:
        labels = np.concatenate([np.full(len(rows), state) for rows, state in told])
        layer = calibration.solve(prior, np.concatenate([rows for rows, _ in told]).astype(np.float32), labels)
    rest = [(rows, stretch.state) for rows, stretch in zip(features, stretches, strict=True) if not stretch.labelled]
    X = np.concatenate([rows for rows, _ in rest]).astype(np.float32)
    wanted = calibration.decide(prior, layer, X)
    scale = float(np.abs(layer.weights).max())
    equal = {
        "same_decisions": bool(np.array_equal(wanted, calibrated.decisions)),
        "largest_weight_difference": float(np.abs(layer.weights - calibrated.layer.weights).max() / scale),
    }
    truth = np.concatenate([np.full(len(rows), state) for rows, state in rest])
    return Ran(calibrated, shipped, truth, deployed.classes, chain, equal, any(recording.synthetic for recording in wearer))
