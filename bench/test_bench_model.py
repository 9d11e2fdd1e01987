"""The model over the number of atoms: ours beside the plain-torch reference and two e3nn peers.

Run with `pytest bench/test_bench_model.py`; `-k "diamond and ours"` chooses. Published sizes,
random weights, float32, one thread unless MDTRAJNET_BENCH_THREADS says otherwise. Sizes that would
take a provider minutes, or more than some 8 GB, are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from providers import (
    PROVIDERS,
    THREADS,
    TrainingStep,
    WindowTrainingStep,
    provider,
    published_model,
)
from systems import SYSTEMS

from mdtrajnet_fast import read_structure
from mdtrajnet_fast.system import System

# The most edges that a provider is asked to take.
LIMITS = {
    "positions": {"reference": 600_000, "e3nn-sparse": 90_000, "e3nn-dense": 90_000},
    "velocities": {"reference": 600_000, "e3nn-sparse": 50_000, "e3nn-dense": 50_000},
    "training": {"ours": 200_000, "reference": 50_000, "e3nn-sparse": 6_000, "e3nn-dense": 6_000},
}
TRAINING = ["ethanol-8", "ethanol-64", "ethanol-1024", "diamond-64", "diamond-1000"]


def make(name: str, system: str, kind: str):
    """A provider of a system, or a skip with the reason."""
    if name.startswith("e3nn"):
        pytest.importorskip("e3nn")
    build, size, neighbours = SYSTEMS[system]
    atoms = build(size)
    count = sum(len(one) for one in atoms) if isinstance(atoms, list) else len(atoms)
    if neighbours * count > LIMITS[kind].get(name, np.inf):
        pytest.skip(f"{count} atoms are too many for {name}")
    try:
        return provider(name, atoms, train=kind == "training")
    except ValueError as error:  # what the dense formulation cannot represent
        pytest.skip(str(error))


def run(benchmark, call: Callable[[], object], group: str, atoms: int) -> None:
    """Time a call for about 2 s, 3 times at least, after two calls to warm up."""
    call()
    begun = time.perf_counter()
    call()
    once = time.perf_counter() - begun
    benchmark.group = group
    benchmark.extra_info.update(atoms=atoms, threads=THREADS)
    benchmark.pedantic(call, rounds=int(np.clip(2 / once, 3, 200)))


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("system", SYSTEMS)
@torch.no_grad()
def test_positions(benchmark, system, name):
    made = make(name, system, "positions")
    run(benchmark, made.displacement, f"positions, {system}", made.atoms)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("system", SYSTEMS)
@torch.no_grad()
def test_positions_and_velocities(benchmark, system, name):
    made = make(name, system, "velocities")
    run(benchmark, made.motion, f"positions and velocities, {system}", made.atoms)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("system", TRAINING)
def test_training_step(benchmark, system, name):
    made = make(name, system, "training")
    run(benchmark, TrainingStep(made), f"training step, {system}", made.atoms)


@pytest.mark.parametrize("name", ["ours", "reference"])
@pytest.mark.parametrize("windows", [32, 128])
@pytest.mark.parametrize("model", ["alanine-dipeptide", "alanine-dipeptide-small"])
def test_window_training_step(benchmark, model, windows, name):
    """Of potentials whose kicks make windows; the sizes of the first are those of molecules-nve."""
    atoms = read_structure("alanine dipeptide")
    step = WindowTrainingStep(model, None if name == "ours" else name, atoms, windows)
    run(benchmark, step, f"{windows} windows, {model}", windows * len(atoms))


@pytest.mark.parametrize("frames", [1, 10])
@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("system", ["ethanol-1", "ethanol-64"])
def test_window(benchmark, system, name, frames):
    """Frames of a rollout's window, with velocities; one frame is the end of the window."""
    made = make(name, system, "velocities")
    times = np.linspace(10 / frames, 10, frames)
    run(benchmark, lambda: made.window(times), f"window of {frames}, {system}", made.atoms)


@pytest.mark.parametrize("system", ["ethanol-1", "ethanol-64", "diamond-1000", "diamond-10648"])
@torch.no_grad()
def test_from_atoms(benchmark, system):
    """What a caller pays from ase.Atoms on: neighbour list, graph, positions and velocities."""
    build, size, _ = SYSTEMS[system]
    atoms, model = build(size), published_model()

    def call() -> object:
        graph = model.graph(System.from_atoms(atoms))
        return model.motion(graph, torch.full((graph.atoms,), 7.0))

    count = sum(len(one) for one in atoms) if isinstance(atoms, list) else len(atoms)
    run(benchmark, call, f"from atoms, {system}", count)
