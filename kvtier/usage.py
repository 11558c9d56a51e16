"""How commands explain themselves. `--help`, the man pages and the shells' completion all come from these parsers. Pure."""

import argparse
import textwrap
from typing import Any


class Parser(argparse.ArgumentParser):
    """Its description and epilog may have paragraphs; lines that begin with a space, such as examples, stay as they are."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **options)


class _Formatter(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for lines, is_literal in paragraphs_of(text):
            paragraphs.append(lines if is_literal else textwrap.fill(lines, width))
        return textwrap.indent("\n".join(paragraphs).strip("\n"), indent)


def paragraphs_of(text: str) -> list[tuple[str, bool]]:
    """Pieces of text and whether their lines stay as they are. An empty line parts paragraphs, and is one itself."""
    pieces: list[tuple[str, bool]] = []
    for line in text.strip("\n").split("\n"):
        is_literal = not line or line.startswith(" ")
        if pieces and not is_literal and not pieces[-1][1]:
            pieces[-1] = (f"{pieces[-1][0]} {line}", False)
        else:
            pieces.append((line, is_literal))
    return pieces


def examples(*commands: str, exits: str) -> str:
    """The epilog of a command: how it is used, and what its exit status means."""
    lines = [f"Example{'s' if len(commands) > 1 else ''}:", *(f"  {command}" for command in commands)]
    return "\n".join([*lines, "", f"Exit status: {exits}."])
