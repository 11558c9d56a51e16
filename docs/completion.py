"""Completion of one parser for one shell, by shtab: files for what is a file, folders for what is a folder."""

import argparse
import copy
from pathlib import Path

import shtab
from man_page import commands_of

SHELLS = ("bash", "zsh")
FOLDERS = {"FOLDER"}
FILES = {"FILE", "FILE.png", "TRACE"}


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    parser = copy.deepcopy(parser)
    for each in (parser, *commands_of(parser).values()):
        for action in each._actions:
            what = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE
            if action.metavar in FOLDERS | FILES or action.type is Path:
                action.complete = what  # type: ignore[attr-defined]
    return shtab.complete(parser, shell).rstrip() + "\n"
