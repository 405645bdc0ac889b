"""Fuzz a parser by coverage, with atheris: `uv run --with atheris python tests/fuzz/run.py TARGET [-max_total_time=60] [more of libFuzzer's options]`.

Without a target it names them. A finding ends the run with a traceback and leaves the input in a file ``crash-*``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"  # instrumented functions are Python: Numba cannot compile them, and coverage wants to see inside

import atheris
from targets import targets

PACKAGES = ("edge_shared", "edge_ids", "fairnet", "moofa", "ondevice_train", "tinyeeg")


def main() -> None:
    known = targets()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit(f"usage: run.py TARGET [libFuzzer options]; targets: {', '.join(known)}")
    target = known[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        (corpus / "seed").write_bytes(target.seed)
        for module in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
            if module != "edge_shared.errors":  # its exception classes are known to `targets` by identity
                del sys.modules[module]
        # Parsers import what they need when they are called: the first call brings it in, instrumented.
        with atheris.instrument_imports(include=list(PACKAGES)):
            target.run(target.seed, folder)
        options = ["-rss_limit_mb=4096", "-timeout=10", "-max_len=65536"]
        atheris.Setup([*sys.argv, *options, str(corpus)], lambda data: bool(target.run(data, folder)) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
