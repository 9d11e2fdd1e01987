"""A model's potential energy, and its dipole, as an ASE calculator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase
from ase.calculators.calculator import Calculator, all_changes

from ..model.checkpoint import load_model
from ..model.network import MDtrajNet
from ..model.window_potentials import ENERGY
from ..system import System


class MDtrajNetCalculator(Calculator):
    """Energies (eV) and forces (eV/Å) of a model with window potentials, for any of ASE's programs;
    dipole moments (e Å) of molecules, if it has a dipole.

    Energies are those of a molecule up to a constant that depends on what it is made of: compare
    geometries, not molecules.

    model: a name or path for :func:`~mdtrajnet_fast.load_model`, or a loaded model. Raises
    ValueError for a model without window potentials and, when it computes, for elements that the
    model does not know; and where a dipole is asked for, as :meth:`.MDtrajNet.dipoles`.
    """

    implemented_properties = ["energy", "energies", "forces", "dipole"]

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
        """Set energy, energies, forces and, if it is asked for, the dipole."""
        super().calculate(atoms, properties, system_changes)
        graph = self.model.graph(System.from_atoms(self.atoms))
        energies, slopes = self.model.predictor().slopes(graph, ENERGY)
        each = energies.double().cpu().numpy()
        forces = -slopes.double().cpu().numpy()
        self.results = {"energy": float(each.sum()), "energies": each, "forces": forces}
        if "dipole" in (properties or ()):
            self.results["dipole"] = self.model.dipoles(self.atoms)
