"""Let the process hold what its tensors hold.

The C library of Linux (glibc) keeps freed blocks of up to 32 MiB for later. Compressed training makes many large temporaries and few
small tensors that live on between them, so that the free blocks cannot be joined and the process grows by several times what is alive.
"""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def return_freed_blocks(threshold: int = 4 << 20) -> bool:
    """Give every freed block of `threshold` bytes or more back to the system at once, for the rest of this process.

    The system then hands out such blocks anew, page by page, which takes time; torch is told to ask for pages of 2 MiB, which makes up
    for most of it if no tensor has been made before.

    Returns:
        Whether the C library took the setting; elsewhere than on glibc nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, threshold) == 1
