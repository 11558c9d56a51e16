"""Reads a catalogue that nobody vouches for, in a process of its own, and writes what is in it to stdout.

LMDB trusts its file: a damaged page can end whoever maps it with SIGBUS or SIGSEGV, or lead him round in circles. So
kvtierd never looks into a file of a former life; it looks at what this process says, and each row proves itself there.

    output    the rows of each table of TABLES, each key + value; then for each table rows and odd ones as two u64
"""

import itertools
import os
import resource
import struct
import sys
from typing import BinaryIO

import lmdb

RECORDS, SEALED, REMEMBERED, META = b"records", b"sealed", b"remembered", b"meta"
# Bytes of a key, and of a value.
TABLES: dict[bytes, tuple[int, int]] = {RECORDS: (4, 68), SEALED: (4, 100), REMEMBERED: (32, 16), META: (4, 56)}
COUNTS = struct.Struct("<QQ")
PIECE = 65_536  # rows in this process's memory at one time
DAMAGED = 3  # exit status: LMDB says that the file is no good


def copy_rows(env: lmdb.Environment, table: bytes, limit: int, out: BinaryIO) -> tuple[int, int]:
    """Of the first `limit` rows, those that have the right size. How many they are; how many are not of it, or should be
    there and are not."""
    try:
        opened = env.open_db(table, create=False)
    except lmdb.NotFoundError:
        return 0, 0
    key_bytes, value_bytes = TABLES[table]
    good = found = 0
    with env.begin() as txn:
        rows = itertools.islice(txn.cursor(opened), limit)
        while piece := list(itertools.islice(rows, PIECE)):
            right = [key + value for key, value in piece if len(key) == key_bytes and len(value) == value_bytes]
            out.write(b"".join(right))
            good, found = good + len(right), found + len(piece)
        entries: int = txn.stat(opened)["entries"]
    return good, min(max(entries, found), limit) - good


def main(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its death is expected
    out = sys.stdout.buffer
    limit = os.path.getsize(path)  # a row takes more than a byte: only a loop has more of them
    with lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=len(TABLES)) as env:
        counts = [copy_rows(env, table, limit // sum(TABLES[table]), out) for table in TABLES]
    out.write(b"".join(COUNTS.pack(*of_a_table) for of_a_table in counts))
    out.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except lmdb.Error as error:
        print(error, file=sys.stderr)
        sys.exit(DAMAGED)
