"""Reads a catalogue that nobody vouches for, in a process of its own, and writes what is in it to stdout.

LMDB trusts its file: a damaged page can end whoever maps it with SIGBUS or SIGSEGV, or lead him round in circles. So
kvtierd never looks into a file of a former life; it looks at what this process says, and each row proves itself there.

    output    for each table of TABLES: rows and odd ones as two u64, then the rows, each key + value
"""

import itertools
import os
import resource
import struct
import sys

import lmdb

RECORDS, SEALED, REMEMBERED, META = b"records", b"sealed", b"remembered", b"meta"
# Bytes of a key, and of a value.
TABLES: dict[bytes, tuple[int, int]] = {RECORDS: (4, 68), SEALED: (4, 100), REMEMBERED: (32, 16), META: (4, 56)}
COUNTS = struct.Struct("<QQ")
DAMAGED = 3  # exit status: LMDB says that the file is no good


def rows_of(env: lmdb.Environment, table: bytes, limit: int) -> tuple[list[bytes], int]:
    """The rows that have the right size, at most `limit`; how many have not, or should be there and are not."""
    try:
        opened = env.open_db(table, create=False)
    except lmdb.NotFoundError:
        return [], 0
    key_bytes, value_bytes = TABLES[table]
    with env.begin() as txn:
        found = list(itertools.islice(txn.cursor(opened), limit))
        entries: int = txn.stat(opened)["entries"]
    rows = [key + value for key, value in found if len(key) == key_bytes and len(value) == value_bytes]
    return rows, min(max(entries, len(found)), limit) - len(rows)


def main(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its death is expected
    out = sys.stdout.buffer
    limit = os.path.getsize(path)  # a row takes more than a byte: only a loop has more of them
    with lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=len(TABLES)) as env:
        for table in TABLES:
            rows, odd = rows_of(env, table, limit // sum(TABLES[table]))
            out.write(COUNTS.pack(len(rows), odd))
            out.write(b"".join(rows))
    out.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except lmdb.Error as error:
        print(error, file=sys.stderr)
        sys.exit(DAMAGED)
