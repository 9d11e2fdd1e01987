"""Subnormal numbers: 0 in native code, on every thread, and nowhere else.

Inputs are so small that results would be subnormal: they have to be exactly 0, which no test of a
tolerance would see.
"""

import platform
import subprocess
import sys
from pathlib import Path

import ase
import cases
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from mdtrajnet_fast import _C
from mdtrajnet_fast.md.rollout import engine_for
from mdtrajnet_fast.md.window import Method, Plan
from mdtrajnet_fast.model.window_potentials import ENDS
from mdtrajnet_fast.neighbors.host import Edges, NeighborList, edge_vectors, neighbor_list
from mdtrajnet_fast.ops import edge_attention, fold
from mdtrajnet_fast.ops.reference import FoldedWeights
from mdtrajnet_fast.system import System

CSRC = Path(__file__).parents[2] / "csrc"
TINY = {torch.float32: 1e-40, torch.float64: 1e-310}

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"),
    reason="this processor's subnormal numbers are left as they are",
)


def flushes() -> bool:
    """Whether this thread takes subnormal numbers for 0."""
    return bool(np.float32(1e-40) * np.float32(0.5) == 0)


@pytest.fixture(autouse=True)
def setting():
    """The caller's setting is what it was after every call, failed ones as well."""
    assert not flushes()
    yield
    assert not flushes()


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    torch.zeros(1 << 20).add_(1)  # makes the team, whose threads do not flush by themselves
    yield request.param
    torch.set_num_threads(1)


@pytest.fixture(params=TINY, ids=str)
def dtype(request):
    return request.param


def are_zero(native, reference=()):
    """All native numbers are 0, though the reference, which is not flushed, has others."""
    for x in native:
        assert np.count_nonzero(x) == 0
    for x in reference:
        assert np.count_nonzero(x) > 0


def arrays(tensors):
    return [x.detach().numpy() for x in tensors]


def block(dtype):
    """A block, its input, and how to call it; more tiles of atoms than threads."""
    model = cases.model(dtype=dtype)
    *state, graph = cases.block_inputs(model, cases.diamond((2, 2, 3)))
    folded = fold(model.members[0].blocks[0].weights())
    tensors = [x.contiguous() for x in folded.tensors()]
    folded = FoldedWeights.from_tensors(tensors, len(folded.key_layers))
    options = {
        "radial_cutoff": model.config.radial_cutoff,
        "distance_centres": model.config.d_embed_dim,
        "time_channels": model.config.t_embed_dim,
        "envelope": model.config.envelope,
    }
    return state, graph, folded, options


def test_attention_values(instruction_set, dtype, threads):
    state, graph, folded, options = block(dtype)
    last = ("value_atom", "value_edge", "out")  # results are proportional to them
    small = {name: TINY[dtype] * getattr(folded, name) for name in last}
    folded = folded._replace(**small)
    found, reference = (
        edge_attention(*state, graph, folded, **options, backend=backend)
        for backend in (None, "reference")
    )
    are_zero(arrays(found), arrays(reference))


def test_attention_tangents(instruction_set, dtype, threads):
    state, graph, folded, options = block(dtype)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, TINY[dtype] * x) for x in state]
        found, reference = (
            [
                forward_ad.unpack_dual(x).tangent
                for x in edge_attention(*duals, graph, folded, **options, backend=backend)
            ]
            for backend in (None, "reference")
        )
    are_zero(arrays(found), arrays(reference))


def test_attention_gradients(instruction_set, dtype, threads):
    state, graph, folded, options = block(dtype)
    inputs = [x.requires_grad_() for x in (*state, graph.r, graph.w, *folded.tensors())]

    def gradients(backend):
        out = edge_attention(*state, graph, folded, **options, backend=backend)
        upstream = [TINY[dtype] * torch.ones_like(x) for x in out]
        return arrays(torch.autograd.grad(out, inputs, upstream))

    are_zero(gradients(None), gradients("reference"))


@pytest.mark.parametrize("own", [False, True], ids=["tangents", "read-out"])
def test_networks(dtype, threads, own):
    """All blocks in one call, with what surrounds them."""
    model = cases.model(dtype=dtype, **(cases.OWN if own else {}))
    for one in model.members[0].blocks:
        one.out_vector *= TINY[dtype]
    atoms = cases.diamond((2, 2, 3))
    atoms.set_momenta(np.zeros((len(atoms), 3)))
    graph, times = model.graph(System.from_atoms(atoms)), np.array([2.0, 5.0, 10.0])

    def motion(backend):
        model.backend = backend
        return model.displacements(graph, times)

    are_zero(motion(None), motion("reference"))


def test_potential(instruction_set, dtype, threads):
    model = cases.model(dtype=dtype, **cases.OWN, potential={})
    model.potential.last.weight *= TINY[dtype]
    graph = model.graph(System.from_atoms(cases.diamond((2, 2, 3))))
    are_zero(arrays([model.predictor().energies(graph)]), arrays([model.potential(graph)]))


def test_window_potentials(instruction_set, dtype, threads):
    model = cases.model(dtype=dtype, window_potentials={})
    model.window_potentials.last *= TINY[dtype]
    graph = model.graph(System.from_atoms(cases.diamond((2, 2, 3))))
    found, reference = (model.predictor(x).slopes(graph, ENDS) for x in (None, "reference"))
    are_zero(arrays(found), arrays(reference))


SLOW = np.array([[1e-310, 0.0, 0.0], [3e-310, 0.0, 0.0]])
APART = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
ONE = np.zeros(2, dtype=np.int64)  # both atoms belong to one molecule
LOOSE = np.zeros(2, dtype=bool)
MASSES = np.ones(2)


def test_conservation():
    """The drift of the start would be that of the result."""
    still = np.zeros((1, 2, 3))
    t = np.array([5.0])
    are_zero(_C.conserve(APART, SLOW, MASSES, t, still, still, ONE, LOOSE, 4))


def test_engine():
    """A window of atoms that drift by subnormal velocities: they stay at rest."""
    model = cases.model(**cases.OWN)
    apart = ase.Atoms("CC", positions=[[0, 0, 0], [0, 0, 20.0]])
    system = System.from_atoms(apart)
    engine = engine_for(model, system, Method())
    engine.set_state(system.positions, 1e-310 * np.ones((2, 3)))
    engine.begin(Plan(0, [[5.0]], [[True]]))
    are_zero([engine.end().momenta])


@pytest.mark.parametrize("float64", [False, True])
def test_edge_vectors(float64):
    velocities = SLOW if float64 else 1e270 * SLOW
    row_ptr, neighbor = np.array([0, 1, 2]), np.array([1, 0], np.int32)
    shift = np.zeros((2, 3), np.int32)
    edges = Edges(row_ptr, neighbor, shift)
    r, w = edge_vectors(edges, APART, velocities, None, None, None, float64=float64)
    are_zero([w])


@pytest.mark.parametrize(
    "find",
    [
        lambda x, threads: neighbor_list(x, 1.5, threads=threads),
        lambda x, threads: NeighborList(1.5, 0.5, threads).update(x),
    ],
    ids=["list", "kept list"],
)
def test_neighbors(find, threads):
    """The square of a distance, which an error tells."""
    x = np.zeros((5000, 3))
    x[:, 0] = np.arange(len(x))
    x[-1] = [x[-2, 0], 1e-160, 0]
    with pytest.raises(ValueError, match="they are 0 Å apart"):
        find(x, threads)


def test_a_caller_that_flushes_goes_on_flushing(threads):
    torch.set_flush_denormal(True)
    try:
        neighbor_list(np.arange(9000.0).reshape(3000, 3), 1.5, threads=threads)
        assert flushes()
    finally:
        torch.set_flush_denormal(False)


def test_threads_made_in_native_code_serve_others_as_ever(tmp_path):
    """Torch's teams may be made of the same threads, and begin with the setting of their maker."""
    script = """
import numpy as np, torch
from mdtrajnet_fast.neighbors.host import neighbor_list
x = np.zeros((5000, 3))
x[:, 0] = np.arange(len(x))
neighbor_list(x, 1.5, threads=2)
torch.set_num_threads(2)
assert (torch.full((1 << 22,), 1e-40) * 0.5).count_nonzero() == 1 << 22
"""
    # not from a checkout, whose source tree would hide the installed package
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "place"),
    [("#pragma omp parallel", "cpu/team.hpp"), ("gil_scoped_release ", "bindings.hpp")],
)
def test_no_thread_computes_otherwise(text, place):
    """Entries and teams of threads are begun in one place each."""
    files = [path for path in CSRC.rglob("*.?pp") if "testing" not in path.parts]
    assert [path for path in files if text in path.read_text()] == [CSRC / place]
