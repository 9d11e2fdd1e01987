"""Pairs, evaluation and training on short real trajectories of water and ammonia."""

import csv
import dataclasses
import multiprocessing
import os
import resource
import signal
import warnings
from pathlib import Path

import ase
import cases
import numpy as np
import pytest
import torch

from mdtrajnet_fast import TrainConfig, fit, load_model, save_model, simulate
from mdtrajnet_fast.data.generate import generate
from mdtrajnet_fast.data.pairs import Pairs
from mdtrajnet_fast.data.records import (
    Record,
    load_records,
    thermostatted_at,
    write_records,
)
from mdtrajnet_fast.io.lock import Lock
from mdtrajnet_fast.md.window import method_of
from mdtrajnet_fast.model.checkpoint import provenance
from mdtrajnet_fast.model.config import PotentialConfig
from mdtrajnet_fast.system import System
from mdtrajnet_fast.train import fit as train
from mdtrajnet_fast.train.evaluate import (
    COLUMNS,
    atom_errors,
    error_table,
    errors,
    grouped_tables,
    rms_errors,
)

MODEL = cases.SMALL | cases.OWN | {"species": ("H", "N", "O")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two molecules, two trajectories each, 60 fs, GFN2-xTB."""
    path = tmp_path_factory.mktemp("data") / "data.h5"
    generate(["O", "N"], path, trajectories=2, duration_fs=60, equilibration_fs=20, conformers=1)
    return path


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        output=str(tmp_path / "run"),
        data=(str(data),),
        exclude_trajectories=("traj01",),
        validation={"held": {"data": [str(data)], "trajectories": ["traj01"]}},
        model=MODEL,
        steps=40,
        batch_size=8,
        learning_rate=0.01,
        warmup_steps=5,
        velocity_weight_fs=2.0,
        ema_decay=0.9,
        validate_every=20,
        validation_pairs=64,
        threads=1,
    )


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def straight(frames=30, frame_fs=2.0, atoms=3):
    """A record of straight-line motion: every pair's answer is known."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=(atoms, 3)) * 0.01
    times = frame_fs * np.arange(frames)
    positions = rng.normal(size=(atoms, 3)) + times[:, None, None] * v
    return Record(
        molecule="line",
        trajectory="traj00",
        numbers=np.array([8, 1, 1]),
        masses=np.array([16.0, 1.0, 1.0]),
        positions=positions.astype(np.float32),
        velocities=np.repeat(v[None], frames, 0).astype(np.float32),
        frame_fs=frame_fs,
        energy=None,
        temperature_K=None,
        smiles=None,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
    )


def test_pairs_are_what_they_say(data):
    for records in ([straight()], [straight(), straight(frames=12, frame_fs=1.0)]):
        pairs = Pairs(records)
        for reverse in (False, True):
            batch = pairs.draw(np.random.default_rng(1), 200, 9.0, time_reversal=reverse)
            expected = batch.system.velocities * batch.t[:, None]
            np.testing.assert_allclose(batch.displacement, expected, atol=1e-6)
            np.testing.assert_array_equal(batch.velocity, batch.system.velocities)
            assert batch.t.min() >= 1 and batch.t.max() <= 9
            signs = np.sign(batch.system.velocities[::3, 0])
            assert (len(set(signs)) == 2) == reverse
    assert set(np.unique(Pairs([straight()]).draw(np.random.default_rng(0), 99, 9.0).t)) == {
        2.0,
        4.0,
        6.0,
        8.0,
    }
    batch = Pairs(load_records(data)).draw(np.random.default_rng(0), 50, 10.0, lag_fs=10.0)
    assert (batch.t == 10).all()
    assert set(np.diff(batch.system.ptr)) == {3, 4}


def test_lag_power_favours_long_lags():
    pairs, rng = Pairs([straight(frame_fs=1.0)]), np.random.default_rng(0)
    counts = np.bincount(pairs.draw(rng, 20_000, 4.0, lag_power=1.0).t[::3].astype(int))
    cells = np.array([0, 1, 3, 5, 7]) / 16  # integral of 2 x over quarters of [0, 1]
    np.testing.assert_allclose(counts / counts.sum(), cells, atol=0.02)


def test_pairs_depend_on_their_seed_only(data):
    pairs = Pairs(load_records(data))
    one, two, other = (pairs.draw(np.random.default_rng(s), 20, 10.0) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.displacement, two.displacement)
    assert one.displacement.shape != other.displacement.shape or (
        abs(one.displacement - other.displacement).max() > 0
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_the_pairs_before(data, reverse):
    """They end, at the right time, in the state that the others start from."""
    pairs = Pairs(load_records(data))
    choice = pairs.choose(
        np.random.default_rng(3), 300, 12.0, time_reversal=reverse, history_fs=10.0
    )
    later, earlier = pairs.batch(choice), pairs.batch(pairs.before(choice, 10.0))
    assert (earlier.t == 10).all() and later.t.max() == 12
    system = earlier.system
    np.testing.assert_allclose(system.positions + earlier.displacement, later.system.positions)
    np.testing.assert_array_equal(earlier.velocity, later.system.velocities)
    assert abs(earlier.displacement - 10 * system.velocities).max() < 1.0  # the same direction
    with pytest.raises(ValueError, match="lag of 10.5 fs"):
        pairs.before(choice, 10.5)
    with pytest.raises(ValueError, match="hold no pair with a lag of at most"):
        pairs.choose(np.random.default_rng(0), 3, 12.0, history_fs=60.0)


def test_moved_starts_keep_their_ends(data):
    batch = Pairs(load_records(data)).draw(np.random.default_rng(0), 20, 10.0)
    atoms = batch.system.ptr[5]
    start = System.from_atoms(
        [ase.Atoms(numbers=batch.system.numbers[:atoms], positions=np.zeros((atoms, 3)))]
    )
    moved = batch.moved(start)
    ends = [b.system.positions + b.displacement for b in (batch, moved)]
    np.testing.assert_allclose(*ends, atol=1e-12)
    assert (moved.system.positions[:atoms] == 0).all()
    assert (moved.system.velocities[:atoms] == 0).all()
    np.testing.assert_array_equal(moved.system.positions[atoms:], batch.system.positions[atoms:])
    np.testing.assert_array_equal(moved.velocity, batch.velocity)


def test_too_short_trajectories_are_refused():
    with pytest.raises(ValueError, match="30 frames every 20 fs hold no pair"):
        Pairs([straight(frame_fs=20.0)]).draw(np.random.default_rng(0), 4, 9.0)
    with pytest.raises(ValueError, match="no trajectories"):
        Pairs([])


def test_errors_of_the_guesses(data):
    model = cases.model(**cases.OWN)
    result = rms_errors(model, Pairs([straight()]), 100, lag_fs=8.0)
    assert result["ballistic"] < 1e-6 and result["velocity_static"] == 0
    speed = np.sqrt((straight().velocities[0] ** 2).mean())
    np.testing.assert_allclose(result["static"], 8.0 * speed, rtol=1e-5)
    with pytest.raises(ValueError, match="every 2 fs hold no pair with a lag of 5 fs"):
        rms_errors(model, Pairs([straight()]), 100, lag_fs=5.0)
    with pytest.raises(ValueError, match="at least one pair"):
        rms_errors(model, Pairs([straight()]), 0)
    np.testing.assert_allclose(result["thermal_velocity"], speed, rtol=1e-6)
    pairs = Pairs(load_records(data))
    found = {lag: atom_errors(model, pairs, 100, lag_fs=lag) for lag in (1.0, 10.0)}
    table = error_table("lag_fs", found)
    assert list(table) == ["lag_fs", "atoms", *COLUMNS]
    assert table["ballistic"][0] < 0.3 * table["static"][0]
    assert table["static"][1] > 3 * table["static"][0]
    assert {name: table[name][1] for name in COLUMNS} == rms_errors(model, pairs, 100)
    assert table["atoms"][0] == table["atoms"][1]  # the same pairs


def right_for(model, element, monkeypatch):
    """Make a model right about straight lines for the atoms of one element; others stay put."""
    right = model.config.species.index(element)

    def motion(graph, t):
        own = (graph.species == right)[:, None]
        return graph.velocities * t[:, None] * own, graph.velocities * own

    monkeypatch.setattr(model, "motion", motion)


def test_errors_of_groups(monkeypatch):
    """A model that is right for oxygen only, on trajectories that differ in what they are."""
    model = cases.model(**cases.OWN)
    right_for(model, "O", monkeypatch)
    line = straight()
    records = [
        dataclasses.replace(line, temperature_K=300.0, smiles="O"),
        dataclasses.replace(
            line,
            positions=line.positions * 2,
            velocities=line.velocities * 2,
            molecule="fast",
            temperature_K=1000.0,
        ),
        dataclasses.replace(line, molecule="fast"),
        dataclasses.replace(
            line, molecule="all right", numbers=np.full(3, 8), masses=np.full(3, 15.999)
        ),
    ]
    result = atom_errors(model, Pairs(records), 300, lag_fs=8.0, seed=3)
    tables = grouped_tables(result, records)
    elements, temperatures, molecules = tables.values()
    assert list(tables) == ["elements", "temperatures", "molecules"]
    assert elements["element"] == ["H", "O"]
    assert temperatures["temperature_K"] == [300.0, 1000.0, None]
    assert molecules["molecule"] == ["fast", "O", "all right"]  # the worst first

    wrong, right = ({k: v[row] for k, v in elements.items()} for row in (0, 1))
    assert right["position"] < 1e-6 < 0.01 < right["static"] and right["velocity"] < 1e-9
    np.testing.assert_allclose(wrong["position"], wrong["static"], rtol=1e-6)
    np.testing.assert_allclose(wrong["velocity"], wrong["thermal_velocity"], rtol=1e-6)
    hydrogen = np.sqrt((line.velocities[0, 1:] ** 2).mean())
    np.testing.assert_allclose(molecules["position"][1], 8 * hydrogen * np.sqrt(2 / 3), rtol=1e-5)
    assert molecules["position"][2] < 1e-6
    np.testing.assert_allclose(temperatures["static"][1], 2 * temperatures["static"][0], rtol=1e-5)
    for table in tables.values():  # groups make up the whole
        atoms = np.array(table["atoms"])
        assert atoms.sum() == 3 * 300
        for name, pooled in result.rms().items():
            parts = np.array(table[name])
            np.testing.assert_allclose(np.sqrt(atoms @ parts**2 / atoms.sum()), pooled)


def test_undrawn_trajectories_have_no_row():
    model, line = cases.model(**cases.OWN), straight()
    records = [dataclasses.replace(line, molecule=f"line{k}") for k in range(50)]
    result = atom_errors(model, Pairs(records), 5)
    assert 1 <= len(grouped_tables(result, records)["molecules"]["molecule"]) <= 5


def test_training_learns(config):
    sizes = {f"irreps_{part}": "4x0e + 4x1o" for part in ("key", "query", "value")}
    sizes |= {"key_weight_hidden_neurons": [32], "value_weight_hidden_neurons": [32]}
    config = dataclasses.replace(
        config,
        model=MODEL | sizes,
        steps=300,
        batch_size=16,
        optimizer="soap",
        validate_every=300,
    )
    model = fit(config, progress=False)
    pairs = Pairs(load_records(config.data, trajectories=["traj01"]))
    errors = rms_errors(model, pairs, 200)
    assert errors["position"] < 0.8 * min(errors["static"], errors["ballistic"])
    assert errors["velocity"] < 0.95 * errors["velocity_static"]


def test_files_of_a_run(config, tmp_path):
    model = fit(config, progress=False)
    folder = tmp_path / "run"
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [20, 40]
    names = ("", "_static", "_ballistic", "_velocity")
    assert all(float(rows[-1][f"val_held{name}"]) > 0 for name in names)
    assert (folder / "curves.png").stat().st_size > 1000
    saved = load_model(folder / "model")
    for name, value in weights(saved).items():
        torch.testing.assert_close(value, weights(model)[name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (7, {}),
        (20, {}),
        (17, {"optimizer": "soap", "own_starts": 0.5}),
    ],
)
def test_resume_is_exact(config, tmp_path, stop, options):
    config = dataclasses.replace(config, **options)
    whole = fit(config, progress=False)
    parts = dataclasses.replace(config, output=str(tmp_path / "parts"))
    fit(parts, progress=False, stop_after=stop)
    resumed = fit(parts, progress=False)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)
    assert logged(tmp_path / "run") == logged(tmp_path / "parts")


def logged(folder):
    """The rows of a run's log without their times."""
    rows = csv.DictReader((folder / "log.csv").open())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_interrupt_waits_for_the_end_of_the_step(config, tmp_path, monkeypatch):
    """Ctrl-C in the middle of a step, or of a validation, loses nothing."""
    whole = fit(config, progress=False)
    for step, where in ((15, "advance"), (20, "validate")):
        parts = dataclasses.replace(config, output=str(tmp_path / where))
        original = getattr(train._Run, where)

        def interrupted(self, *stopping, step=step, original=original):
            if self.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, *stopping)

        monkeypatch.setattr(train._Run, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(parts, progress=False)
        monkeypatch.setattr(train._Run, where, original)
        resumed = fit(parts, progress=False)
        for name, value in weights(whole).items():
            torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)
        rows = list(csv.DictReader((tmp_path / where / "log.csv").open()))
        assert [int(row["step"]) for row in rows] == [20, 40]


@pytest.mark.slow
def test_processes_share_a_batch(config, tmp_path):
    """Their number changes the order of sums, and nothing else: the loss is that of all atoms."""
    config = dataclasses.replace(config, steps=4, validate_every=1, own_starts=0.4)
    logs = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        fit(
            dataclasses.replace(config, processes=processes, output=str(folder)),
            progress=False,
        )
        rows = csv.DictReader((folder / "log.csv").open())
        logs.append([(float(row["loss"]), float(row["val_held"])) for row in rows])
    np.testing.assert_allclose(logs[1], logs[0], rtol=1e-4)
    np.testing.assert_allclose(logs[2], logs[0], rtol=1e-4)


@pytest.mark.slow
def test_interrupt_with_processes(config, tmp_path, monkeypatch):
    """A terminal sends Ctrl-C to all processes; the first one decides, after the step.

    What they go on to is to the bit what it would have been.
    """
    options = {"own_starts": 0.5, "own_windows": 2}
    config = dataclasses.replace(config, processes=2, steps=8, **options)
    whole = fit(config, progress=False)
    parts = dataclasses.replace(config, output=str(tmp_path / "parts"))
    original = train._Run.advance

    def interrupted(self, *stopping):
        if self.step == 3:
            for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children())):
                os.kill(pid, signal.SIGINT)
        return original(self, *stopping)

    with monkeypatch.context() as patch:
        patch.setattr(train._Run, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(parts, progress=False)
    assert not multiprocessing.active_children()
    resumed = fit(parts, progress=False)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)
    assert logged(tmp_path / "run") == logged(tmp_path / "parts")


def test_death_of_a_process_is_reported(config, monkeypatch):
    original = train._Run.advance

    def killing(self, *stopping):
        if self.step == 3:
            for process in multiprocessing.active_children():
                process.kill()
        return original(self, *stopping)

    monkeypatch.setattr(train._Run, "advance", killing)
    with pytest.raises(ChildProcessError, match="one of the 2 training processes has died"):
        fit(dataclasses.replace(config, processes=2), progress=False)


def test_data_that_do_not_fit_are_refused(config):
    for changes, message in (
        ({"exclude_trajectories": ("traj_01",)}, "traj_01"),
        ({"max_lag_fs": 40.0}, "window must lie in"),
        ({"max_lag_fs": 0.0}, "window must lie in"),
        ({"model": MODEL | {"species": ("H", "O")}}, "does not know the elements N"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(dataclasses.replace(config, **changes), progress=False)
    with pytest.raises((OSError, ValueError), match="missing.h5"):
        fit(dataclasses.replace(config, data=("missing.h5",)), progress=False)
    assert not Path(config.output).exists()


def test_exact_velocity_loss(config):
    """Without a read-out the loss differentiates the exact time derivative once more."""
    model = MODEL | {"velocity_readout": False}
    trained = fit(dataclasses.replace(config, model=model, steps=5), progress=False)
    other = dataclasses.replace(config, model=model, steps=5, velocity_weight_fs=0.0)
    positions_only = fit(
        dataclasses.replace(other, output=config.output + "-positions"), progress=False
    )
    assert any(
        (value != weights(positions_only)[name]).any() for name, value in weights(trained).items()
    )


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_errors_weigh_like_masses(config, power):
    config = dataclasses.replace(config, mass_power=power)
    run = train._Run(config)
    loss = run.task.loss(np.random.default_rng(7), run.member)
    batch, components = run.task.draw(np.random.default_rng(7), run.member)
    dx, dv = (x.detach().double().numpy() for x in errors(run.model, batch))
    weight = (batch.system.masses[:, None] / 12.011) ** power
    expected = (weight * (dx**2 + config.velocity_weight_fs**2 * dv**2)).sum() / components
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="mass_power must not be negative"):
        dataclasses.replace(config, mass_power=-1.0)


@pytest.mark.parametrize("windows", [(1, 1, 1, 1), (2, 2, 1, 1), (3, 2, 1, 1)])
def test_own_starts_are_the_windows_of_a_rollout(config, data, windows):
    """Half of a batch starts where rollouts of the averaged model are after some windows."""
    most = max(windows)
    config = dataclasses.replace(config, own_starts=0.5, own_windows=most, exclude_trajectories=())
    run = train._Run(config)
    batch, components = run.task.draw(np.random.default_rng(5), run.member)
    assert components == batch.displacement.size
    choice = run.pairs.choose(np.random.default_rng(5), 8, 10.0, history_fs=10.0 * most)
    plain = run.pairs.batch(choice)
    half = plain.system.ptr[4]
    np.testing.assert_array_equal(batch.system.positions[half:], plain.system.positions[half:])
    np.testing.assert_allclose(
        batch.system.positions + batch.displacement,
        plain.system.positions + plain.displacement,
        atol=1e-12,
    )
    for k, back in enumerate(windows):
        before = run.pairs.batch(run.pairs.before(choice, 10.0 * back)).system
        atoms = slice(*before.ptr[k : k + 2])
        result = simulate(
            ase.Atoms(before.numbers[atoms], before.positions[atoms]),
            dt=10.0,
            duration=10.0 * back,
            model=run.average.eval(),
            velocities=before.velocities[atoms],
        )
        np.testing.assert_allclose(
            batch.system.positions[atoms], result.positions[-1], atol=1e-6 * back
        )
        np.testing.assert_allclose(
            batch.system.velocities[atoms], result.velocities[-1], atol=1e-7 * back
        )


def test_steps_leave_nothing_behind(config):
    """The averaged weights are values, not the end of a graph that grows with every step."""
    Path(config.output).mkdir()
    run = train._Run(config)
    run.begin()
    for _ in range(3):
        run.advance()
    assert not any(x.requires_grad for x in run.average.parameters())
    assert all(x.is_leaf for x in run.model.parameters())
    assert len(run.losses) == 3
    run.validate()
    assert not run.losses


def test_more_data_is_not_held_out(config, tmp_path, data):
    write_records(tmp_path / "more.h5", load_records(data, trajectories=["traj01"]))
    run = train._Run(dataclasses.replace(config, more_data=(str(tmp_path / "more.h5"),)))
    names = [(r.molecule, r.trajectory) for r in run.pairs.records]
    assert sorted(name for _, name in names) == ["traj00", "traj00", "traj01", "traj01"]


def test_a_smaller_model_starts_from_some_blocks(config, tmp_path):
    first = fit(config, progress=False)
    run = train._Run(
        dataclasses.replace(
            config,
            output=str(tmp_path / "smaller"),
            initial=str(tmp_path / "run" / "model"),
            initial_blocks=[1],
        )
    )
    assert run.model.config == dataclasses.replace(first.config, num_attn_blocks=1)
    (block,) = run.model.members[0].blocks
    assert len(first.members[0].blocks) > 1
    for name, value in first.members[0].blocks[1].state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], value, rtol=0, atol=0)
    embedding = run.model.members[0].species_embedding
    torch.testing.assert_close(embedding, first.members[0].species_embedding, rtol=0, atol=0)
    other = dataclasses.replace(run.config, output=str(tmp_path / "bad"), initial_blocks=(0, 7))
    with pytest.raises(ValueError, match=r"initial_blocks = \[0, 7\].* has blocks 0 to 1"):
        train._Run(other)
    with pytest.raises(ValueError, match="initial_blocks names blocks of the model initial"):
        dataclasses.replace(config, initial_blocks=(0,))


def test_fine_tuning_starts_from_the_model(config, tmp_path):
    first = fit(config, progress=False)
    tuned = dataclasses.replace(
        config,
        output=str(tmp_path / "tuned"),
        initial=str(tmp_path / "run" / "model"),
        model={},
        steps=1,
        learning_rate=1e-9,
        final_learning_rate=1e-9,
    )
    second = fit(tuned, progress=False)
    assert second.config == first.config and second.name == "tuned"
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value, rtol=0, atol=1e-6)


def test_fine_tuning_inherits_what_it_is_not_told(config, tmp_path):
    """With the defaults, whose loss has no velocities, a trained read-out would get worse."""
    whole = dataclasses.replace(config, steps=1, velocity_weight_fs=8.0, time_reversal=True)
    fit(whole, progress=False)
    recipe = tmp_path / "tune.toml"
    recipe.write_text('output = "tuned"\ndata = "a.h5"\ninitial = "run/model"\nlag_power = 2.0\n')
    tuned = TrainConfig.read(recipe)
    assert (tuned.velocity_weight_fs, tuned.time_reversal, tuned.lag_power) == (8.0, True, 2.0)
    recipe.write_text('output = "tuned"\ndata = "a.h5"\ninitial = "molecules-nve"\n')
    assert TrainConfig.read(recipe).velocity_weight_fs == 8.0  # of the motion, not of what followed
    recipe.write_text('output = "tuned"\ndata = "a.h5"\n')
    assert TrainConfig.read(recipe).velocity_weight_fs == 0.0


def test_fine_tuning_says_what_it_leaves(config, tmp_path):
    own = cases.model(potential=PotentialConfig(), species=("H", "N", "O"), **cases.OWN)
    save_model(own, tmp_path / "own")
    tuned = dataclasses.replace(config, initial=str(tmp_path / "own"), model={}, steps=1)
    with pytest.warns(RuntimeWarning, match='not its potential energy: .*target = "potential"'):
        fit(tuned, progress=False)


def test_a_motion_learns_from_a_thermostat(config, tmp_path, data):
    """It keeps the temperature of the data by itself, without the potentials of what it was."""
    own = cases.model(potential=PotentialConfig(), species=("H", "N", "O"), **cases.OWN)
    save_model(own, tmp_path / "own")
    warm = [
        dataclasses.replace(record, thermostat="nose-hoover", temperature_K=250.0)
        for record in load_records(data)
    ]
    write_records(tmp_path / "warm.h5", warm)
    tuned = dataclasses.replace(
        config,
        data=(str(tmp_path / "warm.h5"),),
        output=str(tmp_path / "tuned"),
        initial=str(tmp_path / "own"),
        keep_potentials=False,
        model={},
        steps=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # nothing stays behind
        made = fit(tuned, progress=False)
    assert not made.has_energies and made.config.temperature_K == 250.0
    saved = load_model(tmp_path / "tuned")
    assert saved.config == made.config and method_of(saved, None) == "plain"
    assert thermostatted_at(warm) == 250.0
    for other in ({"temperature_K": 300.0}, {"thermostat": None}, {"temperature_K": None}):
        assert thermostatted_at([dataclasses.replace(warm[0], **other), *warm[1:]]) is None
    with pytest.raises(ValueError, match="keep_potentials = false is for .* initial = None"):
        dataclasses.replace(config, keep_potentials=False)
    with pytest.raises(ValueError, match="keep_potentials must be true or false, got 'no'"):
        dataclasses.replace(tuned, keep_potentials="no")


def test_fine_tuning_for_another_window(config, tmp_path):
    first = fit(dataclasses.replace(config, steps=2), progress=False)
    assert first.config.window == 10 and first.config.longest_lag == 10
    tuned = dataclasses.replace(
        config,
        output=str(tmp_path / "tuned"),
        initial=str(tmp_path / "run" / "model"),
        window=4.0,
        max_lag_fs=5.0,
        steps=2,
    )
    fit(tuned, progress=False)
    saved = load_model(tmp_path / "tuned").config
    assert saved.window == 4 and saved.longest_lag == 5
    assert dataclasses.replace(saved, window=10.0, longest_lag=10.0) == first.config
    with pytest.raises(ValueError, match="window must lie in"):
        fit(dataclasses.replace(tuned, output=str(tmp_path / "x"), window=11.0), progress=False)
    with pytest.raises(ValueError, match="without initial"):
        dataclasses.replace(config, window=4.0)


def test_other_settings_are_refused_on_resume(config):
    fit(config, progress=False, stop_after=3)
    with pytest.raises(ValueError, match="other settings .*learning_rate"):
        fit(dataclasses.replace(config, learning_rate=0.02), progress=False)
    fit(dataclasses.replace(config, checkpoint_minutes=1.0), progress=False, stop_after=4)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:],
        lambda raw: b"",
        lambda raw: b"not a checkpoint",
    ],
)
def test_damaged_checkpoints_are_refused(config, spoil):
    fit(config, progress=False, stop_after=2)
    file = Path(config.output) / "checkpoint.pt"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match="checkpoint.pt is damaged, or cannot be read safely"):
        fit(config, progress=False)


def test_checkpoints_of_other_content_are_refused(config):
    fit(config, progress=False, stop_after=2)
    file = Path(config.output) / "checkpoint.pt"
    held = torch.load(file, weights_only=True)
    for wrong in ([1], held | {"step": "x"}, held | {"model": {}}, held | {"optimizer": 3}):
        torch.save(wrong, file)
        with pytest.raises(ValueError, match="checkpoint.pt does not hold|invalid literal"):
            fit(config, progress=False)


def test_a_full_disk_loses_nothing(config, tmp_path):
    """What was there stays, the message names the file, and it goes on to the same bits."""
    whole = fit(dataclasses.replace(config, output=str(tmp_path / "whole")), progress=False)
    fit(config, progress=False, stop_after=20)
    folder = tmp_path / "run"
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in (0, 100, 5000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            with pytest.raises(
                OSError, match=r"File too large: '.*run/\.?(checkpoint\.pt|log\.csv)"
            ):
                fit(config, progress=False)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            for name in ("checkpoint.pt", "log.csv"):
                assert (folder / name).read_bytes().startswith(held[folder / name])
            assert not list(folder.rglob("*.part"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with (folder / "log.csv").open("a") as log:
        log.write("2")  # of a line that a kill cut
    resumed = fit(config, progress=False)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)
    assert len((folder / "log.csv").read_text().splitlines()) == 3


def test_one_process_trains_in_a_folder(config):
    Path(config.output).mkdir(parents=True, exist_ok=True)
    with Lock(Path(config.output) / "checkpoint.pt"):
        with pytest.raises(BlockingIOError, match="being written by process"):
            fit(config, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("final_learning_rate", -0.05),
        ("final_learning_rate", float("nan")),
        ("final_learning_rate", "x"),
        ("velocity_weight_fs", float("nan")),
        ("velocity_weight_fs", -1),
        ("warmup_steps", -1),
        ("patience", -1),
        ("lag_power", float("inf")),
        ("lag_power", float("nan")),
        ("steps", True),
        ("seed", float("inf")),
        ("threads", -1),
        ("learning_rate", float("inf")),
        ("frame_fs", -1.0),
        ("time_reversal", "yes"),
        ("validation", {"a": 0}),
    ],
)
def test_nonsense_in_recipes_is_refused(config, name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize("processes", [1, 2])
def test_patience_keeps_the_best(config, tmp_path, monkeypatch, processes):
    """It ends a step after it is at its end; interrupted or not, to the same bits."""
    errors = dict(zip((5, 10, 15, 20), (0.3, 0.1, 0.2, 0.2), strict=True))
    compare = train._Run._compare
    monkeypatch.setattr(train._Run, "_compare", lambda run, _: compare(run, errors[run.step]))
    config = dataclasses.replace(config, validate_every=5, patience=2, processes=processes)
    model = fit(config, progress=False)
    assert [row["step"] for row in logged(tmp_path / "run")] == ["5", "10", "15", "20"]
    held = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (held["step"], held["best"]["step"]) == (21, 10)
    assert provenance(tmp_path / "run")["steps"] == 10
    if processes > 1:
        return
    parts = dataclasses.replace(config, output=str(tmp_path / "parts"))
    for stop in (12, 20, None, None):  # the last one has nothing to do
        again = fit(parts, progress=False, stop_after=stop)
        for name, value in weights(model).items():
            torch.testing.assert_close(weights(again)[name], value, rtol=0, atol=0)
    assert logged(tmp_path / "parts") == logged(tmp_path / "run")
    early = dataclasses.replace(config, output=str(tmp_path / "early"), patience=0)
    at_ten = fit(early, progress=False, stop_after=10)
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(at_ten).items())


def test_patience_needs_validation(config):
    with pytest.raises(ValueError, match="patience = 3 is for a training with validation sets"):
        dataclasses.replace(config, patience=3, validation={})


def test_divergence_is_reported(config):
    with pytest.raises(FloatingPointError, match="smaller learning_rate"):
        fit(dataclasses.replace(config, learning_rate=1e30, warmup_steps=0), progress=False)


def test_import_to_training(config, tmp_path):
    """Float data from elsewhere, periodic or not, trains too."""
    write_records(tmp_path / "lines.h5", [straight()])
    fit(
        dataclasses.replace(
            config,
            data=(str(tmp_path / "lines.h5"),),
            validation={},
            exclude_trajectories=(),
            model=MODEL | {"species": ("H", "O")},
            steps=2,
        ),
        progress=False,
    )


def test_config_files(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text(
        'data = ["a.h5"]\noutput = "run"\nsteps = 7\n[model]\nnum_heads = 2\n'
        '[validation.other]\ndata = "b.h5"\n'
    )
    config = TrainConfig.read(path)
    assert config.data == (str(tmp_path / "a.h5"),) and config.output == str(tmp_path / "run")
    assert config.steps == 7 and config.model == {"num_heads": 2}
    assert config.validation == {"other": {"data": [str(tmp_path / "b.h5")]}}
    path.write_text('data = "a.h5"\noutput = "run"\ninitial = "model"\n')
    assert TrainConfig.read(path).initial == str(tmp_path / "model")
    path.write_text('data = "a.h5"\noutput = "run"\ninitial = "molecules-nve"\n')
    assert TrainConfig.read(path).initial == "molecules-nve"
    for text, message in (
        ('data = "a"', "missing settings .*output"),
        ('data = "a"\noutput = "b"\ncolour = 1', "unknown settings .*colour"),
        ('data = "a"\noutput = "b"\nsteps = 0', "steps"),
        ('data = "a"\noutput = "b"\nema_decay = 1.0', "ema_decay"),
        ('data = "a"\noutput = "b"\nown_starts = 1.5', "own_starts"),
        ('data = "a"\noutput = "b"\nprocesses = 2\ndevice = "cuda"', "on the CPU only"),
        ('data = "a"\noutput = "b"\nprocesses = 2\nbatch_size = 1', "cannot share"),
        ('data = "a"\noutput = "b"\noptimizer = "sgd"', "optimizer must be one of adamw, soap"),
        ('data = "a"\noutput = "b"\n[validation.x]\nmolecules = []', "validation set 'x' lacks"),
        (
            'data = "a"\noutput = "b"\n[validation.x]\ndata = "c"\ntrajectory = "traj01"',
            "validation set 'x' has unknown keys .*trajectory",
        ),
        ('data = "a"\noutput = "b"\nsteps = "7"', "steps must be a whole number"),
        ("data = [", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            TrainConfig.read(path)
