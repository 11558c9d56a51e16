"""What was found, for people and for programs."""

import math
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from kvtier.config import format_size
from kvtier.replay.arms import ARMS
from kvtier.replay.cluster import Outcome
from kvtier.replay.codecs import ENGINE_STEP_S, BreakEven, bytes_per_s_from_which_loading_pays
from kvtier.replay.study import WHAT_IF_ARM, Findings

PROMPT_TOKENS = 8192  # of the prompt that is shown as an example
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def as_json(findings: Findings) -> dict[str, Any]:
    """Seconds, bytes, tokens, shares."""
    question = findings.question
    trace = question.trace
    said: dict[str, Any] = {
        "trace": {
            "name": trace.name,
            "requests": len(trace.requests),
            "seconds": round(trace.seconds, 3),
            "prompt_tokens": trace.prompt_tokens,
            "block_tokens": trace.block_tokens,
            "unique_blocks": trace.unique_blocks,
        },
        "hit_rates": [
            {"policy": policy, "blocks": capacity, "rate": round(rate, 6)}
            for (policy, capacity), rate in findings.hits.items()
        ],
        "arms": {arm: _counts(outcome) for arm, outcome in findings.arms.items()},
        "seed": question.seed,
        "took_s": round(findings.took_s, 3),
    }
    if question.shape is not None:
        shape = question.shape
        said["node"] = {
            "engines": shape.engines,
            "kv_bytes_per_token": shape.kv_bytes,
            "engine_cache_bytes": shape.cache_bytes,
            "host_bytes_per_s": shape.host_bytes_per_s,
            "prefill": shape.prefill.to_counts(),
            "cpu_bytes": shape.tiers.cpu_bytes,
            "nvme_bytes": shape.tiers.nvme_bytes,
            "nvme_read_bytes_per_s": shape.tiers.nvme_read_bytes_per_s,
            "nvme_codec": shape.tiers.codec.name,
        }
    if findings.break_evens:
        said["break_even"] = [_even_counts(even) for even in findings.break_evens]
    if findings.with_codecs:
        said["codecs"] = {name: _counts(outcome) for name, outcome in findings.with_codecs.items()}
    if findings.with_more is not None:
        said["what_if"] = {"more_cpu_bytes": question.more_cpu_bytes, **_counts(findings.with_more)}
    return said


def render(findings: Findings) -> Group:
    """Tables."""
    trace = findings.question.trace
    title = (
        f"{trace.name}: {len(trace.requests):,} requests in {trace.seconds:,.0f} s, {trace.prompt_tokens:,} prompt tokens, "
        f"{trace.unique_blocks:,} blocks of {trace.block_tokens} tokens"
    )
    parts: list[Any] = [title, "", _hits(findings)]
    if findings.arms:
        parts += ["", _node(findings), "", _arms(findings)]
    if findings.break_evens and findings.arms:
        parts += ["", _break_evens(findings)]
    if findings.with_codecs:
        parts += ["", _codecs(findings)]
    if findings.with_more is not None:
        parts += ["", _what_if(findings)]
    return Group(*parts, "", f"took {findings.took_s:.1f} s")


def _hits(findings: Findings) -> Table:
    """Policies against capacities."""
    question = findings.question
    unique, size = question.trace.unique_blocks, _block_bytes(findings)
    columns = [f"{100 * capacity / unique:.3g} %\n{capacity:,}" for capacity in question.capacities]
    if size:
        columns = [f"{column}\n{format_size(c * size)}" for column, c in zip(columns, question.capacities)]
    heading = "hit tokens with room for\nblocks" + ("\nbytes" if size else "")
    table = _table(heading, *columns)
    for policy in question.policies:
        rates = [findings.hits.get((policy, c), findings.hits.get((policy, unique))) for c in question.capacities]
        table.add_row(policy, *("" if rate is None else f"{rate:.4f}" for rate in rates))
    return table


def _node(findings: Findings) -> str:
    shape = findings.question.shape
    assert shape is not None
    tiers = shape.tiers
    drives = ""
    if tiers.nvme_bytes:
        drives = f", NVMe {format_size(tiers.nvme_bytes)} at {tiers.nvme_read_bytes_per_s / 1e9:g} GB/s"
        drives += f" with {tiers.codec.name}" if tiers.codec.ratio > 1 else ""
    prompt = shape.prefill.seconds(0, PROMPT_TOKENS)
    engines = "1 engine" if shape.engines == 1 else f"{shape.engines} engines"
    return (
        f"{engines}: {format_size(shape.kv_bytes)} a token, own cache {format_size(shape.cache_bytes)}, "
        f"{PROMPT_TOKENS:,} tokens computed in {prompt * 1e3:,.0f} ms\n"
        f"RAM {format_size(tiers.cpu_bytes)} at {shape.host_bytes_per_s / 1e9:g} GB/s an engine{drives}"
    )


def _arms(findings: Findings) -> Table:
    table = _table(
        "arm", "TTFT mean", *QUANTILES, "own cache", "RAM", "NVMe", "engines busy", "drives busy", "GPU-s saved", ""
    )
    for arm, outcome in findings.arms.items():
        counts = _counts(outcome)
        table.add_row(
            arm,
            _ms(counts["ttft_mean_s"]),
            *(_ms(counts[f"ttft_{name}_s"]) for name in QUANTILES),
            *(f"{counts[f'{tier}_hit_rate']:.1%}" for tier in ("engine", "cpu", "nvme")),
            f"{counts['engines_busy']:.0%}",
            f"{counts['drives_busy']:.0%}",
            f"{counts['gpu_s_saved']:,.0f}",
            ARMS[arm],
        )
    return table


def _break_evens(findings: Findings) -> Group:
    """By tier and codec: from how many tokens on fetching is faster, for one request alone."""
    shape = findings.question.shape
    assert shape is not None
    prefill = shape.prefill
    least = bytes_per_s_from_which_loading_pays(prefill, shape.kv_bytes, PROMPT_TOKENS, ENGINE_STEP_S)
    pays = (
        "no tier is fast enough to fetch them" if math.isinf(least) else f"fetching them pays from {least / 1e9:.2g} GB/s"
    )
    computed = _ms(prefill.seconds(0, PROMPT_TOKENS))
    said = f"One request alone: {PROMPT_TOKENS:,} tokens are computed in {computed}; {pays}"
    tokens = f"{PROMPT_TOKENS:,} tokens"
    table = _table("tier", "codec", "ratio", "read GB/s", "write GB/s", "fetching pays from", tokens)
    for even in findings.break_evens:
        table.add_row(
            even.tier,
            even.codec.name,
            f"{even.codec.ratio:.2f}",
            f"{even.read_bytes_per_s / 1e9:.2f}",
            f"{even.write_bytes_per_s / 1e9:.2f}",
            "never" if even.tokens is None else f"{even.tokens:,} tokens",
            _ms(even.load_s(PROMPT_TOKENS, shape.kv_bytes)),
        )
    return Group(said, table)


def _codecs(findings: Findings) -> Table:
    """What other codecs on the drives would bring."""
    shape = findings.question.shape
    assert shape is not None
    table = _table(f"the drives with, {WHAT_IF_ARM}", "room", "hit tokens", "NVMe", "TTFT mean", "TTFT p99", "GPU-s saved")
    now = findings.arms[WHAT_IF_ARM]
    codecs = [shape.tiers.codec, *findings.question.other_codecs]
    for codec, outcome in zip(codecs, [now, *findings.with_codecs.values()]):
        counts = _counts(outcome)
        table.add_row(
            codec.name,
            format_size(shape.tiers.nvme_bytes * codec.ratio),
            f"{counts['hit_rate']:.1%}",
            f"{counts['nvme_hit_rate']:.1%}",
            _ms(counts["ttft_mean_s"]),
            _ms(counts["ttft_p99_s"]),
            f"{counts['gpu_s_saved']:,.0f}",
        )
    return table


def _what_if(findings: Findings) -> str:
    assert findings.with_more is not None and findings.question.shape is not None
    now, then = _counts(findings.arms[findings.with_more.arm]), _counts(findings.with_more)
    cpu = findings.question.shape.tiers.cpu_bytes
    more = findings.question.more_cpu_bytes
    lines = [f"With {format_size(more)} more RAM ({format_size(cpu)} -> {format_size(cpu + more)}), {then['arm']}:"]
    points = 100 * (then["hit_rate"] - now["hit_rate"])
    lines.append(f"  hit tokens   {now['hit_rate']:.1%} -> {then['hit_rate']:.1%}   ({points:+.1f} points)")
    for name, title in (("ttft_mean_s", "TTFT mean"), ("ttft_p99_s", "TTFT p99 ")):
        change = then[name] / now[name] - 1
        lines.append(f"  {title}    {_ms(now[name])} -> {_ms(then[name])}   ({change:+.1%})")
    return "\n".join(lines)


def _even_counts(even: BreakEven) -> dict[str, Any]:
    """`tokens`: from which on fetching is faster; null: it never is."""
    return {
        "tier": even.tier,
        "codec": even.codec.name,
        "ratio": round(even.codec.ratio, 4),
        "read_bytes_per_s": round(even.read_bytes_per_s),
        "write_bytes_per_s": round(even.write_bytes_per_s),
        "tokens": even.tokens,
    }


def _counts(outcome: Outcome) -> dict[str, Any]:
    whole = outcome.prompt_tokens
    return {
        "arm": outcome.arm,
        "ttft_mean_s": round(float(outcome.ttft_s.mean()), 6),
        **{f"ttft_{name}_s": round(float(np.quantile(outcome.ttft_s, q)), 6) for name, q in QUANTILES.items()},
        "hit_rate": round(outcome.hit_rate, 6),
        "engine_hit_rate": round(outcome.resident_tokens / whole, 6),
        "cpu_hit_rate": round(outcome.cpu_tokens / whole, 6),
        "nvme_hit_rate": round(outcome.nvme_tokens / whole, 6),
        "engines_busy": round(outcome.prefill_s / outcome.seconds / outcome.engines, 6),
        "drives_busy": round(outcome.read_busy_s / outcome.seconds, 6),
        "gpu_s": round(outcome.prefill_s, 3),
        "gpu_s_saved": round(outcome.loaded_prefill_s, 3),
        "counters": {name: n for name, n in outcome.counters.items() if n},
    }


def _block_bytes(findings: Findings) -> int:
    question = findings.question
    return 0 if question.shape is None else question.shape.kv_bytes * question.trace.block_tokens


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or not column else "right", no_wrap=True)
    return table
