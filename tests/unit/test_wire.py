"""A Wire's promises to those who are cancelled."""

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtier.tiers.remote.exchanges import Exchanges
from kvtier.tiers.remote.wire import Address, Wire


def test_who_is_cancelled_in_a_thread_leaves_a_socket_that_still_has_tls():
    """Whatever that thread sends next must not go in the clear."""
    still = []

    async def cancel() -> None:
        here, there = socket.socketpair()
        tls = ssl.create_default_context()
        wrapped = tls.wrap_socket(here, server_hostname="x", do_handshake_on_connect=False)
        with there, wrapped, ThreadPoolExecutor(1) as threads:
            wire = Wire(Address("x", 1), tls, Exchanges(1), threads)
            wire._socket = wrapped

            def attempt() -> None:
                socket.socket.recv(wrapped, 1)  # until it is shut down
                still.append(wrapped.session_reused is not None)  # None: TLS has gone

            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await wire._in_thread(attempt)

    asyncio.run(cancel())
    assert still == [True]
