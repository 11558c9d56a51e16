"""What a process that holds everyone's conversations does without: debuggers, and core files.

The arena is left out of core files anyway (native/arena.cpp); this is for keys, and for what passes through.
"""

import ctypes
import logging
import os
import resource

log = logging.getLogger("kvtierd")

_PR_SET_DUMPABLE = 4  # <sys/prctl.h>; Python has no name for it


def forbid_dumps() -> None:
    """No core files of this process, and nobody but root attaches to it or reads its memory. Its files below /proc are
    root's from now on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        log.warning("debuggers are not kept out: %s", os.strerror(ctypes.get_errno()))
