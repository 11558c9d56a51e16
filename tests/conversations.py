"""A trace of conversations that come back, made up from a seed, as the lines of a Mooncake file."""

import json
import random
from pathlib import Path

from kvtier.replay.trace import Trace, read

BLOCK_TOKENS = 512


def lines(seed: int, sessions: int, seconds: float = 600.0) -> list[str]:
    """All share their first block. A turn begins with the whole former one; its last block is partial, and so another."""
    chance = random.Random(seed)
    said = []
    for session in range(sessions):
        at, tokens, whole = chance.uniform(0, seconds), BLOCK_TOKENS, [0]
        while at < seconds:
            tokens += int(chance.lognormvariate(7, 1)) + 1
            while len(whole) < tokens // BLOCK_TOKENS:
                whole.append(session * 10_000 + len(whole))
            ids = list(whole)
            if tokens % BLOCK_TOKENS:
                ids.append(1_000_000 + len(said))
            said.append({"timestamp": round(at * 1000), "input_length": tokens, "output_length": 100, "hash_ids": ids})
            if chance.random() < 0.4:
                break
            at += chance.lognormvariate(4, 1)
    return [json.dumps(line) for line in sorted(said, key=lambda line: line["timestamp"])]


def trace_of(folder: Path, seed: int, sessions: int, seconds: float = 600.0) -> Trace:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines(seed, sessions, seconds)) + "\n")
    return read(path, BLOCK_TOKENS)
