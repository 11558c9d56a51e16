"""Frames in a slot that others write to while they are decoded: an engine has the same memory mapped, and whatever it does
there, kvtierd lives on."""

import subprocess
import sys

import pytest

from kvtier.codec import read_codec
from kvtier.tiers.encoders import why_not

SCRIBBLED = """
import sys, threading, time
import numpy as np
from kvtier import _native
NAME, ELEMENT, ROW = {codec!r}
SIZE, EDGE, FRAMES, SECONDS, SEED = 8 << 20, 256 << 10, 150, 5, 7
values = np.random.default_rng(1).standard_normal(SIZE // 2, np.float32)
block = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
block[1::998] = 0x12  # exponents far away
room = np.empty(SIZE, np.uint8)
stored, _ = _native.Codec(NAME, ELEMENT, ROW).encode(block, room, SEED)
frame, memory = room[:stored].copy(), np.full(SIZE + 2 * EDGE, 0xA5, np.uint8)
slot, groups = memory[EDGE:-EDGE], _native.frame_facts(room[:stored])["groups"]
rows = slice(stored - 64 - 12 * groups + 3, stored - 64, 12)  # the highest byte of how many a body has
good, done = frame[rows].copy(), threading.Event()
def scribble():
    turn = 0
    while not done.is_set():
        slot[rows] = 0x7F
        slot[rows] = good
        turn += 1
        slot[turn % 61 : stored - 64 - 12 * groups : 61] = turn & 0xFF
writer = threading.Thread(target=scribble)
writer.start()
seen, until = set(), time.monotonic() + SECONDS
for _ in range(FRAMES):
    slot[:stored] = frame
    seen.add(_native.decode_in_place(slot, stored, SEED)[0])
    if time.monotonic() > until:
        break
done.set()
writer.join()
assert seen <= {{"good", "damaged"}}, seen
assert (memory[:EDGE] == 0xA5).all() and (memory[-EDGE:] == 0xA5).all(), "beside the slot nothing is touched"
slot[:stored] = frame
assert _native.decode_in_place(slot, stored, SEED)[0] == "good"
print("lives")
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("name", ["exp12", "expz", "int8:bf16:64", "fp8:bf16:64", "int4:bf16:64"])
def test_whoever_writes_into_a_slot_meanwhile_spoils_at_most_the_block(name):
    codec = read_codec(name)
    if why_not(codec):
        pytest.skip(why_not(codec))
    assert run(SCRIBBLED.format(codec=tuple(codec))) == "lives\n"
