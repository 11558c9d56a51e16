"""kvtier secret: a fresh root secret, which the nodes share that share a remote."""

import argparse
from pathlib import Path
from typing import Any

from kvtier.secret_file import fresh_root, write_root
from kvtier.usage import examples


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "secret",
        help="make the secret that nodes share with a remote",
        description="Prints a fresh secret, or writes it to a file that its owner alone may read: for "
        "remote.secret_file. All nodes that are to find each other's blocks have the same.",
        epilog=examples(
            "kvtier secret /etc/kvtier/secret",
            exits="0 good; 2 the file is there already, or can't be written, or wrong usage",
        ),
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a new file (standard output)")


def run(given: argparse.Namespace) -> None:
    """ConfigError when the file can't be written, or is there already."""
    if given.file is None:
        print(fresh_root())
    else:
        write_root(given.file)
