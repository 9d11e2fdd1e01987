"""The command `mdtrajnet analyze`."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..analysis.conformations import angle_map, backbone, dihedral_angles
from ..analysis.matter import (
    diffusion,
    kinetic_energies,
    mean_square_displacement,
    radial_distribution,
    unwrapped,
)
from ..io.trajectory import Trajectory
from ..plots import write_angle_maps, write_curves
from ..runs import title, write_spectra
from .folders import make_folder, new_folder
from .inputs import add_frames, any_trajectory, skipped, trajectory_file
from .printing import print_paths, print_spectra

HELP = "Structure, diffusion, vibrations and kinetic energies of a trajectory: tables and plots."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument(
        "trajectory", type=Path, help="folder of a run, .traj, .extxyz, .h5, or what ASE reads"
    )
    add_frames(parser)
    parser.add_argument("--output", type=Path, help="new folder (default: beside)")
    parser.add_argument(
        "--rdf", action="store_true", help="radial distribution functions, by pairs"
    )
    parser.add_argument("--farthest", type=float, help="Å, of these (default: half of the cell)")
    parser.add_argument("--width", type=float, default=0.05, help="Å of a bin of these")
    parser.add_argument(
        "--msd", action="store_true", help="mean-square displacements and diffusion"
    )
    parser.add_argument(
        "--vdos", action="store_true", help="vibrational (phonon) density of states"
    )
    parser.add_argument(
        "--kinetic", action="store_true", help="kinetic energies beside canonical ones"
    )
    parser.add_argument(
        "--ramachandran", action="store_true", help="map of the angles phi and psi of a peptide"
    )


def run(options: argparse.Namespace) -> None:
    """All that applies, or what is asked for."""
    path = trajectory_file(options.trajectory)
    whole = any_trajectory(path, options.frame, velocities=False)
    trajectory = skipped(unwrapped(whole), options.skip)
    kinds: dict[str, Callable[[Trajectory, Path], None]] = {
        "rdf": functools.partial(_write_rdf, farthest=options.farthest, width=options.width),
        "msd": _write_msd,
        "vdos": _write_vdos,
        "kinetic": _write_kinetic,
        "ramachandran": _write_ramachandran,
    }
    apply = ("rdf", "msd", "vdos", "kinetic") if trajectory.atoms.pbc.all() else ("vdos", "kinetic")
    asked = [name for name in kinds if getattr(options, name)]
    place = options.trajectory
    numbered = options.output is None
    folder = new_folder(options.output or place.with_name(f"{place.stem}-analysis"), numbered)
    folder = make_folder(folder, numbered)
    for name in asked or apply:
        try:
            kinds[name](trajectory, folder / name)
        except ValueError as error:  # too short, or frames too far apart, for one of many
            if asked:
                raise
            print(f"No {name}: {error}")


def _write_rdf(trajectory: Trajectory, prefix: Path, farthest: float | None, width: float) -> None:
    elements = Counter(sorted(trajectory.atoms.get_chemical_symbols()))
    curves: dict[str, np.ndarray] = {}
    for a, b in itertools.combinations_with_replacement(elements, 2):
        if a != b or elements[a] > 1:
            r, g = radial_distribution(trajectory, (a, b), farthest=farthest, width=width)
            curves[f"{a}-{b}"] = g
            print(f"g(r) of {a}-{b}: highest, {g.max():.2f}, at {r[g.argmax()]:.2f} Å")
    if not curves:
        raise ValueError("a radial distribution needs two atoms")
    print_paths(write_curves(prefix, ("r (Å)", r), curves, "g(r)", title(trajectory)))


def _write_msd(trajectory: Trajectory, prefix: Path) -> None:
    times, squares = mean_square_displacement(trajectory)
    half = 1 + len(times) // 2  # of longer times there are few
    found = diffusion(trajectory)
    print(
        f"Diffusion coefficient {0.1 * found.coefficient:.3g} ± {0.1 * found.error:.1g} cm²/s, "
        f"{squares[half - 1]:.3g} Å² in {times[half - 1] / 1000:g} ps"
    )
    curve = {"mean-square displacement (Å²)": squares[:half]}
    lags = ("time (ps)", times[:half] / 1000)
    print_paths(write_curves(prefix, lags, curve, next(iter(curve)), title(trajectory)))


def _write_vdos(trajectory: Trajectory, prefix: Path) -> None:
    _check_velocities(trajectory)
    print_spectra(*write_spectra(trajectory, prefix))


def _write_kinetic(trajectory: Trajectory, prefix: Path) -> None:
    _check_velocities(trajectory)
    kinetic = kinetic_energies(trajectory)
    found, edges = np.histogram(kinetic.energies, bins=40, density=True)
    middles = (edges[1:] + edges[:-1]) / 2
    canonical = f"canonical at {kinetic.temperature:.0f} K"
    curves = {"this run": found, canonical: kinetic.canonical(middles)}
    kelvin, spread = kinetic.errors()
    print(
        f"Kinetic temperature {kinetic.temperature:.1f} ± {kelvin:.1f} K, variance of the kinetic "
        f"energy {kinetic.variance:.2f} ± {spread:.2f} of the canonical one (errors from eighths "
        "of the run)"
    )
    energies = ("kinetic energy (eV)", middles)
    print_paths(write_curves(prefix, energies, curves, "density (1/eV)", title(trajectory)))


def _has_velocities(trajectory: Trajectory) -> bool:
    return bool(np.isfinite(trajectory.momenta).all())


def _check_velocities(trajectory: Trajectory) -> None:
    if not _has_velocities(trajectory):
        raise ValueError(
            "the file holds no velocities, and its frames are too far apart to tell them: use "
            ".trr, .traj, .extxyz or .h5, or frames of 2 fs"
        )


def _write_ramachandran(trajectory: Trajectory, prefix: Path) -> None:
    """Of all residues together, with free energies at the temperature of the run."""
    found = backbone(trajectory[0])
    phi = dihedral_angles(trajectory.positions, found.phi)
    psi = dihedral_angles(trajectory.positions, found.psi)
    one = angle_map(phi, psi)
    share = np.mean((phi > 0) & (phi < np.deg2rad(150)))
    degrees = [f"{np.rad2deg(x):.0f}" for x in (phi[-1, 0], psi[-1, 0])]
    print(
        f"phi and psi of {len(found.phi)} residue(s): {np.mean(one.density > 0):.0%} of the map is "
        f"visited, phi is positive in {share:.1%} of the frames; the first residue ends at "
        f"({', '.join(degrees)}) degrees"
    )
    known = _has_velocities(trajectory)
    kelvin = kinetic_energies(trajectory).temperature if known else None
    print_paths(write_angle_maps(prefix, {"density (1/rad²)": one}, kelvin))
