"""Exchanges as a loop's coroutines see them."""

import asyncio
import errno
import socket
import struct

import pytest

from kvtier.tiers.remote.exchanges import PATIENCE_S, Exchanges

VALUE = bytes(range(256)) * 1024


async def answering(peer, asked, answer):
    """The other end of one exchange."""
    loop = asyncio.get_running_loop()
    heard = b""
    while len(heard) < len(asked):
        heard += await loop.sock_recv(peer, 1 << 20)
    assert heard == asked
    await loop.sock_sendall(peer, answer)


def pairs(count):
    found = [socket.socketpair() for _ in range(count)]
    for here, there in found:
        limit = struct.pack("@ll", 0, int(PATIENCE_S * 1e6))  # as a Wire does
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        there.setblocking(False)
    return found


def run(test, count=1):
    async def with_exchanges():
        exchanges, ends = Exchanges(4), pairs(count)
        try:
            return await asyncio.wait_for(test(exchanges, ends), 30)
        finally:
            exchanges.close()
            for pair in ends:
                for end in pair:
                    end.close()

    return asyncio.run(with_exchanges())


@pytest.mark.parametrize("count", [1, 2, 9])
def test_each_gets_its_own_answer_alone_or_beside_others(count):
    async def all_at_once(exchanges, ends):
        bodies = [bytearray(len(VALUE)) for _ in ends]

        async def one(n):
            here, there = ends[n]
            name = b"%d" % n
            other = asyncio.create_task(answering(there, name, name + VALUE))
            begin = bytearray(len(name))
            ended = await exchanges.exchange(here, [name], [memoryview(begin), memoryview(bodies[n])], name)
            assert ended == (0, len(name) + len(VALUE)) and begin == name
            await other

        await asyncio.gather(*map(one, range(count)))
        return bodies

    assert run(all_at_once, count) == [VALUE] * count


def test_one_that_is_cancelled_touches_its_memory_no_more_and_others_go_on():
    async def cancel_one(exchanges, ends):
        bodies = [bytearray(4) for _ in ends]
        tasks = [
            asyncio.create_task(exchanges.exchange(here, [b"?"], [memoryview(body)], b""))
            for (here, _), body in zip(ends, bodies, strict=True)
        ]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        with pytest.raises(OSError):
            ends[0][1].recv(1)
            ends[0][1].sendall(b"late")
        ends[1][1].sendall(b"good")
        assert await tasks[1] == (0, 4)
        return bodies

    assert run(cancel_one, 2) == [bytes(4), b"good"]


def test_what_is_under_way_fails_when_they_are_closed():
    async def close(exchanges, ends):
        tasks = [asyncio.create_task(exchanges.exchange(here, [b"?"], [memoryview(bytearray(4))], b"")) for here, _ in ends]
        await asyncio.sleep(0.05)
        exchanges.close()
        return await asyncio.gather(*tasks)

    assert run(close, 2) == [(errno.ECONNABORTED, 0)] * 2


def test_nothing_is_begun_before_the_first():
    exchanges = Exchanges(4)
    assert exchanges._io is None
    exchanges.close()
