"""Fine-tuning in one call: what is held out, what gets better, what is refused."""

import ase
import cases
import numpy as np
import pytest
import torch
from pair_cases import vibration

from mdtrajnet_fast import Trajectory, finetune, load_model, save_model, simulate
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.mechanics import momenta_from_velocities

SETTINGS = {"steps": 120, "batch_size": 16, "learning_rate": 0.01, "progress": False}


@pytest.fixture
def files(tmp_path):
    """Trajectories of H2, a file each, and models of it."""
    paths = []
    for seed in range(6):
        record = vibration(seed)
        x, v = record.positions.astype(float), record.velocities.astype(float)
        p = momenta_from_velocities(v, record.masses)
        times = record.frame_fs * np.arange(len(x))
        paths.append(tmp_path / f"{seed}.h5")
        Trajectory(ase.Atoms("H2"), times, x, p).write(paths[-1])
    sizes = {"window": 3.0, "layers": 1, "radial": 16, "channels": 8, "products": 8, "hidden": 16}
    for name, more in (("windows", {"window_potentials": sizes}), ("motion", {})):
        torch.manual_seed(0)
        made = cases.model(dtype=torch.float32, **cases.OWN, species=("H",), **more)
        save_model(made, tmp_path / name)
    return paths


def test_window_potentials_get_better(files, tmp_path):
    done = finetune(tmp_path / "windows", files, tmp_path / "run", **SETTINGS)
    assert done.held_out == (str(files[4]),) and done.before.window == 3.0
    for name in ("position", "velocity", "acceleration", "energy"):
        assert getattr(done.after, name) < 0.3 * getattr(done.before, name), name
    again = finetune(tmp_path / "windows", files, tmp_path / "run", **SETTINGS)  # nothing is left
    assert again.after == done.after
    atoms = Trajectory.read(files[0])[0]
    simulate(atoms, 3.0, duration=9, model=load_model(tmp_path / "run"))


def test_it_ends_when_nothing_gets_better(files, tmp_path, capsys):
    """With the weights that were best on what is held out: here a rate that soon spoils them."""
    words = [str(tmp_path / "windows"), *map(str, files), "--output", str(tmp_path / "run")]
    words += ["--steps", "150", "--learning-rate", "1.0", "--quiet"]
    assert main(["finetune", *words]) == 0
    rows = np.genfromtxt(tmp_path / "run" / "log.csv", delimiter=",", names=True)
    best = int(rows["step"][rows["val_held_out_velocity"].argmin()])
    assert rows["step"].tolist() == list(range(10, best + 60, 10)) and best < 100
    assert f"Smallest after {best} of 150 steps" in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["best"]["step"] == best
    weights = (tmp_path / "run" / "model" / "weights.safetensors").read_bytes()
    assert main(["finetune", *words]) == 0  # nothing is left
    assert (tmp_path / "run" / "model" / "weights.safetensors").read_bytes() == weights


def test_the_motion_of_other_models(files, tmp_path, capsys):
    chosen = ["--held-out", str(files[0]), "--steps", "200", "--learning-rate", "0.02", "--quiet"]
    given = [str(tmp_path / "motion"), *map(str, files[1:])]
    assert main(["finetune", *given, "--output", str(tmp_path / "run"), *chosen]) == 0
    said = capsys.readouterr().out
    assert "acceleration" not in said and "energy" not in said
    before, after = (float(x) for x in said.split("velocity")[1].split("%")[:2])
    assert after < 0.9 * before


def test_refusals(files, tmp_path):
    for data, options, match in (
        (files[:1], {}, "would be held out"),
        (files, {"held_out": ["traj07"]}, "'traj07'; there are the trajectories"),
        (files[:1], {"held_out": files[:1]}, "would be held out"),
        (files, {"steps": 0}, "steps must be"),
    ):
        with pytest.raises(ValueError, match=match):
            finetune(tmp_path / "windows", data, tmp_path / "run", **SETTINGS | options)
    assert not (tmp_path / "run").exists()
