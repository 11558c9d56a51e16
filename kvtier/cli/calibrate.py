"""kvtier calibrate: measures what this machine does, longer than kvtierd does at its start, and keeps it for that."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from rich.console import Console, Group

from kvtier.calibration import CPU, NVME, Calibration, Speed, load, measured_beside, save
from kvtier.cli.page import page, table
from kvtier.config import DAEMON, Config, parse_toml
from kvtier.decision_log import state_folder
from kvtier.errors import ConfigError, DaemonError
from kvtier.settings import drive_folders
from kvtier.usage import examples

SECONDS, SECONDS_MAX = 10.0, 600.0
LINKS = {CPU: "arena to engine", NVME: "drives to arena, all together"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "calibrate",
        help="measure how fast this machine copies, and how fast its NVMe drives are",
        description="Measures the memory and the drives, and keeps what it finds for the next start of kvtierd. Best while "
        "the engines are idle: what they do is measured too. Writes at most 256 MiB to each drive, and leaves nothing.",
        epilog=examples(
            "kvtier calibrate --config /etc/kvtier/kvtier.toml",
            "kvtier calibrate --nvme /mnt/nvme0/kvtier /mnt/nvme1/kvtier --seconds 30",
            exits="0 measured and kept; 1 nothing could be measured, or not be kept; 2 wrong usage",
        ),
    )
    drives = parser.add_mutually_exclusive_group()
    drives.add_argument("--config", type=Path, metavar="FILE", help="kvtierd's settings: its nvme.paths are measured")
    drives.add_argument("--nvme", type=Path, nargs="+", default=[], metavar="FOLDER", help="the folders of nvme.paths")
    parser.add_argument("--seconds", type=_seconds, default=SECONDS, metavar="S", help="how long (%(default)g)")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="where to keep it, over cost.state")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(given: argparse.Namespace) -> None:
    """Prints to stdout, progress to stderr. ConfigError; DaemonError: nothing could be measured, or not be kept."""
    paths, configured, io = given.nvme, "", "auto"
    if given.config is not None:
        settings = _settings(given.config)
        paths = drive_folders(settings)
        configured, io = settings.text("cost.state"), settings.text("nvme.io")
    folder = given.state or state_folder(configured)
    with Console(file=sys.stderr).status(f"measuring for {given.seconds:g} s"):
        found = asyncio.run(measured_beside(paths, given.seconds, io))
    if not found.is_measured:
        raise DaemonError("; ".join(found.notes))
    found.take_learnt(load(folder, found.machine))
    problem = save(folder, found)
    if given.json:
        print(json.dumps({**found.as_json(), "kept_in": "" if problem else str(folder)}))
    else:
        page().print(render(found))
        if not problem:
            print(f"kept in {folder} for a kvtierd with these drives")
    if problem:
        raise DaemonError(f"{problem}; it is not kept: name another folder with --state, or set cost.state")


def render(found: Calibration) -> Group:
    """What was measured, and what could not be."""
    links = table("link", "latency us", "GB/s", "")
    for tier, words in LINKS.items():
        if tier in found.links:
            links.add_row(tier, *_shown(found.links[tier]), words)
    drives = table("drive", "read: latency us", "GB/s", "write: latency us", "GB/s", "")
    for drive in found.drives:
        drives.add_row(drive.path, *_shown(drive.read), *_shown(drive.write), found.machine.get(drive.path, ""))
    return Group(links, *([drives] if found.drives else []), *found.notes)


def _shown(speed: Speed) -> tuple[str, str]:
    return f"{speed.latency_s * 1e6:,.0f}", f"{speed.bytes_per_s / 1e9:.2f}"


def _settings(file: Path) -> Config:
    try:
        return Config(DAEMON, parse_toml(file.read_text(), str(file)), f"{file}: ")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _seconds(text: str) -> float:
    """argparse shows what is wrong."""
    seconds = float(text)
    if not 0.1 <= seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and {SECONDS_MAX:g}")
    return seconds
