"""Window potentials are trained on pairs that are one window long."""

import csv
import dataclasses

import ase
import ase.build
import cases
import numpy as np
import pytest
import torch
from ase.units import fs
from cases import gentle
from pair_cases import potential_config, vibration

from mdtrajnet_fast import TrainConfig, fit, load_model, save_model, simulate
from mdtrajnet_fast.data.device_pairs import window_batch
from mdtrajnet_fast.data.pairs import MARGIN, Pairs
from mdtrajnet_fast.data.records import load_records, write_records
from mdtrajnet_fast.model.config import ModelConfig, WindowPotentialsConfig
from mdtrajnet_fast.model.network import MDtrajNet
from mdtrajnet_fast.model.window_potentials import ENERGY
from mdtrajnet_fast.system import System
from mdtrajnet_fast.train import fit as train
from mdtrajnet_fast.train.evaluate import rms_window_errors, window_errors
from mdtrajnet_fast.train.process_group import Member
from mdtrajnet_fast.train.tasks import WindowPotentials


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


def in_a_well(seed, bond, depth):
    """A vibration around a bond (Å) in a well whose bottom is at -depth (eV)."""
    record = vibration(seed)
    x = record.positions.astype(np.float64)
    stretched = x[:, 1, 2] - x[:, 0, 2] - 0.8
    x[:, :, 2] += np.array([-1, 1]) * (bond - 0.8) / 2
    rigidity = 0.504 * (2 * np.pi * 3000 / 33356.41) ** 2
    kinetic = 0.5 * (record.masses[:, None] * record.velocities.astype(np.float64) ** 2).sum((1, 2))
    energy = (0.5 * rigidity * stretched**2 + kinetic) / fs**2 - depth
    return dataclasses.replace(record, positions=x.astype(np.float32), energy=energy)


@pytest.mark.parametrize("weight, processes", [(0.0, 1), (1.0, 1), (1.0, 2)])
def test_energies_say_how_far_apart_wells_are(tmp_path, weight, processes):
    """Forces of trajectories in two wells leave open which is the lower one."""
    records = [in_a_well(k, *((0.8, 0.3) if k % 2 else (1.6, 0.1))) for k in range(20)]
    write_records(tmp_path / "wells.h5", records)
    config = TrainConfig(
        output=str(tmp_path / "run"),
        data=(str(tmp_path / "wells.h5"),),
        target="window_potentials",
        model={"radial_cutoff": 4.0},
        window_potentials={"layers": 1, "radial": 16, "channels": 8, "products": 8},
        steps=100,
        batch_size=32,
        processes=processes,
        optimizer="soap",
        learning_rate=0.01,
        warmup_steps=20,
        energy_weight=weight,
        ema_decay=0.9,
        threads=1,
    )
    trained = fit(config, progress=False)
    wells = [ase.Atoms("H2", [[0, 0, 0], [0, 0, d]]) for d in (0.8, 1.6)]
    low, high = trained.potential_energy(System.from_atoms(wells)).tolist()
    assert (abs(high - low - 0.2) < 0.01) == (weight > 0)
    assert rms_window_errors(trained, Pairs(records), 200)["acceleration"] < 0.02


def test_only_differences_of_energies_count():
    """Of systems of the same atoms in a batch and of the same method, where energies are known."""
    one, other = in_a_well(0, 0.8, 0.3), in_a_well(1, 0.8, 0.1)
    elsewhere = dataclasses.replace(other, method="another", energy=other.energy + 5.0)
    unknown = dataclasses.replace(other, energy=None)

    def loss(*records, weight=1.0):
        torch.manual_seed(1)
        sizes = ModelConfig(species=("H",), window_potentials=WindowPotentialsConfig())
        model = MDtrajNet(sizes, members=0)
        config = TrainConfig("", ("",), target="window_potentials", energy_weight=weight)
        task = WindowPotentials(config, Pairs(records), model, model)
        return task.loss(np.random.default_rng(0), Member()).item()

    higher = [dataclasses.replace(x, energy=x.energy + 7.0) for x in (one, other)]
    assert loss(*higher) == pytest.approx(loss(one, other), rel=1e-4)
    apart = dataclasses.replace(other, energy=other.energy + 1.0)
    assert loss(one, apart) > loss(one, other) + 1.0
    raised = dataclasses.replace(elsewhere, energy=elsewhere.energy + 1.0)
    assert loss(one, raised) == pytest.approx(loss(one, elsewhere), rel=1e-4)
    assert loss(one, unknown, weight=0.0) < loss(one, unknown) < loss(one, other)


def test_energies_that_are_not_there(tmp_path):
    write_records(tmp_path / "data.h5", [vibration(0)])
    settings = {"output": str(tmp_path / "run"), "data": (str(tmp_path / "data.h5"),)}
    with pytest.raises(ValueError, match="no trajectory has any"):
        fit(TrainConfig(**settings, target="window_potentials", energy_weight=1.0), progress=False)
    with pytest.raises(ValueError, match='energy_weight is for target = "window_potentials"'):
        TrainConfig(**settings, energy_weight=1.0)


@pytest.fixture
def config(water_and_ammonia, tmp_path):
    sizes = {"layers": 1, "radial": 12, "channels": 8, "products": 8, "hidden": 16}
    options = {"optimizer": "soap", "mass_power": 1.0, "time_reversal": True}
    return potential_config("window_potentials", water_and_ammonia, tmp_path, sizes, **options)


def test_training(config, water_and_ammonia, tmp_path):
    """The motion stays as it is; log, files and figures hold what was learned."""
    trained = fit(config, progress=False)
    with (tmp_path / "run" / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    pairs = Pairs(load_records(water_and_ammonia, trajectories=["traj01"]))
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


def test_training_without_a_network(config, water_and_ammonia, tmp_path):
    """A model of window potentials alone: a few steps, resumed to the same bits."""
    alone = dataclasses.replace(
        config, initial=None, steps=20, output=str(tmp_path / "whole"), model={"radial_cutoff": 4.0}
    )
    whole = fit(alone, progress=False)
    parts = dataclasses.replace(alone, output=str(tmp_path / "parts"))
    fit(parts, progress=False, stop_after=7)
    fit(parts, progress=False)
    made = load_model(tmp_path / "parts" / "model")
    assert len(made.members) == 0 and made.config.species == ("H", "N", "O")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, made.state_dict()[name], rtol=0, atol=0)
    on = dataclasses.replace(alone, initial=str(tmp_path / "whole"), output=str(tmp_path / "on"))
    first = fit(on, progress=False)
    found = rms_window_errors(first, Pairs(load_records(water_and_ammonia)), 64)
    assert found["velocity"] < found["thermal_velocity"]


def test_uncertainties_are_calibrated(config, water_and_ammonia, tmp_path):
    """As large as errors are on frames like those of validation, far larger on others."""
    trained = fit(config, progress=False)
    pairs = Pairs(load_records(water_and_ammonia, trajectories=["traj01"]))
    choice = pairs.choose(np.random.default_rng(3), 200, 3.0, lag_fs=3.0, margin=MARGIN)
    system, true = pairs.batch(choice).system, pairs.accelerations(choice)
    expected = trained.force_uncertainties(system).numpy()
    slopes = trained.predictor().slopes(trained.graph(system), ENERGY)[1].numpy()
    wrong = -slopes - true * system.masses[:, None] / fs**2
    assert np.sqrt(((wrong**2).mean(1) / expected**2).mean()) == pytest.approx(1, rel=0.3)
    assert (expected > trained.usual_uncertainty).mean() < 0.05
    saved = load_model(tmp_path / "run" / "model")
    torch.testing.assert_close(saved.force_uncertainties(system).numpy(), expected)
    molecule = ase.build.molecule("NH3")
    molecule.rattle(0.5, seed=1)
    far = saved.force_uncertainties(System.from_atoms(molecule))
    assert far.max() > 3 * saved.usual_uncertainty
    run = simulate(molecule, 3.0, duration=3.0, model=saved, temperature_K=300)
    assert any("the model expects errors" in text for text in run.trust.warnings)
    again = dataclasses.replace(
        config, initial=str(tmp_path / "run" / "model"), output=str(tmp_path / "on"), steps=2
    )
    assert fit(again, progress=False).usual_uncertainty is not None
    without = dataclasses.replace(config, validation={}, output=str(tmp_path / "blind"), steps=2)
    with pytest.raises(ValueError, match="does not know its uncertainties"):
        fit(without, progress=False).force_uncertainties(system)


def test_errors_are_those_of_windows(water_and_ammonia):
    """With the kick at the end taken where the window ends, and not where the true one does."""
    of = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
    pairs = Pairs(load_records(water_and_ammonia))
    choice = pairs.choose(np.random.default_rng(1), 6, 3.0, lag_fs=3.0, margin=MARGIN)
    batch = pairs.batch(choice)
    with torch.no_grad():
        found, _ = window_errors(of, window_batch(of, pairs, choice))
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
