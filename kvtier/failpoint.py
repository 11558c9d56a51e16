"""Where a crash test may end the process: KVTIER_FAILPOINT=name:kill@n kills it at the n-th passage of that point.

A point stands at each step between two states of the files, so that tests can see each of them after a crash.
"""

import itertools
import os
import signal

POINTS: dict[str, str] = {
    "format_written": "a drive's folder is marked as part of a store, its payload file not yet made",
    "extent_allocated": "a drive's payload file has its whole size",
    "catalogue_rebuilt_before_replace": "the fresh catalogue is written, the former one still in its place",
    "catalogue_replaced": "the fresh catalogue is in place",
    "keys_written_before_replace": "the file of data keys is written, not yet in its place",
    "keys_replaced": "the file of data keys is in place",
    "keys_written": "data keys are made or overwritten, perhaps only in the drive's cache",
    "keys_synced": "data keys that were made or shredded are on the drive",
    "payload_written": "the bytes of a block are written, nothing says so yet",
    "zeroed": "the bytes of a block are overwritten with zeros, its record still says that it is there",
    "before_datasync": "records are about to be committed, their bytes perhaps only in the drive's cache",
    "before_commit": "the bytes are on the drive, their records are not",
    "before_forget": "in a commit, ahead of the removal of records",
    "after_forget": "in a commit, records are removed but not yet for good",
    "after_commit": "a commit is durable, nobody was told",
    "before_promote": "a block is about to be read",
    "promote_read": "a block was read, not yet verified",
    "closing": "the tier is asked to end",
}

_name, _, _passage = os.environ.get("KVTIER_FAILPOINT", "").partition(":kill@")
_nth = int(_passage or 0)
_passages = itertools.count(1)
assert not _name or _name in POINTS, _name


def reach(name: str) -> None:
    """Says that this point is reached. Nothing happens unless the environment names it."""
    assert name in POINTS, name
    if name == _name and next(_passages) == _nth:
        os.kill(os.getpid(), signal.SIGKILL)
