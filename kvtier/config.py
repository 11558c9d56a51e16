"""Every setting of kvtier, declared once: default, range, unit, and why one would change it. Pure.

The daemon reads a TOML file and `--set name=value`; the connector reads `kv_connector_extra_config = {"kvtier": {...}}`.
Both refuse what they don't know, with the nearest name that they do.
"""

import difflib
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from kvtier.errors import ConfigError

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?\s*", re.IGNORECASE)
_SCALE = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB, "KB": KIB, "MB": MIB, "GB": GIB, "TB": TIB}

Value = int | float | str | bool


@dataclass(frozen=True)
class Option:
    name: str
    default: Value
    unit: str  # "bytes", "ms", "s", "share", "count", "path", "text", "yes/no"
    why: str
    minimum: float = 0
    maximum: float = float("inf")


DAEMON = (
    Option("server.socket", "", "path", "Where kvtierd listens. Empty: $KVTIER_SOCKET, else kvtier/kvtierd.sock below "
           "$XDG_RUNTIME_DIR or /run. Its directory is made with mode 0700, the socket has 0600."),
    Option("server.group", "", "text", "Members of this group may be engines and observers here too: the directory is made "
           "with mode 0750 then, and the socket has 0660. Empty: nobody but root and the user that kvtierd runs as."),
    Option("server.max_clients", 256, "count", "Connections at once; one more gets an error. An engine has one "
           "for its scheduler and one for each rank.", 1, 65536),
    Option("server.hello_timeout_ms", 2000, "ms", "A connection that has not said Hello by then is closed.", 10, 60_000),
    Option("server.send_buffer", 8 * MIB, "bytes", "What may wait for a client that doesn't read; over it the client is "
           "disconnected, so that a stopped one can't fill the daemon's memory.", 64 * KIB, GIB),
    Option("admin.socket", "", "path", "Where kvtierd listens for what is said of sessions: gRPC, kvtier.v1.Admin. Empty: "
           "admin.sock beside server.socket. Its mode is 0600."),
    Option("admin.group", "", "text", "Members of this group may call it, too, and so read, pin and forget the sessions of "
           "all tenants: for gateways and operators, not for engines. They must be able to enter its directory. Empty: "
           "nobody but root and the user that kvtierd runs as."),
    Option("cpu.capacity", 4 * GIB, "bytes", "The RAM tier. Taken whole at start and pinned.", 32 * MIB, 64 * TIB),
    Option("cpu.pin", True, "yes/no", "Lock the arena in RAM, so that it never goes to swap."),
    Option("cpu.numa", "auto", "text", "On which NUMA node the arena lies as far as there is room. auto: that of the "
           "NVIDIA GPUs, if all are on one. none: where the kernel puts it. Or a node's number."),
    Option("gpu.device", "0", "text", "Which GPU has the GPU tier: its number, its PCI address or its UUID, as nvidia-smi "
           "shows them. Any of the node: engines on others read it over NVLink or PCIe."),
    Option("gpu.capacity", 0, "bytes", "The GPU tier: copies of the blocks in RAM that are used most, in memory that no "
           "engine has. Taken whole at start. 0: no such tier.", 0, 8 * TIB),
    Option("lend.max_share", 0.25, "share", "How much of the arena all engines together may hold as slots to save into. "
           "More lets them save longer bursts, and leaves less for blocks.", 0.001, 0.5),
    Option("lease.max_share", 0.5, "share", "How much of the arena leases may pin, so that there is always something to "
           "evict.", 0.01, 0.9),
    Option("policy.name", "value", "text", "Which block leaves RAM first. value: the one worth least, by the chance that "
           "its session comes back and by what it would take to compute it again. lru, s3fifo, arc: for comparison; they "
           "know no sessions."),
    Option("policy.pin_share", 0.25, "share", "How much of the arena may be pinned by users, so that the others have room.",
           0, 0.9),
    Option("policy.pin_s", 3600, "s", "How long a pin lasts that doesn't say so.", 1, 604_800),
    Option("tenant.max_share", 1.0, "share", "How much of the arena the blocks of one tenant may take: of requests with "
           "one salt, and of those without. Over it, a tenant makes room among its own blocks. 1: no limit.", 0.001, 1),
    Option("tenant.max_blocks", 0, "count", "How many blocks of one tenant may be in RAM, likewise. 0: no limit.",
           0, 2**40),
    Option("tenant.max_loads", 0, "count", "How many leases one tenant may have open at once; its further requests are "
           "computed. 0: no limit.", 0, 2**40),
    Option("tenant.write_rate", 0, "bytes", "How much of one tenant may be written to the drives and to the remote in a "
           "second, on the mean of some seconds; more is not written. 0: no limit.", 0, TIB),
    Option("tenant.share_users", False, "yes/no", "Whether engines of all users find each other's blocks. no: only those "
           "of one user do, by the name that it has on this machine; kvtierd's own user is the same on all machines."),
    Option("security.dumpable", False, "yes/no", "Whether a debugger may look into kvtierd, and whether it leaves core "
           "files. no: neither, for there are conversations in its memory."),
    Option("nvme.paths", "", "text", "A folder on each drive, separated by commas: the NVMe tier, which survives restarts. "
           "Its files have mode 0600. Empty: no such tier."),
    Option("nvme.capacity", 64 * GIB, "bytes", "The NVMe tier, in equal parts on all drives. Taken whole at start, so that "
           "a full disk shows then.", 32 * MIB, 256 * TIB),
    Option("nvme.io", "auto", "text", "io_uring, threads, or auto: threads where io_uring is refused."),
    Option("nvme.codec", "auto", "text", "How blocks are made smaller on the drives, without loss. auto: by what makes "
           "them smallest and reads and writes of many no slower, which is measured all the time; a load of a single one "
           "waits for its decoding. exp12, expz: by that one wherever it makes them smaller. none: not at all. Whatever is "
           "set, an engine may ask for less precision for its own blocks: `codec` in its kv_connector_extra_config."),
    Option("nvme.endurance_dwpd", 1.0, "drive writes a day", "How much of the drives' size kvtier may write in a day: "
           "what their maker rates them for, or less. Over it, blocks are not written.", 0, 1000),
    Option("nvme.stage_deadline_ms", 30_000, "ms", "A lookup waits this long for blocks from the drives; then the request "
           "goes on with what has come, and the rest is computed. Mostly it is found earlier that computing is faster; "
           "this is for when nothing is known.", 1, 600_000),
    Option("nvme.drain_s", 20, "s", "At SIGTERM: how long kvtierd goes on to write what is worth it, to the drives and to "
           "the remote. The service manager must give it more.", 0, 3600),
    Option("remote.url", "", "text", "The remote tier, a store that nodes share: redis://host, rediss://host, "
           "redis+cluster://host,host, s3://bucket/prefix, gs://bucket, az://container, file:///folder, mooncake://master, "
           "or another kvtierd: grpcs://host:port. No password stands in it. Empty: no such tier."),
    Option("remote.secret_file", "", "path", "Holds the secret that keys are made with, as `kvtier secret` makes it: a "
           "remote needs it, and nodes with the same one find each other's blocks. Mode 0600; blocks that lie on the "
           "drives by another secret are forgotten. A name alone is one of systemd's credentials."),
    Option("remote.username", "", "text", "Who we are there: a Redis user, the id of an S3 access key, an Azure account. "
           "Empty: none, or as the environment says."),
    Option("remote.password_file", "", "path", "Holds its password or secret key. Mode 0600; a name alone is one of "
           "systemd's credentials. Empty: $KVTIER_REMOTE_PASSWORD, or what the kind of store looks for by itself, such as "
           "$AWS_SECRET_ACCESS_KEY or a role."),
    Option("remote.endpoint", "", "text", "S3: where it is served, such as http://host:8333, when that isn't Amazon."),
    Option("remote.region", "", "text", "S3: the bucket's region."),
    Option("remote.ca_file", "", "path", "TLS: whose certificates are trusted. Empty: those that the system trusts."),
    Option("remote.cert_file", "", "path", "TLS: the certificate that we show, where we are asked for one."),
    Option("remote.key_file", "", "path", "TLS: its key, where that isn't in remote.cert_file."),
    Option("remote.codec", "auto", "text", "How blocks are made smaller in the remote, likewise. What other nodes wrote is "
           "read however they made it."),
    Option("remote.write_rate", 64 * MIB, "bytes", "How much may be written to the remote in a second, on the mean of some "
           "seconds; more waits, and may leave RAM unwritten.", 64 * KIB, TIB),
    Option("remote.deadline_ms", 2000, "ms", "A call that moves a block may take this long, and longer for one of many "
           "MiB; a question half of it, at most a second.", 50, 60_000),
    Option("remote.stage_deadline_ms", 10_000, "ms", "A lookup waits this long for blocks from the remote; then the "
           "request goes on with what has come, and the rest is computed. Mostly it is found earlier that computing is "
           "faster.", 1, 600_000),
    Option("peer.listen", "", "text", "Where other nodes read this one's blocks and write theirs, as HOST:PORT: "
           "kvtier.v1.Peer, which they name grpcs://HOST:PORT in their remote.url. Without TLS only 127.0.0.1, ::1 and "
           "localhost. Empty: nowhere."),
    Option("peer.certificate", "", "path", "TLS: the certificate that this node shows there. Files that are replaced are "
           "read again."),
    Option("peer.key", "", "path", "TLS: its key. Others may not read it."),
    Option("peer.client_ca", "", "path", "TLS: who signs the certificates of nodes that are let in. What a node may use "
           "stands in its certificate: a URI kvtier:namespace:* among the subject's alternative names, or "
           "kvtier:namespace: and the 16 hex digits of one."),
    Option("peer.write_rate", 256 * MIB, "bytes", "How much all other nodes together may write here in a second, on the "
           "mean of some seconds; more is refused.", 64 * KIB, TIB),
    Option("encryption.key_file", "", "path", "A file with the key that blocks on drives and in the remote are encrypted "
           "with: its path, or the name of a systemd credential; `kvtier secret FILE` makes one. Nodes that share a remote "
           "have the same. Whoever loses it loses the blocks. Empty: they lie there in the clear."),
    Option("cost.mode", "decide", "text", "decide: fetch where that is expected to be faster than to compute. always: "
           "fetch whatever is here. shadow: decide and log, but never load."),
    Option("cost.holdout", 0.01, "share", "So many requests go without, to see what the others gain; a tier that is "
           "slower than computing for a minute turns itself off. 0: none, and tiers are judged by predictions "
           "alone.", 0, 0.5),
    Option("cost.state", "", "path", "A folder for what kvtierd learns of this machine and for the log of its decisions. "
           "Empty: $STATE_DIRECTORY, else kvtier below $XDG_STATE_HOME or ~/.local/state."),
    Option("cost.log_bytes", 64 * MIB, "bytes", "How much of decisions.jsonl is kept, over 4 files; 0: no log.", 0, TIB),
    Option("cost.calibrate_s", 2.0, "s", "How long the drives and the memory are measured beside the first requests, when "
           "this machine has not been measured before. 0: never.", 0, 600),
    Option("log.level", "info", "text", "debug, info, warning or error."),
    Option("log.format", "text", "text", "text: for people. json: one object a line, with the time, the level, the event "
           "and its fields."),
    Option("metrics.listen", "", "text", "Where Prometheus reads metrics, over HTTP at /metrics: HOST:PORT, or a unix "
           "socket's path. Empty: metrics.sock beside server.socket, with mode 0600. none: nowhere."),
    Option("metrics.allow_remote", False, "yes/no", "Let metrics.listen name an address that other machines reach. There "
           "is neither TLS nor a password: whoever gets there learns how busy this node is and how often blocks are "
           "found."),
)  # fmt: skip

CONNECTOR = (
    Option("socket", "", "path", "Where kvtierd listens. Empty: as the daemon finds it; where the user has none, that of "
           "the system's service."),
    Option("lookup_deadline_ms", 250, "ms", "A request waits this long for the daemon's answer, then computes. One late "
           "answer turns waiting off until the daemon answers again.", 1, 10_000),
    Option("lookup_inline_us", 200, "us", "How long one scheduling step may wait for an answer before it goes on without "
           "the request; 0 never waits.", 0, 5_000),
    Option("start_wait_ms", 1000, "ms", "How long an engine waits for kvtierd when it starts, never afterwards.",
           0, 60_000),
    Option("save_steps", 4, "count", "For how many scheduling steps of new tokens the engine asks slots in advance.",
           1, 64),
    Option("copy_threads", 0, "count", "Threads that copy between engine and arena where the engine is on the CPU; 0 "
           "chooses.", 0, 16),
    Option("copy.path", "auto", "text", "How a GPU copies. auto: measured at start. batch, async: by its copy engines, "
           "many pieces a call or one. kernel: by a few of its processors, for tiny pieces."),
    Option("copy.decode_budget", 16 * GIB, "bytes", "How much saves may move in a second while requests decode on the GPU, "
           "so that decoding isn't slowed down. 0: no limit."),
    Option("codec", "", "text", "Blocks of this engine may lose precision below RAM: int8, fp8 or int4, which halve them "
           "and more. They are found by engines with the same setting alone. Empty: every block comes back as it was."),
    Option("weights_id", "", "text", "Names the weights. Empty: derived from the model's files; needed to share blocks "
           "between machines that hold the same weights under other paths."),
)  # fmt: skip


class Config:
    """Checked values of one table of options: config["cpu.capacity"]."""

    def __init__(self, options: tuple[Option, ...], given: Mapping[str, object], where: str = "") -> None:
        """ConfigError names the first setting that is unknown, of a wrong type or out of range."""
        known = {option.name: option for option in options}
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
                raise ConfigError(f"{where}unknown setting {name!r}{hint}")
        self._values = {o.name: _checked(o, given.get(o.name, o.default), where) for o in options}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def number(self, name: str) -> float:
        value = self._values[name]
        assert isinstance(value, (int, float)), name
        return value

    def count(self, name: str) -> int:
        return int(self.number(name))

    def text(self, name: str) -> str:
        return str(self._values[name])


def parse_toml(text: str, where: str) -> dict[str, object]:
    """The flat settings of a TOML file with one table a subject: {"cpu.capacity": ...}."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}") from None
    flat: dict[str, object] = {}
    for table, content in tables.items():
        if isinstance(content, dict):
            flat.update({f"{table}.{name}": value for name, value in content.items()})
        else:
            flat[table] = content
    return flat


def parse_size(text: str) -> int:
    """Bytes: "4GiB", "512 MiB", "1048576". All units are powers of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * _SCALE[(match[2] or "").upper()])


def format_size(size: float) -> str:
    """The shortest exact or nearly exact way to write so many bytes: 1.5 GiB."""
    for unit, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:.0f} B"


def example_toml(lines_of: Mapping[str, str] | None = None) -> str:
    """systemd/kvtier.toml: every daemon option with its default, commented out; or with another line, by its name."""
    lines = ["# Settings of kvtierd. Every line shows the default; take away the '#' to change it.", ""]
    table = ""
    for option in DAEMON:
        subject, name = option.name.split(".")
        if subject != table:
            table = subject
            lines += [f"[{table}]"]
        bounds = (
            ""
            if option.maximum == float("inf")
            else f", {_show(option, option.minimum)} to " + _show(option, option.maximum)
        )
        lines += textwrap.wrap(option.why, 110, initial_indent="# ", subsequent_indent="# ")
        lines += [f"# ({option.unit}{bounds})", (lines_of or {}).get(option.name, f"#{name} = {_toml(option)}"), ""]
    return "\n".join(lines)


def _show(option: Option, value: float) -> str:
    return format_size(value) if option.unit == "bytes" else f"{value:g}"


def _toml(option: Option) -> str:
    if isinstance(option.default, bool):
        return str(option.default).lower()
    if option.unit == "bytes":
        return f'"{format_size(float(option.default))}"'
    return f'"{option.default}"' if isinstance(option.default, str) else f"{option.default}"


def _checked(option: Option, value: object, where: str) -> Value:
    """`value` as the option's type, within its range."""
    wanted = type(option.default)
    try:
        if option.unit == "bytes" and isinstance(value, str):
            value = parse_size(value)
        elif wanted is bool and isinstance(value, str):
            value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
        elif wanted in (int, float) and isinstance(value, str):
            value = wanted(value)
        elif wanted is float and type(value) is int:
            value = float(value)
    except (ValueError, KeyError):
        raise ConfigError(f"{where}{option.name} = {value!r} is no {option.unit}") from None
    if type(value) is not wanted:
        raise ConfigError(f"{where}{option.name} = {value!r} must be {option.unit}, such as {option.default!r}")
    if isinstance(value, (int, float)) and not option.minimum <= value <= option.maximum:
        low, high = _show(option, option.minimum), _show(option, option.maximum)
        raise ConfigError(f"{where}{option.name} = {_show(option, value)} is not between {low} and {high}")
    return value  # type: ignore[return-value]
