"""Internal coordinates return the Cartesian ones they came from, and the network learns."""

from __future__ import annotations

import dataclasses

import ase.build
import numpy as np
import pytest
import torch
from gicnet import SETTINGS, compare, trained
from internal import (
    automorphisms,
    derivatives,
    rigid,
    superpose,
    to_cartesian,
    to_internal,
    z_matrix,
)

import mdtrajnet_fast
from mdtrajnet_fast.data.records import Record

MOLECULES = ["CH3CH2OH", "CH3CONH2", "HCOOH", "CH4", "C3H6_Cs", "CH3CN", "C3H6_D3h", "H2O"]


def geometries(name: str, count: int, seed: int = 0):
    """Numbers, masses and `count` shaken copies [count, atoms, 3] (Å) of a molecule of g2."""
    atoms = ase.build.molecule(name)
    noise = np.random.default_rng(seed).normal(scale=0.08, size=(count, len(atoms), 3))
    return atoms.numbers, atoms.get_masses(), atoms.positions + noise


@pytest.mark.parametrize("name", MOLECULES)
def test_round_trip(name):
    numbers, mass, x = geometries(name, 50)
    tree = z_matrix(numbers, x)
    refs, masses = torch.from_numpy(tree.refs), torch.from_numpy(mass[tree.order])
    x = torch.from_numpy(x[:, tree.order])
    q = to_internal(x, refs).requires_grad_()
    built = to_cartesian(q, refs)
    assert (superpose(built, x, masses)[0] - x).abs().max() < 1e-10  # Å
    (gradient,) = torch.autograd.grad(built.square().sum(), q)
    assert gradient.isfinite().all()
    # The mirror image has the opposite dihedrals and only those.
    n = 2 * len(numbers) - 3
    mirrored = to_internal(x * torch.tensor([1.0, 1.0, -1.0]), refs)
    assert torch.allclose(mirrored[:, :n], q[:, :n]) and torch.allclose(mirrored[:, n:], -q[:, n:])


@pytest.mark.parametrize("name", ["CH3CH2OH", "H2O"])
def test_velocities(name):
    numbers, mass, x = geometries(name, 20)
    tree = z_matrix(numbers, x)
    refs, masses = torch.from_numpy(tree.refs), torch.from_numpy(mass[tree.order])
    x = torch.from_numpy(x[:, tree.order])
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forth, back = derivatives(x, refs, masses)
    inner = (back @ (forth @ v.flatten(1)[..., None])).view_as(v)
    assert (inner + rigid(x, x, v, masses) - v).abs().max() < 1e-9
    assert (torch.linalg.cross(x, masses[:, None] * inner).sum(1)).abs().max() < 1e-9


def test_a_straight_molecule_is_refused():
    numbers, _, x = geometries("CO2", 5)
    with pytest.raises(ValueError, match="straight"):
        z_matrix(numbers, x)


def test_automorphisms():
    atoms = ase.build.molecule("CH3CH2OH")
    assert len(automorphisms(atoms.numbers, atoms.positions)) == 12


def test_training(tmp_path, monkeypatch):
    """Some steps on a harmonic ethanol lower the loss; what was kept is used again."""
    numbers, masses, x = geometries("CH3CH2OH", 1)
    rng = np.random.default_rng(1)
    modes = rng.normal(size=(6, *x.shape[1:]))
    modes -= np.einsum("a,mak->mk", masses / masses.sum(), modes)[:, None]
    t, rate = np.arange(60.0), rng.uniform(0.1, 0.5, size=6)
    angle = t[:, None] * rate + rng.uniform(0, 6, size=6)
    records = [
        Record(
            molecule="ethanol",
            trajectory="traj00",
            numbers=numbers.astype(np.int64),
            masses=masses,
            positions=(x + 0.01 * np.einsum("fm,mak->fak", np.sin(angle), modes)).astype("f4"),
            velocities=(0.01 * np.einsum("fm,mak->fak", rate * np.cos(angle), modes)).astype("f4"),
            frame_fs=1.0,
            energy=None,
            temperature_K=None,
            smiles="CCO",
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
        )
    ]
    monkeypatch.setitem(SETTINGS, "widths", (32,))
    net, tree, spent = trained(records, 0.05, tmp_path)
    assert spent["loss"][1] < 0.5 * spent["loss"][0]
    model = mdtrajnet_fast.load_model("molecules-nve")
    result = compare(net, tree, model, records)
    assert result["pairs"] == 50
    assert result["position"]["gicnet"] < result["position"]["static"]
    again, *_, notes = trained(records, 0.05, tmp_path)
    assert notes == spent
    assert compare(again, tree, model, records) == result
    with pytest.raises(ValueError, match="was trained with"):
        trained([dataclasses.replace(records[0], trajectory="traj05")], 0.05, tmp_path)
