"""Kill -9 and Ctrl-C at random moments of simulate, generate, train and campaign: nothing is lost.

python tests/soak/kills.py [ROUNDS] runs for minutes; with a fixed seed. The parts of it that are
quick are tests: tests/io/test_hdf5_files.py (a kill at every step of a write), tests/io/
test_trajectory.py (full disks, killed writers), tests/train/test_fit.py (exact resume).
"""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np
import psutil

from mdtrajnet_fast import Trajectory, load_model, read_structure, simulate
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


CAMPAIGN = """
output = "campaign"
structures = ["water", "ethanol", "acetic acid", "benzene"]
models = ["molecules-nve-small"]
temperatures = [300, 500]
seeds = 3
dt = 1
duration = 20000
equilibration = 100
address = "scheduler.json"
"""


def dask(folder: Path, *arguments: str) -> subprocess.Popen:
    """One of Dask's processes."""
    command = [str(Path(sys.executable).with_name("dask")), *arguments]
    command += ["--scheduler-file", "scheduler.json"]
    return subprocess.Popen(command, cwd=folder, stdout=-3, stderr=-3)


def campaigns(folder: Path, rng: random.Random, kills: int = 10) -> int:
    """Workers are killed, and once the scheduler; every run has the bits of simulate."""
    (folder / "campaign.toml").write_text(CAMPAIGN)
    go = [*COMMAND, "campaign", "campaign.toml", "--quiet"]
    killed = 0

    def start(what: list[str]) -> subprocess.Popen:
        return subprocess.Popen(what, cwd=folder, stdout=-3, stderr=subprocess.PIPE, text=True)

    def servers() -> tuple[subprocess.Popen, subprocess.Popen]:
        (folder / "scheduler.json").unlink(missing_ok=True)
        one = dask(folder, "scheduler", "--port", "0", "--no-dashboard")
        while not (folder / "scheduler.json").exists():
            time.sleep(0.2)
        time.sleep(1.0)  # until it is written
        return one, dask(folder, "worker", "--nthreads", "1", "--nworkers", "2", "--no-dashboard")

    def workers(nannies: subprocess.Popen) -> list[psutil.Process]:
        children = psutil.Process(nannies.pid).children()
        return [one for one in children if "spawn_main" in " ".join(one.cmdline())]

    def going() -> bool:
        return any((folder / "campaign").glob("runs/*/trajectory.h5"))

    scheduler, nannies = servers()
    running = start(go)
    try:
        while not going():
            time.sleep(0.2)
        fatal = rng.randrange(kills)
        while killed < kills and running.poll() is None:
            time.sleep(rng.uniform(1.0, 9.0))
            if killed == fatal:
                scheduler.kill()
                said = running.communicate(timeout=300)[1]
                assert running.returncode == 2 and "scheduler is gone" in said, said
                nannies.terminate()
                nannies.wait(timeout=120)
                scheduler, nannies = servers()
                running = start(go)
                fatal = -1
            if found := workers(nannies):
                rng.choice(found).kill()
                killed += 1
        said = running.communicate()[1]
        assert running.returncode == 0, said
    finally:
        for process in (running, nannies, scheduler):
            process.terminate()
    with (folder / "campaign" / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 24 and {row["outcome"] for row in table} == {"complete"}
    asked = tomllib.loads(CAMPAIGN)
    for row in table:
        undisturbed = simulate(
            read_structure(row["structure"]),
            asked["dt"],
            duration=asked["duration"],
            model=row["model"],
            temperature_K=float(row["target_K"]),
            seed=int(row["seed"]),
            equilibration=asked["equilibration"],
        )
        found = Trajectory.read(folder / "campaign" / "runs" / row["run"] / "trajectory.h5")
        for name in ("times", "positions", "momenta"):
            np.testing.assert_array_equal(getattr(found, name), getattr(undisturbed, name))
    return killed


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
            print(f"round {number}: campaign, {campaigns(folder, rng)} kills: the same", flush=True)
            print(f"round {number}: train, {trainings(folder, rng)} kills: the same", flush=True)


if __name__ == "__main__":
    main()
