"""What clients may say of a request and of the session that it belongs to. Pure.

All of it is optional, and stands in the request's `kv_transfer_params={"kvtier": {...}}`:

    session          text of up to 128 printable characters, not beginning with ~: names the conversation, the same for
                     all its turns. Without it: what vLLM knows as session_id (field, or header X-Session-ID)
    end              true: this was the session's last request
    expect_return_s  number up to 86400: the session's next request comes about so many seconds after this one has ended
    tool             text of up to 64 printable characters: this tool runs until the session's next request
    ttl_s            number up to 604800: so long after this request the session is of no use any more
    pin              true: keep the session in RAM, as far as the quota of pins goes
    max_tier         "cpu" (or "gpu"): what the session saves goes to no disk, and to no other machine. "nvme": to no other
                     machine. "remote": nothing is forbidden
    no_store         true: nothing of this request is saved
    no_load          true: nothing is loaded for this request, all of it is computed

The actions of vLLM's kv_hints envelope that have an honest equivalent here mean the same, what the request says
itself has precedence: `session` (payload session_id or session); `pin` and `retain` (pin, with the payload's ttl_s);
`release` (end). `prefetch`, `fetch` and `demote` are heard and change nothing: blocks are read from below when a request
arrives, and leave RAM when the room is worth more to others. A leading "kv." in an action's name makes no difference.

A hint that is wrong or unknown is left out, whatever it is; one sentence a hint says what it must be.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

SESSION_MAX, TOOL_MAX = 128, 64  # characters
RETURN_S_MAX, TTL_S_MAX = 86_400.0, 604_800.0
LOOKED_AT = 32  # unknown hints, or actions of an envelope, of one request; there is no end to what can be sent
SHOWN = 40  # characters of a name that nobody knows

WITHOUT_DISK = ("cpu", "gpu")
WITHOUT_REMOTE = (*WITHOUT_DISK, "nvme")
TIERS = (*WITHOUT_REMOTE, "remote")
ACTIONS_WITHOUT_MEANING = ("prefetch", "fetch", "demote")
ACTIONS = ("session", "pin", "retain", "release", *ACTIONS_WITHOUT_MEANING)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was said and is good. Nothing: as if no hint had been given."""

    session: str = ""
    tool: str = ""
    expect_return_s: float = 0.0  # 0: not said
    ttl_s: float = 0.0  # 0: not said
    end: bool = False
    pin: bool = False
    no_disk: bool = False
    no_remote: bool = False
    no_store: bool = False
    no_load: bool = False

    def counts(self) -> dict[str, int]:
        """As protocol.Begin carries what is no text; what was not said is not in it."""
        flags = {"end": self.end, "pin": self.pin, "no_disk": self.no_disk, "no_remote": self.no_remote}
        seconds = {"expect_return_ms": self.expect_return_s, "ttl_ms": self.ttl_s}
        return {name: 1 for name, is_set in flags.items() if is_set} | {
            name: max(1, round(s * 1e3)) for name, s in seconds.items() if s
        }


NOTHING = Asked()


def is_name(value: object, characters: int) -> bool:
    """Whether it can be shown to people, and is never taken for a name that kvtier gave."""
    return type(value) is str and 0 < len(value) <= characters and value.isprintable() and value[0] != "~"


def _name(characters: int) -> Callable[[object], bool]:
    return lambda value: is_name(value, characters)


def _seconds(most: float) -> Callable[[object], bool]:
    return lambda value: type(value) in (int, float) and 0 < value <= most  # type: ignore[operator]


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_tier(value: object) -> bool:
    return type(value) is str and value in TIERS


_FLAG = (_is_flag, "true or false")
_HINTS: dict[str, tuple[Callable[[object], bool], str]] = {  # name -> what it must be
    "session": (_name(SESSION_MAX), f"text of 1 to {SESSION_MAX} printable characters that doesn't begin with ~"),
    "tool": (_name(TOOL_MAX), f"text of 1 to {TOOL_MAX} printable characters that doesn't begin with ~"),
    "expect_return_s": (_seconds(RETURN_S_MAX), f"a number of seconds above 0 and up to {RETURN_S_MAX:.0f}"),
    "ttl_s": (_seconds(TTL_S_MAX), f"a number of seconds above 0 and up to {TTL_S_MAX:.0f}"),
    "end": _FLAG,
    "pin": _FLAG,
    "no_store": _FLAG,
    "no_load": _FLAG,
    "max_tier": (_is_tier, f"one of {', '.join(TIERS)}"),
}


def parse(raw: object, envelope: object = None, session_id: object = None) -> tuple[Asked, list[str]]:
    """What a request asks, and a sentence for each hint that was left out. `raw`: its hints, as they came; `envelope`: its
    kv_hints; `session_id`: the engine's own word for its session. Raises nothing, whatever they are."""
    problems: list[str] = []
    said = _of_envelope(envelope, problems) | _of_hints(raw, problems)
    if session_id is not None and session_id != "" and "session" not in said:
        _read(said, "session", session_id, problems, "session_id")
    tier = said.pop("max_tier", "")
    return Asked(**said, no_disk=tier in WITHOUT_DISK, no_remote=tier in WITHOUT_REMOTE), problems


def _of_hints(raw: object, problems: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if raw is None:
        return said
    if type(raw) is not dict:
        problems.append('kvtier\'s hints must be a map, such as {"session": "a name"}')
        return said
    for name in _HINTS:
        _read(said, name, raw.get(name), problems, name)
    for name in islice(raw, LOOKED_AT):
        if type(name) is not str:
            problems.append("a hint's name must be text")
        elif name not in _HINTS:
            problems.append(f"there is no hint {_shown(name)}; {_instead(name, _HINTS)}")
    return said


def _of_envelope(envelope: object, problems: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if envelope is None:
        return said
    actions = getattr(envelope, "actions", None)
    if type(actions) not in (list, tuple):
        problems.append("kv_hints must be an envelope with a list of actions")
        return said
    for action in islice(actions, LOOKED_AT):  # type: ignore[arg-type]
        kind, payload = getattr(action, "action_type", None), getattr(action, "payload", None)
        if type(kind) is not str or type(payload) is not dict:
            problems.append("an action of kv_hints must have an action_type and a payload")
            continue
        match kind.removeprefix("kv."):
            case "session":
                named = payload.get("session_id")
                _read(said, "session", payload.get("session") if named is None else named, problems, "session_id")
            case "pin" | "retain":
                said["pin"] = True
                _read(said, "ttl_s", payload.get("ttl_s"), problems, "ttl_s")
            case "release":
                said["end"] = True
            case other if other not in ACTIONS_WITHOUT_MEANING:
                problems.append(f"kvtier knows no action {_shown(kind)}; {_instead(other, ACTIONS)}")
    return said


def _read(said: dict[str, Any], name: str, value: object, problems: list[str], called: str) -> None:
    """None is what JSON says where nothing is said."""
    if value is None:
        return
    is_good, must = _HINTS[name]
    if is_good(value):
        said[name] = value
    else:
        problems.append(f"{called} must be {must}")


def _shown(name: str) -> str:
    return ascii(name[:SHOWN])  # in a log, whatever it is


def _instead(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name[:SHOWN], known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
