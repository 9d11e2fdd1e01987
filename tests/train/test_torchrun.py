"""Trainings whose processes torchrun has started."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cases
import numpy as np
import pytest
from pair_cases import RECORDS

from mdtrajnet_fast import TrainConfig, fit, load_model
from mdtrajnet_fast.data.records import write_records
from mdtrajnet_fast.model.archive import load_archive

RECIPE = """
output = "run"
data = ["data.h5"]
steps = {steps}
batch_size = 12
learning_rate = 0.003
warmup_steps = 2
validate_every = 1
validation_pairs = 16
velocity_weight_fs = 2.0
threads = 1
[validation.same]
data = ["data.h5"]
[model]
{model}
"""


def recipe(folder: Path, steps: int = 6) -> Path:
    folder.mkdir()
    records = [x for x in RECORDS if x.frame_fs == 1.0]
    write_records(folder / "data.h5", records)
    sizes = cases.SMALL | cases.OWN | {"species": ("C", "H", "O")}
    text = "\n".join(f"{k} = {toml(v)}" for k, v in sizes.items())
    (folder / "recipe.toml").write_text(RECIPE.format(steps=steps, model=text))
    return folder / "recipe.toml"


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return repr(value)


def torchrun(path: Path, processes: int, **options) -> subprocess.Popen:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += [
        "--nproc-per-node",
        str(processes),
        "-m",
        "mdtrajnet_fast.train",
        "--quiet",
        str(path),
    ]
    return subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, cwd=path.parent, start_new_session=True, **options
    )


def losses(path: Path) -> list[float]:
    rows = csv.DictReader((path.parent / "run" / "log.csv").open())
    return [float(row["loss"]) for row in rows]


def wait_for_steps(process: subprocess.Popen, path: Path) -> None:
    log, begun = path.parent / "run" / "log.csv", time.monotonic()
    while not (log.exists() and len(losses(path)) > 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begun < 120
        time.sleep(0.1)


@pytest.mark.slow
def test_processes_take_the_same_steps(tmp_path):
    """One process goes halfway, two go on: the same as one alone, but for the order of sums."""
    alone, parts = recipe(tmp_path / "alone"), recipe(tmp_path / "parts")
    fit(TrainConfig.read(alone), progress=False)
    fit(TrainConfig.read(parts), progress=False, stop_after=3)
    process = torchrun(parts, 2)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    np.testing.assert_allclose(losses(parts), losses(alone), rtol=1e-4)
    ours, theirs = (load_model(x.parent / "run" / "model").state_dict() for x in (parts, alone))
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-3, err_msg=name)


def test_all_stop_after_the_same_step(tmp_path):
    """A signal as a queueing system sends it: the processes hear it twice."""
    path = recipe(tmp_path / "stopped", steps=100_000)
    process = torchrun(path, 2)
    wait_for_steps(process, path)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode != 0
    saved = load_archive(path.parent / "run" / "checkpoint.pt", "cpu")
    assert saved["step"] == len(losses(path))


def test_processes_that_differ_are_refused(tmp_path):
    path = recipe(tmp_path / "differ")
    (path.parent / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import mdtrajnet_fast\n"
        "    mdtrajnet_fast.__version__ = 'another'\n"
    )
    path_too = os.pathsep.join([str(path.parent), os.environ.get("PYTHONPATH", "")])
    process = torchrun(path, 2, env=os.environ | {"PYTHONPATH": path_too})
    said = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    assert "the 2 training processes differ in their version (by rank: " in said


def test_a_death_ends_all(tmp_path):
    path = recipe(tmp_path / "death", steps=100_000)
    process = torchrun(path, 2)
    wait_for_steps(process, path)
    words = ["pgrep", "-P", str(process.pid), "-f", "mdtrajnet_fast.train"]
    found = subprocess.run(words, capture_output=True, text=True).stdout.split()
    os.kill(int(found[-1]), signal.SIGKILL)
    said = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert "one of the 2 training processes has died" in said or "Signal 9" in said
