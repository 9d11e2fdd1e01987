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
from cuda_emulation import load, needs_compiler, run_sanitized, thread_order
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


def test_a_crowd():
    """More neighbours than a warp has lanes, and a molecule far away from them."""
    made = model_of({"window_potentials": ODD, "radial_cutoff": 5.0})
    graph = graph_of(made, crowd())
    assert graph.row_ptr.diff().max() > 64
    close(run(made, graph, ENDS), reference(made, graph, ENDS))


def test_an_atom_alone():
    made = model_of(SIZES["odd"])
    energy, slopes = run(made, graph_of(made, ase.Atoms("O")), ENDS)
    close([energy], reference(made, graph_of(made, ase.Atoms("O")), ENDS)[:1])
    assert not slopes.any()


def test_no_atoms():
    made = model_of(SIZES["odd"])
    graph = graph_of(made, ase.Atoms("O"))
    empty = {x: getattr(graph, x)[:0] for x in ("species", "masses", "velocities", "component")}
    graph = dataclasses.replace(graph, **empty, row_ptr=graph.row_ptr[:1])
    assert [x.shape for x in run(made, graph, ENDS)] == [(0,), (0, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("copies", [30, 265, 531, 2113])
def test_bits_do_not_depend_on_company_or_tiles(copies):
    """Of 2 to 8 atoms, and of hidden layers 4 to 32; the last one has room to spare."""
    made = model_of({"window_potentials": ODD | {"layers": 2}})
    one = graph_of(made, [cases.hot("H2O"), cases.lone_atom()])
    for x, y in zip(run(made, one.repeat(copies), ENDS), run(made, one, ENDS), strict=True):
        assert torch.equal(x, y.repeat(copies, *[1] * (y.ndim - 1)))


def test_edges_that_no_atom_has():
    """Of a graph with room for more: they are not looked at."""
    made = model_of(SIZES["odd"])
    graph = graph_of(made, many())
    room = torch.full((5,), 2**40)
    nothing = torch.full((5, 3), torch.nan)
    given = {field.name: getattr(graph, field.name) for field in dataclasses.fields(graph)}
    given |= {
        "neighbor": torch.cat([graph.neighbor, room]),
        "r": torch.cat([graph.r, nothing]),
        "w": torch.cat([graph.w, nothing]),
    }
    roomy = FixedSizeGraph(**given, slots=int(graph.row_ptr.diff().max()))
    for x, y in zip(run(made, roomy, MIDDLE), run(made, graph, MIDDLE), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("sizes", ["odd", "diamond"])
def test_the_order_of_threads_changes_no_bit(sizes):
    made = model_of(SIZES[sizes])
    graph, library = graph_of(made, many()), load(*WINDOWS)

    def ordered(seed: int) -> list[torch.Tensor]:
        with thread_order(library, seed):
            return run(made, graph, ENDS)

    expected = ordered(0)
    for seed in (1, 2):
        for x, y in zip(ordered(seed), expected, strict=True):
            assert torch.equal(x, y)


def test_distances_at_the_cutoff_and_beyond_count_for_nothing():
    made = model_of(SIZES["odd"])
    cutoff = made.config.radial_cutoff
    pairs = [ase.Atoms("CO", [[0, 0, 0], [0, 0, d]]) for d in (cutoff - 1e-4, cutoff + 1, 1.2)]
    graph = graph_of(made, pairs)
    reach = dataclasses.replace(graph, r=graph.r * torch.tensor([1.1, 1.1, 1.0, 1.0])[:, None])
    energy, slopes = run(made, reach, ENERGY)
    torch.testing.assert_close(energy[:2], energy[2:4], rtol=0, atol=1e-6)
    assert slopes[:4].abs().max() < 1e-6 and slopes[4:].any()


def test_refusals():
    made = model_of({"window_potentials": {"radial": 4, "products": 700}})
    with pytest.raises(RuntimeError, match="32 channels, 700 products .* too large .* use backend"):
        run(made, graph_of(made, cases.hot("H2O")), ENDS)
    sizes, weights = density_weights(model_of(SIZES["odd"]).window_potentials)
    with pytest.raises(RuntimeError, match="at most 2147483647 atoms, got 2147483648; split"):
        emulated_window_bytes((*sizes, [x.data_ptr() for x in weights]), 2**31, True)


def test_a_model_on_the_emulated_gpu(emulated_attention):
    """Energies, slopes and charges as a predictor has them, with the weights as they were."""
    made = cases.model(dtype=torch.float32, **cases.WINDOW_POTENTIALS, **cases.DIPOLE)
    made = MDtrajNet(made.config, members=0).requires_grad_(False)
    graph = graph_of(made, many())
    found, expected = (made.predictor(name) for name in ("cuda", "reference"))
    for x in made.parameters():
        x *= 1.5
    for role in ROLES:
        a, b = (x.slopes(graph, role) for x in (found, expected))
        assert [x.dtype for x in a] == [x.dtype for x in b] == [torch.float32, torch.float64]
        close(a, [x.double() for x in b])
    assert torch.equal(found.energies(graph), found.slopes(graph, ENERGY)[0])
    close([found.charges(graph)], [expected.charges(graph).double()])


def sanitized_cases() -> None:
    """Energies and slopes of a few atoms, for run_sanitized."""
    for sizes in ("odd", "one layer", "beyond a vector", "wide", "diamond"):
        made = model_of(SIZES[sizes])
        graph = graph_of(made, [cases.hot("CH3CN"), cases.lone_atom()])
        close(run(made, graph, MIDDLE), reference(made, graph, MIDDLE))
        run(made, graph, ENERGY, wanted=False)
    made = model_of(SIZES["one layer"])
    one = graph_of(made, [cases.hot("H2O"), cases.lone_atom()])
    for copies in (265, 531, 2113):
        run(made, one.repeat(copies), ENDS)


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers():
    result = run_sanitized("test_cuda_windows", "sanitized_cases()")
    assert result.returncode == 0, result.stderr
