"""How a block lies in a remote when there is a key: nobody without it reads it, and nobody can change it."""

import asyncio
import random
import threading

import numpy as np
import pytest

from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.tiers.remote.envelope import HEADER_BYTES, body_bytes
from kvtier.tiers.remote.values import ON_LOOP_BYTES, Clear, Sealed
from kvtier.transfer import Demote

KEY, OTHER_KEY = b"k" * KEY_BYTES, b"o" * KEY_BYTES
DIGEST, OTHER_DIGEST = b"\x0d" * 32, b"\x0e" * 32
SIZE = 2 * SLOT_UNIT
BODY = np.frombuffer(random.Random(1).randbytes(SIZE), np.uint8)
LARGE = np.frombuffer(random.Random(2).randbytes(ON_LOOP_BYTES + SLOT_UNIT), np.uint8)
TENANT, OTHER_TENANT = b"s" * 8 + b"t" * 8, b"s" * 8 + b"u" * 8
SECRET = bytes(range(32))


@pytest.fixture
def sealed():
    made = Sealed(MasterKey(SECRET))
    yield made
    made.close()


def written(values, body=BODY, origin=TENANT, key=KEY) -> tuple[bytes, np.ndarray]:
    """Header and body, as the remote has them."""

    async def write() -> tuple[bytes, np.ndarray]:
        demote = Demote(1, key, 0, 0, len(body), 0, 3, origin)
        async with values.made(demote, DIGEST, body) as (header, content, _):
            return header, np.frombuffer(bytes(content), np.uint8).copy()

    return asyncio.run(write())


def read(values, header: bytes, body: np.ndarray, key=KEY, digest=DIGEST) -> np.ndarray:
    async def open_it() -> np.ndarray:
        await values.read(header, key, digest, body)
        return body

    return asyncio.run(open_it())


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["on the loop", "on a thread"])
@pytest.mark.parametrize("origin", [TENANT, b""], ids=["a tenant's", "nobody's"])
def test_what_one_node_sealed_another_with_the_same_key_reads(sealed, body, origin):
    header, content = written(sealed, body, origin)
    assert len(header) == sealed.header_bytes == 148 and header[:8] == b"kvtV\x02\0\0\0"
    other = Sealed(MasterKey(SECRET))
    assert asyncio.run(other.read(header, KEY, DIGEST, content.copy())).origin == origin
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
    from kvtier import _native

    at = {"epoch": 68, "origin": 76, "salt": 100, "nonce": 116, "tag": 128}[field]
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


def test_values_in_the_clear_and_sealed_ones_don_t_find_each_other(sealed):
    header, content = written(sealed)
    length, in_the_clear = len(header) + len(content), HEADER_BYTES + SIZE
    assert body_bytes(length, sealed.header_bytes) == SIZE == body_bytes(in_the_clear, Clear.header_bytes)
    assert body_bytes(length, Clear.header_bytes) == 0 == body_bytes(in_the_clear, sealed.header_bytes)
    for values, other in ((sealed, Clear()), (Clear(), sealed)):
        header, content = written(values)
        with pytest.raises(Corrupt):
            read(other, header, content)
        with pytest.raises((OtherVersion, Corrupt)):
            read(other, (header + bytes(100))[: other.header_bytes], content)


def test_the_slot_is_left_as_it_is_while_it_is_sealed(sealed):
    body = BODY.copy()
    written(sealed, body)
    assert np.array_equal(body, BODY)


def test_memory_is_used_again_and_little_is_kept(sealed):
    async def write_many() -> None:
        async def write_one() -> None:
            async with sealed.made(Demote(1, KEY, 0, 0, SIZE, 0, 0), DIGEST, BODY):
                await asyncio.sleep(0)

        await asyncio.gather(*(write_one() for _ in range(20)))

    asyncio.run(write_many())
    assert len(sealed._spare) == 4
    written(sealed)
    assert len(sealed._spare) == 4


def test_who_is_cancelled_hears_of_it_when_the_memory_is_touched_no_more(sealed):
    over = threading.Event()
    touched: list[bool] = []

    def work() -> None:
        over.wait(30)
        touched.append(True)

    async def cancel_it() -> None:
        task = asyncio.create_task(sealed._aside(ON_LOOP_BYTES + 1, work))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done() and not touched
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert touched

    asyncio.run(cancel_it())
