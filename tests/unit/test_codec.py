"""Frames of the lossless codecs: the same bytes come back, every instruction set writes the same, and no damage is good."""

import random
import struct
import threading

import numpy as np
import pytest
from kvtier._native import Codec, codec_isas, crc32c, decode_frame, decode_in_place, frame_facts

CODECS = {"exp12": 16 << 10, "expz": 256 << 10}  # and the bytes of a group
SEED = 0xC0FFEE
ROW, TRAILER = struct.Struct("<III"), struct.Struct("<4sBBBBIIQQ28sI")
BLOCK, UNIT = 2_949_120, 64 << 10  # 128 tokens of SmolLM2-135M; what places are measured in
EDGE = 64  # bytes beside a target that nobody may touch
LENGTHS = sorted(
    {1, 2, 3, 63, 255, 256, 16_383, 16_384, 16_385, 32_767, 65_536, *random.Random(1).sample(range(70_000), 40)}
)

every_codec = pytest.mark.parametrize("name", CODECS)
every_isa = pytest.mark.parametrize("isa", codec_isas())


def gaussian(values: int, element: str = "bf16", seed: int = 1) -> np.ndarray:
    numbers = np.random.default_rng(seed).standard_normal(values).astype(np.float32)
    narrow = numbers.astype(np.float16) if element == "fp16" else (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return narrow.view(np.uint8)


def as_bytes(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words, np.uint16).view(np.uint8)


def blocks() -> dict[str, np.ndarray]:
    """Every pattern of 16 bits is in some of them: whatever it means, it must come back."""
    rng, patterns = np.random.default_rng(3), np.arange(1 << 16)
    return {
        "every pattern, in order": as_bytes(patterns),
        "every pattern, as it comes": as_bytes(rng.permutation(patterns)),
        # Each once, among values that a codec likes.
        "every pattern as an exception": as_bytes(
            np.where(np.arange(1 << 20) % 16 == 5, np.arange(1 << 20) >> 4, gaussian(1 << 20).view(np.uint16))
        ),
        "zeros": np.zeros(100_000, np.uint8),
        "one value": as_bytes(np.full(50_000, 0x3F80)),
        "one NaN": as_bytes(np.full(50_000, 0x7FC1)),
        "infinities": as_bytes(np.tile([0x7F80, 0xFF80, 0x7C00, 0xFC00], 10_000)),
        "denormals": as_bytes(rng.integers(0, 0x80, 50_000) | rng.integers(0, 2, 50_000) << 15),
        "highest exponents": as_bytes(rng.integers(0x7780, 0x8000, 50_000)),
        "bf16": gaussian(100_000),
        "fp16": gaussian(100_000, "fp16"),
        "fp16 without an infinity": as_bytes(rng.integers(0x4000, 0x7C00, 50_000)),
        "bf16 and then fp16 and then noise": np.concatenate(
            [gaussian(200_000), gaussian(200_000, "fp16"), noise(400_000), gaussian(50_001)[:-1]]
        ),
        "half zeros": np.concatenate([gaussian(40_000), np.zeros(80_000, np.uint8)]),
        "noise": noise(100_001),
    }


def noise(size: int, seed: int = 2) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)


def encoded(block: np.ndarray, name: str = "exp12", isa: str = "auto", seed: int = SEED) -> np.ndarray | None:
    target = np.empty(block.size + EDGE, np.uint8)
    target[-EDGE:] = 0xA5
    done = Codec(name, isa=isa).encode(block, target[:-EDGE], seed)
    assert (target[-EDGE:] == 0xA5).all()
    if done is None:
        return None
    stored, checksum = done
    assert stored < block.size and checksum == struct.unpack("<I", target[stored - 4 : stored])[0]
    return target[:stored].copy()


def decoded(frame: np.ndarray, size: int, seed: int = SEED, isa: str = "auto") -> tuple[str, np.ndarray]:
    """Apart and in place, which must agree, without a touch to what lies beside."""
    beside = np.full(size + 2 * EDGE, 0xA5, np.uint8)
    verdict, checksum = decode_frame(frame, beside[EDGE : EDGE + size], seed, isa)
    slot = np.full(max(size, frame.size) + 2 * EDGE, 0xA5, np.uint8)
    slot[EDGE : EDGE + frame.size] = frame
    if frame.size <= size:
        assert decode_in_place(slot[EDGE : EDGE + size], frame.size, seed, isa) == (verdict, checksum)
        assert verdict != "good" or np.array_equal(slot[EDGE : EDGE + size], beside[EDGE : EDGE + size])
    for buffer in (beside, slot):
        assert (buffer[:EDGE] == 0xA5).all() and (buffer[-EDGE:] == 0xA5).all()
    return verdict, beside[EDGE : EDGE + size]


def comes_back(block: np.ndarray, frame: np.ndarray, isa: str = "auto") -> bool:
    verdict, back = decoded(frame, block.size, isa=isa)
    return verdict == "good" and np.array_equal(back, block)


def trailer_of(frame: np.ndarray) -> list:
    return list(TRAILER.unpack(frame[-TRAILER.size :].tobytes()))


def proven(frame: np.ndarray, seed: int = SEED) -> np.ndarray:
    """The frame with a checksum that fits to its table and trailer, and to what its trailer says of groups."""
    groups = min(trailer_of(frame)[6], (frame.size - TRAILER.size) // ROW.size)
    tail = frame[frame.size - TRAILER.size - groups * ROW.size : -4]
    frame[-4:] = np.frombuffer(struct.pack("<I", crc32c(tail, seed)), np.uint8)
    return frame


def with_trailer(frame: np.ndarray, **changes) -> np.ndarray:
    fields = ("magic", "codec", "version", "element", "row", "group_bytes", "groups", "block_bytes", "frame_bytes", "zeros")
    trailer = dict(zip(fields, trailer_of(frame), strict=False)) | changes
    changed = frame.copy()
    changed[-TRAILER.size :] = np.frombuffer(TRAILER.pack(*trailer.values(), 0), np.uint8)
    return proven(changed)


def with_row(frame: np.ndarray, group: int, **changes: int) -> np.ndarray:
    at = frame.size - TRAILER.size - (trailer_of(frame)[6] - group) * ROW.size
    row = dict(zip(("body_bytes", "mode", "crc"), ROW.unpack(frame[at : at + ROW.size].tobytes()))) | changes
    changed = frame.copy()
    changed[at : at + ROW.size] = np.frombuffer(ROW.pack(*row.values()), np.uint8)
    return proven(changed)


@every_codec
@pytest.mark.parametrize("kind", blocks())
def test_every_block_comes_back_and_every_instruction_set_writes_and_reads_the_same(name, kind):
    block = blocks()[kind]
    frames = [encoded(block, name, isa) for isa in codec_isas()]
    if frames[0] is None:
        assert all(frame is None for frame in frames) and kind not in ("bf16", "fp16", "zeros", "one value")
        return
    for frame in frames:
        assert np.array_equal(frame, frames[0])
    for isa in codec_isas():
        assert comes_back(block, frames[0], isa)


@every_codec
@pytest.mark.parametrize("element", ["bf16", "fp16"])
def test_every_length_comes_back(name, element):
    values = gaussian(40_000, element)
    for length in LENGTHS:
        block = values[:length]
        frames = [encoded(block, name, isa) for isa in codec_isas()]
        assert frames[0] is None or length > 256  # table and trailer take more than there is to gain
        assert frames[0] is not None or length < 16_384, length
        if frames[0] is not None:
            assert all(np.array_equal(frame, frames[0]) for frame in frames)
            assert all(comes_back(block, frames[0], isa) for isa in codec_isas()), length


@every_codec
def test_a_block_that_begins_anywhere_is_the_same(name):
    values = gaussian(50_000)
    moved = np.empty(values.size + 1, np.uint8)
    moved[1:] = values
    frame = encoded(values, name)
    assert np.array_equal(encoded(moved[1:], name), frame)
    shifted = np.empty(frame.size + 1, np.uint8)
    shifted[1:] = frame
    assert decode_frame(shifted[1:], moved[:-1], SEED)[0] == "good" and np.array_equal(moved[:-1], values)


@pytest.mark.parametrize(
    "name, element, least",
    [("exp12", "bf16", 1.32), ("exp12", "fp16", 1.06), ("expz", "bf16", 1.44), ("expz", "fp16", 1.15)],
)
def test_how_much_smaller_blocks_become(name, element, least):
    assert BLOCK / encoded(gaussian(BLOCK // 2, element), name).size >= least


def test_a_block_of_a_small_model_takes_three_quarters_of_its_units():
    for seed in range(8):
        assert encoded(gaussian(BLOCK // 2, seed=seed)).size <= 34 * UNIT < BLOCK == 45 * UNIT


@every_codec
def test_what_cannot_become_smaller_is_no_frame(name):
    assert encoded(noise(300_000), name) is None
    assert encoded(np.zeros(0, np.uint8), name) is None


@every_codec
def test_a_group_that_cannot_become_smaller_lies_in_the_frame_as_it_is(name):
    group = CODECS[name]
    block = np.concatenate([noise(group), gaussian(group // 2), noise(group, 4), gaussian(group // 2)])
    frame = encoded(block, name)
    at = group + int(ROW.unpack(frame[-TRAILER.size - 3 * ROW.size :][: ROW.size].tobytes())[0])
    assert np.array_equal(frame[:group], block[:group])
    assert np.array_equal(frame[at : at + group], block[2 * group : 3 * group])
    assert comes_back(block, frame)


@every_codec
def test_a_frame_that_fills_its_place_ends_with_it(name):
    block = gaussian(200_000)
    frame = encoded(block, name)
    groups = trailer_of(frame)[6]
    tail = TRAILER.size + groups * ROW.size
    for room in (frame.size, frame.size + 1, block.size - 1):
        place = np.full(room, 0xA5, np.uint8)
        done = Codec(name).encode(block, place, SEED, fill=True)
        assert done == (frame.size, struct.unpack("<I", frame[-4:])[0])
        assert np.array_equal(place[: frame.size - tail], frame[:-tail]) and np.array_equal(place[-tail:], frame[-tail:])
        assert not place[frame.size - tail : -tail].any()
        assert comes_back(block, place)
    for room in (0, 1, tail, frame.size - 1):
        assert Codec(name).encode(block, np.empty(room, np.uint8), SEED, fill=True) is None
        assert Codec(name).encode(block, np.empty(room, np.uint8), SEED) is None
    assert Codec(name).encode(block, np.empty(block.size, np.uint8), SEED, fill=True) is None


@every_codec
def test_a_frame_is_good_for_its_own_seed_and_size_alone(name):
    block = gaussian(100_000)
    frame = encoded(block, name)
    assert decoded(frame, block.size, seed=SEED + 1)[0] == "damaged"
    for size in (0, block.size - 1, block.size + 1, 2 * block.size):
        assert decoded(frame, size)[0] == "damaged"


@every_codec
def test_a_bit_that_turned_anywhere_is_damage(name):
    block = gaussian(40_000)
    frame, target = encoded(block, name), np.empty(block.size, np.uint8)
    rng = random.Random(5)
    for at in [*rng.sample(range(frame.size), 2000), *range(frame.size - 150, frame.size)]:
        frame[at] ^= 1 << at % 8
        assert decode_frame(frame, target, SEED)[0] == "damaged", at
        frame[at] ^= 1 << at % 8
    assert comes_back(block, frame)


@every_codec
def test_a_frame_that_was_cut_is_damage(name):
    block = gaussian(20_000)
    frame, target = encoded(block, name), np.empty(block.size, np.uint8)
    for stored in {*range(200), *range(0, frame.size, 97), *range(frame.size - 200, frame.size)}:
        assert decode_frame(frame[:stored], target, SEED) == ("damaged", 0)
    assert decode_frame(frame[1:], target, SEED)[0] == "damaged"


@every_codec
@pytest.mark.parametrize(
    "changes",
    [
        {"codec": 0}, {"codec": 99}, {"version": 2}, {"element": 1}, {"element": 9}, {"row": 64}, {"group_bytes": 4096},
        {"zeros": b"\1" + bytes(27)},
    ],
    ids=str,
)  # fmt: skip
def test_what_another_kvtier_may_have_written_is_unknown(name, changes):
    block = gaussian(20_000)
    assert decoded(with_trailer(encoded(block, name), **changes), block.size)[0] == "unknown"


@every_codec
@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"kvtG"}, {"groups": 0}, {"groups": 1}, {"groups": 3_000}, {"groups": 2**32 - 1}, {"block_bytes": 0},
        {"block_bytes": 2**63}, {"frame_bytes": 0}, {"frame_bytes": 64}, {"frame_bytes": 2**64 - 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_trailer_that_was_never_written_is_damage(name, changes):
    block = gaussian(3 * CODECS[name] // 2)
    assert decoded(with_trailer(encoded(block, name), **changes), block.size)[0] == "damaged"


@every_codec
def test_rows_that_were_never_written_are_damage(name):
    group = CODECS[name]
    block = gaussian(3 * group // 2)
    frame = encoded(block, name)
    length, mode, crc = ROW.unpack(frame[-TRAILER.size - 2 * ROW.size :][: ROW.size].tobytes())
    for body_bytes in (0, 1, length - 1, length + 1, group - 1, group, group + 1, 2**31, 2**32 - 1):
        assert decoded(with_row(frame, 1, body_bytes=body_bytes), block.size)[0] == "damaged"
    assert decoded(with_row(frame, 1, crc=crc ^ 1), block.size)[0] == "damaged"
    assert decoded(with_row(frame, 1, mode=0), block.size)[0] == "damaged"
    for unheard in (3, 255, mode | 1 << 16, mode | 1 << 31, 2**32 - 1, 1 | 241 << 8, 2 | 17 << 8):
        assert decoded(with_row(frame, 1, mode=unheard), block.size)[0] == "damaged"


@every_codec
@every_isa
def test_bodies_made_up_with_every_checksum_right_never_leave_their_block(name, isa):
    block = gaussian(CODECS[name] // 2)[:-6]
    frame, rng = encoded(block, name), random.Random(7)
    body_bytes, mode, _ = ROW.unpack(frame[-TRAILER.size - ROW.size :][: ROW.size].tobytes())
    assert frame.size == body_bytes + ROW.size + TRAILER.size
    seen = set()
    for _ in range(400):
        length = rng.choice((body_bytes, body_bytes, rng.randrange(1, block.size)))
        body = rng.choice((frame, noise(block.size, rng.randrange(1 << 30))))[:length].copy()
        body = np.concatenate([body, noise(length - body.size, 1)])
        for at in rng.choices(range(length), k=rng.randrange(4)):
            body[at] = rng.randrange(256)
        made_up = np.concatenate([body, frame[body_bytes:]])
        made_up = with_trailer(made_up, frame_bytes=made_up.size)
        row = {"body_bytes": length, "mode": rng.choice((mode, mode, 1, 2, rng.randrange(1 << 32))), "crc": crc32c(body)}
        seen.add(decoded(with_row(made_up, 0, **row), block.size, isa=isa)[0])
    assert seen == {"good", "damaged"}  # good is what it decodes to: whoever makes the checksums may say so


@every_codec
def test_noise_in_trailer_and_table_is_never_good(name):
    block = gaussian(2 * CODECS[name])
    frame, rng = encoded(block, name), random.Random(11)
    tail = TRAILER.size + trailer_of(frame)[6] * ROW.size
    places = [at for at in range(tail - 4) if at >= tail - TRAILER.size or not 4 <= at % ROW.size < 8]  # no row's mode
    for _ in range(1000):
        broken = frame.copy()
        for at in rng.choices(places, k=rng.randrange(1, 4)):
            broken[frame.size - tail + at] = rng.randrange(256)
        if not np.array_equal(broken, frame):
            assert decoded(proven(broken), block.size)[0] in ("damaged", "unknown")


def test_a_buffer_of_noise_is_no_frame():
    target = np.empty(100_000, np.uint8)
    for seed in range(200):
        frame = noise(random.Random(seed).randrange(200_000), seed)
        assert decode_frame(frame, target, SEED) == ("damaged", 0) and frame_facts(frame) is None


@every_codec
def test_a_trailer_says_what_it_is(name):
    block, group = gaussian(100_000), CODECS[name]
    place = np.empty(block.size - 1, np.uint8)
    stored, _ = Codec(name).encode(block, place, SEED, fill=True)
    groups = -(-block.size // group)
    assert frame_facts(place) == {
        "codec": name,
        "version": 1,
        "element": "",
        "row": 0,
        "groups": groups,
        "stored": stored,
        "block_bytes": block.size,
        "body_bytes": stored - TRAILER.size - groups * ROW.size,
    }
    assert frame_facts(with_trailer(place, codec=99, element=9))["codec"] == "codec 99"


def test_codecs_work_on_many_threads_at_once():
    kept = [(name, gaussian(400_000, seed=seed)) for seed in range(2) for name in CODECS]
    expected, wrong = [encoded(block, name) for name, block in kept], []

    def work() -> None:
        for _ in range(5):
            for (name, block), frame in zip(kept, expected):
                if not (np.array_equal(encoded(block, name), frame) and comes_back(block, frame)):
                    wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_not_there_is_said():
    with pytest.raises(ValueError, match="no codec is named zip"):
        Codec("zip")
    with pytest.raises(ValueError, match="takes no"):
        Codec("exp12", "bf16", 64)
    with pytest.raises(ValueError, match="this CPU has no mmx"):
        Codec("exp12", isa="mmx")
    with pytest.raises(ValueError, match="shorter than its slot"):
        decode_in_place(np.empty(10, np.uint8), 11)
    assert codec_isas()[-1] == "portable" and Codec("exp12", isa="portable")
