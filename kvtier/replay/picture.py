"""A picture of what was found: how long requests waited, and what a larger cache would have known. Needs matplotlib."""

import importlib.util
from pathlib import Path

import numpy as np

from kvtier.errors import ConfigError
from kvtier.replay.study import Findings

GIB = 1024**3
COLOURS = {"none": "0.6", "always": "tab:orange", "static": "tab:olive", "kvtier": "tab:blue", "oracle": "tab:green"}


def require(path: Path) -> None:
    """Before hours of work: whether it could be drawn there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a picture needs matplotlib, which is not installed: pip install 'kvtier[plot]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{path} is no name of a picture; end it in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent} to draw {path.name} into; make it first")


def draw(findings: Findings, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _waits(findings, left)
    _rates(findings, right)
    trace = findings.question.trace
    figure.suptitle(f"{trace.name}: {len(trace.requests):,} requests, {trace.prompt_tokens:,} prompt tokens")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from None


def _waits(findings: Findings, axes) -> None:  # type: ignore[no-untyped-def]
    """How many requests have their first token after so many seconds."""
    for arm, outcome in findings.arms.items():
        waits = np.sort(np.maximum(outcome.ttft_s, 1e-3))
        share = np.arange(1, len(waits) + 1) / len(waits)
        style = "--" if arm == "oracle" else "-"
        axes.plot(waits, share, style, color=COLOURS[arm], label=f"{arm}, mean {outcome.ttft_s.mean():.2f} s")
    axes.set(xscale="log", xlabel="time to first token, s", ylabel="share of the requests", ylim=(0, 1.01))
    axes.grid(alpha=0.3, which="both")
    if findings.arms:
        axes.legend(loc="upper left")


def _rates(findings: Findings, axes) -> None:  # type: ignore[no-untyped-def]
    """What caches of all sizes would have known, and where this node stands."""
    question = findings.question
    shape = question.shape
    unit = 1.0 if shape is None else shape.kv_bytes * question.trace.block_tokens / GIB
    for policy in question.policies:
        curve = findings.curve(policy)
        if policy == "infinite":
            axes.axhline(curve[-1][1], color="0.5", linestyle=":", label="infinite")
        else:
            axes.plot([capacity * unit for capacity, _ in curve], [rate for _, rate in curve], ".-", label=policy)
    if shape is not None:
        ram, drives = shape.tiers.cpu_bytes, shape.tiers.nvme_bytes
        axes.axvline(ram / GIB, color="0.3", linewidth=1, label="RAM")
        if drives:
            axes.axvline((ram + drives) / GIB, color="0.3", linewidth=1, linestyle="--", label="RAM and NVMe")
        if question.more_cpu_bytes:
            axes.axvline((ram + question.more_cpu_bytes) / GIB, color="tab:red", linewidth=1, label="RAM, what if")
    axes.set(xscale="log", xlabel="room, blocks" if shape is None else "room, GiB", ylabel="hit tokens", ylim=(0, None))
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
