"""int8, fp8 and int4: what NumPy says of every value, the same bytes from every set of instructions, and no second loss."""

import numpy as np
import pytest
from kvtier._native import Codec, codec_isas, crc32c, decode_frame, decode_in_place

LOSSY, ELEMENTS, ROWS = ("int8", "fp8", "int4"), ("bf16", "fp16"), (16, 32, 64, 128)
INFINITY = {"bf16": 0x7F80, "fp16": 0x7C00}
MOST = {"int8": 127, "int4": 7}
GROUP = 16 << 10
SMALLEST_SCALE = 2.0**-126  # of the normal ones
TABLE_ROW, TRAILER = 12, 64

formats = pytest.mark.parametrize("name, element", [(name, element) for name in LOSSY for element in ELEMENTS])
every_isa = pytest.mark.parametrize("isa", codec_isas())


def widened(patterns: np.ndarray, element: str) -> np.ndarray:
    if element == "fp16":
        return patterns.view(np.float16).astype(np.float32)
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray, element: str) -> np.ndarray:
    """To the nearest and to even; finite values alone."""
    if element == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def scales_of(largest: np.ndarray, most: int) -> np.ndarray:
    return widened(narrowed(largest / np.float32(most), "bf16"), "bf16")


def kept(patterns: np.ndarray, name: str, element: str, row: int) -> np.ndarray:
    """What is left of whole rows, by NumPy."""
    values = widened(patterns, element)
    if name == "fp8":
        return narrowed(np.copysign(nearest_float8(np.abs(values)), values), element)
    rows = values.reshape(-1, min(row, 32) if name == "int4" else row)
    scales = scales_of(np.abs(rows).max(axis=1, keepdims=True), MOST[name])
    with np.errstate(divide="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    return narrowed((np.rint(rows * inverse) + np.float32(0)) * scales, element).ravel()


def nearest_float8(magnitudes: np.ndarray) -> np.ndarray:
    """Of e4m3's finite values; of two that are as near the even one."""
    codes = np.arange(127)
    exponents, mantissas = codes >> 3, codes & 7
    values = np.where(exponents == 0, mantissas * 2.0**-9, (1 + mantissas / 8) * 2.0 ** (exponents - 7.0))
    assert values[-1] == 448
    between = (values[1:] + values[:-1]) / 2
    lower, upper = (np.searchsorted(between, magnitudes, side=side) for side in ("left", "right"))
    return values[np.where(lower % 2 == 0, lower, upper)]


def encoded(block: np.ndarray, name: str, element: str, row: int, isa: str = "auto") -> np.ndarray | None:
    target = np.empty(block.nbytes, np.uint8)
    done = Codec(name, element, row, isa).encode(block.view(np.uint8), target, seed=7)
    return None if done is None else target[: done[0]]


def decoded(frame: np.ndarray, size: int, isa: str = "auto") -> np.ndarray:
    block = np.empty(size, np.uint8)
    verdict, _ = decode_frame(frame, block, 7, isa)
    assert verdict == "good"
    return block


def normal_values(count: int, element: str, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(count) * np.random.default_rng(seed).lognormal(0, 2, count)
    return narrowed(values.astype(np.float32), element)


# --- what they write -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
@formats
@every_isa
def test_values_are_what_numpy_says(name, element, row, isa):
    block = normal_values(3 * GROUP // 2 + 5 * 128, element)
    frame = encoded(block, name, element, row, isa)
    assert (decoded(frame, block.nbytes, isa).view(np.uint16) == kept(block, name, element, row)).all()


@pytest.mark.parametrize("row", ROWS)
@formats
def test_every_set_of_instructions_writes_the_same_bytes_and_reads_the_others(name, element, row):
    block = normal_values(2 * GROUP // 2 + 1000, element, seed=row).view(np.uint8)[:-1]
    frames = [encoded(block, name, element, row, isa) for isa in codec_isas()]
    blocks = [decoded(frame, block.nbytes, isa) for frame in frames for isa in codec_isas()]
    assert {frame.tobytes() for frame in frames} == {frames[0].tobytes()}
    assert {one.tobytes() for one in blocks} == {blocks[0].tobytes()}


@pytest.mark.parametrize("name, row, ratio", [
    ("int8", 16, 1.77), ("int8", 32, 1.87), ("int8", 64, 1.93), ("int8", 128, 1.96), ("fp8", 64, 1.99), ("int4", 64, 3.54),
    ("int4", 16, 3.19),
])  # fmt: skip
def test_how_much_smaller_a_block_becomes(name, row, ratio):
    block = normal_values(1 << 20, "bf16")
    assert block.nbytes / encoded(block, name, "bf16", row).nbytes == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("name, error", [("int8", 0.007), ("fp8", 0.028), ("int4", 0.1)])
@pytest.mark.parametrize("element", ELEMENTS)
def test_how_much_is_lost_of_normally_distributed_values(name, error, element):
    values = np.random.default_rng(2).standard_normal(1 << 18).astype(np.float32)
    block = narrowed(values, element)
    exact = widened(block, element)
    left = widened(decoded(encoded(block, name, element, 64), block.nbytes).view(np.uint16), element)
    assert error / 2 < np.sqrt(np.mean((left - exact) ** 2) / np.mean(exact**2)) < error


def test_zeros_stay_and_lose_their_sign_where_an_integer_has_none():
    block = np.tile(np.array([0, 0x8000], np.uint16), 4096)
    for name, signed in (("int8", 0), ("int4", 0), ("fp8", 0x8000)):
        left = decoded(encoded(block, name, "bf16", 64), block.nbytes).view(np.uint16)
        assert set(left[::2]) == {0} and set(left[1::2]) == {signed}


# --- every value ---------------------------------------------------------------------------------------------


def largest_values(name: str, element: str) -> tuple[np.ndarray, np.ndarray]:
    """Every pattern that a row's largest value may have: those that have a scale, and those that have none."""
    patterns = np.arange(1, INFINITY[element], dtype=np.uint16)
    scales = scales_of(widened(patterns, element), MOST[name])
    with np.errstate(over="ignore"):
        back = narrowed(scales * MOST[name], element)
    representable = (scales >= SMALLEST_SCALE) & (back < INFINITY[element])
    return patterns[representable], patterns[~representable]


@every_isa
@pytest.mark.parametrize("name, element", [(name, element) for name in MOST for element in ELEMENTS])
def test_whatever_a_row_holds_a_second_time_loses_nothing(name, element, isa):
    """Every scale there is with every integer: so no other can come of what was decoded."""
    row, largest = 32 if name == "int4" else 128, largest_values(name, element)[0]
    assert len(largest) > 30_000
    scales = scales_of(widened(largest, element), MOST[name])[:, None]
    integers = np.resize(np.arange(MOST[name], -1, -1, dtype=np.float32), row)
    integers[-1] = MOST[name]
    for sign in (1, -1):
        once = narrowed(sign * integers * scales, element).ravel()
        frame = encoded(once, name, element, row, isa)
        assert frame is not None
        again = decoded(frame, once.nbytes, isa)
        same = again.view(np.uint16) & 0x7FFF == once & 0x7FFF  # but for a zero's sign
        assert same.all(), once[~same]
        assert encoded(again, name, element, row, isa).tobytes() == frame.tobytes()


@pytest.mark.parametrize("row", ROWS)
@formats
def test_encoding_what_was_decoded_gives_the_same_bytes(name, element, row):
    for spread in (1.0, 1e-3, 30.0):
        values = widened(normal_values(1 << 16, element, seed=row), element) * np.float32(spread)
        block = narrowed(np.clip(values, -60000, 60000), element)
        first = encoded(block, name, element, row)
        assert encoded(decoded(first, block.nbytes), name, element, row).tobytes() == first.tobytes()


@pytest.mark.parametrize("name, element", [(name, element) for name in MOST for element in ELEMENTS])
def test_a_row_of_any_largest_value_has_a_scale_or_is_refused(name, element):
    row = 32 if name == "int4" else 128
    good, refused = largest_values(name, element)
    block = np.repeat(good, row)
    left = decoded(encoded(block, name, element, row), block.nbytes).view(np.uint16)
    assert (left == kept(block, name, element, row)).all()
    assert len(refused) < 1200
    for pattern in refused:
        assert encoded(np.full(8 * row, pattern), name, element, row) is None


@every_isa
@pytest.mark.parametrize("element", ELEMENTS)
def test_fp8_of_every_value_there_is(element, isa):
    finite = np.arange(INFINITY[element], dtype=np.uint16)
    block = np.concatenate([finite, finite | 0x8000])
    frame = encoded(block, "fp8", element, 64, isa)
    left = decoded(frame, block.nbytes, isa).view(np.uint16)
    assert (left == kept(block, "fp8", element, 64)).all()
    assert np.abs(widened(left, element)).max() == 448
    assert len(np.unique(left)) == 254
    assert encoded(left, "fp8", element, 64, isa).tobytes() == frame.tobytes()


# --- what they can't write -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 5000, GROUP // 2, -1])
@formats
@every_isa
def test_nan_and_infinity_are_refused_wherever_they_lie(name, element, isa, where):
    for pattern in (INFINITY[element], INFINITY[element] | 0x8000, INFINITY[element] + 1, 0xFFFF):
        block = normal_values(GROUP, element)
        block[where] = pattern
        assert encoded(block, name, element, 64, isa) is None


@pytest.mark.parametrize("row", ROWS)
@formats
def test_a_block_may_have_any_length_and_its_tail_stays_as_it_is(name, element, row):
    """Less than a row at a group's end, and the odd byte."""
    values = 32 if name == "int4" and row > 32 else 64 if name == "fp8" else row
    whole = normal_values(GROUP, element).view(np.uint8)
    for size in (GROUP - 1, GROUP, GROUP + 1, GROUP + 2 * values - 1, GROUP + 2 * values, GROUP + 777, 3001, 2 * GROUP - 3):
        block = whole[:size].copy()
        tail = size % GROUP % (2 * values)
        block[size - tail :] = 0xFF  # NaN, were it values
        frame = encoded(block, name, element, row)
        left = decoded(frame, size)
        assert left[size - tail :].tobytes() == block[size - tail :].tobytes()
        rows = block[: size - tail].copy().view(np.uint16)
        assert (left[: size - tail].view(np.uint16) == kept(rows, name, element, row)).all(), size


@formats
def test_blocks_and_frames_may_lie_at_any_address(name, element):
    block = normal_values(GROUP, element).view(np.uint8)
    aligned = encoded(block, name, element, 64)
    for shift in (1, 2, 3):
        memory = np.empty(3 * block.nbytes + 4, np.uint8)
        source, frame, back = (memory[shift + n * block.nbytes :][: block.nbytes] for n in range(3))
        source[:] = block
        stored, _ = Codec(name, element, 64).encode(source, frame, seed=7)
        assert frame[:stored].tobytes() == aligned.tobytes()
        assert decode_frame(frame[:stored], back, 7)[0] == "good"
        assert back.tobytes() == decoded(aligned, block.nbytes).tobytes()


@formats
def test_what_becomes_no_smaller_is_not_written(name, element):
    for size in (1, 2, 31, 76, 80):
        assert encoded(normal_values(64, element).view(np.uint8)[:size], name, element, 16) is None


@formats
def test_a_frame_is_decoded_in_its_own_slot(name, element):
    block = normal_values(5 * GROUP // 2 + 321, element).view(np.uint8)
    frame = encoded(block, name, element, 64)
    slot = np.zeros_like(block)
    slot[: frame.nbytes] = frame
    assert decode_in_place(slot, frame.nbytes, 7)[0] == "good"
    assert slot.tobytes() == decoded(frame, block.nbytes).tobytes()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("element, row", [("", 0), ("bf16", 0), ("bf16", 48), ("fp32", 64), ("", 64), ("bf16", 256)])
def test_other_elements_and_rows_are_not_known(name, element, row):
    with pytest.raises(ValueError):
        Codec(name, element, row)


# --- frames that nobody wrote --------------------------------------------------------------------------------


def forged(frame: np.ndarray, body: bytes, mode: int = 1) -> np.ndarray:
    """A frame of one group with another body, and checksums that are right."""
    trailer = frame[-TRAILER:].copy()
    trailer[24:32] = np.frombuffer((len(body) + TABLE_ROW + TRAILER).to_bytes(8, "little"), np.uint8)
    row = np.array([len(body), mode, crc32c(body)], np.uint32).tobytes()
    trailer[-4:] = np.frombuffer(crc32c(row + trailer[:-4].tobytes(), 7).to_bytes(4, "little"), np.uint8)
    return np.frombuffer(body + row + trailer.tobytes(), np.uint8)


def one_group(name: str) -> tuple[np.ndarray, bytes]:
    frame = encoded(normal_values(1024, "bf16"), name, "bf16", 64)
    body = frame[: -TABLE_ROW - TRAILER].tobytes()
    assert forged(frame, body).tobytes() == frame.tobytes()
    return frame, body


@pytest.mark.parametrize("name", LOSSY)
@every_isa
def test_a_body_of_another_length_or_mode_was_never_written(name, isa):
    frame, body = one_group(name)
    for other, mode in ((body[:-1], 1), (body + b"\0", 1), (b"\0", 1), (body, 2), (body, 0x80000000)):
        assert decode_frame(forged(frame, other, mode), np.empty(2048, np.uint8), 7, isa)[0] == "damaged"


@pytest.mark.parametrize("name", MOST)
@every_isa
def test_a_scale_that_is_no_normal_number_was_never_written(name, isa):
    frame, body = one_group(name)
    for scale in (0x0001, 0x007F, 0x7F80, 0x7FC0, 0x8000, 0xBF80, 0xFFFF):
        wrong = body[:2] + scale.to_bytes(2, "little") + body[4:]
        assert decode_frame(forged(frame, wrong), np.empty(2048, np.uint8), 7, isa)[0] == "damaged"


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("name", LOSSY)
@every_isa
def test_any_values_in_a_body_are_decoded_without_a_crash(name, element, isa):
    for seed in range(50):
        chance = np.random.default_rng(seed)
        frame = encoded(normal_values(1024, element), name, element, 64)
        body = bytearray(frame[: -TABLE_ROW - TRAILER].tobytes())
        scales = 0 if name == "fp8" else 2 * 1024 // (32 if name == "int4" else 64)
        body[scales:] = chance.bytes(len(body) - scales)
        verdict = decode_frame(forged(frame, bytes(body)), np.empty(2048, np.uint8), 7, isa)[0]
        assert verdict == "good"
