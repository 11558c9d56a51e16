"""kvtier simulate: what this node, or another, would have done with a request trace."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from kvtier.codec import LOSSLESS
from kvtier.config import format_size, parse_size
from kvtier.errors import ConfigError
from kvtier.replay import picture, report
from kvtier.replay.arms import ARMS
from kvtier.replay.caches import POLICIES
from kvtier.replay.cluster import Shape, engines_needed
from kvtier.replay.codecs import CODECS, CodecSpeed, Way, block_tokens_of, codecs_of
from kvtier.replay.hits import STORE_POLICIES
from kvtier.replay.node import CPU_BLOCKS_MIN, NVME_BLOCKS_MIN, Tiers
from kvtier.replay.presets import BYTES_OF, GPUS, MODELS, gpu_of, model_of, speed_of
from kvtier.replay.study import WHAT_IF_ARM, Findings, Question, answer
from kvtier.replay.trace import BLOCK_TOKENS, Trace, read
from kvtier.usage import examples

HIT_POLICIES = (*POLICIES, *STORE_POLICIES)
HOST_LATENCY_S = 0.0001
LOAD = 0.8  # of engines that have no cache at all, where their number is not given
FILE_COLUMNS = 160  # where there is no terminal to ask


def add_parser(commands: Any) -> None:
    """`kvtier simulate`."""
    parser = commands.add_parser(
        "simulate",
        help="replay a request trace on a node that is described here",
        description="Replays a request trace (Mooncake's JSONL) on a node: hit rates of caches of several sizes, and how "
        "long requests wait for their first token. Sizes are bytes (512GiB), or a share of all that the trace ever "
        "asks for (5%).",
        epilog=examples(
            "kvtier simulate trace.jsonl --hits-only --capacities 64GiB,256GiB,1TiB --policy min,lru,kvtier",
            "kvtier simulate trace.jsonl --model llama-3-8b --gpu h100 --cpu 512GiB --what-if 64GiB --plot out.png",
            "kvtier simulate trace.jsonl --gpu a100 --cpu 64GiB --nvme 1TiB --codec none,exp12,expz",
            exits="0 good; 2 the trace can't be read, or wrong usage",
        ),
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="JSONL: timestamp, input_length, output_length, hash_ids")
    _add_engines(parser.add_argument_group("engines"))
    _add_tiers(parser.add_argument_group("tiers"))
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--arms", default=",".join(ARMS), metavar="A,B", help="%(default)s")
    asked.add_argument("--static-tokens", type=int, default=1024, metavar="N", help="threshold of static (%(default)d)")
    asked.add_argument("--capacities", default="1%,5%,10%,25%,50%", metavar="C,D", help="room in blocks (%(default)s)")
    asked.add_argument("--policy", default=",".join(POLICIES), metavar="P,Q", help=f"of {', '.join(HIT_POLICIES)}")
    asked.add_argument("--what-if", default="0", metavar="SIZE", help="the same with so much more RAM")
    asked.add_argument("--hits-only", action="store_true", help="hit rates, no waiting times")
    given = parser.add_argument_group("the trace")
    given.add_argument("--block-tokens", type=int, default=BLOCK_TOKENS, metavar="N", help="of a hash id (%(default)d)")
    given.add_argument("--requests", type=int, default=0, metavar="N", help="only the first (all)")
    given.add_argument("--speed", type=float, default=1.0, metavar="X", help="arrivals so many times as fast (%(default)g)")
    given.add_argument("--seed", type=int, default=1, help="spreads rounded timestamps (%(default)d)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw waiting times and hit rates")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="beside each other (one a CPU)")


def _add_engines(group: Any) -> None:
    group.add_argument("--model", default="llama-3-8b", metavar="MODEL", help=f"{', '.join(MODELS)}; or a config.json")
    group.add_argument("--gpu", default="h100", metavar="GPU", help=", ".join(GPUS))
    group.add_argument("--tp", type=int, default=0, metavar="N", help="GPUs of an engine (as many as the weights need)")
    group.add_argument("--kv-dtype", choices=("auto", *BYTES_OF), default="auto", help="of the cache (the model's own)")
    group.add_argument("--efficiency", type=float, default=0.0, metavar="X", help="share of the GPU's peak (its preset)")
    group.add_argument("--engines", type=int, default=0, metavar="N", help=f"({LOAD:.0%}% busy without a cache)")
    group.add_argument("--gpu-cache", metavar="SIZE", help="each engine's own cache (what its GPUs have left)")


def _add_tiers(group: Any) -> None:
    group.add_argument("--cpu", default="512GiB", metavar="SIZE", help="RAM tier (%(default)s)")
    group.add_argument("--cpu-gbs", type=float, default=0.0, metavar="GB/S", help="RAM to an engine (the GPU's link)")
    group.add_argument("--nvme", default="0", metavar="SIZE", help="NVMe tier (none)")
    group.add_argument("--nvme-gbs", type=float, default=6.0, metavar="GB/S", help="its reads, all engines (%(default)g)")
    group.add_argument("--nvme-write-gbs", type=float, default=4.0, metavar="GB/S", help="its writes (%(default)g)")
    group.add_argument("--nvme-latency-ms", type=float, default=0.5, metavar="MS", help="of each block (%(default)g)")
    codecs = "of the drives, in all arms; more: what the arm kvtier would have had with these"
    group.add_argument("--codec", default="none", metavar="C,D", help=f"{codecs}; of {', '.join(CODECS)} (%(default)s)")
    group.add_argument("--codec-threads", type=int, default=2, metavar="N", help="make and open frames (%(default)d)")
    group.add_argument("--remote-gbs", type=float, default=1.25, metavar="GB/S", help="for the break-even (%(default)g)")
    group.add_argument("--remote-latency-ms", type=float, default=1.0, metavar="MS", help="of the remote (%(default)g)")
    group.add_argument("--nvme-dwpd", type=float, default=1.0, metavar="X", help="drive writes a day (%(default)g)")


def run(given: argparse.Namespace) -> None:
    """Prints to stdout, progress to stderr. ConfigError says what is wrong and how to mend it."""
    if given.plot:
        picture.require(given.plot)
    question = _question(given)
    findings = _watched(question, given.processes)
    if given.plot:
        picture.draw(findings, given.plot)
    if given.json:
        print(json.dumps(report.as_json(findings)))
        return
    console = Console()
    Console(width=console.width if console.is_terminal else FILE_COLUMNS, highlight=False).print(report.render(findings))


def _watched(question: Question, processes: int) -> Findings:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    # No thread redraws it: processes are forked meanwhile.
    console = Console(file=sys.stderr)
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("replaying", total=1.0)
        return answer(question, lambda share: progress.update(task, completed=share, refresh=True), processes)


def _question(given: argparse.Namespace) -> Question:
    _require_above(0, given, "speed", "nvme_gbs", "nvme_write_gbs", "remote_gbs", "codec_threads", "block_tokens")
    _require_above(-1, given, "requests", "engines", "tp", "static_tokens", "processes")
    _require_above(-1e-9, given, "cpu_gbs", "nvme_latency_ms", "remote_latency_ms", "nvme_dwpd", "efficiency")
    policies = _names(given.policy, HIT_POLICIES, "policy", "--policy")
    arms = _names(given.arms, tuple(ARMS), "arm", "--arms")
    trace = read(given.trace, given.block_tokens)
    trace = (trace.first(given.requests) if given.requests else trace).faster(given.speed)
    shape = _shape(given, trace)
    of_block = shape.kv_bytes * trace.block_tokens
    whole = trace.unique_blocks * of_block
    capacities = [_size(text, whole, "--capacities") // of_block for text in given.capacities.split(",")]
    more = _size(given.what_if, whole, "--what-if")
    if more and given.hits_only:
        raise ConfigError("--what-if asks how long requests wait, --hits-only that nobody wants to know; drop one")
    codecs, evened = _codecs(given, shape.tiers.nvme_bytes > 0)
    block_bytes = shape.kv_bytes * block_tokens_of(shape.kv_bytes)
    first, *others = (codec.in_places(block_bytes) for codec in codecs)
    for option, is_asked in (("--what-if", more), ("--codec", others and not given.hits_only)):
        if is_asked and WHAT_IF_ARM not in arms:
            raise ConfigError(f"{option} is asked of the arm {WHAT_IF_ARM}, which --arms leaves out; name it there")
    tiers = replace(shape.tiers, codec=first, codec_threads=given.codec_threads)
    capacities = sorted({max(1, capacity) for capacity in capacities})
    return Question(
        trace,
        policies,
        capacities,
        replace(shape, tiers=tiers),
        [] if given.hits_only else arms,
        more,
        others,
        Way(given.remote_gbs * 1e9, given.remote_gbs * 1e9, given.remote_latency_ms / 1e3),
        evened,
        draws=given.plot is not None,
        seed=given.seed,
    )


def _codecs(given: argparse.Namespace, has_drives: bool) -> tuple[list[CodecSpeed], list[CodecSpeed]]:
    """Of the drives: that of all arms, then those that are compared with it. And those whose break-evens are shown."""
    kv = model_of(given.model).kv if given.kv_dtype == "auto" else given.kv_dtype
    names, known = _names(given.codec, tuple(CODECS), "codec", "--codec"), codecs_of(kv)
    if any(name not in known for name in names):
        raise ConfigError(f"--codec {given.codec}: a cache of {kv} is left as it is; only bf16 and fp16 are made smaller")
    if names != ["none"] and not has_drives:
        raise ConfigError(f"--codec {given.codec}: there are no drives that could have one; give them room with --nvme")
    evened = dict.fromkeys(name for name in ("none", *LOSSLESS, *names) if name in known)
    return [known[name] for name in names], [known[name] for name in evened]


def _shape(given: argparse.Namespace, trace: Trace) -> Shape:
    model = model_of(given.model)
    speed = speed_of(model, gpu_of(given.gpu), given.tp, given.kv_dtype, given.efficiency)
    kv_bytes = model.kv_bytes(given.kv_dtype)
    whole = trace.unique_blocks * trace.block_tokens * kv_bytes
    cpu, nvme = _size(given.cpu, whole, "--cpu"), _size(given.nvme, whole, "--nvme")
    for option, size, least in (("--cpu", cpu, CPU_BLOCKS_MIN), ("--nvme", nvme, NVME_BLOCKS_MIN * (nvme > 0))):
        if size < least * trace.block_tokens * kv_bytes:
            least_size = format_size(least * trace.block_tokens * kv_bytes)
            raise ConfigError(f"{option} {format_size(size)}: less than {least} blocks; give it {least_size} or more")
    tiers = Tiers(
        cpu,
        nvme,
        given.nvme_gbs * 1e9,
        given.nvme_write_gbs * 1e9,
        given.nvme_latency_ms / 1e3,
        given.nvme_dwpd,
    )
    return Shape(
        given.engines or engines_needed(trace, speed.prefill, LOAD),
        speed.prefill,
        kv_bytes,
        speed.cache_bytes if given.gpu_cache is None else _size(given.gpu_cache, whole, "--gpu-cache"),
        given.cpu_gbs * 1e9 or speed.host_bytes_per_s,
        HOST_LATENCY_S,
        tiers,
        given.static_tokens,
    )


def _size(text: str, whole: int, option: str) -> int:
    """Bytes; or a share of `whole`."""
    try:
        if text.strip().endswith("%"):
            return int(whole * float(text.strip()[:-1]) / 100 + 0.5)
        return parse_size(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: no size; write it like 512GiB, or like 5% of all blocks") from None


def _names(text: str, known: Sequence[str], what: str, option: str) -> list[str]:
    """As they are asked for, each once."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ConfigError(f"{option}: no {what} {', '.join(unknown) or 'is named'}; there is {', '.join(known)}")
    return list(dict.fromkeys(asked))


def _require_above(limit: float, given: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(given, name)
        if not limit < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: it must be {'above 0' if limit == 0 else '0 or more'}")
