"""The rollout on the device, run on the CPU: equal to the ordinary one, window by window.

The neighbour list of the GPU takes part through the emulation of its kernels.
"""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace

import ase
import cases
import numpy as np
import pytest
import torch
from cuda_emulation import CSRC, call, load, needs_compiler
from no_waits import NoWaits
from scipy.spatial.transform import Rotation
from test_cuda_attention import gpu as attention_gpu  # noqa: F401, a fixture
from test_cuda_neighbors import CSkinList, CSystems
from test_rollout import gentle

from mdtrajnet_fast import RolloutError, conservation, device, neighbors_cuda
from mdtrajnet_fast.device import components, conserve, device_graph, device_rollout
from mdtrajnet_fast.neighbors import connected_components, neighbor_list
from mdtrajnet_fast.neighbors_cuda import (
    Cells,
    DeviceEdges,
    SkinNeighbors,
    Status,
    device_neighbor_list,
    edge_vectors,
)
from mdtrajnet_fast.rollout import rollout
from mdtrajnet_fast.system import System

CPU = torch.device("cpu")
MODELS = {
    "own": gentle(**cases.OWN),
    "published": gentle(),
    "exact velocities": gentle(**cases.OWN | {"velocity_readout": False}),
}
SYSTEMS = {
    "molecules": cases.mixture,
    "diamond": cases.diamond,
    "slab": lambda: slab(),
    "lone atom": lambda: lone_atom(),
}


def slab() -> ase.Atoms:
    atoms = cases.diamond((2, 2, 1))
    atoms.pbc = [True, True, False]
    return atoms


def lone_atom() -> ase.Atoms:
    return ase.Atoms("O", positions=[[1.0, 2.0, 3.0]], momenta=[[0.3, -0.2, 0.1]])


def state(atoms: ase.Atoms | list[ase.Atoms]) -> tuple[System, np.ndarray]:
    many = [atoms] if isinstance(atoms, ase.Atoms) else atoms
    return System.from_atoms(many), np.concatenate([one.get_momenta() for one in many])


def assert_same_trajectory(model, atoms, atol: float = 1e-12, **settings) -> None:
    settings = {"dt": 3.0, "duration": 47.0} | settings
    pair = [list(run(model, *state(atoms), **settings)) for run in (rollout, device_rollout)]
    assert len(pair[0]) == len(pair[1]) > 2
    for expected, frames in zip(*pair, strict=True):
        np.testing.assert_array_equal(frames.times, expected.times)
        np.testing.assert_allclose(frames.positions, expected.positions, rtol=0, atol=atol)
        np.testing.assert_allclose(frames.momenta, expected.momenta, rtol=0, atol=atol)


@pytest.mark.parametrize("dt", [1.0, 3.0, 0.7, 10.0, 25.0])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_the_rollout(model, system, dt):
    assert_same_trajectory(MODELS[model], SYSTEMS[system](), dt=dt)


def test_windows_and_starts():
    for settings in (
        {"window": 7.0},
        {"start": 2, "duration": 80.0},
        {"window": 1 / 3, "dt": 0.5},
        {"reversible": False, "duration": 40.0},
        {"reversible": False, "duration": 40.0, "dt": 10.0},
    ):
        settings = {"duration": 20.0} | settings
        assert_same_trajectory(MODELS["own"], cases.mixture(), **settings)


def test_without_an_end():
    atoms = cases.hot("CH3CH2OH")
    endless = device_rollout(MODELS["own"], *state(atoms), dt=1.0)
    for expected in rollout(MODELS["own"], *state(atoms), dt=1.0, duration=50.0):
        np.testing.assert_allclose(next(endless).positions, expected.positions, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_plain_torch_on_a_graph_with_room(name):
    """The reference pads its neighbours and repeats the graph, which has to leave the room out."""
    model = gentle(**MODELS[name].config.to_dict())
    model.backend = "reference"
    assert_same_trajectory(model, cases.mixture(), dt=4.0)


def test_float32():
    model = gentle(**cases.OWN).float()
    assert_same_trajectory(model, cases.mixture(), atol=2e-5)


def test_rows_of_a_graph_with_room():
    graph = MODELS["own"].graph(state(cases.mixture())[0])
    edges, rest = len(graph.neighbor), 11
    fields = {f.name: getattr(graph, f.name) for f in dataclasses.fields(graph)}
    for name in ("neighbor", "r", "w"):
        x = fields[name]
        fields[name] = torch.cat([x, torch.full_like(x[:rest], 7)])
    slots = int(graph.row_ptr.diff().max())
    roomy = device.RoomyGraph(**fields, slots=slots)
    for times in (1, 3):
        ours, theirs = roomy.repeat(times), graph.repeat(times)
        for name in ("species", "masses", "velocities", "component", "row_ptr"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert len(ours.neighbor) == times * (edges + rest) and ours.neighbor.max() < ours.atoms
        for name in ("neighbor", "r", "w"):
            assert torch.equal(getattr(ours, name)[: times * edges], getattr(theirs, name)), name
        for a, b in zip(ours.padded, theirs.padded, strict=True):
            assert torch.equal(a, b)
        assert ours.components == theirs.components
    wider = dataclasses.replace(roomy, slots=slots + 3).padded
    assert not wider.mask[:, slots:].any()
    assert torch.equal(wider.neighbor[:, :slots], graph.padded.neighbor)


@pytest.mark.parametrize("system", SYSTEMS)
def test_graph(system):
    atoms = SYSTEMS[system]()
    ours, theirs = (
        device_graph(MODELS["own"], state(atoms)[0]),
        MODELS["own"].graph(state(atoms)[0]),
    )
    for field in dataclasses.fields(theirs):
        torch.testing.assert_close(
            getattr(ours, field.name), getattr(theirs, field.name), rtol=0, atol=1e-14
        )


@pytest.mark.parametrize("lack", ["edges", "neighbours of an atom", "rounds", "all"])
def test_windows_without_room_are_done_again(lack, monkeypatch):
    """A gas that collapses: more edges and neighbours than at the start, and a long chain."""
    grown, lacking = [], device._Window.__init__

    def starved(self, *args):
        lacking(self, *args)
        if lack in ("edges", "all"):
            self.neighbors.room, self.neighbors._neighbor = 3, self.neighbors._neighbor[:3]
            self.neighbors._shift = self.neighbors._shift[:3]
        if lack in ("neighbours of an atom", "all"):
            self.slots = 2
        if lack in ("rounds", "all"):
            self.rounds = 1

    monkeypatch.setattr(device._Window, "__init__", starved)
    grow = device._Window.grow
    monkeypatch.setattr(
        device._Window, "grow", lambda self, room: (grown.append(room), grow(self, room))
    )
    chain = ase.Atoms("C40", positions=np.outer(np.arange(40.0), [1.4, 0, 0]))
    chain.rattle(0.02, seed=1)
    chain.set_momenta(np.random.default_rng(0).normal(size=(40, 3)))
    assert_same_trajectory(MODELS["own"], [chain, *cases.mixture()])
    assert grown


def test_more_room_is_found_on_the_way(monkeypatch):
    """Two chains fly into each other: the number of edges doubles during the run."""
    atoms = ase.Atoms("C12", positions=np.outer(np.arange(12.0) % 6, [3.5, 0, 0]))
    atoms.positions[6:] += [1.75, 9.0, 0]
    v = np.zeros((12, 3))
    v[6:, 1] = -0.15
    atoms.set_velocities(v / ase.units.fs)
    sizes, grow = [], SkinNeighbors.grow

    def without_room_to_spare(self, edges, reach):
        if edges > self.room:
            grow(self, edges, reach)
            self.room, self._neighbor, self._shift = (
                edges,
                self._neighbor[:edges],
                self._shift[:edges],
            )
            sizes.append(edges)

    monkeypatch.setattr(SkinNeighbors, "grow", without_room_to_spare)
    model = gentle(scale=1e-3, **cases.OWN)
    assert_same_trajectory(model, atoms, dt=10.0, duration=120.0)
    assert len(sizes) > 1 and sizes[-1] > sizes[0]


@pytest.mark.parametrize("how", ["runs away", "not a number", "coincident"])
def test_a_broken_trajectory_is_reported_alike(how):
    model = gentle(scale=0.6 if how == "runs away" else 0.03, **cases.OWN)
    many = [cases.hot("CO2"), cases.hot("CH3CH2OH"), cases.hot("NH3")]
    if how == "not a number":
        model.members[0].species_embedding[model.config.species.index("N")] = np.nan
    if how == "coincident":
        many[1].positions[3] = many[1].positions[4]
    seen = []
    for run in (rollout, device_rollout):
        windows = 0
        with pytest.raises(RolloutError) as caught:
            for _ in run(model, *state(many), dt=2.0, duration=1000.0):
                windows += 1
        e = caught.value
        seen.append((str(e), e.system, e.window, windows, e.positions, e.momenta))
    assert seen[0][:4] == seen[1][:4]
    assert seen[0][2] == seen[0][3] and (windows > 2) == (how == "runs away")
    for a, b in zip(seen[0][4:], seen[1][4:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_bad_settings_are_refused():
    for settings in ({"dt": 0.0}, {"dt": 1.0, "window": 99.0}, {"dt": 1.0, "duration": -1.0}):
        with pytest.raises(ValueError):
            next(device_rollout(MODELS["own"], *state(cases.hot("H2O")), **settings))


# ---- Its parts.


@pytest.mark.parametrize("bend", [0.0, 1e-6, 1e-4, 1e-2, 0.1, None])
def test_conserve_equals_numpy(bend):
    """Mixtures and crystals; with a bend a tilted, nearly linear molecule."""
    rng = np.random.default_rng(0)
    many = [*cases.mixture(), cases.hot("H2")]
    if bend is not None:
        linear = ase.Atoms("OCO", positions=[[-1.16, 0, 0], [0, bend, 0], [1.16, 0, 0]])
        turning = np.array([0, 0.01, 0.02])
        v = np.cross(turning, linear.positions - linear.get_center_of_mass())
        linear.set_velocities((v + rng.normal(size=(3, 3)) * 0.004) / ase.units.fs)
        many = [linear]
    system, _ = state(many)
    label = connected_components(neighbor_list(system.positions, 4.0, ptr=system.ptr))
    isolated = ~system.pbc.all(1)[system.system_index]
    times = np.array([2.0, 10.0])
    tilt = Rotation.from_rotvec([0.01, 0.02, -0.03]).as_matrix()
    moved = np.stack([system.positions @ tilt.T - system.positions + system.velocities] * 2)
    moved += rng.normal(scale=0.01, size=moved.shape)
    velocity = system.velocities @ tilt.T + rng.normal(scale=1e-3, size=moved.shape)
    expected = conservation.conserve(system, times, moved.copy(), velocity.copy(), label, isolated)
    first = np.array([np.argmax(label == k) for k in label])
    start = (system.positions, system.velocities, system.masses, times, moved, velocity)
    found = conserve(*map(torch.from_numpy, (*start, first, isolated)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=1e-12)
    none = conserve(*map(torch.from_numpy, (*start, first)), None)
    never = conservation.conserve(system, times, moved, velocity, label, isolated & False)
    for a, b in zip(none, never, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_components(seed):
    rng = np.random.default_rng(seed)
    gas = rng.uniform(0, 8, (500, 3))  # at the threshold of percolation for a cutoff of 0.85
    chain = rng.permutation(np.outer(np.arange(300.0), [0.8, 0, 0]))
    for positions, cutoff in ((gas, 0.3 + 0.15 * seed), (chain, 0.85)):
        listed = neighbor_list(positions, cutoff)
        edges = DeviceEdges(*map(torch.from_numpy, dataclasses.astuple(listed)))
        slots = max(1, int(edges.row_ptr.diff().max()))
        label, over = components(edges, slots, 16)
        expected = connected_components(listed)
        first = np.unique(expected, return_index=True)[1]
        assert over and torch.equal(label, torch.from_numpy(first[expected]))
        label, over = components(edges, slots, 1)
        assert bool(over) == np.array_equal(label.numpy(), first[expected])
    assert not over  # one round is too few for a chain


class EmulatedGPU(SimpleNamespace):
    """`_C`'s CUDA functions, out of the emulation; every tensor counts as one of a GPU."""

    def __init__(self) -> None:
        library = load(CSRC / "testing" / "neighbors_launchers.cpp")
        sizes = (library.emulated_workspace_bytes, library.emulated_skin_bytes)
        for function in sizes:
            function.restype = ctypes.c_size_t
            function.argtypes = [ctypes.c_int64, ctypes.c_int64]

        def launcher(name: str):
            function = getattr(library, f"emulated_{name}")
            return lambda *arguments: call(function, *arguments[:-1])  # without the stream

        super().__init__(
            CudaSystems=CSystems,
            CudaSkinList=CSkinList,
            cuda_neighbor_bytes=lambda atoms, count: tuple(size(atoms, count) for size in sizes),
            cuda_count_neighbors=launcher("count_neighbors"),
            cuda_fill_neighbors=launcher("fill_neighbors"),
            cuda_update_skin=launcher("update_skin"),
            cuda_count_within=launcher("count_within"),
            cuda_fill_within=launcher("fill_within"),
            cuda_edge_vectors=launcher("edge_vectors"),
        )


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(neighbors_cuda, "_C", EmulatedGPU())
    monkeypatch.setattr(neighbors_cuda, "_on_gpu", lambda x: True)
    monkeypatch.setattr(neighbors_cuda, "_stream", lambda x: 0)


def arrays(edges: DeviceEdges) -> tuple[np.ndarray, ...]:
    """Without the room."""
    count = int(edges.row_ptr[-1])
    return tuple(x.numpy() for x in (edges.row_ptr, edges.neighbor[:count], edges.shift[:count]))


def assert_list(edges: DeviceEdges, positions: torch.Tensor, cells: Cells) -> None:
    expected = neighbor_list(positions.numpy(), 4.0, **cells.arguments())
    for a, b in zip(arrays(edges), dataclasses.astuple(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@needs_compiler
@pytest.mark.parametrize("system", SYSTEMS)
def test_lists_of_the_emulated_gpu(gpu, system):
    given, _ = state(SYSTEMS[system]())
    cells, rng = Cells.of(given, CPU), np.random.default_rng(1)
    x, v = torch.from_numpy(given.positions.copy()), torch.from_numpy(given.velocities)
    edges = device_neighbor_list(x, 4.0, cells)
    assert_list(edges, x, cells)
    assert len(edges.neighbor) == edges.row_ptr[-1]
    skin = SkinNeighbors(x, 4.0, 0.6, cells)
    address = skin._neighbor.data_ptr()
    for _ in range(4):
        x += torch.from_numpy(rng.normal(scale=0.1, size=x.shape))
        edges = skin.update(x)
        assert_list(edges, x, cells)
        status = Status(*skin.status.tolist())
        assert status[:3] == (0, 0, edges.row_ptr[-1]) and status.reach >= status.edges
        assert len(edges.neighbor) == skin.room and edges.neighbor.data_ptr() == address
        count = status.edges
        kernel = edge_vectors(x, v, edges, cells, torch.float32)
        plain = edge_vectors(x, v, edges, cells, torch.float64)
        for a, b in zip(kernel, plain, strict=True):
            torch.testing.assert_close(a[:count].double(), b[:count], rtol=1e-6, atol=1e-6)
            assert b.isfinite().all()


@needs_compiler
def test_room_on_the_emulated_gpu(gpu):
    given, _ = state(cases.hot("CH3CH2OH"))
    cells, x = Cells.of(given, CPU), torch.from_numpy(given.positions)
    skin = SkinNeighbors(x, 4.0, 0.6, cells)
    edges = len(neighbor_list(given.positions, 4.0).neighbor)
    reach = len(neighbor_list(given.positions, 4.6).neighbor)
    for room, skin_room, known in ((0, 900, edges), (900, 0, 0)):
        skin.room = skin._skin_room = -1  # begin anew
        skin.grow(0, 0)
        skin.room, skin._skin_room = room, skin_room
        skin._neighbor, skin._skin_neighbor = (
            torch.zeros(n, dtype=torch.int32) for n in (room, skin_room)
        )
        skin._shift, skin._skin_shift = (
            torch.zeros((n, 3), dtype=torch.int32) for n in (room, skin_room)
        )
        assert not skin.update(x).row_ptr.any()
        status = Status(*skin.status.tolist())
        assert status == (0, 1, known, reach)
        skin.grow(status.edges, status.reach)
        assert_list(skin.update(x), x, cells)
    bad = x.clone()
    bad[4] = bad[5]
    assert not skin.update(bad).row_ptr.any() and skin.status[0] == 1
    with pytest.raises(ValueError, match="atoms 4 and 5 coincide"):
        device_neighbor_list(bad, 4.0, cells)
    with pytest.raises(ValueError, match="float64 and contiguous, got torch.float32"):
        device_neighbor_list(x.float(), 4.0, cells)


@needs_compiler
@pytest.mark.parametrize("name", ["own", "published"])
def test_rollout_on_the_emulated_gpu(gpu, name):
    """The windows as on a device, but for the capture and the attention's kernels."""
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O"), lone_atom(), cases.diamond((1, 1, 1))]
    model = gentle(**MODELS[name].config.to_dict())
    assert_same_trajectory(model, many)
    assert_same_trajectory(model.float(), many, atol=2e-5)


@needs_compiler
@pytest.mark.parametrize("backend", ["cuda", "reference"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("gpu", "attention_gpu")
def test_a_window_can_be_captured(name, backend):
    """Nothing in a window waits: the second, as a CUDA graph is captured after warming up."""
    model = gentle(**MODELS[name].config.to_dict() | {"key_weight_hidden_neurons": (7,)}).float()
    model.backend = backend
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O"), lone_atom(), cases.diamond((1, 1, 1))]
    window = device._Window(model, *state(many))
    times = torch.tensor([4.0, 10.0], dtype=torch.float64)
    window.predict(times)
    with NoWaits():
        result = window.predict(times)
        window.advance(result)
    room = device._Room(*result.room.tolist())
    assert not window.lacked(room) and not room.refused and not room.runaway
    assert torch.equal(window.positions, result.positions[-1])


def test_what_waits_is_found():
    x = torch.arange(4.0)
    for waits in (
        lambda: x.max().item(),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: torch.tensor([1.0]),
        lambda: torch.arange(2).repeat_interleave(torch.arange(2)),
    ):
        with pytest.raises(AssertionError), NoWaits():
            waits()
    with NoWaits():
        torch.where(x > 1, x, 0.0)[torch.arange(2)].sum()
