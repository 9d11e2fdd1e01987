"""Campaigns on two worker processes: the bits of single runs, whatever is killed or broken."""

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import cases
import distributed
import numpy as np
import pytest

from mdtrajnet_fast import (
    CampaignConfig,
    Trajectory,
    __version__,
    read_structure,
    save_model,
    simulate,
)
from mdtrajnet_fast.campaigns.campaign import campaign
from mdtrajnet_fast.campaigns.plan import Member, batches
from mdtrajnet_fast.campaigns.worker import advance
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.io.lock import Lock

SETTINGS = {
    "models": ["molecules-nve-small"],
    "temperatures": [300],
    "dt": 3.0,
    "duration": 120.0,
    "equilibration": 0.0,
}


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as one:
        yield one


def config(cluster, folder, **more):
    settings = SETTINGS | {"output": folder, "address": cluster.scheduler_address} | more
    return CampaignConfig(**settings)


def rows(folder):
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(folder, name, structure, **settings):
    """A run of a campaign has the bits of simulate."""
    own = {"model": "molecules-nve-small", "duration": 120.0} | settings
    expected = simulate(read_structure(structure), 3.0, **own)
    found = Trajectory.read(folder / "runs" / name / "trajectory.h5")
    for column in ("times", "positions", "momenta", "potential_energies"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))


@pytest.mark.slow
def test_a_campaign(cluster, tmp_path, capsys):
    """From a TOML file; what cannot be run is in the table and stops nothing."""
    (tmp_path / "start").mkdir()
    cases.hot("NH3").write(tmp_path / "start" / "a.extxyz")
    text = 'output = "out"\nstructures = ["water", "SiH4", "start/*.extxyz"]\nseeds = [5, 2]\n'
    text += "".join(f"{name} = {json.dumps(value)}\n" for name, value in SETTINGS.items())
    (tmp_path / "c.toml").write_text(text)
    command = ["campaign", str(tmp_path / "c.toml"), "--address", cluster.scheduler_address]
    assert main([*command, "--quiet"]) == 2
    said, out = capsys.readouterr(), tmp_path / "out"
    assert "4 runs complete, 0 broken, 2 failed" in said.out
    assert "elements Si" in said.err and said.err.count("elements") == 1
    table = rows(out)
    assert [row["outcome"] for row in table] == ["complete"] * 2 + ["failed"] * 2 + ["complete"] * 2
    assert table[1]["run"] == "water-300K-molecules-nve-small-s2" and table[1]["seed"] == "2"
    assert table[2]["atoms"] == "" and "elements Si" in table[2]["said"]
    same(out, table[1]["run"], "water", temperature_K=300, seed=2)
    run = out / "runs" / "a-300K-molecules-nve-small-s5"
    same(out, run.name, str(tmp_path / "start" / "a.extxyz"), temperature_K=300, seed=5)
    files = {"run.json", "spectrum.csv", "trajectory.h5"}
    assert {path.name for path in run.iterdir()} == files
    with (out / "spectra.csv").open() as file:
        mean = [row for row in csv.DictReader(file) if row["runs_of"].startswith("a-300K")]
    each = [
        np.loadtxt(
            run.with_name(f"{run.name[:-1]}{seed}") / "spectrum.csv", delimiter=",", skiprows=1
        )
        for seed in (5, 2)
    ]
    assert {row["runs"] for row in mean} == {"2"}
    for name, expected in (
        ("mean_cm", np.mean(each, 0)),
        ("deviation_cm", np.std(each, 0, ddof=1)),
    ):
        found = [float(row[name]) for row in mean]
        np.testing.assert_allclose(found, expected[:, 1], rtol=1e-6, atol=1e-12)
    assert (out / "spectra-1.png").exists() and (out / "temperatures.png").exists()


def test_it_grows_and_nothing_is_run_again(cluster, tmp_path):
    done = campaign(config(cluster, tmp_path, structures="water", seeds=1))
    first = tmp_path / "runs" / "water-300K-molecules-nve-small-s0" / "trajectory.h5"
    before = first.stat().st_mtime_ns
    assert (done.complete, done.broken, done.failed) == (1, 0, 0)
    again = {"structures": ["water"], "seeds": 1, "replicas": 2, "temperatures": [300, 400]}
    assert campaign(config(cluster, tmp_path, **again)).complete == 4
    assert first.stat().st_mtime_ns == before
    table = rows(tmp_path)
    assert [row["run"][-5:] for row in table] == ["ll-s0", "s0-r1"] * 2
    assert len({row["total_energy_eV"] for row in table}) == 4
    with pytest.raises(ValueError, match=r"other settings: dt: 3\.0 there, 2\.0 given"):
        campaign(config(cluster, tmp_path, structures="water", dt=2.0))
    longer = config(cluster, tmp_path, structures="water", duration=180.0)
    assert campaign(longer).complete == 1
    same(tmp_path, first.parent.name, "water", temperature_K=300, seed=0, duration=180.0)


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [3, 0])
def test_a_worker_is_killed(cluster, tmp_path, monkeypatch, allowed):
    """While it writes; the runs go on in another, to the same bits.

    With more deaths than are allowed of one batch, half of it goes on in another.
    """
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", allowed)
    settings = {"structures": "ethanol", "seeds": 2, "dt": 0.5}
    wanted = tmp_path / "runs" / "ethanol-300K-molecules-nve-small-s1" / "trajectory.h5"
    killed = []

    def kill():
        with distributed.Client(cluster) as client:
            for _ in range(600):
                time.sleep(0.05)
                busy = [worker for worker, tasks in client.processing().items() if tasks]
                if wanted.exists() and busy:
                    pids = client.run(os.getpid)
                    os.kill(pids[busy[0]], signal.SIGKILL)
                    killed.append(wanted.stat().st_size)
                    return

    thread = threading.Thread(target=kill)
    thread.start()
    done = campaign(config(cluster, tmp_path, duration=900.0, batch_atoms=18, **settings))
    thread.join()
    assert done.complete == 2 and killed and killed[0] < wanted.stat().st_size
    expected = simulate(
        read_structure("ethanol"),
        0.5,
        duration=900.0,
        temperature_K=300,
        seed=1,
        model="molecules-nve-small",
    )
    np.testing.assert_array_equal(Trajectory.read(wanted).momenta, expected.momenta)


def test_batches_shrink_towards_the_end():
    """For several workers, none of which then waits long for the last; all runs are in them."""
    water = {"structure": {"numbers": [8, 1, 1]}}
    runs = [Member(Path(str(k)), ("", ""), "", None, "m", k, 0, water) for k in range(100)]
    sizes = [len(some) for some in batches(runs, 48, workers=2)]
    assert sum(sizes) == 100 and sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 16 and 4 in sizes and sizes[-1] <= 4
    assert [len(some) for some in batches(runs, 48)] == [16] * 6 + [4]


def test_runs_that_break(cluster, tmp_path):
    """End, and the others of their batch go on; so do those that hold less than others."""
    save_model(cases.gentle(0.6, **cases.OWN), tmp_path / "wild")
    settings = {"models": str(tmp_path / "wild"), "dtype": "float64", "dt": 10.0}
    settings |= {"duration": 2000.0, "temperatures": 300, "structures": ["ethanol", "water"]}
    done = campaign(config(cluster, tmp_path / "out", batch_atoms=1000, **settings))
    assert (done.complete, done.broken, done.failed) == (1, 1, 0)
    broken, _ = rows(tmp_path / "out")
    assert broken["outcome"] == "broken" and "the trajectory broke before" in broken["said"]
    assert float(broken["length_fs"]) < 2000
    assert campaign(config(cluster, tmp_path / "out", **settings)).broken == 1


def test_what_a_worker_refuses(tmp_path):
    with pytest.raises(ValueError, match="has mdtrajnet_fast .* the campaign 9.9"):
        advance([], "9.9", False)
    with pytest.raises(FileNotFoundError, match="does not see .*/nowhere: output must be on a"):
        advance([str(tmp_path / "nowhere")], __version__, False)
    (tmp_path / "run.json").write_text("{}")
    with Lock(tmp_path / "run.json"), pytest.raises(BlockingIOError, match="being written by"):
        advance([str(tmp_path)], __version__, False, patience=0.0)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"seeds": [1, 1]}, "seeds has 1 more than once"),
        ({"seeds": -1}, "needs seeds, at least one"),
        ({"seeds": [0.5]}, "whole numbers, 0 or more, got 0.5"),
        ({"temperatures": [-3]}, "positive numbers of K, got -3"),
        ({"structures": []}, "needs structures"),
        ({"dt": 200.0}, "dt must not exceed duration"),
        ({"workers": 0}, "workers must be a whole number"),
        ({"thermostat": "oven"}, "thermostat must be one of langevin, csvr, got 'oven'"),
        ({"workers": 2, "address": "tcp://a:1"}, "from one place, got workers and address"),
    ],
)
def test_settings_out_of_range(wrong, said):
    with pytest.raises(ValueError, match=said):
        CampaignConfig(**SETTINGS | {"output": "out", "structures": "water"} | wrong)


def test_recipes_that_are_refused(tmp_path, capsys):
    file = tmp_path / "c.toml"
    for text, said in (
        ("structures = ", "is not valid TOML"),
        ('output = "out"', "missing settings ['structures']"),
        ('output = "out"\nstructures = "water"\nsteps = 1', "unknown settings ['steps']"),
        ('output = "out"\nstructures = "*.xyz"', "no file in"),
        ('output = "out"\nstructures = "water"\nmodels = "none"', "none"),
        ('output = "out"\nstructures = "water"\njobqueue = "q.yaml"', "there is no file q.yaml"),
    ):
        file.write_text(text)
        assert main(["campaign", str(file), "--quiet"]) == 2
        assert said in capsys.readouterr().err


def test_no_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr("mdtrajnet_fast.campaigns.clusters.CONNECT_S", 0.5)
    settings = SETTINGS | {"output": tmp_path, "structures": "water"}
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at {address}"):
            campaign(CampaignConfig(**settings, address=address))


def test_one_process_runs_a_campaign(cluster, tmp_path):
    with Lock(tmp_path / "campaign.json"), pytest.raises(BlockingIOError, match="being written"):
        campaign(config(cluster, tmp_path, structures="water"))
    (tmp_path / "campaign.json").write_text("[]")
    with pytest.raises(ValueError, match="does not describe a campaign"):
        campaign(config(cluster, tmp_path, structures="water"))
    assert [path.name for path in Path(tmp_path).iterdir()] == ["campaign.json"]


def test_queues_that_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "site.yaml"
    settings = SETTINGS | {"output": tmp_path / "out", "structures": "water"}
    heard = signal.getsignal(signal.SIGINT)
    for text, said in (
        (
            "jobqueue:\n  pigeon:\n    cores: 1\n",
            "one queue below `jobqueue:`, of slurm.* got pigeon",
        ),
        ("jobqueue:\n  slurm:\n    cores: 1\n", "there is no sbatch here"),
    ):
        file.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            campaign(CampaignConfig(**settings, jobqueue=str(file)))
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="does not describe a job: You must specify"):
        campaign(CampaignConfig(**settings, jobqueue=str(file)))
    assert signal.getsignal(signal.SIGINT) is heard  # Ctrl-C, which dask_jobqueue would take
