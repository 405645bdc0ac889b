"""Sweeps: every cell once, finished ones never again, failures reported and tried again."""

import json
import os

import pytest
from edge_shared.errors import InputError
from edge_shared.sweep import cells, run_grid


def test_a_grid_is_the_product_in_order():
    assert cells({"a": [1, 2], "b": ["x", "y"]}) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert cells([{"a": 1}, {"a": 5}]) == [{"a": 1}, {"a": 5}]


def test_a_sweep_goes_on_where_it_stopped(tmp_path, capsys):
    calls = []

    def run(a, b):
        calls.append((a, b))
        if (a, b) == (2, 1) and calls.count((2, 1)) == 1:
            raise ValueError("unlucky\nonce")
        if (a, b) == (2, 2) and calls.count((2, 2)) == 1:
            raise KeyboardInterrupt
        return {"sum": a + b}

    grid = {"a": [1, 2], "b": [1, 2]}
    with pytest.raises(KeyboardInterrupt):
        run_grid(run, grid, out=tmp_path)
    assert calls == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert "unlucky once" in capsys.readouterr().err
    results = run_grid(run, grid, out=tmp_path)
    assert calls[4:] == [(2, 1), (2, 2)]
    assert [cell["result"]["sum"] for cell in results] == [2, 3, 3, 4]
    assert results == run_grid(run, grid, out=tmp_path)
    assert len(calls) == 6
    assert len(list((tmp_path / "cells").iterdir())) == 4
    more = run_grid(run, {"a": [1, 2, 3], "b": [1]}, out=tmp_path)
    assert calls[6:] == [(3, 1)]
    assert [cell["parameters"] for cell in more] == [{"a": a, "b": 1} for a in (1, 2, 3)]


def make():
    """A function that travels to other processes by value: test files cannot be imported there."""

    def where(value):
        import os

        return {"value": value, "process": os.getpid()}

    return where


where = make()


def test_workers_are_other_processes_and_the_order_stays(tmp_path):
    results = run_grid(where, {"value": list(range(6))}, out=tmp_path, workers=2)
    assert [cell["result"]["value"] for cell in results] == list(range(6))
    assert os.getpid() not in {cell["result"]["process"] for cell in results}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray's own
def test_ray_runs_the_same_grid(tmp_path):
    grid = {"value": [1, 2, 3]}
    results = run_grid(where, grid, out=tmp_path, backend="ray", workers=2)
    assert [cell["result"]["value"] for cell in results] == [1, 2, 3]
    assert os.getpid() not in {cell["result"]["process"] for cell in results}
    assert run_grid(where, grid, out=tmp_path) == results


def test_bad_grids_are_one_line(tmp_path):
    for arguments, match in [
        (({},), "the grid is empty"),
        (({"value": []},), "no values for value"),
        (({"other": [1]},), "does not fit where"),
    ]:
        with pytest.raises(InputError, match=match):
            run_grid(where, *arguments)
    with pytest.raises(InputError, match="joblib or ray"):
        run_grid(where, {"value": [1]}, backend="dask")
    with pytest.raises(InputError, match="workers"):
        run_grid(where, {"value": [1]}, workers=0)
    run_grid(where, {"value": [1]}, out=tmp_path)
    (file,) = (tmp_path / "cells").iterdir()
    file.write_text(json.dumps({"parameters": {"value": 2}, "result": 1}))
    with pytest.raises(InputError, match="delete it"):
        run_grid(where, {"value": [1]}, out=tmp_path)
