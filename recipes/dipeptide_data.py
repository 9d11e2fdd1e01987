"""Reference data of alanine dipeptide with OpenMM: Amber ff14SB, in vacuum or in implicit water.

    pip install openmm
    python recipes/dipeptide_data.py train vacuum data/dipeptide     # a minute or two
    python recipes/dipeptide_data.py statistics vacuum data/dipeptide/vacuum-reference.npz

`train` writes frames to train on, in the format of `mdtrajnet generate`, every fs, at constant
energy in pieces of 1 ps: SURROUNDINGS-100ps.h5 and, its first ten pieces, -10ps.h5, which begin all
over the Ramachandran map; SURROUNDINGS-basin-100ps.h5 and -basin-10ps.h5, whose pieces begin in a
run that stays in the basins of C5 and C7eq; and SURROUNDINGS-held-out.h5, other pieces from all
over the map. `statistics` runs Langevin dynamics at 300 K and keeps phi and psi every 0.1 ps:
unbiased, and with a potential that evens out phi, by which all of the map is sampled.

Bonds are flexible, nothing is constrained or cut off; masses are ASE's; water is GBn2 (H. Nguyen,
D. R. Roe, C. Simmerling, J. Chem. Theory Comput. 9, 2020 (2013)).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import openmm
from ase import units
from openmm import app, unit
from scipy.stats import qmc

from mdtrajnet_fast.analysis.conformations import dihedral_angles
from mdtrajnet_fast.analysis.observables import bonds
from mdtrajnet_fast.data.records import Record, write_records
from mdtrajnet_fast.io.structures import read_structure
from mdtrajnet_fast.mechanics import (
    InternalMotion,
    momenta_from_velocities,
    velocities_from_momenta,
)

SMILES = "CC(=O)N[C@@H](C)C(=O)NC"
# Of force field: what is there beside the protein's, and the faster of OpenMM's platforms for it.
SURROUNDINGS = {"vacuum": ((), "Reference"), "gbn2": (("implicit/gbn2.xml",), "CPU")}
# The atoms of "alanine dipeptide" in this package; the force field knows them by their bonds.
RESIDUES = {
    "ACE": (0, 1, 2, 10, 11, 12),
    "ALA": (3, 4, 5, 6, 7, 13, 14, 15, 16, 17),
    "NME": (8, 9, 18, 19, 20, 21),
}
PHI, PSI = (1, 3, 4, 6), (3, 4, 6, 8)
TEMPERATURE, FRICTION = 300.0, 1.0  # K, 1/ps
EV = 96.48533212331  # kJ/mol
ACCESSIBLE = 0.4  # eV that the relaxed dipeptide may lie above its minimum where a piece begins
RUNS = 8  # of either kind of statistics
SPARSE = 100  # of so many frames of the statistics the positions of one are kept
STEP, FRAMES = 0.25, 1000  # fs; 1 ps of frames each fs


class Dipeptide:
    """Alanine dipeptide in OpenMM. Positions are Å, in the order of this package."""

    def __init__(self, surroundings: str):
        self.atoms = read_structure("alanine dipeptide")
        extra, platform = SURROUNDINGS[surroundings]
        self.platform = openmm.Platform.getPlatformByName(platform)
        self.order = [atom for atoms in RESIDUES.values() for atom in atoms]
        self._rank = np.argsort(self.order)
        topology = app.Topology()
        chain = topology.addChain()
        for residue, atoms in RESIDUES.items():
            group = topology.addResidue(residue, chain)
            for atom in atoms:
                element = app.Element.getByAtomicNumber(int(self.atoms.numbers[atom]))
                topology.addAtom(f"{element.symbol}{atom}", element, group)
        made = list(topology.atoms())
        for i, j in bonds(self.atoms.numbers, self.atoms.positions)[0]:
            topology.addBond(made[self._rank[i]], made[self._rank[j]])
        field = app.ForceField("amber14/protein.ff14SB.xml", *extra)
        self.system = field.createSystem(
            topology, nonbondedMethod=app.NoCutoff, constraints=None, removeCMMotion=False
        )
        for rank, atom in enumerate(self.order):
            self.system.setParticleMass(rank, self.atoms.get_masses()[atom])

    def torsion_force(self, energy: str, *angles: tuple[int, ...], **parameters: float) -> None:
        """Add a force of the given dihedral angles, each its own `theta`, number `n`."""
        force = openmm.CustomTorsionForce(energy)
        force.addPerTorsionParameter("n")
        for name, value in parameters.items():
            force.addGlobalParameter(name, value)
        for n, angle in enumerate(angles):
            force.addTorsion(*(int(self._rank[atom]) for atom in angle), [n])
        self.system.addForce(force)

    def context(self, integrator: openmm.Integrator) -> openmm.Context:
        threads = {"Threads": "1"} if self.platform.getName() == "CPU" else {}
        return openmm.Context(self.system, integrator, self.platform, threads)

    def put(self, context: openmm.Context, positions: np.ndarray) -> None:
        context.setPositions(positions[self.order] * 0.1)

    def state(self, context: openmm.Context) -> tuple[np.ndarray, np.ndarray, float]:
        """Positions (Å), velocities (Å/fs) and potential energy (eV)."""
        state = context.getState(positions=True, velocities=True, energy=True)
        x = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        v = state.getVelocities(asNumpy=True).value_in_unit(unit.angstrom / unit.femtosecond)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        return x[self._rank], v[self._rank], energy / EV

    def forces(self, context: openmm.Context, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Potential energy (eV) and forces [atoms, 3] (eV/Å)."""
        self.put(context, positions)
        state = context.getState(energy=True, forces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(
            unit.kilojoule_per_mole / unit.angstrom
        )
        return energy / EV, forces[self._rank] / EV


class Held:
    """Langevin dynamics (step in fs) of a dipeptide whose phi and psi can be held at values."""

    def __init__(self, peptide: Dipeptide, step_fs: float, seed: int = 1):
        self.peptide = peptide
        energy = (
            "k * min(d, 2 * pi - d)^2; d = abs(theta - select(n, psi, phi)); pi = 3.141592653589793"
        )
        peptide.torsion_force(energy, PHI, PSI, k=0.0, phi=0.0, psi=0.0)
        self.context = peptide.context(langevin(step_fs, seed))

    def __call__(self, phi: float, psi: float) -> float:
        """Relax at these angles (rad) and hold them; the energy there (eV)."""
        self.peptide.put(self.context, self.peptide.atoms.positions)
        for name, value in (("phi", phi), ("psi", psi), ("k", 500.0)):
            self.context.setParameter(name, value)
        openmm.LocalEnergyMinimizer.minimize(self.context, 1.0, 1000)
        return self.peptide.state(self.context)[2]

    def release(self) -> None:
        self.context.setParameter("k", 0.0)


def langevin(step_fs: float, seed: int = 1) -> openmm.LangevinMiddleIntegrator:
    integrator = openmm.LangevinMiddleIntegrator(
        TEMPERATURE, FRICTION / unit.picosecond, step_fs * unit.femtosecond
    )
    integrator.setRandomNumberSeed(seed)
    return integrator


def velocity_verlet(step_fs: float) -> openmm.CustomIntegrator:
    """Positions and velocities at the same time, which OpenMM's own Verlet does not have."""
    integrator = openmm.CustomIntegrator(step_fs * 1e-3)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v + 0.5 * dt * f / m")
    integrator.addComputePerDof("x", "x + dt * v")
    integrator.addComputePerDof("v", "v + 0.5 * dt * f / m")
    return integrator


# ------------------------------------------------------------------------------------- training


def all_over_the_map(surroundings: str) -> Iterator[np.ndarray]:
    """Positions at 300 K of dipeptides held, 1 ps long, all over the accessible part of the map.

    Angles follow a sequence of low discrepancy, so that the first ones are spread out, too.
    """
    peptide = Dipeptide(surroundings)
    hold = Held(peptide, 0.5)
    lowest = min(hold(phi, psi) for phi in np.deg2rad([-150, -80, 60]) for psi in (-1.0, 1.0, 2.7))
    for phi, psi in 2 * np.pi * qmc.Halton(2, scramble=False).random(2000) - np.pi:
        if hold(phi, psi) - lowest < ACCESSIBLE:
            hold.context.setVelocitiesToTemperature(TEMPERATURE, 1)
            hold.context.getIntegrator().step(2000)
            yield peptide.state(hold.context)[0]


def from_one_basin(surroundings: str) -> Iterator[np.ndarray]:
    """Positions, 10 ps apart, of a run at 300 K that begins in C7eq and is not to leave phi < 0."""
    peptide = Dipeptide(surroundings)
    context = peptide.context(langevin(0.5))
    peptide.put(context, peptide.atoms.positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    while True:
        context.getIntegrator().step(20_000)
        positions = peptide.state(context)[0]
        peptide.atoms.positions = positions
        if 0 < peptide.atoms.get_dihedral(*PHI) < 150:
            raise RuntimeError("the run has left the basin; choose another seed")
        yield positions


def pieces(surroundings: str, starts: Iterator[np.ndarray], count: int) -> Iterator[Record]:
    """Runs at constant energy, 1 ps each, after 0.5 ps with a thermostat."""
    peptide = Dipeptide(surroundings)
    warm, run = peptide.context(langevin(0.5)), peptide.context(velocity_verlet(STEP))
    masses, motion = peptide.atoms.get_masses(), InternalMotion(peptide.atoms)
    for k in range(count):
        peptide.put(warm, next(starts))
        warm.setVelocitiesToTemperature(TEMPERATURE, k + 1)
        warm.getIntegrator().step(1000)
        x, v, _ = peptide.state(warm)
        x = x - masses @ x / masses.sum()
        peptide.put(run, x)
        motion.at(x)
        internal = motion.of(momenta_from_velocities(v, masses))
        v = velocities_from_momenta(internal, masses)
        run.setVelocities(v[peptide.order] * 100)  # nm/ps
        frames = []
        for _ in range(FRAMES + 1):
            frames.append(peptide.state(run))
            run.getIntegrator().step(round(1 / STEP))
        xs, vs, potential = (np.array(each) for each in zip(*frames, strict=True))
        kinetic = 0.5 * np.einsum("a,fax,fax->f", masses, vs, vs) / units.fs**2
        energy = potential + kinetic
        if np.std(energy) > 0.005:
            raise RuntimeError(f"piece {k} keeps its energy to {np.std(energy):.4f} eV only")
        yield Record(
            molecule="alanine_dipeptide",
            trajectory=f"traj{k:03d}",
            numbers=peptide.atoms.numbers.astype(np.int64),
            masses=masses,
            positions=xs.astype(np.float32),
            velocities=vs.astype(np.float32),
            frame_fs=1.0,
            energy=energy,
            temperature_K=TEMPERATURE,
            smiles=SMILES,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, bool),
            method=f"Amber ff14SB, {surroundings} (OpenMM)",
        )


def train(surroundings: str, folder: Path) -> None:
    """Write the files to train on and to judge by."""
    folder.mkdir(parents=True, exist_ok=True)
    everywhere = list(pieces(surroundings, all_over_the_map(surroundings), 120))
    basin = list(pieces(surroundings, from_one_basin(surroundings), 100))
    for name, records in (
        ("100ps", everywhere[:100]),
        ("10ps", everywhere[:10]),
        ("held-out", everywhere[100:]),
        ("basin-100ps", basin),
        ("basin-10ps", basin[:10]),
    ):
        path = folder / f"{surroundings}-{name}.h5"
        write_records(path, records)
        print(f"{path}: {len(records)} ps")


# ----------------------------------------------------------------------------------- statistics


def evening(surroundings: str) -> np.ndarray:
    """Fourier coefficients, [2, 8] eV, of less the lowest energy at each phi, smoothed."""
    peptide = Dipeptide(surroundings)
    hold = Held(peptide, 1.0)
    angles = np.deg2rad(np.arange(-180, 180, 10))
    lowest = [min(hold(phi, psi) for psi in angles[::4]) for phi in angles]
    waves = np.exp(1j * np.outer(np.arange(1, 9), angles)) @ np.array(lowest) * 2 / len(angles)
    return -np.stack([waves.real, waves.imag])


def evened(peptide: Dipeptide, coefficients: np.ndarray) -> None:
    """Add the potential that evens out phi."""
    terms, numbers = [], {}
    for n in range(coefficients.shape[1]):
        terms.append(f"a{n} * cos({n + 1} * theta) + b{n} * sin({n + 1} * theta)")
        numbers |= {f"a{n}": coefficients[0, n] * EV, f"b{n}": coefficients[1, n] * EV}
    peptide.torsion_force(" + ".join(terms), PHI, **numbers)


def statistics(surroundings: str, path: Path, ns: float, seed: int, processes: int) -> None:
    """Write phi and psi (rad), [runs, frames] every 0.1 ps, of runs unbiased and with phi evened.

    Half of the runs begin in C7eq, half in C7ax. Frames of `evened` are canonical with the weights
    `weight`. `positions` [runs, frames // 100, atoms, 3] (Å) and `energies` (eV, of the force
    field) are those of every hundredth of them. Files of different seeds can be joined.
    """
    coefficients = evening(surroundings)
    frames = round(ns * 1e4 / RUNS / SPARSE) * SPARSE
    tasks = [
        (surroundings, bias, frames, run, RUNS * seed + run + 1)
        for bias in (None, coefficients)
        for run in range(RUNS)
    ]
    with get_context("spawn").Pool(processes) as pool:
        angles, positions, energies = zip(*pool.imap(one_run, tasks), strict=True)
    phi = np.array(angles[RUNS:])[..., 0]
    bias = bias_at(phi, coefficients)
    top = bias_at(np.linspace(-np.pi, np.pi, 720), coefficients).max()
    with path.open("wb") as file:
        np.savez(
            file,
            unbiased=np.array(angles[:RUNS], np.float32),
            evened=np.array(angles[RUNS:], np.float32),
            weight=np.exp((bias - top) / (units.kB * TEMPERATURE)),
            positions=np.array(positions[RUNS:]),
            energies=np.array(energies[RUNS:]) - bias[:, SPARSE - 1 :: SPARSE],
        )
    print(f"{path}: twice {ns:g} ns")


def one_run(
    task: tuple[str, np.ndarray | None, int, int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles [frames, 2], and positions and energies of every hundredth frame, of a run.

    task: the surroundings, the coefficients that even out phi, frames, number and seed.
    """
    surroundings, coefficients, frames, run, seed = task
    peptide = Dipeptide(surroundings)
    if coefficients is not None:
        evened(peptide, coefficients)
    hold = Held(peptide, 1.0, seed)
    context = hold.context
    hold(*np.deg2rad((-80.0, 70.0) if run % 2 == 0 else (65.0, -50.0)))
    hold.release()
    context.setVelocitiesToTemperature(TEMPERATURE, seed)
    context.getIntegrator().step(20_000)
    angles = np.empty((frames, 2))
    positions = np.empty((frames // SPARSE, len(peptide.atoms), 3), np.float32)
    energies = np.empty(frames // SPARSE)
    for frame in range(frames):
        context.getIntegrator().step(100)
        x, _, energy = peptide.state(context)
        angles[frame] = dihedral_angles(x[None], np.array([PHI, PSI]))[0]
        if frame % SPARSE == SPARSE - 1:
            positions[frame // SPARSE], energies[frame // SPARSE] = x, energy
    return angles, positions, energies


def bias_at(phi: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The potential that evens out phi (rad), eV."""
    waves = np.arange(1, coefficients.shape[1] + 1) * phi[..., None]
    return np.cos(waves) @ coefficients[0] + np.sin(waves) @ coefficients[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "statistics"))
    parser.add_argument("surroundings", choices=SURROUNDINGS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--ns", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0, help="of the statistics")
    parser.add_argument("--processes", type=int, default=1, help="for the statistics")
    options = parser.parse_args()
    if options.what == "train":
        train(options.surroundings, options.output)
    else:
        statistics(
            options.surroundings, options.output, options.ns, options.seed, options.processes
        )


if __name__ == "__main__":
    main()
