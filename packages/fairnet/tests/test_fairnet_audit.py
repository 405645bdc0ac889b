"""The audit against brute force and fairlearn; its command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edge_shared import cli
from edge_shared.errors import InputError
from fairnet.audit import Predictions, audit, read_predictions
from fairnet.cli import app
from hypothesis import given, settings
from hypothesis import strategies as st

rows = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab"), st.sampled_from("xyz")), min_size=4, max_size=60).filter(
    lambda found: len({row[0] for row in found}) == 2
)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_metrics_equal_brute_force_and_fairlearn(found: list[tuple[str, str, str]]) -> None:
    from fairlearn.metrics import MetricFrame, demographic_parity_difference, selection_rate

    y, p, g = (np.array(column) for column in zip(*found, strict=True))
    result = audit(Predictions(tuple(y), tuple(p), tuple(g)), positive="b", resamples=0)
    cells = {(a, b): [t == q for t, q, r in found if t == a and r == b] for a in "ab" for b in "xyz"}
    for cell in result.cells:
        hits = cells[cell.label or "", cell.group]
        assert cell.n == len(hits)
        assert cell.accuracy.value == (pytest.approx(np.mean(hits)) if hits else None)
    filled = [np.mean(hits) for hits in cells.values() if hits]
    assert result.unbiased_accuracy.value == pytest.approx(np.mean(filled))
    assert result.worst_group.accuracy.value == pytest.approx(min(filled))
    assert result.accuracy_gap.value == pytest.approx(max(filled) - min(filled))
    if len(set(p)) == 2:
        assert result.demographic_parity_difference.value == pytest.approx(
            demographic_parity_difference(y == "b", p == "b", sensitive_features=g)
        )
    frame = MetricFrame(metrics=selection_rate, y_true=y == p, y_pred=y == p, sensitive_features=g)
    for group in result.groups:
        assert group.accuracy.value == pytest.approx(frame.by_group[group.group])


def test_equalized_odds_by_hand() -> None:
    label, prediction, group = "1110001100", "1100001010", "xxxxxxyyyy"
    result = audit(Predictions(tuple(label), tuple(prediction), tuple(group)), positive="1", resamples=0)
    # true positive rates 2/3 and 1/2, false positive rates 0/3 and 1/2
    assert result.equalized_odds_difference.value == pytest.approx(1 / 2)


def test_balanced_ten_by_ten_identity() -> None:
    """On a balanced set the unbiased accuracy is 0.1 aligned + 0.9 conflicting."""
    random = np.random.default_rng(0)
    y, g = np.repeat(np.arange(10), 100), np.tile(np.arange(10), 100)
    p = np.where(random.random(1000) < np.where(y == g, 0.95, 0.6), y, (y + 1) % 10)
    result = audit(Predictions(*(tuple(map(str, column)) for column in (y, p, g))), resamples=0)
    assert result.aligned_accuracy.value is not None
    assert result.conflicting_accuracy.value is not None
    assert result.unbiased_accuracy.value == pytest.approx(0.1 * result.aligned_accuracy.value + 0.9 * result.conflicting_accuracy.value)


def test_intervals_cover() -> None:
    """The 95 % bootstrap interval of the accuracy holds the truth in most draws."""
    hits = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        y = random.integers(0, 2, 400)
        p = np.where(random.random(400) < 0.8, y, 1 - y)
        result = audit(Predictions(tuple(map(str, y)), tuple(map(str, p)), ("g",) * 400), resamples=300, seed=seed)
        assert result.accuracy.low is not None
        assert result.accuracy.high is not None
        hits += result.accuracy.low <= 0.8 <= result.accuracy.high
    assert hits >= 52


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


GOOD = "label,prediction,group\ncat,cat,indoor\ncat,dog,outdoor\ndog,dog,outdoor\ndog,dog,indoor\n"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "p.csv", GOOD)
    assert cli.run(app, ["audit", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["worst_group"] | {"accuracy": 0} == {"label": "cat", "group": "outdoor", "n": 1, "accuracy": 0}
    assert cli.run(app, ["audit", file, "--fail-under", "0.5"]) == 1
    assert "worst group cat in outdoor" in capsys.readouterr().err
    assert cli.run(app, ["audit", file, "--fail-under", "0.5", "--min-group", "1", "--aligned", "cat=indoor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["aligned_accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("label,group\na,b\n", [], "no column 'prediction'"),
        ("", [], "no header"),
        ("label,prediction,group\n", [], "no rows"),
        ("label,prediction,group\na,a,x\na,b,\n", [], "p.csv:3: an empty cell"),
        ("label,prediction,group\na,a,x\n", [], "two classes"),
        ("label,prediction,group\na,a,x,4\nb,b,x\n", [], "p.csv:2: more cells"),
        ("label,label,prediction,group\na,a,a,x\nb,b,b,x\n", [], "two columns 'label'"),
        ("label,prediction,group\n0,0.0,x\n1,1.0,x\n", [], "no value of prediction (0.0, 1.0) is a value of label (0, 1)"),
        (GOOD, ["--group", "colour"], "no column 'colour'"),
        (GOOD, ["--positive", "fish"], "positive class 'fish'"),
        (GOOD, ["--min-group", "9"], "no (label, group) cell has 9 rows"),
        (GOOD, ["--aligned", "cat"], "LABEL=GROUP"),
        (GOOD, ["--aligned", "cat=space"], "groups are indoor, outdoor"),
        (GOOD, ["--fail-under", "2"], "--fail-under"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], words: str) -> None:
    assert cli.run(app, ["audit", write(tmp_path / "p.csv", text), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_files_of_spreadsheets_and_predictions_of_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "p.csv", "\ufefflabel, prediction, group\na, a, x\nb, c, x\n")
    assert cli.run(app, ["audit", file, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["accuracy"]["value"] == 0.5
    assert err == f"{file}: predicted, but no row's label: c; counted as wrong\n"


def test_intersections(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "label,prediction,sex,age\na,a,f,old\nb,a,m,young\nb,b,f,young\n")
    assert set(read_predictions(file, group="sex,age").group) == {"f / old", "m / young", "f / young"}
    with pytest.raises(InputError, match="no column"):
        read_predictions(file, group="sex,height")


def test_audit_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, fairnet.cli, fairnet.audit; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
