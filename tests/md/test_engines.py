"""The two engines of rollouts beside each other, on the CPU: equal, window by window.

The native one is one call a window; the other runs in torch as on a device, on the reference of the
attention. The neighbour list of the GPU takes part through the emulation of its kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import ase
import cases
import numpy as np
import pytest
import torch
from cases import SYSTEMS, gentle, lone_atom, state
from cuda_emulation import needs_compiler
from neighbor_cases import assert_device_list
from no_waits import NoWaits

from mdtrajnet_fast import MDtrajNet, RolloutError
from mdtrajnet_fast.md import device_engine
from mdtrajnet_fast.md.device_engine import DeviceEngine
from mdtrajnet_fast.md.device_graph import components, device_graph
from mdtrajnet_fast.md.host_engine import HostEngine
from mdtrajnet_fast.md.rollout import Frames, energies_kept, engine_for, rollout
from mdtrajnet_fast.md.window import Broke, Kept, Method, Plan
from mdtrajnet_fast.neighbors.device import (
    Cells,
    DeviceEdges,
    SkinNeighbors,
    Status,
    device_neighbor_list,
    edge_vectors,
)
from mdtrajnet_fast.neighbors.host import connected_components, neighbor_list
from mdtrajnet_fast.ops.graph import FixedSizeGraph

CPU = torch.device("cpu")
BACKENDS = (None, "reference")  # of the native engine, and of the other
OPTIONS = {
    "own": cases.OWN,
    "published": {},
    "exact velocities": cases.OWN | {"velocity_readout": False},
}
MODELS = {name: gentle(**options) for name, options in OPTIONS.items()}
# Long windows: the energy to keep is known after 200 fs.
POTENTIALS = {
    name: gentle(**OPTIONS[name], **cases.POTENTIAL, time_cutoff=25.0, window=25.0)
    for name in ("own", "published")
}


def slow() -> list[ase.Atoms]:
    """Systems that stay together for a few hundred fs, isolated and periodic, and lone atoms."""
    names = ("CH3CH2OH", "H2O", "CO2", "CH3CN")
    many = [*(cases.hot(name, k, 30.0) for k, name in enumerate(names)), lone_atom()]
    for pbc in ([True, True, True], [True, True, False]):
        atoms = cases.diamond((1, 1, 1))
        atoms.pbc = pbc
        atoms.set_momenta(0.3 * atoms.get_momenta())
        many.append(atoms)
    return many


def on_both(model: MDtrajNet, atoms, **settings) -> tuple[Iterator[Frames], Iterator[Frames]]:
    """The rollout on the native engine, and on the other, one window at a time."""
    settings = {"at_once": 1} | settings
    return tuple(rollout(on(model, backend), *state(atoms), **settings) for backend in BACKENDS)


def on(model: MDtrajNet, backend: str | None) -> MDtrajNet:
    """The same model with another backend, for its own engine."""
    other = MDtrajNet(model.config, len(model.members), backend=backend).to(model.dtype)
    other.load_state_dict(model.state_dict())
    other.requires_grad_(False)
    kind = DeviceEngine if backend else HostEngine
    assert type(engine_for(other, state(lone_atom())[0], Method())) is kind
    return other


def assert_same_trajectory(
    model: MDtrajNet, atoms: ase.Atoms | list[ase.Atoms], atol: float = 1e-12, **settings
) -> None:
    """All frames of both engines."""
    settings = {"dt": 3.0, "duration": 47.0} | settings
    native, other = map(list, on_both(model, atoms, **settings))
    every = settings["dt"] * np.arange(1, int(settings["duration"] / settings["dt"]) + 1)
    begin = settings.get("start", 0) * model.stride(settings.get("window"))
    times = np.concatenate([frames.times for frames in native])
    np.testing.assert_allclose(times, every[every > begin], rtol=1e-12)
    for a, b in zip(other, native, strict=True):
        np.testing.assert_array_equal(a.times, b.times)
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=atol)
        np.testing.assert_allclose(a.momenta, b.momenta, rtol=0, atol=atol)
        assert a.end == b.end
        assert (a.potential_energies is None) == (not model.has_energies)
        if a.potential_energies is not None:
            np.testing.assert_allclose(
                a.potential_energies, b.potential_energies, rtol=0, atol=10 * atol
            )


@pytest.mark.parametrize("dt", [1.0, 3.0, 0.7, 10.0, 25.0])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("model", MODELS)
def test_the_engines_are_one(model, system, dt):
    assert_same_trajectory(MODELS[model], SYSTEMS[system](), dt=dt, duration=27.0 + dt)


@pytest.mark.parametrize("dt", [3.0, 25.0])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("model", MODELS)
def test_the_engines_are_one_in_plain_windows(model, system, dt):
    assert_same_trajectory(MODELS[model], SYSTEMS[system](), dt=dt, method="plain")


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 7.0},
        {"start": 2, "duration": 80.0},
        {"window": 1 / 3, "dt": 0.5, "duration": 7.0},
        {"dt": 30.0, "duration": 100.0},  # three windows for each frame
        {"dt": 35.0, "duration": 100.0, "start": 1},
        {"dt": 60.0, "duration": 125.0, "method": "plain"},
        {"method": "plain", "duration": 40.0, "dt": 10.0},
    ],
    ids=str,
)
def test_windows_and_starts(settings):
    assert_same_trajectory(MODELS["own"], cases.mixture(), **{"duration": 20.0} | settings)


@pytest.mark.parametrize("name", ["own", "energies"])
@pytest.mark.parametrize("dt", [1.0, 4.0, 40.0])
def test_the_native_engine_takes_windows_together(dt, name):
    """To the bit, what it makes of them one by one."""
    model = MODELS["own"] if name == "own" else POTENTIALS["own"]
    atoms = cases.mixture() if name == "own" else slow()
    settings = {"dt": dt, "duration": 43 * model.stride()}
    together = list(rollout(model, *state(atoms), **settings))
    single = list(rollout(model, *state(atoms), **settings, at_once=1))
    assert len(together) < len(single) == 43
    for field in ("times", "positions", "momenta", "potential_energies"):
        a, b = ([getattr(frames, field) for frames in run] for run in (together, single))
        if name == "own" and field == "potential_energies":
            assert set(a) == set(b) == {None}
        else:
            np.testing.assert_array_equal(np.concatenate(a), np.concatenate(b))
    assert together[-1].end == single[-1].end == settings["duration"]


def test_without_an_end():
    atoms = cases.hot("CH3CH2OH")
    endless = on_both(MODELS["own"], atoms, dt=1.0)
    for expected in rollout(MODELS["own"], *state(atoms), dt=1.0, duration=50.0, at_once=1):
        for run in endless:
            np.testing.assert_allclose(next(run).positions, expected.positions, atol=1e-12)


def test_float32():
    assert_same_trajectory(gentle(**cases.OWN).float(), cases.mixture(), atol=2e-5)


# ---- The energy.


@pytest.mark.parametrize(
    "settings",
    [{}, {"energy_rate": 0.05}, {"energy_rate": 0.0}, {"method": "plain"}],
    ids=["usual", "strong", "none", "plain"],
)
@pytest.mark.parametrize("dt", [10.0, 80.0])
@pytest.mark.parametrize("model", POTENTIALS)
def test_energies_are_kept_alike(model, dt, settings):
    """Before and after the energy to keep is known, of systems of all kinds."""
    assert_same_trajectory(POTENTIALS[model], slow(), dt=dt, duration=325.0, **settings)


def test_what_was_compared_was_drawn():
    """The rate of that test matters, and its differences are of both kinds, small and large."""
    model, many = POTENTIALS["own"], slow()
    system, momenta = state(many)
    runs = [
        list(rollout(model, system, momenta, dt=25.0, duration=325.0, energy_rate=rate, at_once=1))
        for rate in (0.05, 0.0)
    ]
    for a, b in zip(runs[0][:8], runs[1][:8], strict=True):  # 200 fs
        np.testing.assert_array_equal(a.momenta, b.momenta)
    change = abs(runs[0][-1].momenta - runs[1][-1].momenta).max(axis=(0, 2))
    change = np.maximum.reduceat(change, system.ptr[:-1])
    assert (change[[len(atoms) > 1 for atoms in many]] > 1e-6).all(), change
    kept = energies_kept(model, system, momenta, window=25.0, method="reversible", windows=20)
    assert kept.seen == 9
    engine = engine_for(model, system, Method())
    engine.set_state(runs[1][-1].positions[-1], runs[1][-1].momenta[-1])
    total, near = kept.goal
    off = abs(engine.energies()[0] - total) / near
    off = off[[len(atoms) > 1 for atoms in many]]
    assert off.min() < 0.7 and off.max() > 1.2, off


@pytest.mark.parametrize("kind", ["potential", "window potentials"])
def test_energies(kind):
    """Of the state, of what is kept, and of frames: the potential's and the kinetic ones."""
    options = cases.POTENTIAL if kind == "potential" else cases.WINDOW_POTENTIALS
    model, many = gentle(**cases.OWN, **options), slow()
    system, momenta = state(many)
    seen = []
    for backend in BACKENDS:
        engine = engine_for(on(model, backend), system, Method("reversible", 0.0, 1, 3))
        engine.set_state(system.positions, momenta)
        start = engine.energies()
        engine.begin(Plan(0, [[5.0, 10.0]], [[True, False]]))
        frames = engine.end()
        kept = engine.kept
        assert kept.seen == 2 and len(frames.positions) == 1
        np.testing.assert_allclose(kept.sums, start + engine.energies(), rtol=0, atol=1e-12)
        seen.append([start, kept.sums])
        there = dataclasses.replace(system, positions=frames.positions[0])
        expected = model.potential_energy(there).numpy()[None]
        np.testing.assert_allclose(frames.energies, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(seen[1], seen[0], rtol=0, atol=1e-12)
    kinetic = [atoms.get_kinetic_energy() for atoms in many]
    total = model.potential_energy(system).numpy() + kinetic
    for atoms in many:
        v = atoms.get_velocities()
        atoms.set_velocities(v - atoms.get_momenta().sum(0) / atoms.get_masses().sum())
    relative = [atoms.get_kinetic_energy() for atoms in many]
    np.testing.assert_allclose(seen[0][0], [total, relative], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pull", [0.3, np.inf])
def test_an_energy_that_cannot_be_had_is_approached(pull):
    """By a part of at most 30 % of the internal velocities in each window."""
    model, many = POTENTIALS["own"], slow()
    system, momenta = state(many)
    count = len(many)
    total = np.where(np.arange(count) % 2, 500.0, -500.0)
    wanted = Kept(np.stack([total, np.full(count, 5e-6)]), 1)  # weak up to 1e-6 eV
    ends = []
    for backend in BACKENDS:
        for needed in (1, 0):
            engine = engine_for(on(model, backend), system, Method("reversible", pull, 1, needed))
            engine.set_state(system.positions, momenta)
            engine.kept = wanted
            engine.begin(Plan(0, [[10.0, 25.0]], [[True, True]]))
            ends.append(engine.end())
    for a, b in ((0, 2), (1, 3)):
        np.testing.assert_allclose(ends[a].momenta, ends[b].momenta, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(ends[0].positions[-1], ends[1].positions[-1])
    for k, (a, b) in enumerate(zip(system.ptr, system.ptr[1:], strict=False)):
        drawn, free = (x.momenta[-1, a:b] for x in ends[:2])
        change = drawn - free
        np.testing.assert_allclose(change.sum(0), 0.0, atol=1e-12)
        if b - a == 1:
            continue
        mass = system.masses[a:b, None]
        internal = change / (0.3 if k % 2 else -0.3)
        # what is scaled is orthogonal to what stays, the rigid motion
        assert abs((internal * (free - internal) / mass).sum()) < 1e-10
        assert (internal**2 / mass).sum() > 1e-6


# ---- Batches.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("settings", [{"dt": 10.0}, {"dt": 75.0}, {"dt": 10.0, "method": "plain"}])
def test_a_native_trajectory_is_its_own(settings, dtype):
    """The same bits alone and among others, however many threads there are."""
    names = ("CH3CH2OH", "C6H6", "H2O", "CO2", "CH3CN", "NH3", "CH4", "H2")
    many = [cases.hot(name, k, 60.0) for k in range(14) for name in names]
    many[5:5], many[40:40] = slow(), slow()[::-1]
    options = cases.OWN | cases.POTENTIAL
    model = gentle(**options, time_cutoff=25.0, window=25.0).to(dtype)
    system, momenta = state(many)
    assert len(system.numbers) > 5 * 128  # several groups for each thread
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(
                list(rollout(model, system, momenta, duration=275.0, **settings, at_once=1))
            )
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.momenta, other.momenta)
    for k in (0, *range(5, 12), 43, len(many) - 1):
        own = slice(*system.ptr[k : k + 2])
        alone = rollout(model, *state(many[k]), duration=275.0, **settings, at_once=1)
        for one, among in zip(alone, runs[0], strict=True):
            np.testing.assert_array_equal(one.positions, among.positions[:, own])
            np.testing.assert_array_equal(one.momenta, among.momenta[:, own])


# ---- Room.


def test_rows_of_a_graph_with_room():
    graph = MODELS["own"].graph(state(cases.mixture())[0])
    edges, rest = len(graph.neighbor), 11
    fields = {f.name: getattr(graph, f.name) for f in dataclasses.fields(graph)}
    for name in ("neighbor", "r", "w"):
        x = fields[name]
        fields[name] = torch.cat([x, torch.full_like(x[:rest], 7)])
    slots = int(graph.row_ptr.diff().max())
    roomy = FixedSizeGraph(**fields, slots=slots)
    for times in (1, 3):
        ours, theirs = roomy.repeat(times), graph.repeat(times)
        for name in ("species", "masses", "velocities", "component", "row_ptr"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert len(ours.neighbor) == times * (edges + rest) and ours.neighbor.max() < ours.atoms
        for name in ("neighbor", "r", "w", "centre"):
            assert torch.equal(getattr(ours, name)[: times * edges], getattr(theirs, name)), name
        assert (ours.centre[times * edges :] == ours.atoms).all()
        for a, b in zip(ours.padded, theirs.padded, strict=True):
            assert torch.equal(a, b)
        assert ours.components == theirs.components
    wider = dataclasses.replace(roomy, slots=slots + 3).padded
    assert not wider.mask[:, slots:].any()
    assert torch.equal(wider.neighbor[:, :slots], graph.padded.neighbor)


@pytest.mark.parametrize("system", SYSTEMS)
def test_graph(system):
    given = state(SYSTEMS[system]())[0]
    ours, theirs = device_graph(MODELS["own"], given), MODELS["own"].graph(given)
    for field in dataclasses.fields(theirs):
        torch.testing.assert_close(
            getattr(ours, field.name), getattr(theirs, field.name), rtol=0, atol=1e-14
        )


@pytest.mark.parametrize("kind", ["motion", "with a potential"])
@pytest.mark.parametrize("lack", ["edges", "neighbours of an atom", "rounds", "all"])
def test_windows_without_room_are_done_again(lack, kind, monkeypatch):
    """A long chain and others, of which there is too little at first."""
    grown, begin, grow = [], device_engine._State.__init__, device_engine._State.grow

    def starved(self, *args):
        begin(self, *args)
        if lack in ("edges", "all"):
            self.neighbors.room, self.neighbors._neighbor = 3, self.neighbors._neighbor[:3]
            self.neighbors._shift = self.neighbors._shift[:3]
        if lack in ("neighbours of an atom", "all"):
            self.slots = 2
        if lack in ("rounds", "all"):
            self.rounds = 1

    def watched(self, needs):
        grown.append(needs)
        grow(self, needs)

    monkeypatch.setattr(device_engine._State, "__init__", starved)
    monkeypatch.setattr(device_engine._State, "grow", watched)
    chain = ase.Atoms("C40", positions=np.outer(np.arange(40.0), [1.4, 0, 0]))
    chain.rattle(0.02, seed=1)
    chain.set_momenta(np.random.default_rng(0).normal(size=(40, 3)))
    if kind == "motion":
        assert_same_trajectory(MODELS["own"], [chain, *cases.mixture()])
    else:
        assert_same_trajectory(POTENTIALS["own"], [chain, *slow()], dt=5.0, duration=50.0)
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


# ---- What breaks.


@pytest.mark.slow
@pytest.mark.parametrize("dt", [2.0, 30.0])
@pytest.mark.parametrize("potential", [False, True], ids=["motion", "with a potential"])
@pytest.mark.parametrize("method", ["reversible", "plain"])
@pytest.mark.parametrize("how", ["runs away", "not a number", "coincident"])
def test_a_broken_trajectory_is_reported_alike(how, method, potential, dt):
    options = cases.OWN | (cases.POTENTIAL if potential else {})
    settings = {"dt": dt, "duration": 3000.0, "method": method, "energy_rate": 0.0}
    wild = 0.6 if potential and method == "plain" else 2.5
    model = gentle(scale=wild if how == "runs away" else 0.03, **options)
    many = [cases.hot("CO2"), cases.hot("CH3CH2OH"), cases.hot("NH3")]
    if how == "not a number":
        model.members[0].species_embedding[model.config.species.index("N")] = np.nan
    if how == "coincident":
        many[1].positions[3] = many[1].positions[4]
    seen = []
    for run in on_both(model, many, **settings):
        end = 0.0
        with pytest.raises(RolloutError) as caught:
            for frames in run:
                end = frames.end
        e = caught.value
        assert f"broke before {10 * (e.window + 1)} fs: " in str(e)
        if dt == 2.0:  # every window has frames
            assert end == 10 * e.window
        seen.append((str(e), e.system, e.window, e.positions, e.momenta))
    assert seen[0][:3] == seen[1][:3]
    assert (seen[0][2] > 2) == (how == "runs away")
    for a, b in zip(seen[0][3:], seen[1][3:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("before", [False, True], ids=["at first", "after a sound state"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_energies_of_what_is_no_geometry_are_refused(backend, before):
    many = [cases.hot("CO2"), cases.hot("CH3CH2OH")]
    system, momenta = state(many)
    engine = engine_for(on(POTENTIALS["own"], backend), system, Method())
    if before:
        engine.set_state(system.positions, momenta)
        engine.energies()
    bad = system.positions.copy()
    bad[4] = bad[5]
    with pytest.raises(Broke, match="coincide") as caught:
        engine.set_state(bad, momenta)
        engine.energies()
    assert caught.value.system == 1


def test_bad_settings_are_refused():
    for settings in ({"dt": 0.0}, {"dt": 1.0, "window": 99.0}, {"dt": 1.0, "duration": -1.0}):
        for run in on_both(MODELS["own"], cases.hot("H2O"), **settings):
            with pytest.raises(ValueError):
                next(run)


# ---- Parts of the one in torch.


def scattered(seed: int) -> Iterator[tuple[np.ndarray, float]]:
    """Positions and cutoffs of a gas, and of a chain in no order."""
    rng = np.random.default_rng(seed)
    # at the threshold of percolation for a cutoff of 0.85
    yield rng.uniform(0, 8, (500, 3)), 0.3 + 0.15 * seed
    yield rng.permutation(np.outer(np.arange(300.0), [0.8, 0, 0])), 0.85


def settles(positions: np.ndarray, cutoff: float, rounds: int) -> bool:
    """Whether components are known after some rounds; if so, they are right."""
    listed = neighbor_list(positions, cutoff)
    edges = DeviceEdges(*map(torch.from_numpy, dataclasses.astuple(listed)))
    label, over = components(edges, max(1, int(edges.row_ptr.diff().max())), rounds)
    expected = connected_components(listed)
    first = np.unique(expected, return_index=True)[1]
    assert bool(over) == np.array_equal(label.numpy(), first[expected])
    return bool(over)


@pytest.mark.parametrize("seed", range(6))
def test_components(seed):
    for positions, cutoff in scattered(seed):
        assert settles(positions, cutoff, 16)
        once = settles(positions, cutoff, 1)
    assert not once  # one round is too few for a chain


@needs_compiler
@pytest.mark.parametrize("seed", range(6))
def test_components_of_the_emulated_gpu(emulated_neighbors, seed):
    test_components(seed)


@needs_compiler
@pytest.mark.parametrize("system", SYSTEMS)
def test_lists_of_the_emulated_gpu(emulated_neighbors, system):
    given, _ = state(SYSTEMS[system]())
    cells, rng = Cells.of(given, CPU), np.random.default_rng(1)
    x, v = torch.from_numpy(given.positions.copy()), torch.from_numpy(given.velocities)
    edges = device_neighbor_list(x, 4.0, cells)
    assert_device_list(edges, x, cells)
    assert len(edges.neighbor) == edges.row_ptr[-1]
    skin = SkinNeighbors(x, 4.0, 0.6, cells)
    address = skin._neighbor.data_ptr()
    for _ in range(4):
        x += torch.from_numpy(rng.normal(scale=0.1, size=x.shape))
        edges = skin.update(x)
        assert_device_list(edges, x, cells)
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
def test_room_on_the_emulated_gpu(emulated_neighbors):
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
        assert_device_list(skin.update(x), x, cells)
    bad = x.clone()
    bad[4] = bad[5]
    assert not skin.update(bad).row_ptr.any() and skin.status[0] == 1
    with pytest.raises(ValueError, match="atoms 4 and 5 coincide"):
        device_neighbor_list(bad, 4.0, cells)
    with pytest.raises(ValueError, match="float64 and contiguous, got torch.float32"):
        device_neighbor_list(x.float(), 4.0, cells)


@needs_compiler
@pytest.mark.parametrize("name", ["own", "published"])
def test_rollout_on_the_emulated_gpu(emulated_neighbors, name):
    """The windows as on a device, but for the capture and the attention's kernels."""
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O"), lone_atom(), cases.diamond((1, 1, 1))]
    assert_same_trajectory(MODELS[name], many)
    assert_same_trajectory(gentle(**OPTIONS[name]).float(), many, atol=2e-5)


@needs_compiler
def test_energy_on_the_emulated_gpu(emulated_neighbors):
    assert_same_trajectory(POTENTIALS["own"], slow(), dt=10.0, duration=275.0)


@needs_compiler
@pytest.mark.parametrize("dt", [1.0, 3.0])
@pytest.mark.usefixtures("emulated_neighbors", "emulated_attention", "emulated_conservation")
def test_symplectic_windows_on_the_emulated_gpu(dt):
    """Kicks by the kernels of window potentials, energies of frames included."""
    model = cases.alone(gentle(**cases.WINDOW_POTENTIALS)).float()
    model.window_potentials.last *= 0.1
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O"), lone_atom(), cases.diamond((1, 1, 1))]
    found = {}
    for backend, kind in (("cpu", HostEngine), ("cuda", DeviceEngine)):
        model.backend = backend
        assert type(engine_for(model, state(many)[0], Method("symplectic"))) is kind
        parts = rollout(model, *state(many), dt=dt, duration=30.0, at_once=1)
        found[backend] = [(x.positions, x.momenta, x.potential_energies) for x in parts]
    for a, b in zip(*found.values(), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-4)


CAPTURED = {
    "motion": ({}, ("reversible", "plain"), False),
    "with a potential": (cases.POTENTIAL, ("reversible", "plain"), True),
    "kicks": (cases.WINDOW_POTENTIALS, ("symplectic",), True),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("backend", ["cuda", "reference"])
@pytest.mark.parametrize("what", CAPTURED)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("emulated_neighbors", "emulated_attention", "emulated_conservation")
def test_a_window_can_be_captured(name, what, backend):
    """Nothing in a window waits: the second, as a CUDA graph is captured after warming up."""
    more, methods, measured = CAPTURED[what]
    options = OPTIONS[name] | {"key_weight_hidden_neurons": (7,)} | more
    model = gentle(**options).float()
    model.backend = backend
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O"), lone_atom(), cases.diamond((1, 1, 1))]
    system, momenta = state(many)
    for method in methods:
        window = device_engine._State(model, model.predictor(), system, Method(method))
        window.momenta.copy_(torch.from_numpy(momenta))
        window.pull.fill_(0.3)
        times = torch.tensor([1.0, 3.0], dtype=torch.float64)
        window.predict(times, device_engine._Kind(2, measured))
        with NoWaits():
            result = window.predict(times, device_engine._Kind(2, measured))
            window.advance(result)
        needs = device_engine._Needs(*result.needs.tolist())
        assert not window.lacked(needs) and not needs.refused and not needs.runaway
        assert torch.equal(window.positions, result.positions[-1])
        assert torch.equal(window.momenta, result.momenta[-1])
        assert bool(result.energies.all()) == measured
        with NoWaits():
            window.predict(times[-1:], device_engine._Kind(1, False, (method == "symplectic",) * 2))


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
