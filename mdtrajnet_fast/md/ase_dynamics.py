"""MDtrajNetDynamics: the rollout as an ASE dynamics, so that observers, loggers and files work."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.md import MolecularDynamics

from ..mechanics import thermal_velocities
from ..model.checkpoint import load_model
from ..model.network import MDtrajNet
from ..system import System, check_unconstrained
from .calculator import MDtrajNetCalculator
from .rollout import check_rate, rollout
from .thermostats import Baths, Thermostat, thermostat_of
from .window import beyond_training, method_of, stride_of, too_close

_SAME = 1e-9  # Å


class UnknownEnergy(Calculator):
    """A calculator that says that the potential energy is not known: not a number.

    ASE's loggers ask for the energy at every step; a model that predicts positions has none, or one
    up to a constant that it does not know.
    """

    implemented_properties = ["energy"]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Any = None,
        system_changes: Any = all_changes,
    ) -> None:
        """Set the energy (eV) to not-a-number."""
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": float("nan")}


class MDtrajNetDynamics(MolecularDynamics):
    """Predicted molecular dynamics behind the interface of ASE's integrators.

    atoms: an ase.Atoms with momenta, or at rest with a temperature; moved in place, unwrapped.
    timestep: spacing of the frames in ASE units (1 fs is ase.units.fs). A step moves the atoms to
        the next frame; the frames of a window are predicted together.
    model: a name or path for :func:`~mdtrajnet_fast.load_model`, or a loaded model.
    window: stride of the rollout (fs); None for the model's own.
    method, energy_rate, thermostat, temperature_K, seed: as for :func:`~mdtrajnet_fast.simulate`:
        temperature_K draws velocities (in place, over those of the atoms) and is that of a
        thermostat by name; "langevin", "csvr" or an object of :mod:`.thermostats`, which leaves
        velocities as they are, unless the atoms are at rest. A dynamics that goes on from another
        one's atoms needs another seed, or it draws the same random numbers again.
    Further arguments are those of ase.md.md.MolecularDynamics: trajectory, logfile, ...

    The attribute `heat` (eV) is what the thermostat has put in so far; total energy less heat is
    conserved.

    Observers may change the atoms, as ASE's own thermostats do: a new window then starts from the
    state they leave, and a model with a potential keeps the energy of that state. Observers that
    wrap atoms into the cell, or change what lies below 1e-9 of the state, change nothing. Forces
    are not asked for. Atoms without a calculator get :class:`.MDtrajNetCalculator`, so that loggers
    print the model's own energies, or, of a model without window potentials,
    :class:`UnknownEnergy`, so that they print "nan".

    Raises ValueError for systems that the model is not for, elements and isotopes that it does not
    know, atoms at rest without a temperature, a thermostat by name without one, and what
    :func:`~mdtrajnet_fast.system.check_atoms` refuses, constraints among it.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        model: str | Path | MDtrajNet = "molecules-nve",
        window: float | None = None,
        method: str | None = None,
        energy_rate: float | None = None,
        thermostat: str | Thermostat | None = None,
        temperature_K: float | None = None,
        seed: int | None = 0,
        **kwargs: Any,
    ):
        self.model = model if isinstance(model, MDtrajNet) else load_model(model)
        system = System.from_atoms(atoms)
        system.check_masses()
        self.model.check_systems(system)
        self.model.species_index(system.numbers)
        self.method = method_of(self.model, method)
        self.energy_rate = None if energy_rate is None else check_rate(energy_rate)
        self.window = stride_of(self.model, self.method, window)
        for wrong in (
            beyond_training(self.model, self.method, self.window),
            too_close(system),
            self.model.outgrown(system),
        ):
            if wrong is not None:
                warnings.warn(wrong, RuntimeWarning, stacklevel=2)
        self.thermostat: Thermostat | None = None
        if thermostat is not None:
            self.thermostat = thermostat_of(thermostat, temperature_K)
        self.seed = secrets.randbits(31) if seed is None else seed
        if temperature_K is None and not atoms.get_momenta().any():
            if self.thermostat is None:
                raise ValueError(
                    "the atoms are at rest: give temperature_K, or set momenta first, for instance "
                    "with mdtrajnet_fast.thermal_velocities(atoms, temperature_K, seed)"
                )
            temperature_K = self.thermostat.temperature_K
        if temperature_K is not None:
            thermal_velocities(atoms, temperature_K, self.seed)
        if atoms.calc is None:
            known = self.model.window_potentials is not None
            atoms.calc = MDtrajNetCalculator(self.model) if known else UnknownEnergy()
        super().__init__(atoms, timestep, **kwargs)
        self.heat = 0.0
        self._begun = 0  # motions: of the first state, and of each that observers left
        self._coming: Iterator[tuple[np.ndarray, np.ndarray, float]] = iter(())
        self._last: tuple[np.ndarray, ...] | None = None
        self._wrapped = np.zeros((len(atoms), 3))  # Å, by observers

    def step(self) -> None:
        """Move the atoms to the next frame. Raises ValueError if there are constraints by now."""
        check_unconstrained(self.atoms)
        images = self._images()
        if images is None:
            self._coming, self._wrapped = self._frames(), np.zeros((len(self.atoms), 3))
        else:
            self._wrapped += images
        self._last = None  # until there is a frame: Ctrl-C ends the motion that is under way
        positions, momenta, self.heat = next(self._coming)
        self.atoms.set_positions(positions + self._wrapped)
        self.atoms.set_momenta(momenta)
        self._last = self._state()

    def _images(self) -> np.ndarray | None:
        """By which lattice vectors (Å) observers moved the atoms; None if they changed the state.

        What an observer does and undoes leaves other last bits, and wrapping other images: the
        motion that is under way goes on.
        """
        if self._last is None:
            return None
        state = self._state()
        if not all(map(np.array_equal, state[2:], self._last[2:])):
            return None
        (x, p), (last_x, last_p) = state[:2], self._last[:2]
        if not np.allclose(p, last_p, rtol=1e-9, atol=1e-9 * abs(last_p).max()):
            return None
        moved, cell = x - last_x, self.atoms.cell.complete()[:]
        images = np.rint(moved @ np.linalg.inv(cell)) * self.atoms.pbc @ cell
        return images if np.allclose(moved, images, rtol=0, atol=_SAME) else None

    def _state(self) -> tuple[np.ndarray, ...]:
        a = self.atoms
        state = a.positions, a.get_momenta(), a.numbers, a.get_masses(), a.cell[:], a.pbc
        return tuple(x.copy() for x in state)

    def _frames(self) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        system = System.from_atoms(self.atoms)
        system.check_masses()
        momenta = self.atoms.get_momenta()
        # ASE's unit of time is irrational in fs: round away what the conversion adds
        dt = float(np.round(self.dt / units.fs, 9))
        baths = None
        if self.thermostat is not None:
            # stages of their own, of which the equilibration of `simulate` has the second
            stage, heat = 2 * self._begun, np.array([self.heat])
            baths = Baths([self.thermostat], [self.atoms], [self.seed], stage, heat)
        self._begun += 1
        windows = rollout(
            self.model,
            system,
            momenta,
            dt=dt,
            window=self.window,
            method=self.method,
            energy_rate=self.energy_rate,
            baths=baths,
            at_once=1,  # observers may change what follows
        )
        for frames in windows:
            heat = np.zeros((len(frames.times), 1)) if frames.heat is None else frames.heat
            yield from zip(frames.positions, frames.momenta, heat[:, 0].tolist(), strict=True)

    def irun(self, steps: int = 50) -> Iterator[bool]:
        """Run as a generator that yields after every step; no forces are asked for."""
        self.max_steps = self.nsteps + steps
        if self.nsteps == 0:
            self.call_observers()
        yield steps == 0
        while self.nsteps < self.max_steps:
            self.step()
            self.nsteps += 1
            self.call_observers()
            yield self.nsteps == self.max_steps

    def run(self, steps: int = 50) -> bool:
        """Run `steps` steps; returns True."""
        for _ in self.irun(steps):
            pass
        return True
