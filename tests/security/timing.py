"""What a client can time, and whether two kinds of questions differ in it.

The rank-sum test (Mann-Whitney) of two samples: how unlikely it is that times of the same kind lie so differently. It asks
for no shape of their distribution, and an answer that took long because the machine was busy counts as one, not as long.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
from kvtierd import Engine

from kvtier import protocol


def p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided, by the normal approximation, ties corrected: for some dozens of each and more."""
    values = np.concatenate([one, other])
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks = (last - (counts - 1) / 2)[which]
    n, m = len(one), len(other)
    above = ranks[:n].sum() - n * (n + 1) / 2
    ties = float((counts.astype(float) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    spread = math.sqrt(n * m / 12 * (n + m + 1 - ties))
    return math.erfc(abs(above - n * m / 2) / spread / math.sqrt(2)) if spread else 1.0


def answer_s(engine: Engine, lease: int, keys: bytes, **of_request: object) -> float:
    """From the question to its answer, at the socket; the answer must be that nothing is here."""
    question = protocol.encode(protocol.Lookup(lease, keys, **of_request))
    sock = engine.sock
    begun = time.perf_counter()
    sock.sendall(question)
    answer = sock.recv(protocol.RECEIVE_BYTES)
    taken = time.perf_counter() - begun
    (found,) = protocol.FrameReader().feed(answer)
    assert isinstance(found, protocol.Found) and found.lease == lease, found
    assert set(found.slots) == {255}, "a key of another namespace was found"
    engine.say(protocol.Release(lease, 0))
    return taken
