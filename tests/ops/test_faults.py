"""Native code where memory ends or a signal comes: an exception, not the end of the process."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
import torch

from mdtrajnet_fast import simulate
from mdtrajnet_fast.neighbors.host import NeighborList, neighbor_list
from mdtrajnet_fast.system import System

NET = cases.gentle(**cases.OWN, **cases.POTENTIAL)
WINDOWS = cases.alone(cases.gentle(**cases.WINDOW_POTENTIALS))
LEARNING = cases.model(**cases.OWN).requires_grad_(True)


def gradient(crystal) -> None:
    graph = LEARNING.graph(crystal)
    t = torch.full((graph.atoms,), 3.0, dtype=torch.float64)
    LEARNING(graph, t).displacement.square().sum().backward()


def crystal(cells: int) -> System:
    return System.from_atoms(cases.diamond((cells,) * 3))


def gas(atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and the cell (Å) of a fluid with some 290 atoms within 7 Å of each."""
    length = (5 * atoms) ** (1 / 3)
    return np.random.default_rng(0).uniform(0, length, (atoms, 3)), length * np.eye(3)


def neighbors(positions, cell) -> None:
    neighbor_list(positions, 7.0, cell, True)


# What computes natively, of a size.
CALLS = {
    "thin cell": lambda size: neighbor_list(np.zeros((1, 3)), 4.0, 0.3 / size * np.eye(3), True),
    "neighbors": lambda size: neighbors(*gas(500 * size**3)),
    "kept neighbors": lambda size: NeighborList(7.0, 0.5).update(*gas(500 * size**3), True),
    "network": lambda size: NET.predict(cases.diamond((size,) * 3), [1.0, 3.0]),
    "potential": lambda size: NET.potential_energy(crystal(size)),
    "window potentials": lambda size: WINDOWS.potential_energy(crystal(size)),
    "windows": lambda size: simulate(cases.diamond((size,) * 3), 3, duration=3, model=WINDOWS),
    "plain windows": lambda size: simulate(
        cases.diamond((size,) * 3), 9, duration=9, model=NET, method="plain"
    ),
    "gradient": lambda size: gradient(crystal(size)),
}


# In a process of its own, with end_of_memory.c preloaded: what each call does where an allocation
# of ours fails, for each of these in turn.
SCRIPT = """
import ctypes, faulthandler, sys
faulthandler.enable()
import torch
from test_faults import CALLS
from mdtrajnet_fast import _C
threads, *names = sys.argv[1:]
torch.set_num_threads(int(threads))
library = ctypes.CDLL(None)
library.fail_after.argtypes = [ctypes.c_long]
ranges = []
for name in *names, _C.__file__:
    mapped = [line.split()[0].split("-") for line in open("/proc/self/maps") if name in line]
    ranges += [int(mapped[0][0], 16), int(mapped[-1][1], 16)]
library.watch((ctypes.c_void_p * 6)(*ranges))
for name, call in CALLS.items():
    call(2)
    for allocation in range(10_000):
        print(name, allocation, file=sys.stderr, flush=True)
        library.fail_after(allocation)
        try:
            call(2)
            end = "done"
        except Exception as error:
            end = type(error).__name__
        if library.none_failed():
            break
        print(f"{name}: {end}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library, and reads /proc")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_end_of_memory_is_an_error(tmp_path, threads):
    """Wherever it comes in our code; other libraries, NumPy among them, have places that crash."""
    folder = Path(__file__).parent
    library = tmp_path / "end_of_memory.so"
    source = folder / "end_of_memory.c"
    flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, source, "-o", library], check=True)
    paths = os.pathsep.join(map(str, (folder, folder.parent)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(threads), library.name, "libstdc++.so"],
        capture_output=True,
        text=True,
        cwd=folder.parent,  # the checkout's package has no compiled part
        env=os.environ
        | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), "LD_PRELOAD": str(library)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ends = done.stdout.splitlines()
    assert set(ends) == {f"{name}: MemoryError" for name in CALLS}
    assert len(ends) > 20 * len(CALLS)


class Enough(Exception):
    pass


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name, size",
    [
        ("neighbors", 9),
        ("kept neighbors", 9),
        ("network", 10),
        ("potential", 20),
        ("window potentials", 20),
        ("plain windows", 12),
        ("gradient", 10),
    ],
)
def test_signals_are_handled_within_a_call(name, size, threads):
    """Those that come while a native call runs are heard one by one, not once at its end."""
    heard: list[tuple[int, int]] = []

    def hear(number, frame):
        heard.append((id(frame), frame.f_lasti))
        if heard[-3:] == 3 * [heard[-1]]:  # in one call
            raise Enough

    torch.set_num_threads(threads)
    before = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with pytest.raises(Enough):
            CALLS[name](size)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(1)
