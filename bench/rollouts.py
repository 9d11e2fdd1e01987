"""How well rollouts hold: broken bonds and kinetic temperature against reference trajectories.

    python bench/rollouts.py val.h5 --model molecules-nve --duration 1000

Every trajectory of the files is started from its first frame, all in one batch. Reported: how many
broke down or changed a bond, and the kinetic temperature over the last half of the rollout,
relative to the mean of the reference trajectory.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import ase
import numpy as np

from mdtrajnet_fast import load_model, simulate
from mdtrajnet_fast.data import load_records


def heat(masses: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Twice the kinetic energy [frames] (amu Å^2/fs^2) of velocities [frames, atoms, 3] (Å/fs)."""
    return np.einsum("a,fak->f", masses, velocities**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--model", default="molecules-nve")
    parser.add_argument("--trajectories", nargs="+", help="only those of these names")
    parser.add_argument("--duration", type=float, default=1000.0, help="fs")
    options = parser.parse_args()

    model = load_model(options.model)
    records = load_records(options.data, trajectories=options.trajectories)
    atoms = [ase.Atoms(r.numbers, r.positions[0], masses=r.masses) for r in records]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # those that break down are counted below
        rollouts = simulate(
            atoms,
            dt=model.stride(),
            duration=options.duration,
            model=model,
            velocities=[r.velocities[0].astype(float) for r in records],
            progress=True,
        )
    broke, changed, ratios = [], [], []
    for record, rollout in zip(records, rollouts, strict=True):
        name = f"{record.smiles or record.molecule} {record.trajectory}"
        if rollout.times[-1] < options.duration - model.stride():
            broke.append(f"{name} ({rollout.times[-1]:.0f} fs)")
            continue
        if rollout.trust.broken or rollout.trust.formed:
            changed.append(name)
        late = rollout.velocities[len(rollout) // 2 :]
        expected = heat(record.masses, record.velocities).mean()
        ratios.append(heat(record.masses, late).mean() / expected)
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    print(f"{model.name}: {len(records)} rollouts of {options.duration:g} fs")
    print(f"broke down: {len(broke)} {', '.join(broke[:10])}")
    print(f"changed a bond: {len(changed)} {', '.join(changed[:10])}")
    print(
        f"kinetic temperature over the last half, relative to the reference: median {middle:.2f}, "
        f"10 to 90 %: {low:.2f} to {high:.2f}"
    )


if __name__ == "__main__":
    main()
