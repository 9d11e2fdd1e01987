"""The window potentials of the GPU, on the CPU: energies and slopes against plain torch in double
precision."""

from __future__ import annotations

import dataclasses
import json

import ase
import cases
import numpy as np
import pytest
import torch
from cuda_emulation import load, needs_compiler, run_sanitized, set_order
from emulated_gpu import WINDOWS, emulated_window_bytes, emulated_window_potential
from kernel_cases import crowd, double

from mdtrajnet_fast.model.checkpoint import BUNDLED as BUNDLED_FOLDER
from mdtrajnet_fast.model.network import MDtrajNet
from mdtrajnet_fast.model.packed_weights import density_weights
from mdtrajnet_fast.model.window_potentials import ENDS, ENERGY, MIDDLE, ROLES
from mdtrajnet_fast.ops import Graph
from mdtrajnet_fast.ops.graph import FixedSizeGraph
from mdtrajnet_fast.system import System

pytestmark = needs_compiler

GUARD = 64  # bytes behind every array that a kernel may write
TOLERANCE = 2e-5  # of the largest value
ODD = {"layers": 3, "radial": 7, "channels": 5, "products": 3, "hidden": 9}


def bundled() -> dict[str, dict]:
    """The sizes of the bundled models, one of each."""
    found: dict[str, dict] = {}
    for file in sorted(BUNDLED_FOLDER.glob("*/config.json")):
        of = json.loads(file.read_text())["config"]
        sizes = {k: of["window_potentials"][k] for k in ODD}
        one = {"window_potentials": sizes, "radial_cutoff": of["radial_cutoff"]}
        if one not in found.values():
            found[file.parent.name] = one
    return found


BUNDLED = bundled()
SIZES = {
    "odd": {"window_potentials": ODD},
    "one layer": {"window_potentials": ODD | {"layers": 1}},
    "beyond a vector": {
        "window_potentials": {"radial": 18, "channels": 19, "products": 21, "hidden": 37}
    },
    # only tiles of the fewest atoms fit
    "wide": {"window_potentials": {"radial": 5, "channels": 33, "products": 260, "hidden": 170}},
    **BUNDLED,
}


def model_of(options: dict) -> MDtrajNet:
    """Random weights, those of the roles and of the second biases as well."""
    made = cases.model(**options)
    of = made.window_potentials
    for x in (of.role, of.second_bias):
        x += 0.3 * torch.randn_like(x)
    of.last *= 1 + 0.3 * torch.randn_like(of.last)
    return made.float()


def graph_of(made: MDtrajNet, atoms: ase.Atoms | list[ase.Atoms]) -> Graph:
    return made.graph(System.from_atoms(atoms))


def many() -> list[ase.Atoms]:
    """Several elements, atoms without neighbours, and a crystal."""
    return [cases.hot("CH3CH2OH"), cases.lone_atom(), cases.hot("CH3CN"), cases.diamond((1, 1, 1))]


def reference(made: MDtrajNet, graph: Graph, role: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By plain torch in double precision, on the same numbers."""
    of = made.window_potentials.double()
    try:
        return of.slopes(double(graph), torch.full_like(graph.species, role))
    finally:
        made.float()


def guarded(*shape: int, dtype: type) -> np.ndarray:
    """NaN everywhere, and a guard behind it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + GUARD, 0xFF, np.uint8)
    return memory[:size].view(dtype).reshape(shape)


def check_guard(array: np.ndarray) -> None:
    memory = array
    while memory.base is not None:
        memory = memory.base
    assert (memory[-GUARD:] == 0xFF).all()


def run(made: MDtrajNet, graph: Graph, role: int, wanted: bool = True) -> list[torch.Tensor]:
    """Energies and, if they are wanted, slopes."""
    sizes, weights = density_weights(made.window_potentials)
    network = (*sizes, [x.data_ptr() for x in weights])
    energy = guarded(graph.atoms, dtype=np.float32)
    slopes = guarded(graph.atoms, 3, dtype=np.float64)
    workspace = guarded(emulated_window_bytes(network, graph.atoms, wanted), dtype=np.uint8)
    csr = (graph.atoms, *(x.data_ptr() for x in graph.csr))
    out = (energy.ctypes.data, slopes.ctypes.data if wanted else 0, workspace.ctypes.data)
    emulated_window_potential(network, csr, graph.species.data_ptr(), role, *out)
    for array in (energy, slopes, workspace):
        check_guard(array)
    return [torch.from_numpy(x) for x in (energy, slopes)[: 1 + wanted]]


def close(found, expected):
    for x, y in zip(found, expected, strict=True):
        limit = TOLERANCE * float(y.abs().max())
        assert limit > 0
        torch.testing.assert_close(x.double(), y, rtol=0, atol=limit)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("sizes", SIZES)
def test_energies_and_slopes(sizes, role):
    made = model_of(SIZES[sizes])
    graph = graph_of(made, many())
    expected = reference(made, graph, role)
    close(run(made, graph, role), expected)
    close(run(made, graph, role, wanted=False), expected[:1])
    alone = graph.row_ptr.diff() == 0
    assert alone.any() and not expected[1][alone].any()


@pytest.mark.parametrize("systems", [lambda: ase.Atoms("O"), crowd, many])
def test_systems(systems):
    """One atom, more neighbours than slots of a warp, and molecules beside a crystal."""
    made = model_of({"window_potentials": ODD, "radial_cutoff": 5.0})
    graph = graph_of(made, systems())
    for x, y in zip(run(made, graph, ENDS), reference(made, graph, ENDS), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=TOLERANCE * float(1 + y.abs().max()))
