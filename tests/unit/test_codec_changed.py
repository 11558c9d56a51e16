"""Frames in a slot that others write to while they are decoded: an engine has the same memory mapped, and whatever it does
there, kvtierd lives on."""

import subprocess
import sys

import pytest

from kvtier.codec import read_codec
from kvtier.tiers.encoders import why_not

CODECS = pytest.mark.parametrize("codec", ["exp12", "expz", "int8:bf16:64", "fp8:bf16:64", "int4:bf16:64"])

# One process decodes; another one changes bytes and puts them right again, one at a time: a frame is whole at one moment,
# and not at the next.
SCRIBBLED = """
import mmap, os, signal, struct, time
import numpy as np
from kvtier import _native
CODEC, EDGE, SECONDS, SEED = {codec!r}, 256 << 10, 3, 7
def frame_of(size):
    values = np.random.default_rng(1).standard_normal(size // 2, np.float32)
    block = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    block[1::998] = 0x12  # exponents far away
    room = np.empty(size, np.uint8)
    stored, _ = _native.Codec(*CODEC).encode(block, room, SEED)
    return room[:stored]
def decode_while_scribbled(frame, size, scribbled, proofs_wanted):
    memory = np.frombuffer(mmap.mmap(-1, size + 2 * EDGE), np.uint8)  # only what is touched takes room
    memory[:EDGE] = memory[-EDGE:] = 0xA5
    slot, parent = memory[EDGE:-EDGE], os.getpid()
    slot[: len(frame)] = frame
    scribbler = os.fork()
    if scribbler == 0:
        while os.getppid() == parent:
            for at in scribbled:
                good = slot[at]
                slot[at] = 0x7F
                slot[at] = good
        os._exit(0)
    seen, proofs, until = set(), 0, time.monotonic() + SECONDS
    while proofs < proofs_wanted and time.monotonic() < until:
        verdict, checksum = _native.decode_in_place(slot, len(frame), SEED)
        seen.add(verdict)
        proofs += checksum != 0
        if verdict == "good" or len(scribbled) > 1:
            slot[: len(frame)] = frame
    os.kill(scribbler, signal.SIGKILL)
    os.waitpid(scribbler, 0)
    assert (memory[:EDGE] == 0xA5).all() and (memory[-EDGE:] == 0xA5).all(), "beside the slot nothing is touched"
    assert proofs, "it was never whole"
    print(*sorted(seen))
"""
# Of many rows, so that the proof takes long, and of bodies of one byte, of which the first that is looked at is wrong: so
# little else is done. What changes is how many bytes that one has.
ROWS = """
ROWS, TRAILER, ROW = 16384, 64, struct.Struct("<III")
trailer = frame_of(512 << 10)[-TRAILER:]
(group_bytes,) = struct.unpack_from("<I", trailer, 8)
size = ROWS * group_bytes
frame = np.frombuffer(bytes(ROWS) + ROW.pack(1, 1, 1) * ROWS + trailer.tobytes(), np.uint8).copy()
struct.pack_into("<IQQ", frame, len(frame) - TRAILER + 12, ROWS, size, len(frame))
struct.pack_into("<I", frame, len(frame) - 4, _native.crc32c(frame[ROWS:-4], SEED))
decode_while_scribbled(frame, size, [len(frame) - TRAILER - ROW.size + 3], 20_000)
"""
BODIES = """
frame = frame_of(1 << 20)
bodies = _native.frame_facts(frame)["body_bytes"]
decode_while_scribbled(frame, 1 << 20, np.random.default_rng(2).integers(0, bodies, 4096).tolist(), 1_000)
"""


def seen_of(codec: str, program: str) -> set[str]:
    """What was said of frames in which somebody wrote meanwhile."""
    named = read_codec(codec)
    if why_not(named):
        pytest.skip(why_not(named))
    program = SCRIBBLED.format(codec=tuple(named)) + program
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return set(done.stdout.split())


@CODECS
def test_a_row_that_changes_after_its_proof_says_nothing(codec):
    assert seen_of(codec, ROWS) == {"damaged"}


@CODECS
def test_whoever_writes_into_bodies_meanwhile_spoils_at_most_the_block(codec):
    assert seen_of(codec, BODIES) in ({"good"}, {"good", "damaged"})
