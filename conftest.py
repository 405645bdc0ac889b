"""Tests run side by side, one core each: torch's threads would only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
