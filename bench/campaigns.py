"""A campaign on two workers beside one process that makes its runs one batch after another.

python bench/campaigns.py [--molecules 50] [--seeds 10] [--duration 1000] [--model NAME]

50 molecules of ASE's g2 collection times 10 seeds, 1 ps each. Both do the same: they predict the
same batches and write the same folders; the campaign also writes its table and plots. Printed are
the wall time and the processor time of each, the start of the workers included, and whether all
trajectories have the same bits. On a machine that is busy otherwise, processor time is what tells:
two workers are twice as fast as one process if they need no more of it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule
from ase.collections import g2

from mdtrajnet_fast import CampaignConfig, Trajectory, __version__, campaign, load_model
from mdtrajnet_fast.campaigns.campaign import CPU_ATOMS
from mdtrajnet_fast.campaigns.plan import batches, open_campaign
from mdtrajnet_fast.campaigns.worker import advance

WORKERS = 2


def molecules(count: int, model: str) -> list[str]:
    """Names of so many molecules of g2 that the model is for, of three atoms and more."""
    known = set(load_model(model).config.species)
    found = []
    for name in g2.names:
        atoms = molecule(name)
        closed = atoms.numbers.sum() % 2 == 0 and not atoms.get_initial_magnetic_moments().any()
        if len(atoms) > 2 and closed and known.issuperset(atoms.get_chemical_symbols()):
            found.append(f"g2:{name}")
    if len(found) < count:
        raise ValueError(f"g2 has {len(found)} molecules for {model}, {count} were asked for")
    return found[:count]


def processor_time() -> float:
    """Of this process and those of its children that have ended (s)."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--duration", type=float, default=1000.0, help="fs")
    parser.add_argument("--model", default="molecules-nve")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "structures": molecules(options.molecules, options.model),
            "models": options.model,
            "temperatures": 300.0,
            "seeds": options.seeds,
            "dt": 2.0,
            "duration": options.duration,
            "equilibration": 0.0,
            "workers": WORKERS,
        }
        times = {}
        begun = time.perf_counter(), processor_time()
        config = CampaignConfig(output=f"{folder}/alone", **settings)
        members = open_campaign_in(config)
        for some in batches(members, CPU_ATOMS):
            advance([str(one.folder) for one in some], __version__, False)
        times["one process"] = time.perf_counter() - begun[0], processor_time() - begun[1]
        begun = time.perf_counter(), processor_time()
        done = campaign(CampaignConfig(output=f"{folder}/together", **settings))
        times[f"{WORKERS} workers"] = time.perf_counter() - begun[0], processor_time() - begun[1]
        print(f"{len(members)} runs of {options.duration:g} fs with {options.model}")
        for name, (wall, processor) in times.items():
            print(f"{name:12} {wall:7.1f} s, {processor:7.1f} s of processor time")
        assert done.complete + done.broken == len(members), done.errors
        for one in members:
            a, b = (
                Trajectory.read(Path(folder) / where / "runs" / one.folder.name / "trajectory.h5")
                for where in ("alone", "together")
            )
            np.testing.assert_array_equal(a.momenta, b.momenta)
        print("all trajectories have the same bits")


def open_campaign_in(config: CampaignConfig) -> list:
    """The runs of a campaign whose folder is new."""
    Path(config.output).mkdir()
    return open_campaign(config)


if __name__ == "__main__":
    main()
