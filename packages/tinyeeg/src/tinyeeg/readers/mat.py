"""Numbers out of a MATLAB file, read in a process of its own: scipy's reader can be crashed by a file made for it (a segmentation fault in
scipy 1.17, found by fuzzing), and a recording must not take a detector down with it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SECONDS, MEMORY = 60, 4 << 30
"""What reading may take, seconds and bytes; 55 minutes of the Aci set took about a second and 0.3 GB."""
_CHILD = """
import io, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
except ImportError:
    pass
try:
    import numpy as np
    from scipy.io import loadmat
    record = loadmat(sys.argv[2], variable_names=[sys.argv[3]])[sys.argv[3]][0, 0]
    kept = io.BytesIO()
    np.savez(kept, **{name: np.asarray(record[name], dtype=np.float64) for name in sys.argv[4:]})
    sys.stdout.buffer.write(kept.getvalue())
except BaseException as error:
    print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
    sys.exit(3)
"""


def read_struct(path: str | Path, name: str, fields: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Numeric fields of a struct.

    Args:
        path: a MATLAB file up to version 7.
        name: of the variable, a struct of one element.
        fields: names of fields; converted to float64.

    Raises:
        ValueError: if the file has no such struct, is damaged, or takes longer or more memory than a recording does.
    """
    command = [sys.executable, "-I", "-c", _CHILD, str(MEMORY), str(Path(path)), name, *fields]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it took more than {SECONDS} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(words[-1] if words and done.returncode == 3 else "the file is damaged")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        return {field: found[field] for field in fields}
