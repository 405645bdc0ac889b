"""What a run looks like: folds against the clock, confusion per subject, spectra and spectrogram per state, leaky against clean, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.report import Result, Section, Table, figure, write_html
from numpy.typing import NDArray

from tinyeeg import cost, mne_report, presets, protocols, splits
from tinyeeg.chain import Chain, Smoothing
from tinyeeg.recording import Recording
from tinyeeg.table import extract
from tinyeeg.training import Trained, fit_all


def write(
    folder: str | Path,
    trained: Trained,
    recordings: Sequence[Recording],
    *,
    leaky: bool = False,
    pareto: bool = False,
    mne: bool = False,
    result: Result | None = None,
) -> list[Path]:
    """Write ``report.html`` and its plots (PNG and SVG).

    Args:
        folder: where.
        trained: the run.
        recordings: its recordings, for the spectra.
        leaky: also score random windows, to show what a leak is worth.
        pareto: also score variants of the chain, for accuracy against cost.
        mne: write the page as an MNE `Report`, see `tinyeeg.mne_report`, instead of the small one of `edge_shared`.
        result: provenance for the page.

    Returns:
        The page, then the plots.
    """
    folder = Path(folder)
    evaluation = trained.evaluation
    synthetic = " The recordings are SYNTHETIC: no number here says anything about real EEG." if trained.table.synthetic else ""
    chance = 1 / len(evaluation.classes)
    sections = [
        Section(
            "Result",
            f"Protocol `{evaluation.protocol}`, model `{evaluation.model}`, normalisation `{evaluation.normalise}`: balanced accuracy "
            f"{evaluation.balanced_accuracy:.3f} (chance {chance:.3f}), mean over {len(evaluation.folds)} folds.{synthetic}\n\n"
            + _normalise_text(trained),
            Table(
                ["fold", "balanced accuracy", "accuracy", "train windows", "test windows"],
                [[fold.fold, fold.balanced_accuracy, fold.accuracy, fold.n_train, fold.n_test] for fold in evaluation.folds],
            ),
            figures=["folds", "confusion"],
        ),
        Section(
            "Spectra",
            "Mean power spectrum of each state over all recordings, and a spectrogram of one session with its states. Headset channel "
            "names need not be scalp sites, so no map of the head is drawn.",
            figures=["spectra", "spectrogram"],
        ),
    ]
    _folds(folder, trained, chance)
    _confusion(folder, trained)
    _spectra(folder, trained, recordings)
    _spectrogram(folder, trained, recordings)
    if leaky:
        sections.append(_leaky(folder, trained, chance))
    if pareto:
        sections.append(_pareto(folder, trained, recordings))
    sections.append(_cost(trained))
    if trained.table.notes:
        sections.append(
            Section("Recordings", "What the readers repaired or found odd.", Table(["note"], [[note] for note in trained.table.notes]))
        )
    title = f"tinyeeg: {trained.table.chain.name}, {evaluation.protocol}"
    if mne:
        page = mne_report.write(folder, title, sections, recordings, result)
    else:
        page = write_html(folder, title, sections, result)
    return [page, *sorted(path for path in folder.glob("*.png"))]


def _normalise_text(trained: Trained) -> str:
    if trained.without_person is None:
        return "Centre and spread of the features come from the training set alone."
    folds = trained.evaluation.folds
    words = [fold.parameters.get("normalise", trained.evaluation.normalise) for fold in folds]
    kinds = " or ".join(sorted(set(words) - {"global"}))
    where = "" if "global" not in words else f" in {len(folds) - words.count('global')} of {len(folds)} folds"
    return (
        f"The mean feature vector of each {kinds} was subtracted{where}: no label is used, but the tested person's unlabelled windows "
        f"are. Without it the same model reaches {trained.without_person.balanced_accuracy:.3f}."
    )


def _folds(folder: Path, trained: Trained, chance: float) -> None:
    evaluation, clock = trained.evaluation, trained.clock
    names = [fold.fold for fold in evaluation.folds]
    with figure(folder, "folds", size=(max(5.0, 0.35 * len(names) + 2), 3.6)) as axes:
        x = np.arange(len(names))
        axes.bar(x - 0.2, [fold.balanced_accuracy for fold in evaluation.folds], 0.4, label=evaluation.model)
        axes.bar(x + 0.2, [fold.balanced_accuracy for fold in clock.folds], 0.4, label="clock alone", alpha=0.6)
        axes.axhline(chance, color="0.4", linestyle="--", linewidth=1, label="chance")
        axes.set_xticks(x, names, rotation=90 if len(names) > 8 else 0, fontsize=7 if len(names) > 8 else None)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("balanced accuracy")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False)


def _confusion(folder: Path, trained: Trained) -> None:
    evaluation, windows = trained.evaluation, trained.table.windows
    subjects = np.unique(windows.subject)[:8]
    columns = min(4, len(subjects))
    rows = -(-len(subjects) // columns)
    count = len(evaluation.classes)
    with figure(folder, "confusion", rows=rows, columns=columns, size=(2.1 * columns + 1.4, 3.1 * rows + 0.6)) as axes:
        for index, ax in enumerate(np.atleast_1d(axes).ravel()):
            ax.grid(False)
            if index >= len(subjects):
                ax.set_axis_off()
                continue
            own = (windows.subject == subjects[index]) & (evaluation.predicted >= 0)
            matrix = np.zeros((count, count))
            np.add.at(matrix, (windows.y[own], evaluation.predicted[own]), 1)
            matrix /= np.maximum(matrix.sum(axis=1, keepdims=True), 1)
            ax.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
            for row in range(count):
                for column in range(count):
                    value = matrix[row, column]
                    ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "#1f2430")
            ax.set_title(subjects[index], fontsize=9)
            ax.set_xticks(range(count), evaluation.classes, rotation=45, ha="right", fontsize=7)
            ax.set_yticks(range(count), evaluation.classes if index % columns == 0 else [""] * count, fontsize=7)


def _spectra(folder: Path, trained: Trained, recordings: Sequence[Recording]) -> None:
    from scipy.signal import welch

    chain = trained.table.chain
    sums: dict[str, list[NDArray[np.float64]]] = {}
    length = round(2 * chain.sfreq)
    for recording in recordings:
        picked = recording.resampled(chain.sfreq).pick(chain.channels)
        for stretch in picked.stretches():
            if stretch.stop - stretch.start >= length:
                freqs, density = welch(picked.signal[:, stretch.start : stretch.stop], chain.sfreq, nperseg=length)
                sums.setdefault(stretch.state, []).append(10 * np.log10(np.maximum(density, 1e-6)))
    shown = chain.channels[:4]
    with figure(folder, "spectra", columns=len(shown), size=(2.4 * len(shown) + 1, 3.0)) as axes:
        for index, (ax, channel) in enumerate(zip(np.atleast_1d(axes).ravel(), shown, strict=True)):
            keep = (freqs >= 1) & (freqs <= min(45, chain.sfreq / 2))
            for band, (_, low, high) in enumerate(presets.BANDS):
                if band % 2 == 0 and low < freqs[keep][-1]:
                    ax.axvspan(low, min(high, freqs[keep][-1]), color="0.5", alpha=0.08, linewidth=0)
            for state, densities in sorted(sums.items()):
                ax.plot(freqs[keep], np.mean([density[index] for density in densities], axis=0)[keep], label=state)
            ax.set_title(channel, fontsize=9)
            ax.set_xlabel("Hz")
            if index == 0:
                ax.set_ylabel("dB (1 uV²/Hz)")
                ax.legend(frameon=False, fontsize=7)


def _spectrogram(folder: Path, trained: Trained, recordings: Sequence[Recording]) -> None:
    from scipy.signal import spectrogram

    chain = trained.table.chain
    first = next(recording for recording in recordings if recording.stretches())
    session = [r for r in recordings if (r.subject, r.session) == (first.subject, first.session) and r.stretches()]
    length = round(2 * chain.sfreq)
    blocks, states = [], []
    for recording in session:
        picked = recording.resampled(chain.sfreq).pick(chain.channels[:1])
        for stretch in picked.stretches():
            if stretch.stop - stretch.start < length:
                continue
            freqs, _, power = spectrogram(picked.signal[0, stretch.start : stretch.stop], chain.sfreq, nperseg=length, noverlap=length // 2)
            blocks.append(10 * np.log10(np.maximum(power, 1e-6)))
            states += [stretch.state] * power.shape[1]
    image = np.concatenate(blocks, axis=1)
    keep = (freqs >= 0.5) & (freqs <= min(45, chain.sfreq / 2))
    classes = list(trained.evaluation.classes)
    seconds = image.shape[1] * (length - length // 2) / chain.sfreq
    with figure(folder, "spectrogram", rows=2, size=(7, 3.6)) as axes:
        top, bottom = np.atleast_1d(axes).ravel()
        top.get_subplotspec().get_gridspec().set_height_ratios([7, 1])
        top.grid(False)
        bottom.grid(False)
        extent = (0.0, seconds, float(freqs[keep][0]), float(freqs[keep][-1]))
        drawn = top.imshow(image[keep], aspect="auto", origin="lower", cmap="viridis", extent=extent, vmin=np.percentile(image[keep], 2))
        top.figure.colorbar(drawn, ax=[top, bottom], label="dB (1 uV²/Hz)")
        top.set_ylabel(f"{chain.channels[0]}, Hz")
        top.set_title(f"subject {first.subject}, session {first.session}", fontsize=9)
        row = np.array([[classes.index(state) for state in states]])
        bottom.imshow(row, aspect="auto", cmap="tab10", vmin=0, vmax=9, extent=(0.0, seconds, 0, 1))
        for state in sorted(set(states)):
            middle = (np.flatnonzero(np.array(states) == state).mean() + 0.5) / len(states) * seconds
            bottom.text(middle, 0.5, state, ha="center", va="center", color="white", fontsize=8)
        bottom.set_yticks([])
        bottom.set_xlabel("seconds of this session's recordings, one after the other")


def _leaky(folder: Path, trained: Trained, chance: float) -> Section:
    evaluation = trained.evaluation
    table = trained.table
    leaky = protocols.evaluate(table, splits.LEAKY, model=evaluation.model, normalise="global")
    folds = splits.random_windows(table.windows)
    rows: list[list[Any]] = [
        ["random windows (leaks), nearest neighbour", protocols.nearest(table, folds, splits.LEAKY).balanced_accuracy],
        ["random windows (leaks)", leaky.balanced_accuracy],
        [f"{evaluation.protocol}", evaluation.balanced_accuracy],
        ["the clock alone", trained.clock.balanced_accuracy],
        ["chance", chance],
    ]
    if trained.without_person is not None:
        rows.insert(3, [f"{evaluation.protocol}, without the person's mean", trained.without_person.balanced_accuracy])
    with figure(folder, "leaky", size=(6, 2.6)) as axes:
        names, values = [str(name) for name, _ in rows][::-1], [float(value) for _, value in rows][::-1]
        axes.barh(
            names,
            values,
            color=["#c23b6d" if "leaks" in name else "#2563eb" if evaluation.protocol in name else "#9aa1ad" for name in names],
        )
        for index, value in enumerate(values):
            axes.text(value + 0.01, index, f"{value:.3f}", va="center", fontsize=8)
        axes.set_xlim(0, 1.1)
        axes.set_xlabel("balanced accuracy")
    text = "The same features and model under a split whose test windows share raw samples and people with the training windows."
    return Section("Leaky against clean", text, Table(["split", "balanced accuracy"], rows), figures=["leaky"])


def variants(chain: Chain) -> dict[str, Chain]:
    """Chains to compare: other look-backs, an exponential mean, fewer channels, shorter segments."""
    names, rate = chain.channels, chain.sfreq
    base = presets.compact(rate, names)
    result = {
        "compact": base,
        "4 s look-back": presets.compact(rate, names, smooth_s=4),
        "15 s look-back": presets.compact(rate, names, smooth_s=15),
        "exponential mean": replace(base, smoothing=Smoothing("exponential", 8)),
        "1 s segments": presets.compact(rate, names, segment_s=1),
    }
    if len(names) > 2:
        result["2 channels"] = base.with_channels((names[1], names[-2]))
    if len(names) > 1:
        result["1 channel"] = base.with_channels(names[:1])
    if chain.name not in result:
        result[chain.name] = chain
    return result


def _pareto(folder: Path, trained: Trained, recordings: Sequence[Recording]) -> Section:
    evaluation = trained.evaluation
    rows: list[list[Any]] = []
    for name, chain in variants(trained.table.chain).items():
        table = extract(recordings, chain)
        scored = protocols.evaluate(table, evaluation.protocol, model=evaluation.model, normalise=evaluation.asked)
        spent = cost.estimate(fit_all(table, scored, tune=False, seed=0))
        rows.append(
            [name, scored.balanced_accuracy, spent.ram["q15"], spent.flash["q15"], round(spent.multiplications * spent.decisions_per_s)]
        )
    with figure(folder, "pareto", columns=3, size=(9, 3.2)) as axes:
        for index, (ax, label) in enumerate(
            zip(np.atleast_1d(axes).ravel(), ("RAM, kB", "flash, kB (estimate)", "1000 multiplications/s"), strict=True)
        ):
            x, y = np.array([row[2 + index] for row in rows]) / 1000, np.array([row[1] for row in rows])
            front = [
                i
                for i in range(len(rows))
                if not any((x[j] <= x[i]) & (y[j] >= y[i]) & ((x[j] < x[i]) | (y[j] > y[i])) for j in range(len(rows)))
            ]
            front.sort(key=lambda i: x[i])
            ax.plot(x[front], y[front], color="0.7", linewidth=1, zorder=1)
            for row, at_x, at_y in zip(rows, x, y, strict=True):
                ax.scatter(at_x, at_y, s=22, zorder=2, label=row[0])
            ax.set_xlabel(label)
            if index == 0:
                ax.set_ylabel("balanced accuracy")
        ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7, frameon=False)
    text = "Variants of the chain with the same model and protocol, integer arithmetic. The line joins those that no other beats in both."
    columns = ["chain", "balanced accuracy", "RAM bytes", "flash bytes (estimate)", "multiplications per second"]
    return Section("Accuracy against cost", text, Table(columns, rows), figures=["pareto"])


def _cost(trained: Trained) -> Section:
    spent = cost.estimate(trained.model)
    rows = [[number, spent.ram[number], spent.flash[number]] for number in ("float", "q15")]
    text = (
        f"State and constants on a Cortex-M4F; flash is an estimate, `tinyeeg export` measures it where arm-none-eabi-gcc is installed. "
        f"{spent.multiplications:,} multiplications per decision, {spent.decisions_per_s:g} decisions per second."
    )
    return Section("Cost on a microcontroller", text, Table(["numbers", "RAM bytes", "flash bytes (estimate)"], rows))
