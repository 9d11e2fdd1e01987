"""A Nosé-Hoover chain around the steps of reference trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np
from ase.md.nose_hoover_chain import NoseHooverChainThermostat
from ase.units import fs

from ..md.thermostats import check_positive
from ..mechanics import degrees_of_freedom


@dataclass(frozen=True)
class NoseHoover:
    """The constants of a chain of three thermostats.

    temperature_K: K. time_constant_fs: fs, of the exchange of heat.
    """

    temperature_K: float
    time_constant_fs: float = 100.0

    def __post_init__(self) -> None:
        check_positive(self)


class NoseHooverChain:
    """ASE's Nosé-Hoover chain for one system, with what Baths of :mod:`..md.thermostats` have.

    Half a step of the chain before and half a step after each step of velocity Verlet (G. J.
    Martyna, M. E. Tuckerman, D. J. Tobias, M. L. Klein, Mol. Phys. 87, 1117 (1996)).

    It scales all momenta alike, so that a system without net momentum and rotation has none; and it
    is the chain of the degrees of freedom that are left, where :class:`ase.md.nose_hoover_chain.
    NoseHooverChainNVT` has three of every atom (a water molecule were three times too hot).
    """

    def __init__(self, constants: NoseHoover, atoms: ase.Atoms):
        self._chain = NoseHooverChainThermostat(
            # which it takes for three degrees of freedom each, and uses for nothing else
            num_atoms_global=degrees_of_freedom(atoms) / 3,  # type: ignore[arg-type]
            masses=atoms.get_masses()[:, None],
            temperature_K=constants.temperature_K,
            tdamp=constants.time_constant_fs * fs,
        )

    @property
    def heat(self) -> np.ndarray:
        """[1] eV, what the chain has put in: less its own energy."""
        return np.array([-self._chain.get_thermostat_energy()])

    def before(self, number: int, h: float, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Momenta [atoms, 3] to start a step of h fs with."""
        return self._chain.integrate_nhc(p.copy(), h * fs / 2)

    after = before
