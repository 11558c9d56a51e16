"""What a check says. Pure."""

from dataclasses import dataclass

OK, WARN, BAD = LEVELS = ("ok", "warn", "bad")


@dataclass(frozen=True)
class Finding:
    level: str
    said: str
    cure: str = ""  # what to do; only where something is to be done


def ok(said: str) -> Finding:
    return Finding(OK, said)


def warn(said: str, cure: str) -> Finding:
    """kvtier works, but slower, or less safely, than it might."""
    return Finding(WARN, said, cure)


def bad(said: str, cure: str) -> Finding:
    """kvtier does not work so, or not safely."""
    return Finding(BAD, said, cure)


def worst(levels: list[str]) -> str:
    return max(levels, key=LEVELS.index, default=OK)
