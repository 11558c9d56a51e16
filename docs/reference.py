"""What is declared in the source, as pages: every option, every counter, every metric."""

from collections.abc import Iterable

from kvtier.config import CONNECTOR, DAEMON, Option, format_size
from kvtier.metrics import rows
from kvtier.stats import COUNTERS, REPORTED

MADE = "<!-- Made by docs/make_words.py (make words), never by hand. -->\n"


def options() -> str:
    """docs/options.md"""
    lines = [
        "# Every option",
        MADE,
        "kvtierd reads a TOML file with one table a subject (`kvtierd --config FILE`; `kvtierd --print-config` prints",
        "one with every default), and over it `--set NAME=VALUE`. What it doesn't know, or what is out of range, ends",
        "the start with the name that is meant. Sizes are bytes or like `64GiB`; all units are powers of 1024. Which to",
        "change first: [tuning.md](tuning.md).",
        "",
        "## Of kvtierd",
    ]
    subject = ""
    for option in DAEMON:
        if option.name.split(".")[0] != subject:
            subject = option.name.split(".")[0]
            lines += ["", f"### {subject}", "", *_head()]
        lines.append(_row(option))
    lines += [
        "",
        "## Of the connector",
        "",
        'In the engine: `--kv-transfer-config \'{..., "kv_connector_extra_config": {"kvtier": {NAME: VALUE}}}\'`.',
        "",
        *_head(),
        *map(_row, CONNECTOR),
        "",
    ]
    return "\n".join(lines)


def _head() -> Iterable[str]:
    return "| option | default | unit, range | |", "|---|---|---|---|"


def _row(option: Option) -> str:
    return f"| `{option.name}` | {shown(option, option.default) or 'empty'} | {range_of(option)} | {cell(option.why)} |"


def shown(option: Option, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return format_size(value) if option.unit == "bytes" else f"{value:g}"
    return f"`{value}`" if value else ""


def range_of(option: Option) -> str:
    """Its unit, and between what it must be."""
    if option.maximum == float("inf"):
        return option.unit
    low, high = shown(option, option.minimum), shown(option, option.maximum)
    return f"{low} to {high}" if option.unit == "bytes" else f"{option.unit}, {low} to {high}"


def counters() -> str:
    """docs/counters.md"""
    lines = [
        "# Every counter",
        MADE,
        "Since the start of kvtierd, never reset. `tier-stats` shows those that aren't zero, `tier-stats --json` all of",
        "them below `counters`. What is marked *engine* is counted by the connector and told with its next message, so",
        "it may come later. What to do about them: [troubleshooting.md](troubleshooting.md).",
        "",
        "| counter | | counted by |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {cell(why)} | {'engine' if name in REPORTED else ''} |" for name, why in COUNTERS.items()]
    return "\n".join([*lines, ""])


def metrics() -> str:
    """docs/metrics.md"""
    lines = [
        "# Every metric",
        MADE,
        "Where kvtierd says them stands in `metrics.listen` ([options.md](options.md)); `tier-stats --prom` prints them.",
        "All series are there from the start, at 0. No label names a session, a tenant, an engine or a key. The last",
        "column says what of `tier-stats --json` it is. Alert rules and a dashboard: `systemd/prometheus`.",
        "",
        "| metric | kind | labels | | source |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        lines.append(f"| `{row.name}` | {row.kind} | {row.labels} | {cell(row.meaning)} | {cell(row.source)} |")
    return "\n".join([*lines, ""])


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
