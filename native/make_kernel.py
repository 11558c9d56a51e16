"""Compiles copy_kernel.cu to PTX and writes it as a C++ string: `python native/make_kernel.py TARGET`.

The compiler comes from the package that the Makefile names (NVRTC): `make kernel` fetches it for this one run. It is an
old one on purpose. A driver takes PTX of its own age and older, so the compiler decides how old a driver may be; and
PTX for an old architecture runs on all later ones, since the driver compiles it for the card.
"""

import ctypes
import hashlib
import importlib.metadata
import sys
from pathlib import Path

PACKAGE = "nvidia-cuda-nvrtc-cu12"
ARCHITECTURE = "compute_70"
SOURCE = Path(__file__).with_name("copy_kernel.cu")
HEAD = """\
// Generated from copy_kernel.cu by `make kernel`: don't edit. The digest is the source's (SHA-256):
// {digest}
//
// PTX 8.0 for {architecture}: every GPU since Volta (V100), compiled for the card by its driver when it is loaded.
// Drivers from 525 (CUDA 12.0) on take it; an older one refuses it, and copies go without the kernel.
#pragma once

namespace kvtier {{

inline constexpr char kCopyKernelPtx[] = R"ptx({ptx})ptx";

}}  // namespace kvtier
"""


def compiler() -> ctypes.CDLL:
    """Raises importlib.metadata.PackageNotFoundError, or OSError when it can't be loaded."""
    package = importlib.metadata.distribution(PACKAGE)
    [library] = [file for file in package.files or () if file.name == "libnvrtc.so.12"]
    return ctypes.CDLL(str(package.locate_file(library)))


def source_digest() -> str:
    """SHA-256 of the source, in hexadecimal: by it a header that is too old is known without the compiler."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def ptx() -> str:
    """The kernel's PTX. Raises RuntimeError with what the compiler said."""
    nvrtc = compiler()
    program = ctypes.c_void_p()
    source = SOURCE.read_bytes()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, SOURCE.name.encode(), 0, None, None))
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if failed:
        raise RuntimeError(output_of(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog))
    return output_of(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)


def output_of(program: ctypes.c_void_p, size_of, text_of) -> str:
    size = ctypes.c_size_t()
    check(size_of(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(text_of(program, text))
    return text.value.decode()


def check(result: int) -> None:
    if result:
        raise RuntimeError(f"nvrtc: error {result}")


def header() -> str:
    """What copy_kernel.ptx.h holds."""
    return HEAD.format(digest=source_digest(), architecture=ARCHITECTURE, ptx=ptx())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(header())
