"""One man page of one argparse parser and all its commands, the same with every Python.

argparse-manpage was tried: it leaves out what a page is about, joins the lines of examples, and its text changes with the
day and with argparse's own.
"""

import argparse
import re
import textwrap
from collections.abc import Iterable, Mapping

from kvtier.usage import paragraphs_of

DATE = "2026-11-22"  # of the last change worth one: a page that changed every day could not be compared
WIDTH = 78

Entry = tuple[str, str]  # what stands out, and what is said of it


def page(
    parser: argparse.ArgumentParser, number: int, about: str, more: Mapping[str, Iterable[Entry]], see: Iterable[str]
) -> str:
    """Of parser.prog; `more`: sections behind it, `see`: other pages, as "kvtier(1)"."""
    lines = [
        '.\\" Made by docs/make_words.py from the parsers, never by hand.',
        f'.TH {parser.prog.upper()} {number} {DATE} kvtier "kvtier"',
        *(".SH NAME", f"{_plain(parser.prog)} \\- {_plain(about)}"),
        *(".SH SYNOPSIS", *synopsis(parser)),
        *(".SH DESCRIPTION", *_text(parser.description or "")),
        *_options(parser, ".SH OPTIONS"),
    ]
    commands = commands_of(parser)
    if commands:
        lines.append(".SH COMMANDS")
    for name, command in commands.items():
        lines += [f".SS {_plain(name)}", *synopsis(command), ".PP", *_text(command.description or "")]
        lines += [*_options(command, ""), *_epilog(command, "")]
    lines += _epilog(parser, ".SH ")
    for title, entries in more.items():
        lines += [f".SH {title.upper()}", *(line for entry in entries for line in _entry(*entry))]
    return "\n".join([*lines, ".SH SEE ALSO", ",\n".join(_reference(name) for name in see), ""])


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def synopsis(parser: argparse.ArgumentParser) -> list[str]:
    """How it is called, in roff: options that exclude each other stand side by side."""
    others = {
        action: group._group_actions for group in parser._mutually_exclusive_groups for action in group._group_actions
    }
    said: list[str] = []
    for action in _shown(parser):
        if not action.option_strings:
            continue
        together = others.get(action, [action])
        if action is together[0]:
            said.append(f"[{' | '.join(map(_call, together))}]" + (" ..." if _repeats(action) else ""))
    for action in _shown(parser):
        if not action.option_strings:
            name = _argument(action)
            word = {"?": f"[{name}]", "+": f"{name} ...", "*": f"[{name} ...]"}.get(str(action.nargs), name)
            said.append(f"{name} ..." if isinstance(action, argparse._SubParsersAction) else word)
    return [f".B {_plain(parser.prog)}", *said]


def _options(parser: argparse.ArgumentParser, title: str) -> list[str]:
    formatter = parser._get_formatter()
    lines: list[str] = []
    for action in _shown(parser):
        if isinstance(action, argparse._SubParsersAction):
            continue
        names = " ".join(filter(None, (", ".join(_bold(name) for name in action.option_strings), _argument(action))))
        lines += [".TP", names, *_text(formatter._expand_help(action) if action.help else "")]
    return [title, *lines] if lines and title else lines


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if not isinstance(a, argparse._HelpAction) and a.help != argparse.SUPPRESS]


def _repeats(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def _call(action: argparse.Action) -> str:
    return " ".join(filter(None, (_bold(action.option_strings[0]), _argument(action))))


def _argument(action: argparse.Action) -> str:
    if action.option_strings and action.nargs == 0:
        return ""
    if action.metavar:
        word = str(action.metavar)
    elif action.choices is not None:
        word = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        word = action.dest.upper()
    shown = f"\\fI{_plain(word)}\\fR"
    if not action.option_strings:
        return shown
    return {"?": f"[{shown}]", "+": f"{shown} ..."}.get(str(action.nargs), shown)


def _epilog(parser: argparse.ArgumentParser, title: str) -> list[str]:
    """Its examples and its exit status, each with a heading of its own where the parser is a page's."""
    lines: list[str] = []
    literal = False
    for text, is_literal in paragraphs_of(parser.epilog or ""):
        if not text:
            continue
        if is_literal != literal:
            begins = [".RS 4", ".nf"] if lines and lines[-1].startswith(".SH") else [".PP", ".RS 4", ".nf"]
            lines += begins if is_literal else [".fi", ".RE"]
            literal = is_literal
        if is_literal:
            lines.append(_guarded(_plain(text.strip())))
        elif title and ":" in text:
            heading, _, rest = text.partition(":")
            lines += [f"{title}{heading.upper()}", *_text(rest.strip())]
        else:
            lines += [".PP", *_text(text)]
    return [*lines, ".fi", ".RE"] if literal else lines


def _entry(name: str, text: str) -> list[str]:
    return [".TP", _bold(name), *_text(text)]


def _reference(name: str) -> str:
    title, _, number = name.partition("(")
    return f".BR {_plain(title)} ({number}".replace(",", "")


# --- roff ----------------------------------------------------------------------------------------------------


def _text(text: str) -> list[str]:
    """Lines that roff fills; `code` stands out."""
    pieces = re.split(r"`([^`]+)`", " ".join(text.split()))
    marked = "".join(_bold(piece) if n % 2 else _plain(piece) for n, piece in enumerate(pieces))
    return [_guarded(line) for line in textwrap.wrap(marked, WIDTH, break_long_words=False, break_on_hyphens=False)]


def _plain(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("~", "\\(ti").replace("^", "\\(ha")


def _bold(text: str) -> str:
    return f"\\fB{_plain(text)}\\fR"


def _guarded(line: str) -> str:
    return f"\\&{line}" if line.startswith((".", "'")) else line
