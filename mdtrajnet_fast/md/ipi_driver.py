"""A model's potential energy for i-PI: its thermostats, barostats, path integrals.

i-PI takes this file as it is, in the same process, where it asks for many beads at once::

    <ffdirect name="mdtrajnet">
      <pes> custom </pes>
      <pes_path> (mdtrajnet_fast.md.ipi_driver.__file__) </pes_path>
      <parameters> {template: start.xyz, model: molecules-nve} </parameters>
    </ffdirect>

or over a socket, `i-pi-py_driver -m custom -P FILE -o template=start.xyz,model=molecules-nve`.
Needs `pip install "mdtrajnet_fast[ipi]"`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from ipi.pes._ase import ASEDriver

from mdtrajnet_fast.md.calculator import MDtrajNetCalculator, energies_and_forces, stress

__DRIVER_NAME__ = "mdtrajnet"
__DRIVER_CLASS__ = "MDtrajNetDriver"


class MDtrajNetDriver(ASEDriver):
    """Energies, forces and, of a periodic cell, the virial.

    template: file from which ASE reads the elements, and whether they are periodic. model: a name
    or path for :func:`~mdtrajnet_fast.load_model`. Raises ValueError for a template that is
    periodic in one or two directions, and what :class:`.MDtrajNetCalculator` does.
    """

    def __init__(
        self, template: str | os.PathLike[str], model: str = "molecules-nve", **kwargs: Any
    ):
        self.model = model
        super().__init__(str(template), **kwargs)

    def check_parameters(self) -> None:
        """Read the template and the model."""
        super().check_parameters()
        pbc = self.template_ase.pbc
        if pbc.any() and not pbc.all():
            raise ValueError(
                "i-PI's cells are periodic in three directions or, for a molecule, not at all; got "
                f"pbc = {pbc.tolist()} in {self.template}"
            )
        self.ase_calculator = MDtrajNetCalculator(self.model)

    def compute(self, cell: Any, pos: Any) -> Any:
        """Of one structure, or of a list of them, whose energies and forces are one native call."""
        if not isinstance(cell, list):
            return self.compute([cell], [pos])[0]
        many = []
        for one, x in zip(cell, pos, strict=True):
            atoms = self.template_ase.copy()
            atoms.cell, atoms.positions = self.convert_units(one, x)
            many.append(atoms)
        model, results = self.ase_calculator.model, []
        found = energies_and_forces(model, many)
        for atoms, (energies, forces) in zip(many, found, strict=True):
            of_cell = stress(model, atoms) if atoms.pbc.all() else np.zeros((3, 3))
            properties = {"energy": energies.sum(), "forces": forces, "stress": of_cell}
            results.append(self.post_process(properties, atoms))
        return results
