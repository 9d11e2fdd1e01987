"""Dihedral angles, maps of them and how long they last, beside ASE, MDAnalysis and closed forms."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import molecule
from MDAnalysis.lib.distances import calc_dihedrals

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.analysis.conformations import (
    AngleMap,
    angle_autocorrelation,
    angle_map,
    backbone,
    count_transitions,
    dihedral_angles,
    jensen_shannon_divergence,
    rotational_weights,
)
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.io.structures import read_structure
from mdtrajnet_fast.mechanics import thermal_velocities


def test_dihedral_angles_are_those_of_ase_and_mdanalysis():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6, 3))
    quadruples = np.array([[0, 1, 2, 3], [5, 2, 4, 1]])
    found = dihedral_angles(x, quadruples)
    others = [calc_dihedrals(*(x[:, k].astype(np.float32) for k in q)) for q in quadruples]
    assert np.abs(np.exp(1j * found) - np.exp(1j * np.stack(others, 1))).max() < 1e-4
    for frame, angles in zip(x[:5], found, strict=False):
        atoms = ase.Atoms("C6", frame)
        same = np.deg2rad([atoms.get_dihedral(*q) for q in quadruples])
        assert np.exp(1j * angles) == pytest.approx(np.exp(1j * same), abs=1e-10)


def test_backbone_of_the_dipeptide():
    dipeptide = read_structure("alanine dipeptide")
    found = backbone(dipeptide)
    assert found.phi.tolist() == [[1, 3, 4, 6]]
    assert found.psi.tolist() == [[3, 4, 6, 8]]
    angles = dihedral_angles(dipeptide.positions[None], np.concatenate(found))
    assert np.rad2deg(angles) == pytest.approx(np.array([[-81.3, 73.7]]), abs=0.1)
    shuffled = np.random.default_rng(1).permutation(len(dipeptide))
    other = backbone(dipeptide[shuffled])
    assert shuffled[other.phi].tolist() == found.phi.tolist()
    assert shuffled[other.psi].tolist() == found.psi.tolist()


def test_molecules_without_a_backbone():
    for one in (molecule("CH3CH2OH"), read_structure("acetamide")):
        with pytest.raises(ValueError, match="no carbon atom between two amide groups"):
            backbone(one)


def test_maps_and_their_divergence():
    rng = np.random.default_rng(2)
    phi, psi = rng.normal(-1, 0.3, 4000), rng.normal(1, 0.3, 4000)
    found = angle_map(phi, psi)
    area = (found.edges[1] - found.edges[0]) ** 2
    assert found.density.shape == (36, 36)
    assert found.density.sum() * area == pytest.approx(1)
    assert np.unravel_index(found.density.argmax(), (36, 36))[0] < 18
    assert found.free_energy(300.0).min() == 0
    assert jensen_shannon_divergence(found, found) == 0
    apart = angle_map(phi + 3, psi)
    assert jensen_shannon_divergence(found, apart) == pytest.approx(1, abs=0.02)

    # half the frames with three times the weight are as three times those frames
    weights = np.where(np.arange(4000) < 2000, 3.0, 1.0)
    again = np.concatenate([np.arange(2000)] * 3 + [np.arange(2000, 4000)])
    weighted, repeated = angle_map(phi, psi, weights=weights), angle_map(phi[again], psi[again])
    assert weighted.density == pytest.approx(repeated.density)

    two = [AngleMap(found.edges, np.array(x)) for x in ([[0.5, 0.5]], [[1.0, 0.0]])]
    by_hand = 0.5 * (0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25)) + 0.5 * np.log2(
        1 / 0.75
    )
    assert jensen_shannon_divergence(*two) == pytest.approx(by_hand)


def test_autocorrelation_of_a_diffusing_angle():
    rng = np.random.default_rng(3)
    steps = rng.normal(0, 0.3, (40, 5000))
    found = angle_autocorrelation(np.cumsum(steps, axis=1), 60)
    assert found[0] == 1
    assert found == pytest.approx(np.exp(-0.045 * np.arange(60)), abs=0.03)


def test_transitions_count_only_between_cores():
    cores = [(-2.0, -1.0), (0.5, 1.5), (3.0, -3.0)]
    run = [-1.5, -0.9, -1.5, 0.0, 1.0, 0.4, 1.0, 3.1, -3.1, 2.0, 1.0]
    assert count_transitions([run], cores).tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert count_transitions([run, run], cores).sum() == 6


def test_rotational_weights():
    """Angular momenta of canonical velocities are as often near zero as the weights say."""
    rng = np.random.default_rng(4)
    x = np.stack([molecule("CH3OH").positions * s for s in (1.0, 1.2)])
    masses = molecule("CH3OH").get_masses()
    weights = rotational_weights(x, masses)
    assert weights.mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(1.2**3)
    covariances = []
    for r in x:
        r = r - masses @ r / masses.sum()
        p = rng.normal(size=(20000, len(masses), 3)) * np.sqrt(masses)[:, None]
        covariances.append(np.linalg.det(np.cov(np.cross(r, p).sum(1).T)))
    assert np.sqrt(covariances[1] / covariances[0]) == pytest.approx(1.2**3, rel=0.05)


def test_command(tmp_path, capsys):
    dipeptide = read_structure("alanine dipeptide")
    thermal_velocities(dipeptide, 300, seed=1)
    turned = [dipeptide.copy() for _ in range(30)]
    for k, one in enumerate(turned):  # psi
        one.set_dihedral(3, 4, 6, 8, 12.0 * k, indices=[7, 8, 9, 18, 19, 20, 21])
    momenta = np.stack([one.get_momenta() for one in turned])
    positions = np.stack([one.positions for one in turned])
    Trajectory(dipeptide, np.arange(30.0), positions, momenta).write(tmp_path / "turned.h5")
    out = tmp_path / "map"
    asked = ["analyze", str(tmp_path / "turned.h5"), "--ramachandran", "--output", str(out)]
    assert main(asked) == 0
    assert "phi is positive in 0.0% of the frames" in capsys.readouterr().out
    assert (out / "ramachandran.png").stat().st_size > 1000
    phi, _, density = np.loadtxt(out / "ramachandran.csv", delimiter=",", skiprows=1).T
    assert len(density) == 36**2
    assert set(phi[density > 0]) == {-85.0}
    apart = Trajectory(dipeptide, 100 * np.arange(30.0), positions, momenta)
    apart.write(tmp_path / "apart.dcd")  # without velocities, so without a temperature
    asked = ["analyze", str(tmp_path / "apart.dcd"), "--ramachandran", "--output", f"{out}-2"]
    assert main(asked) == 0
    again = np.loadtxt(f"{out}-2/ramachandran.csv", delimiter=",", skiprows=1)[:, 2]
    assert set(phi[again > 0]) == {-85.0}
    water = molecule("H2O")
    Trajectory(water, np.arange(3.0), [water.positions] * 3, np.zeros((3, 3, 3))).write(
        tmp_path / "water.h5"
    )
    assert main(["analyze", str(tmp_path / "water.h5"), "--ramachandran"]) == 2
    assert "no carbon atom between two amide groups" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: dihedral_angles(np.zeros((4, 3)), [[0, 1, 2, 3]]), "expected .frames, atoms, 3"),
        (lambda: dihedral_angles(np.zeros((1, 4, 3)), [[0, 1, 2]]), "angles, 4"),
        (lambda: angle_map([0.0], [0.0, 1.0]), "same shape"),
        (lambda: angle_map([], []), "some frames"),
        (lambda: angle_autocorrelation(np.zeros(5), 2), "runs, frames"),
        (lambda: angle_autocorrelation(np.zeros((1, 5)), 6), "6 lags"),
        (
            lambda: jensen_shannon_divergence(
                angle_map([0.0], [0.0]), angle_map([0.0], [0.0], bins=6)
            ),
            "expected the same",
        ),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
