"""CUDA kernels on the CPU: g++ compiles them with ``csrc/testing/cuda_on_cpu.hpp``.

``load`` gives a ctypes library whose launchers take the pointers of numpy arrays; ``run_sanitized``
calls a function of a test module in a process of its own, where the library is built with
AddressSanitizer and UndefinedBehaviorSanitizer and numpy's memory is watched too.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CXX = shlex.split(os.environ.get("CXX", "g++"))

FLAGS = [
    *("-std=c++17", "-g1", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),
    *(f"-I{CSRC}", "-include", str(CSRC / "testing" / "cuda_on_cpu.hpp")),
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Set to the folder of the libraries in the environment of run_sanitized's process.
SANITIZED = "MDTRAJNET_TEST_SANITIZED"

needs_compiler = pytest.mark.skipif(
    shutil.which(CXX[0]) is None, reason=f"the emulation is compiled with {CXX[0]}: not found"
)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="cuda-emulation-")  # removed at exit


@functools.cache
def build(*sources: Path, sanitize: bool = False) -> Path:
    """The shared library of these sources (.cu or .cpp), compiled once.

    Raises:
        subprocess.CalledProcessError: they do not compile; the compiler's messages go to stderr.
    """
    folder = Path(os.environ.get(SANITIZED) or _folder().name)
    name = hashlib.sha256("\0".join(map(str, sources)).encode()).hexdigest()[:16]
    library = folder / f"{name}{'-sanitized' * sanitize}.so"
    if library.exists():  # made by another run_sanitized
        return library
    options = ["-O0", *SANITIZERS] if sanitize else ["-O1"]
    command = [*CXX, *FLAGS, *options, "-x", "c++", *map(str, sources), "-o", str(library)]
    # in run_sanitized's process the compiler itself would run under the sanitizers
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    subprocess.run(command, check=True, env=environment)
    return library


def load(*sources: Path) -> ctypes.CDLL:
    """The library of these sources; with sanitizers where ``run_sanitized`` asks for them.

    Every function returns a message (``bytes``) or None: use ``call``.
    """
    return ctypes.CDLL(str(build(*sources, sanitize=SANITIZED in os.environ)))


def call(function, *arguments) -> None:
    """Calls a launcher: arrays become pointers, None null, floats double and ints int64.

    Raises:
        RuntimeError: what the launcher or the emulation refuses, a divergent barrier for example.
    """
    function.restype = ctypes.c_char_p
    message = function(*map(_argument, arguments))
    if message is not None:
        raise RuntimeError(message.decode())


def pointer(array: np.ndarray | None) -> int | None:
    """The address of an array's data, None for None."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return array.ctypes.data


def _argument(value):
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(pointer(value))
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return value


@contextmanager
def thread_order(library: ctypes.CDLL, seed: int) -> Iterator[None]:
    """Blocks, warps and lanes run in an order drawn with this seed; with 0, as numbered."""
    library.emulation_order(ctypes.c_uint(seed))
    try:
        yield
    finally:
        library.emulation_order(ctypes.c_uint(0))


def run_sanitized(module: str, expression: str) -> subprocess.CompletedProcess[str]:
    """Evaluates ``module.expression`` under the sanitizers; see the result's returncode and stderr.

    Both libraries come first in the process, so that numpy's arrays have red zones around them.
    """
    names = ["libasan.so", "libubsan.so"]
    found = [
        subprocess.run([*CXX, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in names
    ]
    here = Path(__file__).parent
    (of_module,) = here.rglob(f"{module}.py")
    environment = os.environ | {
        SANITIZED: _folder().name,
        "LD_PRELOAD": " ".join(result.stdout.strip() for result in found),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(here), str(of_module.parent), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", f"import {module}; {module}.{expression}"]
    # from here, for in a checkout the source tree, without its compiled part, hides the package
    return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)


class CSystems(ctypes.Structure):
    """Systems of csrc/cpu/neighbors.hpp."""

    _fields_ = [
        ("positions", ctypes.c_void_p),
        ("atoms", ctypes.c_int64),
        ("ptr", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("cells", ctypes.c_void_p),
        ("pbc", ctypes.c_void_p),
    ]


class CSkinList(ctypes.Structure):
    """SkinList of csrc/cuda/neighbors.hpp."""

    _fields_ = [
        ("state", ctypes.c_void_p),
        ("row_ptr", ctypes.c_void_p),
        ("neighbor", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
    ]
