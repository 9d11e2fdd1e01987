"""What needs a GPU: kernels, rollout and training there, against the same on the CPU.

Run with `pytest -m gpu`; skipped where there is no CUDA device.
"""

from __future__ import annotations

import dataclasses

import cases
import numpy as np
import pytest
import torch
from cases import SYSTEMS, gentle, state
from kernel_cases import SIZES, close, double, folded_of, like, model_of, options_of
from kernel_cases import SYSTEMS as CROWDS
from neighbor_cases import assert_device_list, calls, refusals
from pair_cases import RECORDS, assert_same_batch
from torch.autograd import forward_ad

from mdtrajnet_fast import (
    RolloutError,
    TrainConfig,
    bundled_models,
    fit,
    load_model,
    simulate,
)
from mdtrajnet_fast.data.device_pairs import ResidentPairs, tensor_batch
from mdtrajnet_fast.data.pairs import Pairs
from mdtrajnet_fast.data.records import write_records
from mdtrajnet_fast.md import device_engine
from mdtrajnet_fast.md.conservation import internal_velocities
from mdtrajnet_fast.md.device_engine import DeviceEngine
from mdtrajnet_fast.md.device_graph import components, device_graph
from mdtrajnet_fast.md.rollout import engine_for, rollout
from mdtrajnet_fast.md.window import Method, Plan
from mdtrajnet_fast.model.window_potentials import ENDS, ENERGY, MIDDLE, ROLES
from mdtrajnet_fast.neighbors.device import (
    Cells,
    SkinNeighbors,
    Status,
    device_neighbor_list,
    edge_vectors,
)
from mdtrajnet_fast.neighbors.host import connected_components, neighbor_list
from mdtrajnet_fast.ops import BACKENDS, edge_attention
from mdtrajnet_fast.ops.reference import FoldedWeights
from mdtrajnet_fast.system import System
from mdtrajnet_fast.train.evaluate import errors
from mdtrajnet_fast.train.process_group import Member
from mdtrajnet_fast.train.tasks import TASKS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

KERNELS = [name for name in BACKENDS if name not in ("cpu", "reference")]
ONE_LAYER = {
    "small": cases.SMALL | {"key_weight_hidden_neurons": (7,)},
    "published": SIZES["published"],
    "own": next(iter(cases.BUNDLED.values())),
}


def on_gpu(x):
    return dataclasses.replace(
        x,
        **{
            field.name: value.cuda()
            for field in dataclasses.fields(x)
            if isinstance(value := getattr(x, field.name), torch.Tensor)
        },
    )


# ---- Neighbour lists.


def given(positions, cell=None, pbc=None, ptr=None) -> tuple[torch.Tensor, Cells]:
    """The arguments of neighbor_list on the device."""
    positions = torch.tensor(np.asarray(positions), dtype=torch.float64, device="cuda")
    ptr = np.array([0, len(positions)] if ptr is None else ptr, np.int64)
    count = len(ptr) - 1
    if cell is not None:
        cell = torch.tensor(np.asarray(cell, float).reshape(count, 3, 3), device="cuda")
        pbc = np.ascontiguousarray(np.broadcast_to(pbc, (count, 3)).astype(np.uint8))
        pbc = torch.from_numpy(pbc).cuda()
    return positions, Cells(torch.from_numpy(ptr).cuda(), cell, pbc)


CASES, REFUSALS = dict(calls()), dict(refusals())


@pytest.mark.parametrize("name", CASES)
def test_neighbor_list(name):
    arguments = dict(CASES[name])
    cutoff = arguments.pop("cutoff")
    try:
        expected = neighbor_list(cutoff=cutoff, **arguments)
    except ValueError as error:
        with pytest.raises(ValueError, match="coincide"):
            device_neighbor_list(*_with(cutoff, arguments))
        assert "coincide" in str(error)
        return
    found = device_neighbor_list(*_with(cutoff, arguments))
    for a, b in zip(found, dataclasses.astuple(expected), strict=True):
        np.testing.assert_array_equal(a.cpu().numpy(), b)


def _with(cutoff: float, arguments: dict) -> tuple[torch.Tensor, float, Cells]:
    positions, cells = given(**arguments)
    return positions, float(cutoff), cells


@pytest.mark.parametrize("name", REFUSALS)
def test_neighbor_list_refuses(name):
    arguments = dict(REFUSALS[name])
    cutoff = arguments.pop("cutoff")
    with pytest.raises(ValueError):
        device_neighbor_list(*_with(cutoff, arguments))


@pytest.mark.parametrize("system", SYSTEMS)
def test_skin_along_a_walk(system):
    start, _ = state(SYSTEMS[system]())
    cells, rng = Cells.of(start, torch.device("cuda")), np.random.default_rng(1)
    x, v = (torch.from_numpy(y).cuda() for y in (start.positions, start.velocities))
    skin = SkinNeighbors(x, 4.0, 0.6, cells)
    for _ in range(10):
        x += torch.from_numpy(rng.normal(scale=0.05, size=x.shape)).cuda()
        edges = skin.update(x)
        status = Status(*skin.status.tolist())
        assert status[:3] == (0, 0, int(edges.row_ptr[-1]))
        assert_device_list(type(edges)(*(y.cpu() for y in edges)), x.cpu(), cells)
        kernel = edge_vectors(x, v, edges, cells, torch.float32)
        plain = edge_vectors(x, v, edges, cells, torch.float64)
        for a, b in zip(kernel, plain, strict=True):
            count = status.edges
            torch.testing.assert_close(a[:count].double(), b[:count], rtol=1e-6, atol=1e-6)


def test_components():
    """Of a gas at the threshold of percolation, and of chains in no order."""
    rng = np.random.default_rng(0)
    gas = rng.uniform(0, 16, (4000, 3))
    chains = np.concatenate([np.outer(np.arange(500.0), [0.8, 0, 0]) + [0, k, 0] for k in (0, 3)])
    for positions in (gas, rng.permutation(chains)):
        edges = device_neighbor_list(*_with(0.85, {"positions": positions}))
        label, over = components(edges, 1, 64)
        expected = connected_components(neighbor_list(positions, 0.85))
        first = np.unique(expected, return_index=True)[1]
        assert over and np.array_equal(label.cpu().numpy(), first[expected])
        label, over = components(edges, 1, 1)
        assert bool(over) == np.array_equal(label.cpu().numpy(), first[expected])


# ---- The attention block.


@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("system", CROWDS)
@pytest.mark.parametrize("sizes", ONE_LAYER)
@pytest.mark.parametrize("backend", KERNELS)
def test_block(backend, sizes, system, envelope):
    """Values and time tangents, and where a backend has them, gradients."""
    model = model_of(ONE_LAYER[sizes], torch.float32, envelope=envelope)
    *start, graph = cases.block_inputs(model, CROWDS[system]())
    folded, options = folded_of(model), options_of(model)
    tangents = [0.1 * like(x, 5 + k) for k, x in enumerate(start)]
    upstream = [like(x, 9 + k) for k, x in enumerate(start)]
    layers = len(folded.key_layers)

    def gradients(inputs, weights, graph, backend):
        leaves = [x.clone().requires_grad_() for x in (*inputs, graph.r, graph.w)]
        own = [x.clone().requires_grad_() for x in weights]
        changed = dataclasses.replace(graph, r=leaves[3], w=leaves[4])
        made = FoldedWeights.from_tensors(own, layers)
        out = edge_attention(*leaves[:3], changed, made, **options, backend=backend)
        loss = sum((x * y.to(x)).sum() for x, y in zip(out, upstream, strict=True))
        return torch.autograd.grad(loss, [*leaves, *own], materialize_grads=True)

    def motion(inputs, changes, graph, folded, backend):
        with torch.no_grad(), forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, y) for x, y in zip(inputs, changes, strict=True)]
            out = edge_attention(*duals, graph, folded, **options, backend=backend)
            pairs = [forward_ad.unpack_dual(x) for x in out]
            return [x.primal for x in pairs], [x.tangent for x in pairs]

    wide = FoldedWeights.from_tensors([x.double() for x in folded.tensors()], layers)
    exact = [x.double() for x in start]
    expected = motion(exact, [x.double() for x in tangents], double(graph), wide, "reference")
    there = on_gpu(graph)
    here = [x.cuda() for x in start]
    own = FoldedWeights.from_tensors([x.cuda() for x in folded.tensors()], layers)
    with torch.no_grad():
        values = edge_attention(*here, there, own, **options, backend=backend)
    close([x.cpu() for x in values], expected[0], torch.float32)
    found = motion(here, [x.cuda() for x in tangents], there, own, backend)
    for a, b in zip(found, expected, strict=True):
        close([x.cpu() for x in a], b, torch.float32)
    if backend == "triton":
        expected = gradients(exact, wide.tensors(), double(graph), "reference")
        found = gradients(here, own.tensors(), there, backend)
        close([x.cpu() for x in found], expected, torch.float32)


@pytest.mark.parametrize("options", [{}, cases.OWN], ids=["published", "own"])
@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_model(backend, options):
    """Several times of one graph; float32 on the device beside float64 on the CPU."""
    model = model_of(ONE_LAYER["own"], torch.float64, **options)
    system, _ = state([*cases.mixture(), cases.diamond((2, 1, 1))])
    times = np.array([0.5, 4.0, 10.0])
    exact = model.displacements(model.graph(system), times)
    there = model.float().cuda()
    there.backend = backend
    for graph in (there.graph(system), device_graph(there, system)):
        found = there.displacements(graph, times)
        for a, b, tolerance in zip(found, exact, (1e-4, 1e-4), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# ---- Conservation.


@pytest.mark.parametrize("system", SYSTEMS)
def test_internal_velocities(system):
    """By the kernel, at two times."""
    start, momenta = state(SYSTEMS[system]())
    model = calm(**cases.OWN)
    graph = model.graph(start)
    rng, shape = np.random.default_rng(0), (2, *momenta.shape)
    x = start.positions + rng.normal(scale=0.05, size=shape)
    given = [x, rng.normal(size=shape), start.masses]
    isolated = torch.from_numpy(~start.pbc.any(1)[start.system_index])
    given = [*map(torch.from_numpy, given), graph.component, isolated]
    for last in (isolated, None):
        given[-1] = last
        expected = internal_velocities(*given)
        found = internal_velocities(*(None if y is None else y.cuda() for y in given))
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-11)
        alone = graph.component.bincount()[graph.component] == 1
        assert not found.cpu()[:, alone].any()


# ---- Window potentials.


def of_windows(name):
    """A bundled model on the device, a graph there, and its potentials in double precision."""
    atoms = {"diamond": cases.diamond((3, 3, 3)), "argon": cases.argon()}.get(name)
    many = [cases.hot("CH3CH2OH"), cases.lone_atom(), cases.hot("CH3CN", 1)]
    model = load_model(name).cuda().requires_grad_(False)
    system = System.from_atoms(many if atoms is None else atoms)
    exact = load_model(name, dtype="float64").cuda().requires_grad_(False)
    return model, device_graph(model, system), exact.window_potentials


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", bundled_models())
def test_window_potentials(name, role):
    model, graph, exact = of_windows(name)
    predictor = model.predictor("cuda")
    found = predictor.slopes(graph, role)
    expected = exact.slopes(double(graph), torch.full_like(graph.species, role))
    close([x.cpu() for x in found], [x.cpu() for x in expected], torch.float32)
    if role == ENERGY:
        assert torch.equal(predictor.energies(graph), found[0])


@pytest.mark.parametrize("name", ["diamond", "molecules-nve", "argon"])
def test_window_potentials_of_many_atoms(name):
    """In the largest tiles; the same bits every time."""
    model, graph, exact = of_windows(name)
    times = 9000 // graph.atoms
    many, predictor = graph.repeat(times), model.predictor("cuda")
    energy, slopes = predictor.slopes(many, ENDS)
    expected = exact.slopes(double(graph), torch.full_like(graph.species, ENDS))
    for x, y in zip((energy, slopes), expected, strict=True):
        close([x.cpu()], [y.repeat(times, *[1] * (y.ndim - 1)).cpu()], torch.float32)
    for x, y in zip(predictor.slopes(many, ENDS), (energy, slopes), strict=True):
        assert torch.equal(x, y)


def test_window_potentials_captured():
    """A replay with other vectors of edges is what a call makes of them."""
    model, graph, _ = of_windows("molecules-nve")
    predictor, r = model.predictor("cuda"), graph.r.clone()
    predictor.slopes(graph, MIDDLE)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = predictor.slopes(graph, MIDDLE)
    for scale in (1.0, 1.01):
        graph.r.copy_(scale * r)
        captured.replay()
        for x, y in zip(found, predictor.slopes(graph, MIDDLE), strict=True):
            assert torch.equal(x, y) and x.abs().max() > 0


def test_charges():
    here, there = load_model("molecules-nve"), load_model("molecules-nve").cuda()
    system = System.from_atoms([cases.hot("CH3CH2OH"), cases.hot("CH3CN", 1)])
    found = there.predictor("cuda").charges(there.graph(system))
    close([found.cpu()], [here.predictor("cpu").charges(here.graph(system))], torch.float32)


# ---- The rollout.


@pytest.mark.parametrize("dt", [1.0, 3.0])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("options", [{}, cases.OWN], ids=["published", "own"])
def test_rollout_in_double_precision(options, system, dt):
    """Plain torch, captured: what is not float32 has no kernels."""
    assert_same_rollout(gentle(**options), SYSTEMS[system](), 1e-9, dt=dt, duration=47.0)


def frames(run, *names):
    """Arrays of a whole rollout: how many windows come together is not the same on all devices."""
    parts = list(run)
    return [np.concatenate([getattr(part, name) for part in parts]) for name in names]


def assert_same_rollout(model, atoms, near, names=("positions", "momenta"), **settings):
    """Of a model on the CPU and then on the device, where it stays."""
    names = ("times", *names)
    backend, model.backend = model.backend, None
    expected = frames(rollout(model, *state(atoms), **settings), *names)
    model.cuda().backend = backend
    found = frames(rollout(model, *state(atoms), **settings), *names)
    for name, a, b in zip(names, found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=near, err_msg=name)


def calm(**options):
    """Sizes that the kernels serve, with small increments."""
    model = model_of(ONE_LAYER["own"], torch.float64, **options)
    for block in model.members[0].blocks:
        block.out_vector *= 0.03
    return model.float()


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("options", [{}, cases.OWN], ids=["published", "own"])
@pytest.mark.parametrize("backend", KERNELS)
def test_rollout(backend, options, system):
    model = calm(**options)
    model.backend = backend
    assert_same_rollout(model, SYSTEMS[system](), 1e-4, dt=2.5, duration=47.0)


@pytest.mark.parametrize("method", ["reversible", "plain"])
@pytest.mark.parametrize("dt", [10.0, 25.0])
def test_energies_are_kept_alike(method, dt):
    """In double precision, before and after the energy to keep is known."""
    options = cases.OWN | cases.POTENTIAL | {"time_cutoff": 25.0, "window": 25.0}
    model = gentle(**options)
    many = [cases.hot("CH3CH2OH", 0, 30.0), cases.hot("CO2", 1, 30.0), cases.lone_atom()]
    settings = {"dt": dt, "duration": 325.0, "method": method, "energy_rate": 0.05}
    assert_same_rollout(model, many, 1e-8, **settings)


def kicked(**options):
    """A model with window potentials, whose windows are symplectic."""
    model = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS, **options)
    model.window_potentials.last *= 1e-3
    return model


@pytest.mark.parametrize("dt", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("system", SYSTEMS)
def test_symplectic_windows(system, dtype, dt):
    """Energies kept and of every frame, before and after the one to keep is known."""
    model = kicked().to(dtype)
    near = 1e-8 if dtype == torch.float64 else 5e-4
    names = ("positions", "momenta", "potential_energies")
    settings = {"dt": dt, "duration": 273.0, "energy_rate": 0.05}
    assert_same_rollout(model, SYSTEMS[system](), near, names, **settings)


@pytest.mark.parametrize("thermostat", ["langevin", "csvr"])
def test_thermostats(thermostat):
    settings = {"duration": 60, "thermostat": thermostat, "temperature_K": 300.0, "seed": 5}
    atoms = [cases.hot("CH3CH2OH"), cases.hot("H2O")]
    expected = simulate(atoms, 1.0, model=kicked(), **settings)
    found = simulate(atoms, 1.0, model=kicked().cuda(), **settings)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=1e-8)
        np.testing.assert_allclose(a.heat, b.heat, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models(name):
    """30 fs of what each is for, and forces; float32 on both sides."""
    periodic = {"diamond": cases.diamond((3, 3, 3)), "argon": cases.argon()}
    atoms = periodic.get(name, cases.hot("CH3CH2OH"))
    here, there = load_model(name), load_model(name).cuda()
    step = here.stride() if here.window_potentials is None else here.config.window_potentials.window
    expected = simulate(atoms, step, duration=10 * step, model=here)
    found = simulate(atoms, step, duration=10 * step, model=there)
    np.testing.assert_allclose(found.positions, expected.positions, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.momenta, expected.momenta, rtol=0, atol=5e-2)


def test_rollout_makes_room(monkeypatch):
    begin, grown = device_engine._State.__init__, []

    def starved(self, *args):
        begin(self, *args)
        self.slots, self.rounds = 2, 1

    monkeypatch.setattr(device_engine._State, "__init__", starved)
    grow = device_engine._State.grow
    monkeypatch.setattr(
        device_engine._State, "grow", lambda self, needs: (grown.append(needs), grow(self, needs))
    )
    model = calm(**cases.OWN)
    assert_same_rollout(model, cases.mixture(), 1e-4, dt=3.0, duration=47.0)
    assert grown


def test_no_window_waits_for_the_host():
    """Launching captured windows synchronises nothing, as far as torch can tell."""
    model = calm(**cases.OWN).cuda()
    system, momenta = state(cases.mixture())
    engine = engine_for(model, system, Method())
    assert isinstance(engine, DeviceEngine) and engine.ahead == 2
    engine.set_state(system.positions, momenta)
    plan = Plan(0, [[4.0, 10.0]], [[True, True]])
    engine.begin(plan)
    engine.end()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            engine.begin(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    first, second = (engine.end().positions for _ in range(2))
    assert np.isfinite(second).all() and abs(second[-1] - first[-1]).max() > 0


def test_a_broken_trajectory():
    model = calm(**cases.OWN)
    model.members[0].species_embedding[model.config.species.index("N")] = np.nan
    many = [cases.hot("CO2"), cases.hot("NH3")]
    seen = []
    for there in ("cpu", "cuda"):
        with pytest.raises(RolloutError, match="before 10 fs: atom 0 leaves") as caught:
            list(rollout(model.to(there), *state(many), dt=2.0, duration=100.0))
        seen.append((caught.value.system, caught.value.window))
    assert seen == [(1, 0), (1, 0)]


def test_simulate():
    model = calm(**cases.OWN)
    atoms = [cases.hot("CH3CH2OH"), cases.diamond()]
    expected = simulate(atoms, 2.0, duration=40, model=model)
    for a, b in zip(simulate(atoms, 2.0, duration=40, model=model.cuda()), expected, strict=True):
        np.testing.assert_array_equal(a.times, b.times)
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=1e-4)


# ---- Training.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resident_batches(dtype):
    model, pairs = model_of(ONE_LAYER["own"], dtype, **cases.OWN).cuda(), Pairs(RECORDS)
    resident = ResidentPairs(pairs, model)
    for seed in range(4):
        choice = pairs.choose(np.random.default_rng(seed), 60, 8.0, time_reversal=True)
        assert_same_batch(resident.batch(choice), tensor_batch(model, pairs.batch(choice)))


def test_drawing_does_not_wait():
    model = model_of(ONE_LAYER["own"], torch.float32).cuda()
    resident = ResidentPairs(Pairs(RECORDS), model)
    choices = [resident.pairs.choose(np.random.default_rng(k), 60, 8.0) for k in range(2)]
    resident.batch(choices[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        resident.batch(choices[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


TARGETS = ("motion", "potential", "window_potentials", "dipole")


@pytest.mark.parametrize("target", TARGETS)
def test_targets(target):
    """The loss of the same batch, and its gradients, on CPU and GPU."""
    found = []
    for there in ("cpu", "cuda"):
        more = cases.POTENTIAL | cases.WINDOW_POTENTIALS | cases.DIPOLE
        model = model_of(ONE_LAYER["own"], torch.float64, **cases.OWN, **more)
        model = model.to(there).requires_grad_(True)
        initial = None if target in ("motion", "window_potentials") else "molecules-nve"
        config = TrainConfig(
            output="-", data="-", target=target, initial=initial, device=there, max_lag_fs=8.0
        )
        frames = np.zeros((40, 3), np.float32) + np.arange(3, dtype=np.float32)
        pairs = Pairs([dataclasses.replace(x, dipole=frames) for x in RECORDS if x.frame_fs == 1])
        loss = TASKS[target](config, pairs, model, model).loss(np.random.default_rng(1), Member())
        loss.backward()
        known = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach().cpu()} | {n: x for n, x in known.items() if x.any()})
    assert len(found[0]) > 5 and found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("target", ["motion", "window_potentials"])
@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
def test_fit(tmp_path, target, optimizer):
    """A training on the GPU, interrupted and resumed, writes a model that loads on the CPU."""
    records = [dataclasses.replace(x, frame_fs=1.0) for x in RECORDS[:4]]
    write_records(tmp_path / "data.h5", records)
    sizes = {"window_potentials": {"window": 3.0, "layers": 2, "channels": 8, "hidden": 16}}
    config = TrainConfig(
        output=str(tmp_path / "run"),
        data=(str(tmp_path / "data.h5"),),
        validation={"same": {"data": [str(tmp_path / "data.h5")]}},
        model=ONE_LAYER["own"] | cases.OWN,
        target=target,
        optimizer=optimizer,
        device="cuda",
        steps=24,
        batch_size=16,
        max_lag_fs=8.0,
        learning_rate=1e-3,
        warmup_steps=2,
        validate_every=12,
        validation_pairs=32,
        **(sizes if target == "window_potentials" else {}),
    )
    fit(config, progress=False, stop_after=13)
    model = fit(config, progress=False)
    assert model.device.type == "cuda"
    back = load_model(tmp_path / "run" / "model")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.cpu(), back.state_dict()[name], rtol=0, atol=0)
    assert (tmp_path / "run" / "log.csv").read_text().count("\n") == 3


def test_training_steps():
    """The same three steps on CPU and GPU lead to the same loss."""
    losses = []
    for there in ("cpu", "cuda"):
        model = model_of(ONE_LAYER["own"], torch.float32, **cases.OWN)
        model = model.to(there).requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        source = ResidentPairs(Pairs(RECORDS), model)
        losses.append([])
        for step in range(3):
            batch = source.batch(source.pairs.choose(np.random.default_rng(step), 40, 8.0))
            dx, dv = errors(model, batch)
            loss = dx.square().mean() + 4 * dv.square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
