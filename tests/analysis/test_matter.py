"""Radial distributions, displacements and kinetic energies, against MDAnalysis and theory."""

from __future__ import annotations

import warnings

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import kB

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.analysis.matter import (
    diffusion,
    kinetic_energies,
    mean_square_displacement,
    radial_distribution,
    unwrapped,
)
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.mechanics import momenta_from_velocities

TRICLINIC = np.array([[9.0, 0, 0], [2.0, 8.0, 0], [1.0, -1.5, 10.0]])


def moving(atoms: ase.Atoms, positions: np.ndarray, dt: float = 1.0) -> Trajectory:
    velocities = np.gradient(positions, dt, axis=0)
    momenta = momenta_from_velocities(velocities, atoms.get_masses())
    return Trajectory(atoms, dt * np.arange(len(positions)), positions, momenta)


def walk(atoms: int = 30, frames: int = 400, size: float = 0.1, seed: int = 0) -> Trajectory:
    """Random walkers in a triclinic cell; of each component size^2 a frame."""
    rng = np.random.default_rng(seed)
    steps = size * rng.standard_normal((frames, atoms, 3))
    x = rng.uniform(size=(atoms, 3)) @ TRICLINIC + np.cumsum(steps, axis=0)
    system = ase.Atoms("Ar" * (atoms // 2) + "Ne" * (atoms - atoms // 2), cell=TRICLINIC, pbc=True)
    return moving(system, x, 2.0)


def universe(run: Trajectory):
    import MDAnalysis as mda  # takes a second

    u = mda.Universe.empty(len(run.atoms), trajectory=True)
    u.add_TopologyAttr("names", run.atoms.get_chemical_symbols())
    u.load_new(run.positions.astype(np.float32), dt=run.times[1] / 1000)
    for frame in u.trajectory:
        frame.dimensions = run.atoms.cell.cellpar()
    return u


@pytest.mark.parametrize("pair", [("Ar", "Ar"), ("Ar", "Ne"), ("Ne", "Ar"), None])
def test_radial_distribution_is_that_of_mdanalysis(pair):
    run = walk(frames=20)
    u = universe(run)
    from MDAnalysis.analysis.rdf import InterRDF

    first, second = (u.select_atoms(f"name {x}") if pair else u.atoms for x in pair or (0, 0))
    same = pair is None or pair[0] == pair[1]
    excluded = (1, 1) if same else None
    # the cell lies along x by a rotation, which changes no distance
    standard = ase.cell.Cell.new(run.atoms.cell.cellpar())
    scaled = run.positions @ np.linalg.inv(TRICLINIC) @ standard
    u.load_new(scaled.astype(np.float32), dimensions=run.atoms.cell.cellpar())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = InterRDF(first, second, nbins=30, range=(0, 3.0), exclusion_block=excluded).run()
    r, g = radial_distribution(run, pair, farthest=3.0, width=0.1)
    np.testing.assert_allclose(r, oracle.results.bins, atol=1e-9)
    expected = oracle.results.rdf
    np.testing.assert_allclose(g, expected, atol=2e-3 * expected.max())


def test_radial_distribution_of_a_crystal():
    """Shells of neighbours, beyond half of the cell, too; and 1 without order."""
    copper = bulk("Cu", cubic=True)
    run = moving(copper, np.tile(copper.positions, (3, 1, 1)))
    r, g = radial_distribution(run, farthest=5.0, width=0.02)
    neighbours = np.cumsum(4 * np.pi * r**2 * 0.02 * g) * (len(copper) - 1) / copper.cell.volume
    a = copper.cell[0, 0]
    for distance, count in ((a / np.sqrt(2), 12), (a, 18), (a * np.sqrt(1.5), 42)):
        at = np.searchsorted(r, distance + 0.03)
        assert neighbours[at] == pytest.approx(count, rel=0.02)
    _, g = radial_distribution(walk(frames=200), width=0.5)
    np.testing.assert_allclose(g[2:], 1, atol=0.1)
    assert radial_distribution(run).r[-1] < a / 2


def test_displacements():
    run = walk(atoms=8, frames=60)
    times, squares = mean_square_displacement(run)
    masses = run.atoms.get_masses()
    x = run.positions - np.einsum("a,fax->fx", masses / masses.sum(), run.positions)[:, None]
    expected = [((x[k:] - x[: len(x) - k]) ** 2).sum(2).mean() for k in range(60)]
    np.testing.assert_allclose(squares, expected, atol=1e-9)
    np.testing.assert_allclose(times, 2.0 * np.arange(60))
    neon = mean_square_displacement(run, "Ne").squares
    argon = mean_square_displacement(run, "Ar").squares
    np.testing.assert_allclose((neon + argon) / 2, squares, atol=1e-9)


def test_diffusion_coefficient():
    """Of random walkers, of the size of their steps; right within its error most times."""
    off = []
    for seed in range(10):
        found = diffusion(walk(frames=1000, seed=seed))
        expected = 0.1**2 / (2 * 2.0) * 29 / 30  # less the motion of the whole
        assert found.coefficient == pytest.approx(expected, rel=0.3)
        off.append((found.coefficient - expected) / found.error)
    assert 0.3 < np.std(off) < 2.5


def test_atoms_that_jump_at_the_cell():
    run = walk(frames=300)
    wrapped = run.positions @ np.linalg.inv(TRICLINIC) % 1 @ TRICLINIC
    energies = np.arange(len(run)) + 0.5
    jumping = Trajectory(run.atoms, run.times, wrapped, run.momenta, None, energies, 2 * energies)
    first = run.positions[:1] - wrapped[:1]
    np.testing.assert_allclose(unwrapped(jumping).positions + first, run.positions, atol=1e-9)
    assert np.array_equal(unwrapped(jumping).potential_energies, energies)
    assert np.array_equal(unwrapped(jumping).heat, 2 * energies)
    assert unwrapped(run) is run
    slab = run.atoms.copy()
    slab.pbc = [True, False, True]
    half = Trajectory(slab, run.times, wrapped, run.momenta)
    moved = (unwrapped(half).positions - wrapped) @ np.linalg.inv(TRICLINIC)
    assert abs(moved[..., [0, 2]]).max() > 0.5 > 1e-9 > abs(moved[..., 1]).max()


def test_kinetic_energies():
    """Canonical velocities have a canonical variance; the motion of the whole does not count."""
    rng, atoms = np.random.default_rng(0), molecule("CH3CH2OH")
    spread = np.sqrt(atoms.get_masses() * kB * 400)[:, None]
    p = spread * rng.standard_normal((4000, 9, 3))
    x = np.tile(atoms.positions, (4000, 1, 1))
    found = kinetic_energies(Trajectory(atoms, np.arange(4000.0), x, p))
    assert found.freedom == 21
    assert found.temperature == pytest.approx(400, rel=0.02)
    assert found.variance == pytest.approx(1, rel=0.1)
    kelvin, spread = found.errors()
    assert kelvin == pytest.approx(400 * np.sqrt(2 / 21 / 4000), rel=0.8)
    assert spread == pytest.approx(np.sqrt(2 / 4000), rel=0.8)
    assert np.isnan(found._replace(energies=found.energies[:15]).errors()).all()
    grid = np.linspace(0, 2, 4001)
    density = found.canonical(grid)
    assert np.sum(density) * 5e-4 == pytest.approx(1, rel=1e-3)
    assert np.sum(grid * density) * 5e-4 == pytest.approx(found.energies.mean(), rel=1e-3)
    still = p + 5 * atoms.get_masses()[:, None] * np.array([1, 2, 3])
    again = kinetic_energies(Trajectory(atoms, np.arange(4000.0), x, still))
    np.testing.assert_allclose(again.energies, found.energies, rtol=1e-9)


def test_bad_input():
    run, free = walk(frames=20), moving(molecule("H2O"), np.zeros((20, 3, 3)))
    xenon = ("Xe", "Ar")
    for match, call in (
        ("periodic in three directions", lambda: radial_distribution(free)),
        ("no atom of 'Xe' .* elements are Ar, Ne", lambda: radial_distribution(run, xenon)),
        ("0 < width <= farthest", lambda: radial_distribution(run, farthest=-1.0)),
        ("needs two parts or more, of at least 10 frames", lambda: diffusion(run)),
        ("needs two frames", lambda: mean_square_displacement(run[:1])),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    times = run.times + (run.times > 10)
    uneven = Trajectory(run.atoms, times, run.positions, run.momenta)
    with pytest.raises(ValueError, match="frames are unevenly spaced"):
        mean_square_displacement(uneven)


def test_command(tmp_path, capsys):
    run = walk(frames=400)
    run.write(tmp_path / "walk.h5")
    assert main(["analyze", str(tmp_path / "walk.h5")]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "walk-analysis"
    names = {"rdf", "msd", "vdos", "kinetic"}
    assert {path.stem for path in folder.iterdir()} == names
    assert "g(r) of Ar-Ne" in said and "Diffusion coefficient" in said and "canonical" in said
    columns = (folder / "rdf.csv").read_text().splitlines()[0]
    assert columns == "r (Å),Ar-Ar,Ar-Ne,Ne-Ne"
    fine = tmp_path / "fine"
    asked = ["analyze", str(tmp_path / "walk.h5"), "--rdf", "--width", "0.01"]
    assert main([*asked, "--output", str(fine)]) == 0
    r = np.loadtxt(fine / "rdf.csv", delimiter=",", skiprows=1)[:, 0]
    np.testing.assert_allclose(np.diff(r), 0.01, rtol=1e-6)
    assert all((folder / f"{name}.png").stat().st_size > 1000 for name in names)
    out = tmp_path / "only"
    assert main(["analyze", str(tmp_path / "walk.h5"), "--msd", "--output", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["msd.csv", "msd.png"]
    coarse = Trajectory(run.atoms, 50 * run.times, run.positions, run.momenta)
    coarse.write(tmp_path / "coarse.h5")
    assert main(["analyze", str(tmp_path / "coarse.h5")]) == 0
    assert "No vdos: frames every" in capsys.readouterr().out
    found = {path.stem for path in (tmp_path / "coarse-analysis").iterdir()}
    assert found == {"rdf", "msd", "kinetic"}
    assert main(["analyze", str(tmp_path / "coarse.h5"), "--vdos"]) == 2
    assert main(["analyze", str(tmp_path)]) == 2
    assert "it is not the folder of a run" in capsys.readouterr().err
