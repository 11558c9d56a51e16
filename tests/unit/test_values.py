"""How a block lies in a remote: as it is or in a frame, in the clear or such that without the key nobody reads it."""

import asyncio
import random
import time

import numpy as np
import pytest
from coded_blocks import TRAILER_BYTES, forged, of_bf16, of_noise

from kvtier import _native
from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.codec import RAW, Codec
from kvtier.tiers.encoders import encoder_of, why_not
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.remote import values as values_module
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.tiers.remote.beside import ON_LOOP_BYTES
from kvtier.tiers.remote.envelope import Header, checksum_before, pack, unpack
from kvtier.tiers.remote.values import Clear, Sealed
from kvtier.transfer import Demote

KEY, OTHER_KEY = b"k" * KEY_BYTES, b"o" * KEY_BYTES
DIGEST, OTHER_DIGEST = b"\x0d" * 32, b"\x0e" * 32
SIZE = 2 * SLOT_UNIT
BODY = np.frombuffer(random.Random(1).randbytes(SIZE), np.uint8)
LARGE = np.frombuffer(random.Random(2).randbytes(ON_LOOP_BYTES + SLOT_UNIT), np.uint8)
TENANT, OTHER_TENANT = b"s" * 8 + b"t" * 8, b"s" * 8 + b"u" * 8
SECRET = bytes(range(32))
EXP12 = Codec("exp12")
SEED = checksum_before(KEY)
PAUSE_S = 0.02


@pytest.fixture
def sealed():
    made = Sealed(MasterKey(SECRET))
    yield made
    made.close()


def written(values, body=BODY, origin=TENANT, key=KEY) -> tuple[bytes, np.ndarray]:
    """Header and body, as the remote has them."""

    async def write() -> tuple[bytes, np.ndarray]:
        demote = Demote(1, key, 0, 0, len(body), 0, 3, origin)
        async with values.made(demote, DIGEST, body) as value:
            return value.header, np.frombuffer(bytes(value.body), np.uint8).copy()

    return asyncio.run(write())


def read(values, header: bytes, body: np.ndarray, key=KEY, digest=DIGEST) -> np.ndarray:
    async def open_it() -> np.ndarray:
        await values.read(header, key, digest, body, len(body))
        return body

    return asyncio.run(open_it())


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["on the loop", "on a thread"])
@pytest.mark.parametrize("origin", [TENANT, b""], ids=["a tenant's", "nobody's"])
def test_what_one_node_sealed_another_with_the_same_key_reads(sealed, body, origin):
    header, content = written(sealed, body, origin)
    assert len(header) == sealed.header_bytes == 164 and header[:8] == b"kvtV\x04\0\0\0"
    other = Sealed(MasterKey(SECRET))
    assert asyncio.run(other.read(header, KEY, DIGEST, content.copy(), len(content))).header.origin == origin
    assert np.array_equal(read(other, header, content, KEY), body)
    other.close()


def test_no_byte_of_it_can_be_seen(sealed):
    body = np.tile(np.frombuffer(b"a prompt that is secret. " * 4, np.uint8), SIZE // 100 + 1)[:SIZE].copy()
    header, content = written(sealed, body)
    assert b"secret" not in header + content.tobytes()
    assert len(np.unique(content, return_counts=True)[0]) == 256, "it looks like noise"


def test_the_same_block_is_never_the_same_value_twice(sealed):
    (one, content), (other, again) = written(sealed), written(sealed)
    assert one != other and not np.array_equal(content, again)


def test_each_flipped_bit_of_a_header_is_seen(sealed):
    header, content = written(sealed)
    for bit in range(8 * len(header)):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(OtherVersion if 4 <= bit // 8 < 8 else Corrupt):
            read(sealed, bytes(damaged), content.copy())


@pytest.mark.parametrize("field", ["epoch", "origin", "salt", "nonce", "tag"])
def test_a_header_that_was_forged_with_its_crc_opens_nothing(sealed, field):
    at = {"epoch": 76, "origin": 84, "salt": 116, "nonce": 132, "tag": 144}[field]
    header, content = written(sealed)
    forged = bytearray(header[:-4])
    forged[at] ^= 1
    forged += _native.crc32c(bytes(forged)).to_bytes(4, "little")
    with pytest.raises(Corrupt, match="not those that were sealed"):
        read(sealed, bytes(forged), content)
    assert not content.any()


@pytest.mark.parametrize("at", [0, SLOT_UNIT, SIZE - 1])
def test_a_flipped_bit_of_a_body_is_seen_and_leaves_zeros(sealed, at):
    header, content = written(sealed)
    content[at] ^= 1
    with pytest.raises(Corrupt, match="not those that were sealed"):
        read(sealed, header, content)
    assert not content.any()


def test_the_body_of_another_value_opens_nothing(sealed):
    header, _ = written(sealed)
    _, other = written(sealed, origin=OTHER_TENANT)
    with pytest.raises(Corrupt, match="not those that were sealed"):
        read(sealed, header, other)


@pytest.mark.parametrize("asked", [{"key": OTHER_KEY}, {"digest": OTHER_DIGEST}], ids=["key", "namespace"])
def test_a_whole_value_under_the_wrong_name_is_corrupt(sealed, asked):
    header, content = written(sealed)
    with pytest.raises(Corrupt, match="another block's"):
        read(sealed, header, content, **asked)


def test_what_another_key_sealed_is_not_ours_to_judge(sealed):
    header, content = written(sealed)
    other = Sealed(MasterKey(b"x" * 32))
    with pytest.raises(OtherVersion, match="another key"):
        read(other, header, content)
    other.close()


def test_values_in_the_clear_and_sealed_ones_are_another_version_to_each_other(sealed):
    for values, other in ((sealed, Clear()), (Clear(), sealed)):
        header, content = written(values)
        value = header + content.tobytes()
        with pytest.raises(OtherVersion, match="this kvtier reads"):
            read(other, value[: other.header_bytes], np.frombuffer(value, np.uint8)[other.header_bytes :].copy())


def test_the_slot_is_left_as_it_is_while_it_is_sealed(sealed):
    body = BODY.copy()
    written(sealed, body)
    assert np.array_equal(body, BODY)


# --- frames ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["in the clear", "sealed"])
def values(request):
    made = Clear() if request.param == "in the clear" else Sealed(MasterKey(SECRET))
    yield made
    made.close()


def coded(values, block: np.ndarray, codec: Codec = EXP12, stored: int = 0) -> tuple[bytes, np.ndarray, int] | None:
    """Header, body and checksum of its value; None: it has no frame that is small enough."""

    async def write() -> tuple[bytes, np.ndarray, int] | None:
        demote = Demote(1, KEY, 0, 0, len(block), 0, 3, TENANT, codec, stored or len(block))
        async with values.made(demote, DIGEST, block) as value:
            return value and (value.header, np.frombuffer(bytes(value.body), np.uint8).copy(), value.checksum)

    return asyncio.run(write())


def decoded(values, header: bytes, body: np.ndarray, size: int) -> np.ndarray:
    """What the slot holds when the body came to its beginning."""
    slot = np.full(size, 0xA5, np.uint8)
    slot[: len(body)] = body

    async def open_it() -> None:
        found, codec, coded_s = await values.read(header, KEY, DIGEST, slot, len(body))
        assert (found.size, found.body_bytes, found.origin) == (size, len(body), TENANT)
        assert codec and coded_s >= 0 if len(body) < size else not codec and not coded_s

    asyncio.run(open_it())
    return slot


@pytest.mark.parametrize("size", [SIZE, ON_LOOP_BYTES + SLOT_UNIT], ids=["on the loop", "on a thread"])
@pytest.mark.parametrize("codec", ["exp12", "expz"])
def test_a_frame_is_shorter_and_becomes_the_block_in_its_slot(values, codec, size):
    if why_not(Codec(codec)):
        pytest.skip(why_not(Codec(codec)))
    block = of_bf16(size)
    header, body, _ = coded(values, block, Codec(codec))
    assert len(header) == values.header_bytes and len(body) < 0.8 * size
    assert np.array_equal(decoded(values, header, body, size), block)


def test_a_lossy_one_comes_back_nearly(values):
    block = of_bf16(SIZE)
    header, body, _ = coded(values, block, Codec("int8", "bf16", 64))
    found = decoded(values, header, body, SIZE)
    assert len(body) < 0.6 * SIZE and not np.array_equal(found, block)
    there, back = (part.view(np.uint16).astype(np.uint32) << 16 for part in (block, found))
    assert np.abs(there.view(np.float32) - back.view(np.float32)).max() < 0.05


def test_in_the_clear_the_frame_s_own_checksum_is_the_value_s():
    header, body, checksum = coded(Clear(), of_bf16(SIZE))
    assert checksum == unpack(header).checksum == _native.decode_frame(body, np.empty(SIZE, np.uint8), SEED)[1] != 0


def test_of_a_sealed_frame_no_byte_can_be_seen(sealed):
    _, body, checksum = coded(sealed, np.zeros(SIZE, np.uint8))
    assert _native.frame_facts(body) is None and not checksum


@pytest.mark.parametrize("stored", [0, 1000], ids=["noise", "a bound"])
def test_what_has_no_frame_that_is_small_enough_is_no_value(values, stored):
    assert coded(values, of_bf16(SIZE) if stored else of_noise(SIZE), EXP12, stored) is None


def test_the_bound_is_the_last_byte(values):
    block = of_bf16(SIZE)
    needed = len(coded(values, block)[1])
    assert len(coded(values, block, EXP12, needed)[1]) == needed
    assert coded(values, block, EXP12, needed - 1) is None


def test_whom_this_machine_can_t_code_for_gets_no_frame(values, monkeypatch):
    monkeypatch.setattr(values_module, "encoder_of", lambda codec: None)
    assert coded(values, of_bf16(SIZE)) is None


def test_where_nothing_is_coded_every_block_lies_as_it_is():
    block = of_bf16(SIZE)
    header, body, _ = coded(Clear(codes=False), block)
    assert np.array_equal(body, block) and not unpack(header).codec
    assert np.array_equal(read(Clear(), header, body), block)


def test_the_block_is_left_as_it_is_while_it_is_coded(values):
    block = of_bf16(SIZE)
    before = block.copy()
    coded(values, block)
    assert np.array_equal(block, before)


def test_a_codec_is_as_slow_as_whoever_waits_for_it_feels(values, monkeypatch):
    """Others have the processors: none is used meanwhile, and yet time goes by."""
    encoder, decode, block = encoder_of(EXP12), _native.decode_in_place, of_bf16(SIZE)

    class Held:
        def encode(self, *what):
            time.sleep(PAUSE_S)
            return encoder.encode(*what)

    def held(*what):
        time.sleep(PAUSE_S)
        return decode(*what)

    monkeypatch.setattr(values_module, "encoder_of", lambda codec: Held())
    monkeypatch.setattr(_native, "decode_in_place", held)

    async def both() -> tuple[float, float]:
        slot = np.zeros(SIZE, np.uint8)
        async with values.made(Demote(1, KEY, 0, 0, SIZE, 0, 3, TENANT, EXP12, SIZE), DIGEST, block) as value:
            stored = len(value.body)
            slot[:stored] = value.body
            came = await values.read(value.header, KEY, DIGEST, slot, stored)
        assert np.array_equal(slot, block)
        return value.coded_s, came.coded_s

    assert min(asyncio.run(both())) >= PAUSE_S


def test_each_flipped_bit_of_a_coded_header_is_seen(values):
    header, body, _ = coded(values, of_bf16(SIZE))
    for bit in range(8 * len(header)):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(OtherVersion if 4 <= bit // 8 < 8 else Corrupt):
            decoded(values, bytes(damaged), body, SIZE)


def test_a_flipped_bit_anywhere_in_a_frame_is_seen(values):
    header, body, _ = coded(values, of_bf16(SIZE))
    for at in (*range(0, len(body), 997), *range(len(body) - 2 * TRAILER_BYTES, len(body))):
        damaged = body.copy()
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Corrupt):
            decoded(values, header, damaged, SIZE)


@pytest.mark.parametrize("length", [1, TRAILER_BYTES - 1, TRAILER_BYTES, -1], ids=str)
def test_a_body_of_another_length_than_its_header_says_is_another_value_s(values, length):
    header, body, _ = coded(values, of_bf16(SIZE))
    with pytest.raises(Corrupt, match="another block's"):
        decoded(values, header, body[:length], SIZE)


def test_a_frame_of_a_larger_or_smaller_block_is_another_value_s(values):
    header, body, _ = coded(values, of_bf16(SIZE))
    for size in (SIZE - SLOT_UNIT, SIZE + SLOT_UNIT):
        with pytest.raises(Corrupt, match="another block's"):
            decoded(values, header, body[:size], size)


def lying(frame: np.ndarray, **header) -> bytes:
    """A header in the clear that fits to the frame, but for what it says otherwise."""
    numbers = frame[-TRAILER_BYTES + 4 :][:4].tobytes() if len(frame) >= TRAILER_BYTES else b"\x01\x01\0\0"
    checksum = int.from_bytes(frame[-4:].tobytes(), "little")
    return pack(Header(KEY, SIZE, checksum, DIGEST, 3, TENANT, len(frame), numbers)._replace(**header))


@pytest.mark.parametrize(
    "says",
    [{"block_bytes": SIZE - 1}, {"block_bytes": 1 << 63}, {"groups": 0}, {"groups": 1 << 31}, {"frame_bytes": 0},
     {"frame_bytes": 1 << 63}],
    ids=str,
)  # fmt: skip
def test_a_frame_that_lies_about_its_sizes_is_corrupt(says):
    frame = forged(coded(Clear(), of_bf16(SIZE))[1], SEED, **says)
    with pytest.raises(Corrupt):
        decoded(Clear(), lying(frame), frame, SIZE)


@pytest.mark.parametrize("says", [{"codec": 200}, {"version": 200}, {"element": 9}, {"row": 7}], ids=str)
def test_a_codec_that_nobody_here_knows_is_not_ours_to_judge(says):
    frame = forged(coded(Clear(), of_bf16(SIZE))[1], SEED, **says)
    with pytest.raises(OtherVersion, match="can't decode it"):
        decoded(Clear(), lying(frame), frame, SIZE)


def test_a_header_with_another_codec_than_its_frame_is_corrupt():
    frame = coded(Clear(), of_bf16(SIZE))[1]
    with pytest.raises(Corrupt, match="not of the codec"):
        decoded(Clear(), lying(frame, codec=b"\xc8\x01\0\0"), frame, SIZE)


def test_a_frame_of_another_block_with_a_header_of_this_one_is_corrupt():
    frame = coded(Clear(), of_bf16(SIZE))[1]
    other = forged(frame, 0)  # whole, but its checksum begins with no key
    with pytest.raises(Corrupt, match="damaged"):
        decoded(Clear(), lying(other), other, SIZE)
    with pytest.raises(Corrupt, match="not those that were written"):
        decoded(Clear(), lying(frame, checksum=1), frame, SIZE)


@pytest.mark.parametrize("size", [1, TRAILER_BYTES - 1, TRAILER_BYTES, SLOT_UNIT], ids=str)
@pytest.mark.parametrize("content", [of_noise, lambda size: np.zeros(size, np.uint8)], ids=["noise", "zeros"])
def test_what_is_no_frame_at_all_is_corrupt(size, content):
    body = content(size)
    for numbers in (b"\x01\x01\0\0", body[-TRAILER_BYTES + 4 :][:4].tobytes().ljust(4, b"\x01")):
        if any(numbers):
            with pytest.raises(Corrupt):
                decoded(Clear(), lying(body, codec=numbers), body, SIZE)


@pytest.mark.parametrize("origin", ["in the clear", "sealed"])
def test_one_node_codes_and_another_does_not_and_each_reads_what_the_other_wrote(origin):
    one, other = (Clear(), Clear()) if origin == "in the clear" else (Sealed(MasterKey(SECRET)), Sealed(MasterKey(SECRET)))
    block = of_bf16(SIZE)
    for writer, reader, codec in ((one, other, EXP12), (other, one, RAW)):
        header, body, _ = coded(writer, block, codec)
        assert (len(body) < SIZE) == (codec == EXP12)
        assert np.array_equal(decoded(reader, header, body, SIZE), block)
    one.close()
    other.close()


@pytest.mark.parametrize("codec", ["none", "exp12", "expz"])
def test_whatever_is_changed_it_is_seen_or_it_was_nothing(values, codec):
    """Also where the header's crc was made to fit."""
    if why_not(Codec(codec)):
        pytest.skip(why_not(Codec(codec)))
    block, chance = of_bf16(SIZE), random.Random(1)
    header, body, _ = coded(values, block, Codec(codec))
    seen = 0
    for _ in range(300):
        damaged = bytearray(header[:-4] + body.tobytes())
        for _ in range(chance.randint(1, 4)):
            at = chance.choice([chance.randrange(len(damaged)), chance.randrange(8, len(header)), -chance.randint(1, 400)])
            damaged[at] = chance.choice([0, 0xFF, damaged[at] ^ 1, chance.randrange(256)])
        before = bytes(damaged[: len(header) - 4])
        slot = np.full(SIZE, 0xA5, np.uint8)
        slot[: len(body)] = np.frombuffer(damaged, np.uint8)[len(before) :]
        try:
            found = asyncio.run(
                values.read(before + _native.crc32c(before).to_bytes(4, "little"), KEY, DIGEST, slot, len(body))
            )
        except (Corrupt, OtherVersion):
            seen += 1
        else:
            assert np.array_equal(slot, block) and found.header.key == KEY
    assert seen > 200
