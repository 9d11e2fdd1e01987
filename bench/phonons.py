"""Long waves in diamond: motion over many times what the model sees at once, beside LAMMPS.

    python bench/phonons.py [--model diamond] [--cells 16] [--output DIRECTORY]

A bar of diamond is as long as it is asked for and two cells wide. Standing waves along it, of the
longest wavelengths that it holds, are started with small velocities, all in one run, and go on in
the model's windows and, from the same start, in LAMMPS with the Tersoff potential (velocity Verlet,
0.25 fs). What is compared are their frequencies, fitted to how much of each wave there is in every
frame. Needs LAMMPS (lammps_md.py).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # of LAMMPS, too

import ase  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.units import fs  # noqa: E402
from lammps_md import LATTICE, TERSOFF, Box  # noqa: E402
from report import HERE, began, heading, write  # noqa: E402
from scipy.optimize import curve_fit  # noqa: E402

from mdtrajnet_fast import Trajectory, load_model, simulate  # noqa: E402
from mdtrajnet_fast.analysis.observables import WAVENUMBER  # noqa: E402
from mdtrajnet_fast.md.window import method_of, stride_of  # noqa: E402

LONGEST = 4  # so many wavelengths, of each kind
KINDS = {"transverse": 0, "longitudinal": 2}  # the direction that atoms move in
SPEED = 1e-4  # Å/fs, of atoms where a wave is strongest: some thousandths of an Å
DURATION, STEP = 2000.0, 0.25  # fs


class Wave(NamedTuple):
    """A standing wave: its kind, and how many wavelengths there are in the bar."""

    kind: str
    number: int

    def at(self, atoms: ase.Atoms) -> np.ndarray:
        """Its shape, [atoms, 3], of largest value 1."""
        shape = np.zeros((len(atoms), 3))
        turns = self.number * atoms.get_scaled_positions()[:, 2]
        shape[:, KINDS[self.kind]] = np.cos(2 * np.pi * turns)
        return shape


WAVES = [Wave(kind, number) for kind in KINDS for number in range(1, LONGEST + 1)]


def bar(cells: int) -> ase.Atoms:
    """Diamond, two conventional cells wide and so many long, with all waves at their fastest."""
    atoms = bulk("C", "diamond", a=LATTICE, cubic=True).repeat((2, 2, cells))
    atoms.set_velocities(SPEED / fs * sum(wave.at(atoms) for wave in WAVES))
    return atoms


def amplitudes(run: Trajectory, wave: Wave) -> np.ndarray:
    """The velocity that frames have in a wave: [frames] Å/fs."""
    atoms = run.atoms.copy()
    atoms.positions = run.positions[0]
    shape = wave.at(atoms)
    return np.tensordot(run.velocities, shape, 2) / (shape**2).sum()


def frequency(run: Trajectory, wave: Wave) -> float:
    """Of the cosine of time, fitted to the velocity in a wave, cm^-1."""
    velocity = amplitudes(run, wave)
    power = abs(np.fft.rfft(velocity, 16 * len(velocity)))
    most = np.argmax(power) / (16 * len(velocity) * run.times[1])
    (_, found), _ = curve_fit(
        lambda t, size, f: size * np.cos(2 * np.pi * f * t), run.times, velocity, (SPEED, most)
    )
    return float(WAVENUMBER * found)


def markdown(report: dict[str, Any]) -> str:
    """A row for each wave."""
    out = [
        *heading(report),
        f"**Diamond, {report['atoms']:,} atoms in a bar of {report['length']:.1f} Å**: frequencies "
        f"of standing waves along it, with {report['model']}, in windows of {report['window']:g} "
        f"fs, and with LAMMPS. The model sees {report['sight']:.1f} Å in each direction.",
        "",
        "| wave | length (Å) | ours (cm-1) | LAMMPS (cm-1) | |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in report["waves"]:
        off = row["ours"] / row["lammps"] - 1
        out.append(
            f"| {row['kind']} | {row['length']:.1f} | {row['ours']:.2f} | {row['lammps']:.2f} | "
            f"{off:+.1%} |"
        )
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="diamond", help="name or folder (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=16, help="length of the bar")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, atoms = load_model(options.model), bar(options.cells)
    window = stride_of(model, method_of(model, None), None)
    run = simulate(atoms, window, duration=DURATION, model=model)
    assert isinstance(run, Trajectory)
    box = Box(atoms, TERSOFF)
    reference = box.run(DURATION, STEP, window)
    box.close()
    sizes, length = model.config.window_potentials, atoms.cell[2, 2]
    report: dict[str, Any] = {
        **began(False, "ase", "lammps"),
        "model": model.name,
        "window": window,
        "atoms": len(atoms),
        "length": length,
        "sight": model.config.radial_cutoff * (1 if sizes is None else sizes.layers),
        "waves": [
            {
                **wave._asdict(),
                "length": length / wave.number,
                "ours": frequency(run, wave),
                "lammps": frequency(reference, wave),
            }
            for wave in WAVES
        ],
    }
    write(report, markdown(report), options.output, "phonons")


if __name__ == "__main__":
    main()
