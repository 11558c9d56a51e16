"""The log: a line for people, or an object a line that programs read."""

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.logs import JsonLines, event_of

KVTIER = Path(__file__).parents[2] / "kvtier"


def line_of(message: str, *args: object, level: int = logging.INFO, **more: object) -> dict:
    made = logging.LogRecord("kvtierd", level, "server.py", 7, message, args, None, **more)
    said = JsonLines().format(made)
    assert "\n" not in said
    return json.loads(said)


def test_a_line_has_its_time_its_level_its_event_and_its_message():
    line = line_of("engine %s is gone; its slots and leases are free", "a", level=logging.WARNING)
    assert line["level"] == "warning"
    assert line["event"] == "engine_is_gone"
    assert line["message"] == "engine a is gone; its slots and leases are free"
    assert line["args"] == ["a"]
    assert line["ts"].endswith("Z") and "T" in line["ts"]


def test_named_arguments_are_fields_and_hide_none_of_ours():
    line = line_of("process %(process)d (%(level)s) left", {"process": 7, "level": "a word"})
    assert line["process"] == 7
    assert line["level"] == "info"
    assert line["message"] == "process 7 (a word) left"
    assert "args" not in line


def test_what_others_say_stays_in_one_line():
    assert line_of("engine %s", 'a\nb\u2028"c')["message"] == 'engine a\nb\u2028"c'


def test_an_exception_stays_in_the_line_of_its_event():
    try:
        raise ValueError("what went wrong")
    except ValueError:
        made = logging.LogRecord("kvtierd", logging.CRITICAL, "daemon.py", 7, "a fault", (), sys.exc_info())
    line = json.loads(JsonLines().format(made))
    assert line["exception"].startswith("Traceback") and "what went wrong" in line["exception"]


@pytest.mark.parametrize(
    ("template", "event"),
    [
        ("kvtierd ends", "kvtierd_ends"),
        ("%d blocks don't fit, and %s", "blocks_dont_fit"),
        ("taking %.2f s of %(size)s", "taking_s_of"),
        ("%s", ""),
        ("100%% is taken", "100_is_taken"),
    ],
)
def test_an_event_is_what_its_text_says_first(template, event):
    assert event_of(template) == event


def test_a_line_that_is_nothing_but_an_argument_is_of_its_file():
    assert line_of("%s", "a note")["event"] == "server"


def test_no_two_texts_of_kvtierd_that_differ_in_level_share_an_event():
    levels: dict[str, set[str]] = {}
    for file in KVTIER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            is_log = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.") and node.args
            if is_log and isinstance(text := node.args[0], ast.Constant) and (event := event_of(str(text.value))):
                levels.setdefault(event, set()).add(ast.unparse(node.func))
    assert len(levels) > 15
    assert {event for event, of in levels.items() if len(of) > 1} == set()


def test_what_nobody_caught_is_a_line_too():
    program = "from kvtier import logs; logs.begin('info', 'json'); raise KeyError('of nobody')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "critical" and "of nobody" in line["exception"]


def test_text_is_for_people():
    program = "from kvtier import logs; logs.begin('warning', 'text'); logs.log.info('no'); logs.log.warning('%s', 'so')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("WARNING so\n") and len(done.stderr.splitlines()) == 1
