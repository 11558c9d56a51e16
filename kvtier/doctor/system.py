"""The machine as checks see it: files below one root, so that a test may make up a machine, and what no file says.

Nothing is changed. But one probe file is written where only a write shows whether a drive takes direct I/O; it has lost
its name before its first byte is written.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import ssl
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PROBE = ".kvtier-doctor"
PROBE_BYTES = 4096
LIBCRYPTO, LIBZSTD = "libcrypto.so.3", "libzstd.so.1"
STA_UNSYNC = 0x40  # of adjtimex
TIMEX_BYTES, STATUS_AT = 208, 5 * 8  # of its struct on 64 bits: modes, offset, freq, maxerror, esterror, status
IO_URING_SETUP = 425  # the number of the system call, on every processor
FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class Space:
    """Bytes of a filesystem."""

    size: int
    free: int


class System:
    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    # --- files -----------------------------------------------------------------------------------------------

    def path(self, name: str | Path) -> Path:
        return self.root / str(name).lstrip("/")

    def read(self, name: str | Path) -> str:
        """Empty: it isn't there, or not for us."""
        try:
            with self.path(name).open("rb") as opened:
                return opened.read(FILE_BYTES_MAX).decode(errors="replace").strip()
        except (OSError, ValueError):
            return ""

    def number(self, name: str | Path) -> int | None:
        """None: there is none in it; "max" is one that no machine has."""
        text = self.read(name)
        if text == "max":
            return 2**63
        return int(text) if text.removeprefix("-").isdecimal() else None

    def names(self, folder: str | Path) -> list[str]:
        try:
            return sorted(os.listdir(self.path(folder)))
        except OSError:
            return []

    def target(self, link: str | Path) -> str:
        """Where a symbolic link leads."""
        try:
            return os.readlink(self.path(link))
        except OSError:
            return ""

    def stat(self, name: str | Path) -> os.stat_result | None:
        try:
            return self.path(name).stat()
        except OSError:
            return None

    def can_write(self, folder: str | Path) -> bool:
        return os.access(self.path(folder), os.W_OK | os.X_OK)

    # --- what no file says -----------------------------------------------------------------------------------

    def user(self) -> int:
        return os.geteuid()

    def kernel(self) -> str:
        return platform.release()

    def python(self) -> str:
        return platform.python_version()

    def package(self, name: str) -> str:
        """The version that is installed beside us; empty: none."""
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return ""

    def libcrypto(self) -> str:
        """Its version; empty: there is none that kvtierd could open."""
        return _version_of(LIBCRYPTO, "OpenSSL_version", 0)

    def libzstd(self) -> str:
        """Likewise."""
        return _version_of(LIBZSTD, "ZSTD_versionString")

    def codec_isas(self) -> list[str]:
        """The sets of instructions that codecs may use on this processor, the best first."""
        from kvtier import _native  # what only reads files goes without it

        return list(_native.codec_isas())

    def tls(self) -> str:
        return ssl.OPENSSL_VERSION

    def space(self, folder: str | Path) -> Space | None:
        try:
            found = os.statvfs(self.path(folder))
        except OSError:
            return None
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def clock_is_synced(self) -> bool | None:
        """As the kernel was told by whoever sets it. None: it doesn't say."""
        with contextlib.suppress(OSError, AttributeError):
            timex = ctypes.create_string_buffer(TIMEX_BYTES)
            if ctypes.CDLL(None, use_errno=True).adjtimex(timex) >= 0:
                return not ctypes.c_int.from_buffer(timex, STATUS_AT).value & STA_UNSYNC
        return None

    def io_uring(self) -> str:
        """Why this process may not have it; empty: it may. Without parameters the kernel refuses, but in its own words."""
        call = ctypes.CDLL(None, use_errno=True).syscall
        call(ctypes.c_long(IO_URING_SETUP), ctypes.c_uint(1), ctypes.c_void_p(None))
        said = ctypes.get_errno()
        return "" if said in (errno.EFAULT, errno.EINVAL) else os.strerror(said)

    def direct_io(self, folder: str | Path) -> str:
        """Why a file there can't be written past the page cache; empty: it can."""
        probe = self.path(folder) / f"{PROBE}-{os.getpid()}"
        try:
            fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_DIRECT, 0o600)
        except OSError as error:
            with contextlib.suppress(OSError):
                probe.unlink()  # some filesystems make the file before they refuse
            return os.strerror(error.errno or 0)
        try:
            probe.unlink()
            with mmap.mmap(-1, PROBE_BYTES) as page:  # direct I/O wants whole pages
                os.pwrite(fd, page, 0)
        except OSError as error:
            return os.strerror(error.errno or 0)
        finally:
            os.close(fd)
        return ""


def _version_of(library: str, function: str, *arguments: int) -> str:
    try:
        version = getattr(ctypes.CDLL(library), function)
    except (OSError, AttributeError):
        return ""
    version.restype = ctypes.c_char_p
    return str(version(*arguments).decode())
