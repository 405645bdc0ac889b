"""Tests run side by side, one core each: torch's threads would only wait for each other.

And they start hundreds of commands: where the environment forbids bytecode, each of those would compile torch's sources again.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
