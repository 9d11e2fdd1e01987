"""Thermostats: what exchanges heat with the internal motion of systems, around their windows.

They act on the momenta between windows, which stay what they are (:mod:`.window`), and on the
internal motion alone: total momentum and, of isolated systems, the rotation about the
:func:`~mdtrajnet_fast.mechanics.rotation_axes` are left as they are. Random numbers are a function
of the seed and the number of the window: a run that is continued draws those of one that was not
stopped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.units import kB

from ..mechanics import InternalMotion


class Action(NamedTuple):
    """What a thermostat does to the internal momenta of a system: scales them, and adds the
    internal part of normal ones whose variance is so many times the mass of the atom."""

    scale: float = 1.0
    variance: float = 0.0  # eV


@dataclass(frozen=True)
class Langevin:
    """Friction and noise, half before and half after each window (OBABO).

    Of the internal momenta p half a step of h / 2 makes c p + sqrt(1 - c^2) sqrt(m kB T) x with
    c = exp(-friction h / 2) and normal x (G. Bussi, M. Parrinello, Phys. Rev. E 75, 056707 (2007)).

    temperature_K: K. friction_per_fs: 1/fs.
    """

    temperature_K: float
    friction_per_fs: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self)

    def before(self, kinetic: float, freedom: int, rng: np.random.Generator, h: float) -> Action:
        """What is done to momenta before a window of h fs."""
        kept = math.exp(-self.friction_per_fs * h / 2)
        return Action(kept, (1 - kept**2) * kB * self.temperature_K)

    after = before


@dataclass(frozen=True)
class CSVR:
    """Canonical sampling by velocity rescaling, after each window.

    All internal momenta are scaled so that their kinetic energy follows its canonical distribution
    with a memory of time_constant_fs; hardly any of the dynamics is disturbed (G. Bussi,
    D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007), eq. A7).

    temperature_K: K. time_constant_fs: fs.
    """

    temperature_K: float
    time_constant_fs: float = 100.0

    def __post_init__(self) -> None:
        check_positive(self)

    def after(self, kinetic: float, freedom: int, rng: np.random.Generator, h: float) -> Action:
        """What is done to momenta after a window of h fs."""
        if not kinetic > 0:
            return Action()
        kept = math.exp(-h / self.time_constant_fs)
        one = rng.standard_normal()
        others = rng.chisquare(freedom - 1) if freedom > 1 else 0.0
        wanted = 0.5 * kB * self.temperature_K / kinetic  # of each degree of freedom
        scale2 = (
            kept
            + (1 - kept) * wanted * (one**2 + others)
            + 2 * one * math.sqrt(kept * (1 - kept) * wanted)
        )
        sign = 1.0 if one + math.sqrt(kept / ((1 - kept) * wanted)) > 0 else -1.0
        return Action(sign * math.sqrt(scale2))


Thermostat = Langevin | CSVR
THERMOSTATS: dict[str, type[Langevin] | type[CSVR]] = {"langevin": Langevin, "csvr": CSVR}


def thermostat_of(given: str | Thermostat, temperature_K: float | None) -> Thermostat:
    """A thermostat, or the one of a name at a temperature (K).

    Raises ValueError for other names and a name without a temperature.
    """
    if isinstance(given, Langevin | CSVR):
        return given
    if given not in THERMOSTATS:
        raise ValueError(f"thermostat must be one of {', '.join(THERMOSTATS)}, got {given!r}")
    if temperature_K is None:
        raise ValueError(f"thermostat = {given!r} needs its temperature: give temperature_K")
    return THERMOSTATS[given](temperature_K)


def describe(thermostat: Thermostat) -> dict[str, Any]:
    """The kind and the numbers of a thermostat, for the metadata of a run."""
    (name,) = (k for k, kind in THERMOSTATS.items() if isinstance(thermostat, kind))
    return {"thermostat": name, **dataclasses.asdict(thermostat)}


class Baths:
    """The thermostats of the systems of one rollout.

    thermostats, atoms, seeds: of each system. stage: another one draws other random numbers.
    heat: [systems] eV, what they have put in by the state that the rollout begins with: 0, or
    what :attr:`heat` was there in the rollout that is continued.

    The attribute heat: [systems] eV, the sum of all changes that the thermostats made to the
    kinetic energies until now. The total energy less the heat is what exact windows conserve (the
    effective energy of G. Bussi, M. Parrinello, Phys. Rev. E 75, 056707 (2007)).
    """

    def __init__(
        self,
        thermostats: Sequence[Thermostat],
        atoms: Sequence[ase.Atoms],
        seeds: Sequence[int],
        stage: int = 0,
        heat: np.ndarray | None = None,
    ):
        self._thermostats = thermostats
        self.heat = np.zeros(len(atoms)) if heat is None else np.array(heat, dtype=np.float64)
        if self.heat.shape != (len(atoms),):
            raise ValueError(
                f"got heat of shape {self.heat.shape} for {len(atoms)} systems; expected one "
                "number of eV for each"
            )
        self._motion = InternalMotion(*atoms)
        sizes = [len(one) for one in atoms]
        self._system = np.repeat(np.arange(len(sizes)), sizes)
        self._parts = [slice(b - n, b) for n, b in zip(sizes, np.cumsum(sizes), strict=True)]
        self._random = np.random.Philox(0)
        self._generator = np.random.Generator(self._random)
        # A state is set in place of making a generator, which would take many times as long.
        self._fresh: Any = self._random.state
        self._keys = [np.array([seed % 2**64, stage], np.uint64) for seed in seeds]

    def before(self, number: int, h: float, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Momenta [atoms, 3] to start window `number`, of h fs, with."""
        return self._act("before", 2 * number, h, x, p)

    def after(self, number: int, h: float, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Momenta [atoms, 3] after it."""
        return self._act("after", 2 * number + 1, h, x, p)

    def _act(self, name: str, number: int, h: float, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        acts = [getattr(one, name, None) for one in self._thermostats]
        if not any(acts):
            return p
        motion, masses = self._motion, self._motion.masses[:, None]
        motion.at(x)
        internal = motion.of(p)
        kinetic = motion.kinetic(internal)
        scale, variance, normal = np.ones(len(acts)), np.zeros(len(acts)), np.zeros_like(p)
        for k, act in enumerate(acts):
            if act is None:
                continue
            random = self._random_of(k, number)
            scale[k], variance[k] = act(float(kinetic[k]), int(motion.freedom[k]), random, h)
            if variance[k]:
                random.standard_normal(out=normal[self._parts[k]])
        acted = scale[self._system, None] * internal
        if variance.any():
            acted += motion.of(np.sqrt(variance[self._system, None] * masses) * normal)
        # a new array: the one before is what frames were given
        self.heat = self.heat + (motion.kinetic(acted) - kinetic)
        return p + (acted - internal)

    def _random_of(self, system: int, number: int) -> np.random.Generator:
        """Random numbers of a system for the act of this number, the same in any company."""
        fresh = self._fresh
        fresh["state"]["key"] = self._keys[system]
        fresh["state"]["counter"][3] = number
        self._random.state = fresh
        return self._generator


def check_positive(thermostat: Any) -> None:
    """Raise ValueError unless all fields of a dataclass are positive numbers."""
    for field in dataclasses.fields(thermostat):
        value = getattr(thermostat, field.name)
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ValueError(
                f"{field.name} of {type(thermostat).__name__} must be a positive number, got "
                f"{value!r}"
            )
