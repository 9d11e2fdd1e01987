"""Window potentials: the kernel against the reference, symmetries, and how they are trained."""

import csv
import dataclasses
import functools

import ase
import cases
import numpy as np
import pytest
import torch
from ase.units import fs
from cases import gentle

from mdtrajnet_fast import TrainConfig, fit, load_model, save_model, simulate
from mdtrajnet_fast.data.generate import generate
from mdtrajnet_fast.data.pairs import MARGIN, Pairs
from mdtrajnet_fast.data.records import Record, load_records
from mdtrajnet_fast.model.config import WindowPotentialsConfig
from mdtrajnet_fast.model.window_potentials import ENDS, ENERGY, MIDDLE, ROLES
from mdtrajnet_fast.system import System
from mdtrajnet_fast.train import fit as train
from mdtrajnet_fast.train.evaluate import rms_window_errors, window_errors

SIZES = cases.WINDOW_POTENTIALS["window_potentials"]
ALL_SIZES = [{}, {"layers": 1}, {"layers": 3, "channels": 17, "products": 33, "hidden": 20}]


@functools.cache
def model(dtype=torch.float64, **sizes):
    return gentle(**cases.OWN, window_potentials=SIZES | sizes).to(dtype)


def many():
    lone = ase.Atoms("N", [[1.0, 2.0, 3.0]])
    molecules = [cases.hot(name) for name in ("CH3CH2OH", "H2O", "CO2", "C6H6")]
    return [*molecules, lone, cases.diamond((1, 1, 1)), cases.hot("CH4")]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("sizes", ALL_SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_kernel_is_the_reference(dtype, sizes, role, instruction_set):
    of, system = model(dtype, **sizes), System.from_atoms(many())
    energy, slope = of.predictor().slopes(of.graph(system), role)
    exact = model(**sizes)
    graph = exact.graph(system)
    expected, slopes = exact.window_potentials.slopes(graph, torch.full_like(graph.species, role))
    atol = 1e-12 if dtype == torch.float64 else 5e-5
    torch.testing.assert_close(energy.double(), expected, atol=atol, rtol=0)
    torch.testing.assert_close(slope, slopes, atol=atol, rtol=0)
    assert abs(slopes).max() > 0.1
    assert abs(slope[: graph.row_ptr.numel() - 1].sum(0)).max() < 100 * atol


def test_roles_differ():
    of, system = model(), System.from_atoms(many())
    found = [of.predictor().slopes(of.graph(system), role)[1] for role in (ENERGY, ENDS, MIDDLE)]
    assert abs(found[0] - found[1]).max() > 0.01 < abs(found[1] - found[2]).max()


def test_slopes_are_slopes():
    of, atoms = model(), cases.hot("CH3CH2OH")
    _, slope = of.predictor().slopes(of.graph(System.from_atoms(atoms)), ENERGY)
    for atom, axis in ((0, 0), (3, 1), (8, 2)):
        values = []
        for step in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            values.append(float(of.potential_energy(System.from_atoms(moved))))
        assert slope[atom, axis] == pytest.approx((values[0] - values[1]) / 2e-4, abs=1e-7)


def test_bits_depend_on_nothing_else(instruction_set):
    """Not on threads, and not on what else there is."""
    of, systems = model(torch.float32), many()
    graph = of.graph(System.from_atoms(systems))
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(of.predictor().slopes(graph, MIDDLE))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
    ptr = System.from_atoms(systems).ptr
    for one, a, b in zip(systems, ptr, ptr[1:], strict=False):
        energy, slope = of.predictor().slopes(of.graph(System.from_atoms(one)), MIDDLE)
        assert torch.equal(energy, runs[0][0][a:b]) and torch.equal(slope, runs[0][1][a:b])


def test_symmetries():
    of, atoms = model(), cases.hot("CH3CH2OH")
    turned = atoms.copy()
    turned.rotate(50, (1, 2, 3))
    turned.translate((30, -20, 10))
    turned = turned[[4, 0, 8, 1, 2, 3, 7, 6, 5]]
    energies = [float(of.potential_energy(System.from_atoms(x))) for x in (atoms, turned)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-11)


def test_nothing_jumps_at_the_cutoff():
    of = model()
    cutoff = of.config.radial_cutoff
    apart = [cutoff - 1e-5, cutoff + 1e-5]
    pairs = [System.from_atoms(ase.Atoms("CO", [[0, 0, 0], [0, 0, d]])) for d in apart]
    inside, outside = (float(of.potential_energy(x)) for x in pairs)
    assert inside == pytest.approx(outside, abs=1e-12)


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"layers": 0}, "layers must be a whole number, at least 1"),
        ({"hidden": 2.5}, "hidden must be a whole number"),
        ({"channels": True}, "channels must be a whole number"),
        ({"window": -1.0}, "window .fs. must be a positive number"),
        ({"window": float("nan")}, "window .fs. must be a positive number"),
    ],
)
def test_sizes_are_checked(bad, match):
    with pytest.raises(ValueError, match=match):
        WindowPotentialsConfig(**bad)


def test_files_hold_them(tmp_path):
    save_model(model(), tmp_path / "model")
    again = load_model(tmp_path / "model", dtype="float64")
    system = System.from_atoms(many())
    assert again.config == model().config
    torch.testing.assert_close(again.potential_energy(system), model().potential_energy(system))


# ---- Training.


def vibration(seed: int, wavenumber: float = 3000.0, frames: int = 60, frame_fs: float = 1.0):
    """A record of H2 that vibrates harmonically, a classical thermal state of 300 K or so."""
    omega = 2 * np.pi * wavenumber / 33356.41
    rng = np.random.default_rng(seed)
    a, phase = 0.08 * abs(rng.standard_normal()) + 0.01, 7 * rng.random()
    t = frame_fs * np.arange(frames)
    positions, velocities = np.zeros((frames, 2, 3)), np.zeros((frames, 2, 3))
    for atom, sign in ((0, -1), (1, 1)):
        positions[:, atom, 2] = sign * (0.4 + a / 2 * np.cos(omega * t + phase))
        velocities[:, atom, 2] = -sign * a / 2 * omega * np.sin(omega * t + phase)
    return Record(
        molecule="H2",
        trajectory=f"traj{seed:02d}",
        numbers=np.array([1, 1]),
        masses=np.array([1.008, 1.008]),
        positions=positions.astype(np.float32),
        velocities=velocities.astype(np.float32),
        frame_fs=frame_fs,
        energy=None,
        temperature_K=300.0,
        smiles=None,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
    )


@pytest.mark.parametrize("frame_fs, error", [(1.0, 3e-4), (2.0, 0.015)])
def test_accelerations_of_pairs(frame_fs, error):
    records = [vibration(seed, frame_fs=frame_fs) for seed in range(3)]
    pairs = Pairs(records)
    choice = pairs.choose(np.random.default_rng(0), 50, 6.0, lag_fs=6.0, margin=MARGIN)
    assert choice.first.min() >= MARGIN and choice.last.max() <= 59 - MARGIN
    z = pairs.batch(choice).system.positions[:, 2]
    expected = -((2 * np.pi * 3000 / 33356.41) ** 2) * (z - np.sign(z) * 0.4)
    found = pairs.accelerations(choice)
    np.testing.assert_allclose(found[:, 2], expected, atol=error * abs(expected).max() + 1e-6)
    np.testing.assert_array_equal(found[:, :2], 0)


def test_windows_take_in_what_steps_leave_out(tmp_path, monkeypatch):
    """A harmonic vibration that turns by 1.7 in a window: trained, its period is right, where
    velocity Verlet with two steps a window is off by 3 % (and the fourth-order kicks by 0.3 %)."""
    records = [vibration(seed) for seed in range(20)]
    monkeypatch.setattr(train, "load_records", lambda *_, **__: records)
    start = cases.model(dtype=torch.float32, **cases.OWN, species=("H",))
    save_model(start, tmp_path / "motion")
    config = TrainConfig(
        output=str(tmp_path / "run"),
        data=("none",),
        target="window_potentials",
        initial=str(tmp_path / "motion"),
        window_potentials={"window": 3.0, "layers": 1, "radial": 16, "channels": 8, "products": 8},
        steps=500,
        batch_size=32,
        optimizer="soap",
        learning_rate=0.01,
        warmup_steps=20,
        ema_decay=0.98,
        threads=1,
    )
    trained = fit(config, progress=False)
    found = rms_window_errors(trained, Pairs(records), 200)
    assert found["velocity"] < 0.03 * found["thermal_velocity"]
    hot = records[0]
    atoms = ase.Atoms("H2", hot.positions[0])
    atoms.set_velocities(hot.velocities[0] / fs)
    run = simulate(atoms, 3.0, duration=3000, model=trained)
    z = run.positions[:, 1, 2] - run.positions[:, 1, 2].mean()
    spectrum = abs(np.fft.rfft(z * np.hanning(len(z)), 64 * len(z)))
    wavenumber = 33356.41 * np.argmax(spectrum) / (64 * len(z) * 3.0)
    assert wavenumber == pytest.approx(3000, rel=0.002)
    energy = (run.momenta**2).sum((1, 2))
    assert energy[-300:].max() == pytest.approx(energy[:300].max(), rel=0.02)  # no drift


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.h5"
    generate(["O", "N"], path, trajectories=2, duration_fs=100, equilibration_fs=20, conformers=1)
    return path


@pytest.fixture
def config(data, tmp_path):
    start = cases.model(dtype=torch.float32, **cases.OWN, species=("H", "N", "O"))
    save_model(start, tmp_path / "motion")
    return TrainConfig(
        output=str(tmp_path / "run"),
        data=(str(data),),
        exclude_trajectories=("traj01",),
        validation={"held": {"data": [str(data)], "trajectories": ["traj01"]}},
        target="window_potentials",
        initial=str(tmp_path / "motion"),
        window_potentials={"layers": 1, "radial": 12, "channels": 8, "products": 8, "hidden": 16},
        steps=200,
        batch_size=16,
        optimizer="soap",
        learning_rate=0.01,
        warmup_steps=5,
        mass_power=1.0,
        time_reversal=True,
        ema_decay=0.95,
        validate_every=100,
        validation_pairs=64,
        threads=1,
    )


def test_training(config, data, tmp_path):
    """The motion stays as it is; log, files and figures hold what was learned."""
    trained = fit(config, progress=False)
    with (tmp_path / "run" / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    pairs = Pairs(load_records(data, trajectories=["traj01"]))
    saved = load_model(tmp_path / "run" / "model")
    found = rms_window_errors(saved, pairs, 64)
    assert found["velocity"] == pytest.approx(float(last["val_held_velocity"]), rel=1e-5)
    assert found["velocity"] < 0.3 * found["thermal_velocity"]
    assert found["acceleration"] < 0.3 * found["true_acceleration"]
    motion = load_model(tmp_path / "motion").state_dict()
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name], rtol=0, atol=0)
        if not name.startswith("window_potentials"):
            torch.testing.assert_close(value, motion[name], rtol=0, atol=0)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_errors_are_those_of_windows(data):
    """With the kick at the end taken where the window ends, and not where the true one does."""
    of = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
    pairs = Pairs(load_records(data))
    choice = pairs.choose(np.random.default_rng(1), 6, 3.0, lag_fs=3.0, margin=MARGIN)
    batch = pairs.batch(choice)
    with torch.no_grad():
        found = window_errors(of, batch, pairs.accelerations(choice))
    system = batch.system
    parts = zip(system.ptr, system.ptr[1:], strict=False)
    many = [
        ase.Atoms(system.numbers[a:b], system.positions[a:b], masses=system.masses[a:b])
        for a, b in parts
    ]
    for one, a, b in zip(many, system.ptr, system.ptr[1:], strict=False):
        one.set_velocities(system.velocities[a:b] / fs)
    runs = simulate(many, 3.0, duration=3.0, model=of)
    ends = np.concatenate([run.positions[-1] for run in runs])
    np.testing.assert_allclose(ends - batch.end.positions, found.position.numpy(), atol=1e-6)
    velocities = np.concatenate([run.velocities[-1] for run in runs]) - batch.velocity
    off = abs(velocities - found.velocity.numpy()).max()
    assert off < 0.2 * abs(velocities).max()


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_exact(config, tmp_path, processes):
    config = dataclasses.replace(config, steps=20, validate_every=10, processes=processes)
    whole = fit(config, progress=False).state_dict()
    parts = dataclasses.replace(config, output=str(tmp_path / "parts"))
    fit(parts, progress=False, stop_after=7)
    for name, value in fit(parts, progress=False).state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_processes_share_a_batch(config, tmp_path):
    """Their number changes the order of sums and nothing else."""
    runs = [
        train._Run(dataclasses.replace(config, output=str(tmp_path / str(size))), member)
        for size, member in ((1, train.Member()), (2, train.Member(0, 2)), (3, train.Member(1, 2)))
    ]
    whole, *parts = (run.task.loss(np.random.default_rng(3), run.member).item() for run in runs)
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
