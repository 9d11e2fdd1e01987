"""Native code where memory ends or a signal comes: an exception, not the end of the process."""

import ast
import os
import resource
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
MIB = 1 << 20

# How libraries below end a process themselves, by what they say.
OTHERS = {
    "libgomp: Thread creation failed": 1,
    "cannot allocate memory for thread-local data": 127,
}


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
    "windows": lambda size: simulate(cases.diamond((size,) * 3), 3, duration=9, model=WINDOWS),
    "plain windows": lambda size: simulate(
        cases.diamond((size,) * 3), 9, duration=9, model=NET, method="plain"
    ),
    "gradient": lambda size: gradient(crystal(size)),
}


def attempt(name: str, threads: int, room: int) -> None:
    """In a child process: a call with so many threads and so much memory (bytes) left to take."""
    torch.set_num_threads(threads)
    torch.zeros(MIB).add_(1)  # makes the team, which libgomp cannot do without memory
    CALLS[name](2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, resource.RLIM_INFINITY))
    try:
        CALLS[name](6)
    except MemoryError:
        os._exit(3)
    except RuntimeError as error:
        os._exit(3 if "allocate memory" in str(error) else 5)  # torch's own word for it
    os._exit(4)


def ends(name: str, threads: int, room: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            attempt(name, threads, room)
        finally:
            os._exit(6)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of addresses, and /proc")
@pytest.mark.parametrize(("threads", "rooms"), [(1, (0, 1, 4)), (2, (1, 4))])  # MiB
def test_an_end_of_memory_is_an_error(threads, rooms):
    """With two threads there has to be some: what is a thread's own, others make. libgomp ends a
    process whose team it cannot make again, and glibc one that has no room for a thread's own."""
    # in a process of its own: one that forks must not have run threads
    script = f"""
from test_faults import CALLS, MIB, ends
print({{name: [ends(name, {threads}, room * MIB) for room in {rooms}] for name in CALLS}})
"""
    folder = Path(__file__).parent
    paths = os.pathsep.join(map(str, (folder, folder.parent)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder.parent,  # the checkout's package has no compiled part
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    found = ast.literal_eval(done.stdout)
    assert found.keys() == CALLS.keys()
    for name, statuses in found.items():
        own_ways = {status for word, status in OTHERS.items() if word in done.stderr}
        assert set(statuses) <= {3, 4} | own_ways, (name, statuses, done.stderr[-2000:])
        assert 3 in statuses or threads == 2, (name, statuses)


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
