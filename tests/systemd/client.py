"""What a client does in the container: reads one request as JSON from stdin, prints its answer as JSON."""

import json
import os
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

from arena_bytes import ArenaBytes, content_of
from kvtierd import Engine, some_keys

from kvtier import _native, observer
from kvtier.block import ABSENT, KEY_BYTES

SOCKET = Path("/run/kvtier/kvtierd.sock")
DRIVE = Path("/var/lib/kvtier/nvme")
PROOF_BYTES = 64  # of a block: nothing else has them by chance


def save(name: str, blocks: int) -> int:
    """Blocks of this name, with bytes that tell whose they are."""
    keys = some_keys(blocks, name)
    with Engine(SOCKET, name, lend=blocks) as engine:
        arena = ArenaBytes(SimpleNamespace(socket=SOCKET), name)
        for number, slot in enumerate(engine.lent[:blocks]):
            arena.write(slot, content_of(keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]))
        engine.save(keys)
        arena.close()
        return len(set(engine.lookup(keys)) - {ABSENT})


def load(name: str, blocks: int) -> int:
    """How many of them are found, with the bytes that were saved."""
    keys = some_keys(blocks, name)
    with Engine(SOCKET, name, lend=blocks) as engine:
        arena = ArenaBytes(SimpleNamespace(socket=SOCKET), name)
        found = 0
        for number, slot in enumerate(engine.lookup(keys)):
            key = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]
            found += slot != ABSENT and arena.read(slot) == content_of(key)
        arena.close()
        return found


def in_the_clear(name: str, blocks: int) -> int:
    """How many of these blocks stand in the files of the drives as they were saved."""
    keys = some_keys(blocks, name)
    files = b"".join(file.read_bytes() for file in DRIVE.rglob("*") if file.is_file())
    contents = [content_of(keys[at : at + KEY_BYTES]) for at in range(0, len(keys), KEY_BYTES)]
    return sum(content[:PROOF_BYTES] in files for content in contents)


def main() -> None:
    request = json.load(sys.stdin)
    what = request.pop("what")
    if what == "snapshot":
        answer: object = observer.ask(SOCKET)
    elif what == "flush":
        answer = observer.flush(SOCKET, 60.0)
    elif what == "user":
        answer = os.getuid()
    elif what == "metrics":
        with urllib.request.urlopen("http://127.0.0.1:9469/metrics", timeout=60) as answered:
            answer = answered.read().decode()
    elif what == "io":
        answer = _native.FileIo(depth=1, threads=1).backend
    else:
        answer = {"save": save, "load": load, "in_the_clear": in_the_clear}[what](**request)
    print(json.dumps(answer))


main()
