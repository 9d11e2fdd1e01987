"""A model's potential energy, and its dipole, as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ..model.checkpoint import load_model
from ..model.network import MDtrajNet
from ..model.window_potentials import ENERGY
from ..system import System


class MDtrajNetCalculator(Calculator):
    """Energies (eV) and forces (eV/Å) of a model with window potentials, for any of ASE's programs;
    stress (eV/Å^3) of cells that are periodic in three directions; dipole moments (e Å) of
    molecules, if it has a dipole.

    Energies are those of a molecule up to a constant that depends on what it is made of: compare
    geometries, not molecules.

    model: a name or path for :func:`~mdtrajnet_fast.load_model`, or a loaded model. Raises
    ValueError for a model without window potentials and, when it computes, for elements that the
    model does not know; and where a dipole is asked for, as :meth:`.MDtrajNet.dipoles`; ASE's
    PropertyNotImplementedError where a stress is asked for and there is no such cell.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "dipole"]

    def __init__(self, model: str | Path | MDtrajNet = "molecules-nve", **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model if isinstance(model, MDtrajNet) else load_model(model)
        if self.model.window_potentials is None:
            raise ValueError(
                f"model {self.model.name!r} has no window potentials, whose energies and forces "
                "these are: train them with "
                'target = "window_potentials" in a recipe'
            )

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Any = None,
        system_changes: Any = all_changes,
    ) -> None:
        """Set energy, energies, forces and, if they are asked for, the stress and the dipole."""
        super().calculate(atoms, properties, system_changes)
        ((energies, forces),) = energies_and_forces(self.model, [self.atoms])
        energy = float(energies.sum())
        self.results = {"energy": energy, "energies": energies, "forces": forces}
        self.results["free_energy"] = energy  # filters of cells ask for it by this name
        if "stress" in (properties or ()):
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress(self.model, self.atoms))
        if "dipole" in (properties or ()):
            self.results["dipole"] = self.model.dipoles(self.atoms)


def energies_and_forces(
    model: MDtrajNet, many: Sequence[ase.Atoms]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Atomic energies [atoms] eV and forces [atoms, 3] eV/Å of each system, in one native call."""
    system = System.from_atoms(many)
    energies, slopes = model.predictor().slopes(model.graph(system), ENERGY)
    each, forces = energies.double().cpu().numpy(), -slopes.double().cpu().numpy()
    inner = system.ptr[1:-1]
    return list(zip(np.split(each, inner), np.split(forces, inner), strict=True))


def stress(model: MDtrajNet, atoms: ase.Atoms) -> np.ndarray:
    """[3, 3] eV/Å^3, by the reference arithmetic of the window potentials."""
    if not atoms.pbc.all():
        raise PropertyNotImplementedError(
            f"stress is that of a cell that is periodic in three directions, got pbc = "
            f"{atoms.pbc.tolist()}"
        )
    potentials = model.window_potentials
    assert potentials is not None
    graph = model.graph(System.from_atoms(atoms))
    virial = potentials.virial(graph, torch.full_like(graph.species, ENERGY))
    return virial.cpu().numpy() / atoms.get_volume()
