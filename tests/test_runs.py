"""Folders of runs, predicted one by one and together."""

import json
import pickle

import cases
import numpy as np
import pytest

from mdtrajnet_fast import RolloutError, Trajectory, load_model, read_structure, simulate
from mdtrajnet_fast.runs import Run, check, describe_run, finish, predict, read_run


@pytest.fixture(scope="module")
def model():
    return load_model("molecules-nve-small")


def made(folder, network, **chosen):
    """A run of water or another structure, in a new folder."""
    structure = chosen.pop("structure", "water")
    chosen = {"model": "molecules-nve-small", "dt": 3.0, "equilibration": 0.0} | chosen
    run = Run(folder, *describe_run(structure, chosen, ["test"], read_structure(structure)))
    check(run, network)
    folder.mkdir()
    return run


def test_runs_together_are_those_alone(tmp_path, model):
    """To the bit, with seeds and temperatures of their own, and in what run.json says."""
    own = [
        {"structure": "ethanol", "seed": 7, "temperature": 400.0},
        {"seed": 3, "temperature": 250.0},
        {"structure": "ammonia", "seed": 3, "temperature": 300.0},
    ]
    often = {"duration": 60.0, "equilibration": 30.0}
    together = [made(tmp_path / f"a{k}", model, **one, **often) for k, one in enumerate(own)]
    for run, trajectory in zip(together, predict(together, model), strict=True):
        finish(run, trajectory, None)
    for k, run in enumerate(together):
        alone = made(tmp_path / f"b{k}", model, **own[k], **often)
        finish(alone, *predict([alone], model), None)
        a, b = (Trajectory.read(x.trajectory) for x in (run, alone))
        for name in ("times", "positions", "momenta", "potential_energies"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        a, b = (json.loads((x.folder / "run.json").read_text()) for x in (run, alone))
        assert a.pop("seconds") >= 0 and b.pop("seconds") >= 0
        assert a == b and a["outcome"] == "complete"


def test_runs_of_different_settings_are_no_batch(tmp_path, model):
    a, b = made(tmp_path / "a", model), made(tmp_path / "b", model, duration=30.0)
    with pytest.raises(ValueError, match=r"differ in temperature_K, seed alone.*duration"):
        predict([a, b], model)
    assert not any((tmp_path / x / "run.json").exists() for x in "ab")


def test_runs_that_break_are_noted(tmp_path):
    """Alone, and all of those of a batch."""
    model = cases.gentle(0.6, **cases.OWN)
    settings = {"dt": 10.0, "duration": 2000.0, "model": "none"}
    runs = [made(tmp_path / str(k), model, structure="ethanol", **settings) for k in range(2)]
    with pytest.warns(RuntimeWarning, match="broke"), pytest.raises(RolloutError) as caught:
        predict(runs, model)
    assert len(pickle.loads(pickle.dumps(caught.value)).trajectories) == 2
    for run, trajectory in zip(runs, caught.value.trajectories, strict=True):
        finish(run, trajectory, None)
        again = read_run(run.folder)
        assert again.said["outcome"] == "broken"
        assert "the trajectory broke before" in again.said["trust"]["warnings"][0]
        assert again.said["trust"]["frames"] == len(Trajectory.read(run.trajectory)) < 200


def test_each_system_may_have_its_own_seed(model):
    water = cases.molecule("H2O")
    often = {"duration": 12, "temperature_K": 300, "model": model}
    for seeds in ([5, 2], np.array([5, 2])):
        for seed, one in zip(seeds, simulate([water, water], 3, seed=seeds, **often), strict=True):
            alone = simulate(water, 3, seed=int(seed), **often)
            np.testing.assert_array_equal(one.momenta, alone.momenta)
    for atoms, seed in ((water, [1]), ([water, water], [1])):
        with pytest.raises(ValueError, match="seeds, or one for all"):
            simulate(atoms, 3, seed=seed, **often)
