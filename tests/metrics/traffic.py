"""Requests at a kvtierd, again and again: they save, load, leave RAM for the drives and come back from there."""

import time

from beside import Beside
from chat import Chat
from kvtierd import KVTierd, some_keys

from kvtier import protocol
from kvtier.block import BELOW, unpack_slots
from kvtier.decision import OUTCOME

CONVERSATIONS, BLOCKS = 20, 4  # twice as many as RAM has room for
PAUSE_S = 0.05


class Traffic(Beside):
    def __init__(self, daemon: KVTierd) -> None:
        super().__init__()
        self._daemon = daemon
        self.requests = 0

    def _run(self) -> None:
        with Chat(self._daemon) as chat:
            while not self._over.wait(PAUSE_S):
                self._request(chat, some_keys(BLOCKS, f"conversation {self.requests % CONVERSATIONS}"))
                self.requests += 1

    def _request(self, chat: Chat, keys: bytes) -> None:
        request, lease = f"request {self.requests}", 1000 + self.requests
        lookup = protocol.Lookup(lease, keys, request=request, prompt_tokens=16 * BLOCKS)
        begun = time.monotonic()
        here = int((unpack_slots(chat.engine.ask(lookup, answer=protocol.Found).slots) < BELOW).sum())
        took_us = round((time.monotonic() - begun) * 1e6)
        chat.engine.say(protocol.Release(lease, here, took_us))
        chat.engine.say(
            protocol.Outcome(request, dict(zip(OUTCOME, (took_us, 0, took_us, 1, 64, 0, 16 * here, 64 - 16 * here))))
        )
        if here < BLOCKS:
            chat.save(keys)
