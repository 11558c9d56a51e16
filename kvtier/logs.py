"""How kvtierd's log looks: a line for people, or one JSON object a line, an event each.

    {"ts": "2026-11-22T23:15:00.123456Z", "level": "info", "event": "engine_is_gone", "message": "engine a is gone; ...",
     "engine": "a"}

`event` is made of the words of the source's text up to its first comma, colon or semicolon: the same for every line that
it writes. Arguments that the source names are fields; others stand in `args`, in their order.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
TEXT, JSON = FORMATS = ("text", "json")
EVENT_WORDS = 8
_ARGUMENT = re.compile(r"%(\(\w+\))?[-#0 +,]*[\d.]*[a-z%]")
_WORD = re.compile(r"[a-z0-9]+")

log = logging.getLogger("kvtierd")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {}
        if isinstance(record.args, Mapping):
            line.update({name: _shown(value) for name, value in record.args.items()})
        line |= {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event_of(str(record.msg)) or record.module,
            "message": record.getMessage(),
        }
        if record.args and not isinstance(record.args, Mapping):
            line["args"] = [_shown(value) for value in record.args]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line)


def begin(level: str, form: str) -> None:
    """All that is logged from now on goes to stderr; in JSON, what nobody caught does, too."""
    handler = logging.StreamHandler(sys.stderr)
    if form == JSON:
        handler.setFormatter(JsonLines())
        sys.excepthook = _log_uncaught
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=LEVELS[level], handlers=[handler])


def event_of(template: str) -> str:
    """A name for all lines of this text; empty where it is nothing but arguments."""
    said = re.split(r"[;:,]", _ARGUMENT.sub(" ", template.replace("'", "")), maxsplit=1)[0]
    return "_".join(_WORD.findall(said.lower())[:EVENT_WORDS])


def _shown(value: object) -> object:
    return value if isinstance(value, int | float | str | bool) or value is None else str(value)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("kvtierd has a fault and ends", exc_info=(kind, error, trace))
