"""One system shared out over processes is the same system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cases
import domain_cases
import numpy as np
import pytest

from mdtrajnet_fast import Trajectory, load_model, read_structure, simulate
from mdtrajnet_fast.md.domains import bricks_of
from mdtrajnet_fast.md.rollout import RolloutError

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(processes: int, *words: str | Path, folder: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(domain_cases.__file__).parent), os.getenv("PYTHONPATH", "")])
    return subprocess.run(
        [*TORCHRUN, str(processes), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        timeout=300,
    )


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What each of the processes has."""
    folder = tmp_path_factory.mktemp("domains")
    done = torchrun(request.param, domain_cases.__file__, folder, folder=folder)
    assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / f"{k}.npz")) for k in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Trajectory]:
    return {}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", domain_cases.CASES)
def test_one_process_finds_the_same(name, found, alone):
    expected = alone.setdefault(name, domain_cases.run(name))
    for process in found:
        for part in ("positions", "momenta", "potential_energies", "heat"):
            wanted, values = getattr(expected, part), process[f"{name}/{part}"]
            if wanted is None:
                assert values.size == 0
                continue
            np.testing.assert_allclose(
                values, wanted, rtol=0, atol=1e-9 * max(1, abs(wanted).max())
            )
    assert abs(expected.positions[-1] - expected.positions[0]).max() > 0.05


def test_atoms_find_new_owners(found):
    assert all(process["owners of fluid"] > 1 for process in found)


def test_all_processes_have_the_same_bits(found):
    first, *others = found
    for name in (name for name in first if "/" in name):
        for process in others:
            assert np.array_equal(process[name], first[name]), name


def test_what_breaks_somewhere_breaks_everywhere(found):
    with pytest.raises(RolloutError) as alone:
        simulate(domain_cases.breaks(), 3.0, duration=30.0, model=domain_cases.windows())
    assert "leaves its course" in str(alone.value)
    assert {str(process["broken"]) for process in found} == {str(alone.value)}


@pytest.mark.parametrize(
    "name, why",
    [
        ("differ", r"the \d processes that share a cell differ in their system \(by rank: "),
        ("molecule", "processes share one system that is periodic"),
        ("empty", "bricks of the cell [12] have no atoms: start fewer processes"),
    ],
)
def test_what_cannot_be_shared_is_refused(name, why, found):
    for process in found:
        assert re.search(why, str(process[name]))


@pytest.mark.slow
def test_command_line(tmp_path):
    """One folder, as a process alone writes it, which another number of them goes on with."""
    crystal = cases.diamond((4, 2, 2))
    crystal.write(tmp_path / "crystal.extxyz")
    words = ["crystal.extxyz", "--model", "diamond", "--dt", "4", "--quiet", "--no-report"]
    words += ["--dtype", "float64"]
    module = ["-m", "mdtrajnet_fast", "simulate"]
    begin = [*module, *words, "--duration", "20", "--output", "shared"]
    done = torchrun(2, *begin, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    again = [*module, "--resume", "shared", "--duration", "40", "--quiet", "--no-report"]
    done = torchrun(3, *again, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written: shared/ (run.json, trajectory.traj)") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"crystal.extxyz", "shared"}
    shared = Trajectory.read(tmp_path / "shared" / "trajectory.traj")
    alone = simulate(
        read_structure(tmp_path / "crystal.extxyz"),
        4.0,
        duration=40.0,
        model=load_model("diamond", "float64"),
    )
    assert len(shared) == len(alone) == 11
    np.testing.assert_allclose(shared.positions, alone.positions, atol=1e-11)


def test_torchrun_has_to_start_them():
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        simulate(cases.diamond(), model=domain_cases.windows(), decompose=True)


def test_bricks_have_small_faces():
    long, flat = np.diag([40.0, 10.0, 10.0]), np.diag([40.0, 40.0, 10.0])
    everywhere, across = np.array([True, True, True]), np.array([False, True, True])
    assert bricks_of(long, everywhere, 4) == (4, 1, 1)
    assert bricks_of(flat, everywhere, 8) in [(2, 4, 1), (4, 2, 1)]
    assert bricks_of(np.eye(3), everywhere, 27) == (3, 3, 3)
    assert bricks_of(long, across, 3)[0] == 1
