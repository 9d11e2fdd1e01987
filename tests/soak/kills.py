"""Kill -9 and Ctrl-C at random moments of simulate, generate and train, and go on: nothing is lost.

python tests/soak/kills.py [ROUNDS] runs for minutes; with a fixed seed. The parts of it that are
quick are tests: tests/io/test_hdf5_files.py (a kill at every step of a write), tests/io/
test_trajectory.py (full disks, killed writers), tests/train/test_fit.py (exact resume).
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mdtrajnet_fast import Trajectory, load_model
from mdtrajnet_fast.data.records import load_records

COMMAND = [sys.executable, "-m", "mdtrajnet_fast"]
MODEL = ["--model", "molecules-nve-small"]
RECIPE = """
output = "{output}"
data = "data.h5"
steps = 150
batch_size = 8
validate_every = 25
validation_pairs = 16
checkpoint_minutes = 0.02
initial = "molecules-nve-small"
threads = 1
validation.held_out = {{ data = "data.h5", trajectories = ["traj00"] }}
"""


def killed(arguments: list[str], folder: Path, seconds: float, how: int) -> int:
    """Run a command and send it a signal after some time; returns its status."""
    child = subprocess.Popen([*COMMAND, *arguments], cwd=folder, stdout=-3, stderr=subprocess.PIPE)
    try:
        said = child.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        child.send_signal(how)
        said = child.communicate(timeout=120)[1]
    if b"Traceback" in said and b", in main" in said:  # else of an import, before there is a run
        print("a traceback:", said.decode()[-1000:])
    return child.returncode


def finished(arguments: list[str], folder: Path) -> None:
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]


def simulations(folder: Path, kind: str, rng: random.Random) -> int:
    new = ["simulate", "ethanol", "--dt", "0.25", "--duration", "3000", "--equilibration", "0"]
    new += [*MODEL, "--format", kind, "--quiet", "--output"]
    finished([*new, "whole"], folder)
    kills = 0
    for _ in range(20):
        begun = (folder / "parts" / "run.json").exists()
        go = ["simulate", "--resume", "parts", "--quiet"] if begun else [*new, "parts"]
        if kills >= 4 and begun:
            break
        how = rng.choice([signal.SIGKILL, signal.SIGINT])
        kills += killed(go, folder, rng.uniform(3.0, 9.0), how) != 0
    finished(go, folder)
    whole, parts = (Trajectory.read(folder / k / f"trajectory.{kind}") for k in ("whole", "parts"))
    for name in ("times", "positions", "momenta"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert {p.name for p in (folder / "parts").glob("[!.]*")} == {
        p.name for p in (folder / "whole").glob("[!.]*")
    }
    return kills


def generations(folder: Path, rng: random.Random) -> int:
    make = ["generate", "O", "N", "--trajectories", "12", "--duration", "20"]
    make += ["--equilibration", "5", "--output"]
    finished([*make, "whole.h5"], folder)
    kills = 0
    for _ in range(6):
        how = rng.choice([signal.SIGKILL, signal.SIGINT])
        kills += killed([*make, "parts.h5"], folder, rng.uniform(3.0, 9.0), how) != 0
        if (folder / "parts.h5").exists() and kills:
            load_records(folder / "parts.h5")
    finished([*make, "parts.h5"], folder)
    whole, parts = (load_records(folder / name) for name in ("whole.h5", "parts.h5"))
    assert len(whole) == len(parts)
    for a, b in zip(whole, parts, strict=True):
        assert (a.molecule, a.trajectory) == (b.molecule, b.trajectory)
        np.testing.assert_array_equal(a.positions, b.positions)
    return kills


def trainings(folder: Path, rng: random.Random) -> int:
    (folder / "whole.h5").rename(folder / "data.h5")
    for name in ("whole", "parts"):
        (folder / f"{name}.toml").write_text(RECIPE.format(output=f"train-{name}"))
    finished(["train", "whole.toml", "--quiet"], folder)
    kills = 0
    for _ in range(4):
        how = rng.choice([signal.SIGKILL, signal.SIGINT])
        kills += (
            killed(["train", "parts.toml", "--quiet"], folder, rng.uniform(4.0, 12.0), how) != 0
        )
    finished(["train", "parts.toml", "--quiet"], folder)
    whole, parts = (load_model(folder / f"train-{k}").state_dict() for k in ("whole", "parts"))
    for name, x in whole.items():
        np.testing.assert_array_equal(x.numpy(), parts[name].numpy())
    return kills


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rng = random.Random(1)
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for kind in ("traj", "extxyz", "h5"):
                (folder / kind).mkdir()
                count = simulations(folder / kind, kind, rng)
                print(f"round {number}: simulate .{kind}, {count} kills: the same bits", flush=True)
            print(
                f"round {number}: generate, {generations(folder, rng)} kills: the same", flush=True
            )
            print(f"round {number}: train, {trainings(folder, rng)} kills: the same", flush=True)


if __name__ == "__main__":
    main()
