"""Alanine dipeptide: does a model that saw picoseconds know the Ramachandran map?

    python recipes/dipeptide_data.py train vacuum data
    python recipes/dipeptide_data.py statistics vacuum data/vacuum-reference.npz
    mdtrajnet finetune molecules-nve data/vacuum-100ps.h5 --held-out data/vacuum-held-out.h5 \\
        --output tuned
    python bench/dipeptide.py run tuned data/vacuum-held-out.h5 runs/tuned.npz --ps 500
    python bench/dipeptide.py static data/vacuum-reference.npz tuned ani.pt
    python bench/dipeptide.py table data/vacuum-reference.npz runs/*.npz --output dipeptide

`run` runs Langevin dynamics at 300 K of many replicas together, one from the first frame of every
held-out trajectory, all over the map, with an mdtrajnet model's windows; or, with `--step` fs, by
velocity Verlet with its potential. It goes on where it was interrupted. `table` sets maps, free
energies, transitions and autocorrelations of such runs beside the reference. `static` asks a
potential, of a model or of `dipeptide_rivals.py`, for its energies of frames of the reference, and
what the map would be with it. bench/README.md says what each figure is.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.units import kB, kcal, mol
from numpy.typing import NDArray
from verlet import verlet_model

from mdtrajnet_fast import (
    MDtrajNet,
    MDtrajNetCalculator,
    Trajectory,
    load_model,
    read_structure,
    simulate,
)
from mdtrajnet_fast.analysis.conformations import (
    angle_autocorrelation,
    angle_map,
    backbone,
    count_transitions,
    dihedral_angles,
    jensen_shannon_divergence,
    rotational_weights,
)
from mdtrajnet_fast.data.generate import make_calculator
from mdtrajnet_fast.data.records import as_trajectory, load_records
from mdtrajnet_fast.md.thermostats import Langevin
from mdtrajnet_fast.md.window import stride_of
from mdtrajnet_fast.mechanics import (
    atomic_degrees_of_freedom,
    degrees_of_freedom,
    kinetic_temperature,
    temperature_per_element,
)
from mdtrajnet_fast.plots import write_angle_maps, write_tables

Array = NDArray[np.float64]

TEMPERATURE, FRICTION = 300.0, 0.001  # K, 1/fs: those of the reference
FRAME_FS = 102.0  # about every 0.1 ps, whole windows of 3 fs and steps of 0.5, 0.75 and 1 fs
STATIC_BINS = 18  # along each axis: frames are few
LASTS_PS = 10.0  # over which autocorrelations are summed
SETTLING_PS = 10.0  # of each run, left out
# Basins of the map (degrees) by phi, and within each half by psi; right is phi > 0.
RIGHT = (0.0, 150.0)
CORES = ((-160.0, -50.0), (45.0, 100.0))  # of phi: left, right
BASINS = {  # name: (phi from, to, psi from, to), arcs that may pass 180
    "C5": (-180.0, -115.0, 90.0, -150.0),
    "C7eq": (-115.0, -40.0, 0.0, 130.0),
    "alpha R": (-115.0, -40.0, -80.0, 0.0),
    "C7ax, alpha L": (0.0, 150.0, -180.0, 180.0),
}


class Runs(NamedTuple):
    """What is kept of a contender's runs, in an .npz file. phi, psi: [runs, frames] rad. weight:
    of the frames. kelvin: temperatures by element and of all. cost: processor s per ns of a run."""

    phi: Array
    psi: Array
    weight: Array
    kelvin: dict[str, float]
    cost: float
    frame_ps: float

    @classmethod
    def read(cls, path: Path) -> Runs:
        with np.load(path) as file:
            kelvin = dict(zip(file["elements"].tolist(), file["kelvin"].tolist(), strict=True))
            figures = (float(file[name]) for name in ("cost", "frame_ps"))
            return cls(file["phi"], file["psi"], file["weight"], kelvin, *figures)

    def write(self, path: Path) -> None:
        values = self._asdict() | {
            "elements": list(self.kelvin),
            "kelvin": list(self.kelvin.values()),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, **values)


def dynamics(
    atoms: list[ase.Atoms], model: MDtrajNet, frames: int, **options: Any
) -> list[Trajectory]:
    """So many frames of Langevin dynamics of systems together; options as of `simulate`."""
    made = simulate(
        atoms,
        dt=FRAME_FS,
        duration=frames * FRAME_FS,
        model=model,
        thermostat=Langevin(TEMPERATURE, FRICTION),
        temperature_K=TEMPERATURE,
        **options,
    )
    assert isinstance(made, list)
    return made


def run(model: MDtrajNet, starts: Path, output: Path, ps: float, seed: int) -> None:
    """Langevin dynamics from the first frames of the trajectories of a file."""
    atoms = [as_trajectory(record)[0] for record in load_records(starts)]
    folder = output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{k:02d}.h5" for k in range(len(atoms))]
    frames = round(ps * 1000 / FRAME_FS)
    torch.set_num_threads(1)
    cost, done = [], len(Trajectory.read(files[0])) - 1 if files[0].exists() else 0
    while done < frames:  # a tenth of a ns at a time, so that what is there can be looked at
        done = min(frames, done + 1000)
        begun = time.process_time()
        made = dynamics(atoms, model, done, seed=seed, trajectory=files, resume=True)
        cost.append(time.process_time() - begun)
        seen_of(made, cost[-1] * 1e6 / (min(1000, done) * FRAME_FS * len(made))).write(output)
        print(f"{output}: {done * FRAME_FS / 1000:.0f} ps of {len(made)} runs", flush=True)


def seen_of(made: list[Trajectory], cost: float) -> Runs:
    """What is kept of runs of the same length."""
    skip = round(SETTLING_PS * 1000 / FRAME_FS)
    found = backbone(made[0][0])
    masses, numbers = made[0].atoms.get_masses(), made[0].atoms.numbers
    freedom = atomic_degrees_of_freedom(made[0][0])
    angles, weights, kelvins = [], [], []
    length = min(len(one) for one in made)
    for one in made:
        x, v = one.positions[skip:length], one.velocities[skip:length]
        angles.append(dihedral_angles(x, np.concatenate(found)))
        weights.append(rotational_weights(x, masses))
        kelvin = temperature_per_element(v, masses, numbers, freedom)
        kelvin["all"] = kinetic_temperature(v, masses, degrees_of_freedom(one[0]))
        kelvins.append({name: value.mean() for name, value in kelvin.items()})
    mean = {name: float(np.mean([k[name] for k in kelvins])) for name in kelvins[0]}
    phi, psi = np.moveaxis(np.array(angles), -1, 0)
    return Runs(phi, psi, np.array(weights), mean, cost, FRAME_FS / 1000)


# ---------------------------------------------------------------------------------------- static


def energies_of(model: str, positions: Array) -> Array:
    """Potential energies [frames] (eV) of frames [frames, atoms, 3] (Å)."""
    atoms = read_structure("alanine dipeptide")
    if model.endswith(".pt"):
        from dipeptide_rivals import load  # imports this module

        _, network = load(Path(model), atoms.numbers)
        parts = torch.from_numpy(positions).float().split(50)
        return torch.cat([network(part).detach() for part in parts]).double().numpy()
    calculator = make_calculator(model) if model == "gfn2-xtb" else MDtrajNetCalculator(model)
    found = []
    for one in positions:
        atoms.positions = one
        found.append(calculator.get_potential_energy(atoms))
    return np.array(found)


def effective(weights: Array) -> float:
    """How many frames of equal weight these are worth (L. Kish)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def static(reference: Path, models: list[str]) -> None:
    """Print what maps come of potentials, from frames of the reference.

    Frames of the reference, weighted with exp(-(U - U_reference) / kT), are those of the potential
    (free-energy perturbation; R. Zwanzig, J. Chem. Phys. 22, 1420 (1954)).
    """
    with np.load(reference) as file:
        x, u = file["positions"], file["energies"]
        angles, weight = file["evened"], file["weight"]
    every = angles.shape[1] // u.shape[1]
    phi, psi = (angles[:, every - 1 :: every, k].astype(np.float64) for k in (0, 1))
    weight = weight[:, every - 1 :: every]
    true = angle_map(phi, psi, weights=weight, bins=STATIC_BINS)
    expected, _ = free_energies(phi, psi, weight)
    for model in models:
        wrong = energies_of(model, x.reshape(-1, *x.shape[2:]).astype(np.float64)).reshape(u.shape)
        wrong -= u
        wrong -= np.average(wrong, weights=weight)
        spread = math.sqrt(np.average(wrong**2, weights=weight))
        tilted = weight * np.exp(-wrong / (kB * TEMPERATURE))
        share = effective(tilted) / effective(weight)
        found = angle_map(phi, psi, weights=tilted, bins=STATIC_BINS)
        energies, error = free_energies(phi, psi, tilted)
        off = ", ".join(
            f"{name} {a - b:+.2f} ± {c:.2f}"
            for name, a, b, c in zip(BASINS, energies, expected, error, strict=True)
            if name != "C7eq" and np.isfinite(a) and np.isfinite(b)
        )
        divergence = jensen_shannon_divergence(found, true)
        print(
            f"{model}: energies off by {1000 * spread:.0f} meV, frames count for {share:.0%} of "
            f"what they do in the reference, JSD {divergence:.4f} bits; kcal/mol off: {off}"
        )


# ----------------------------------------------------------------------------------------- table


def within(angle: Array, begin: float, end: float) -> NDArray[np.bool_]:
    """Whether angles (rad) are on an arc (degrees) that may pass 180; from -180 to 180 is all."""
    width = np.deg2rad(end - begin) if end > begin else np.deg2rad(end - begin + 360)
    inside: NDArray[np.bool_] = (angle - np.deg2rad(begin)) % (2 * np.pi) <= width
    return inside


def populations(phi: Array, psi: Array, weight: Array) -> Array:
    """Shares of the basins, [basins]."""
    inside = [within(phi, a, b) & within(psi, c, d) for a, b, c, d in BASINS.values()]
    return np.array([(weight * one).sum() for one in inside]) / weight.sum()


def free_energies(phi: Array, psi: Array, weight: Array) -> tuple[Array, Array]:
    """Of the basins above C7eq, kcal/mol, and their standard errors over runs by bootstrap."""
    unit = kB * TEMPERATURE / (kcal / mol)
    names = list(BASINS)

    def of(chosen: Array) -> Array:
        share = populations(phi[chosen], psi[chosen], weight[chosen])
        with np.errstate(divide="ignore", invalid="ignore"):
            return -unit * np.log(share / share[names.index("C7eq")])

    rng = np.random.default_rng(0)
    draws = [of(rng.integers(len(phi), size=len(phi))) for _ in range(200)]
    with np.errstate(invalid="ignore"):  # of basins that no drawn run has been in
        return of(np.arange(len(phi))), np.std(draws, axis=0)


def balanced(runs: Runs, reference: Runs) -> Runs:
    """Runs with the reference's share of phi > 0, for which those that begin on both sides and
    hardly cross cannot speak."""

    def share(one: Runs) -> tuple[NDArray[np.bool_], float]:
        right = within(one.phi, *RIGHT)
        return right, float((one.weight * right).sum() / one.weight.sum())

    (right, own), (_, wanted) = share(runs), share(reference)
    if not 0 < own < 1:
        return runs
    factor = np.where(right, wanted / own, (1 - wanted) / (1 - own))
    return runs._replace(weight=runs.weight * factor)


def divergences(one: Runs, other: Runs) -> dict[str, float]:
    """Jensen-Shannon divergences in bits of the maps: left, right and whole (:func:`balanced`)."""

    def between(*chosen: tuple[Runs, NDArray[np.bool_]]) -> float:
        if not all(at.any() for _, at in chosen):
            return math.nan  # a run that was never on this side
        maps = [angle_map(r.phi[at], r.psi[at], weights=r.weight[at]) for r, at in chosen]
        return jensen_shannon_divergence(*maps)

    right = [(runs, within(runs.phi, *RIGHT)) for runs in (one, other)]
    left = [(runs, ~at) for runs, at in right]
    whole = [
        (runs, np.ones_like(at)) for runs, at in ((balanced(one, other), right[0][1]), right[1])
    ]
    return {"left": between(*left), "right": between(*right), "whole": between(*whole)}


def reference_of(path: Path) -> tuple[Runs, Runs]:
    """The reference's runs with phi evened, for maps, and the unbiased ones, for times."""
    with np.load(path) as file:
        evened, unbiased, weight = file["evened"], file["unbiased"], file["weight"]
    ones = np.ones(unbiased.shape[:2])
    return tuple(
        Runs(*np.moveaxis(angles.astype(np.float64), -1, 0), w, {}, np.nan, 0.1)
        for angles, w in ((evened, weight), (unbiased, ones))
    )


def as_long(unbiased: Runs, runs: Runs) -> Runs:
    """Pieces of the unbiased reference, as many, as long and on the same sides as some runs."""
    frames = round(runs.phi.shape[1] * runs.frame_ps / unbiased.frame_ps)
    count = unbiased.phi.shape[1] // frames * frames
    phi, psi, weight = (x[:, :count].reshape(-1, frames) for x in unbiased[:3])
    rng, chosen = np.random.default_rng(0), []
    for right in (False, True):
        wanted = int((within(runs.phi[:, 0], *RIGHT) == right).sum())
        there = np.flatnonzero(within(phi[:, 0], *RIGHT) == right)
        chosen.append(rng.choice(there, min(wanted, len(there)), replace=False))
    kept = np.concatenate(chosen)
    return unbiased._replace(phi=phi[kept], psi=psi[kept], weight=weight[kept])


def row(runs: Runs, reference: Runs) -> dict[str, Any]:
    """The figures of a contender."""
    found: dict[str, Any] = {"ns": runs.phi.size * runs.frame_ps / 1000}
    for name, value in divergences(runs, reference).items():
        found[f"JSD {name} (bits)"] = round(value, 4)
    counts = count_transitions(runs.phi, np.deg2rad(CORES))
    energies, errors = free_energies(runs.phi, runs.psi, runs.weight)
    for name, energy, error in zip(BASINS, energies, errors, strict=True):
        if name == "C7ax, alpha L" and min(counts[0, 1], counts[1, 0]) == 0:
            continue  # says where the runs began
        if name != "C7eq":
            found[f"{name} (kcal/mol)"] = f"{energy:.2f} ± {error:.2f}"
    lags = min(runs.phi.shape[1], round(LASTS_PS / runs.frame_ps))
    left = np.array([not within(phi, *RIGHT).any() for phi in runs.phi])
    for name, angles in (("phi", runs.phi[left]), ("psi", runs.psi[left])):
        if len(angles):
            kept = angle_autocorrelation(angles, lags)
            found[f"{name} lasts (ps)"] = round(float(kept.sum() * runs.frame_ps), 2)
    found["left to right"], found["right to left"] = int(counts[0, 1]), int(counts[1, 0])
    psi_turns = np.deg2rad(((90.0, -170.0), (-80.0, 20.0)))  # extended, helical; phi < 0
    there = count_transitions(runs.psi[left], psi_turns).sum() if left.any() else 0
    time_ns = left.sum() * runs.phi.shape[1] * runs.frame_ps / 1000
    found["psi turns (1/ns)"] = round(float(there / time_ns), 1) if left.any() else None
    for name, value in runs.kelvin.items():
        found[f"T {name} (K)"] = round(value, 1)
    if np.isfinite(runs.cost):
        found["core s per ns"] = round(runs.cost)
    return found


def table(reference: Path, paths: list[Path], output: Path) -> None:
    """Print and write the table and the maps."""
    evened, unbiased = reference_of(reference)
    first, second = (
        evened._replace(phi=evened.phi[k::2], psi=evened.psi[k::2], weight=evened.weight[k::2])
        for k in (0, 1)
    )
    contenders = {"reference, phi evened, half of it": first, "reference, unbiased": unbiased}
    for path in paths:
        runs = Runs.read(path)
        contenders |= {path.stem: runs, f"reference, as {path.stem}": as_long(unbiased, runs)}
    rows = {
        name: row(runs, second if name.endswith("half of it") else evened)
        for name, runs in contenders.items()
    }
    columns = list(dict.fromkeys(key for one in rows.values() for key in one))
    tables: Mapping[str, Any] = {
        "run": list(rows),
        **{key: [one.get(key) for one in rows.values()] for key in columns},
    }
    write_tables(output, {"dipeptide": tables})
    lines = ["| | " + " | ".join(rows) + " |", "|---|" + "---:|" * len(rows)]
    for key in columns:
        cells = ["" if (x := one.get(key)) is None else str(x) for one in rows.values()]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    (output / "dipeptide.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    drawn = {"reference": evened}
    drawn |= {path.stem: balanced(Runs.read(path), evened) for path in paths}
    maps = {name: angle_map(r.phi, r.psi, weights=r.weight) for name, r in drawn.items()}
    write_angle_maps(output / "maps", maps, TEMPERATURE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("run")
    sub.add_argument("model")
    sub.add_argument("starts", type=Path)
    sub.add_argument("output", type=Path, help=".npz; trajectories are in a folder beside it")
    sub.add_argument("--ps", type=float, default=500.0)
    sub.add_argument("--step", type=float, help="fs: velocity Verlet in place of windows")
    sub.add_argument("--seed", type=int, default=1)
    sub.set_defaults(command="run")
    sub = commands.add_parser("static")
    sub.add_argument("reference", type=Path)
    sub.add_argument("models", nargs="+", help="names, folders, .pt of dipeptide_rivals, gfn2-xtb")
    sub.set_defaults(command="static")
    sub = commands.add_parser("table")
    sub.add_argument("reference", type=Path)
    sub.add_argument("runs", type=Path, nargs="*")
    sub.add_argument("--output", type=Path, required=True)
    sub.set_defaults(command="table")
    options = parser.parse_args()
    if options.command == "table":
        table(options.reference, options.runs, options.output)
        return
    if options.command == "static":
        static(options.reference, options.models)
        return
    model = load_model(options.model)
    if options.step:
        model = verlet_model(model, options.step)
    print(f"windows of {stride_of(model, 'symplectic', None):g} fs", flush=True)
    run(model, options.starts, options.output, options.ps, options.seed)


if __name__ == "__main__":
    main()
