"""Hardening: no dumps of a process that has forbidden them."""

import subprocess
import sys

PROGRAM = """
import ctypes, resource
from kvtier.hardening import forbid_dumps
forbid_dumps()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_a_process_that_forbids_dumps_is_not_dumpable_and_leaves_no_core():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    assert said == "0 (0, 0)\n"
