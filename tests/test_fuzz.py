"""No parser falls over a broken file: each target takes its valid file, and mutations of it only with a clear refusal."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_targets", Path(__file__).parent / "fuzz" / "targets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_targets"] = module
    spec.loader.exec_module(module)
    return module


TARGETS = _module().targets()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seed_is_accepted(name: str, tmp_path: Path) -> None:
    """Else the mutations below would all die at the first line."""
    assert TARGETS[name].run(TARGETS[name].seed, tmp_path)


Edit = tuple[float, int, bytes]
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=8)), min_size=1, max_size=4)


def mutate(data: bytes, edits: list[Edit]) -> bytes:
    """Replace a few bytes at each place: deletion, insertion and overwriting in one."""
    for place, drop, insert in edits:
        start = int(place * len(data))
        data = data[:start] + insert + data[start + drop :]
    return data


def mutations(name: str, count: int, tmp_path: Path) -> None:
    @settings(max_examples=count, deadline=None, database=None)
    @given(edits=EDITS)
    def check(edits: list[Edit]) -> None:
        TARGETS[name].run(mutate(TARGETS[name].seed, edits), tmp_path)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str, tmp_path: Path) -> None:
    """Fewer of what is read in a process of its own, half a second each."""
    mutations(name, 15 if name == "aci" else 150, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutations(name: str, tmp_path: Path) -> None:
    mutations(name, 2_000, tmp_path)
