"""emlearn's C for our classifiers against a hard vote and against the MLP itself."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from edge_shared.errors import InputError
from tinyeeg import presets, protocols, synthetic, training
from tinyeeg.table import extract

pytestmark = [
    pytest.mark.skipif(find_spec("emlearn") is None, reason="no emlearn"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]

MAIN = """#include <stdio.h>
#include "classifier.h"
int main(void) {{ static {ctype} z[{features}];
while (fread(z, sizeof z, 1, stdin) == 1) {{ printf("%d\\n", (int)classifier_predict(z, {features})); }} return 0; }}
"""


@pytest.fixture(scope="module")
def table():
    return extract(synthetic.generate(seconds=20, subjects=2, sessions=1), presets.compact())


def fitted(table, name):
    evaluation = protocols.time_only(table.windows, "cross-subject")
    return training.fit_all(table, replace(evaluation, model=name, normalise="global"), tune=False, seed=0)


def run_c(folder, z, ctype):
    (folder / "main.c").write_text(MAIN.format(ctype=ctype, features=z.shape[1]))
    subprocess.run(["cc", "-std=c99", "-O1", "-w", "-I.", "-o", "main", "main.c", "-lm"], cwd=folder, check=True)
    done = subprocess.run([str(folder / "main")], input=z.tobytes(), capture_output=True, check=True)
    return np.array(done.stdout.split(), dtype=int)


def scaled(model, X):
    return np.clip((X - model.center) / model.scale, -model.clip, model.clip)


def test_a_forest_votes_as_a_hard_vote(tmp_path, table):
    from tinyeeg.codegen.emlearn import export_emlearn, thresholds

    model = fitted(table, "forest")
    before = set(Path.cwd().iterdir())
    names = export_emlearn(model, tmp_path)
    assert set(Path.cwd().iterdir()) == before
    assert np.exp(np.float64(-1e4)) == 0  # emlearn's import makes that an error
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert "SYNTHETIC" in (tmp_path / "classifier.h").read_text()
    z = np.floor(scaled(model, table.X) * 1024).astype(np.int16)
    leaf_class = model.model.values[model.model.leaves(z.astype(float), thresholds(model.model))].argmax(axis=2)
    votes = np.stack([(leaf_class == k).sum(axis=1) for k in range(3)], axis=1)
    np.testing.assert_array_equal(run_c(tmp_path, z, "int16_t"), votes.argmax(axis=1))
    assert np.mean(votes.argmax(axis=1) == model.predict(table.X)) > 0.9


def test_an_mlp_decides_as_ours(tmp_path, table):
    from tinyeeg.codegen.emlearn import export_emlearn

    model = fitted(table, "mlp")
    export_emlearn(model, tmp_path)
    found = run_c(tmp_path, scaled(model, table.X).astype(np.float32), "float")
    np.testing.assert_array_equal(found, model.predict(table.X))


def test_models_that_emlearn_has_not(tmp_path, table):
    from tinyeeg.codegen.emlearn import export_emlearn

    for name in ("lda", "boosting"):
        with pytest.raises(InputError, match="takes forests and the MLP"):
            export_emlearn(fitted(table, name), tmp_path)
