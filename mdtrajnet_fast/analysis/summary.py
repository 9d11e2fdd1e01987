"""What there is to say of how far a trajectory may be trusted: figures, their text, and for JSON.

:mod:`.trust` finds them. Units: Å, fs, K, eV.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .observables import BondChange


@dataclass(frozen=True)
class Temperature:
    """Means in K over the run, its first fifth and its last fifth."""

    mean: float
    first: float
    last: float


@dataclass(frozen=True)
class Energies:
    """Means over the run in eV, and how the energy that is conserved drifts.

    That is the total energy, with a thermostat less the heat that it has put in. The kinetic energy
    is that of all of the motion, the centre of mass included.
    """

    total: float
    potential: float
    kinetic: float
    drift: float | None  # of the conserved one, meV per atom and ps, least squares; None: a single
    # frame, or a thermostat and its heat is not known
    heat: float | None = None  # by the last frame; None: no thermostat, or it is not known


@dataclass(frozen=True)
class TrustSummary:
    """What :class:`.trust.TrustMonitor` saw: ``print`` shows it; no ``warnings`` if all is well."""

    frames: int
    start_fs: float
    end_fs: float
    start_temperature: float  # K, of the first frame
    temperature: Temperature  # in the frame of the centre of mass; nan for one atom
    temperature_drift: float  # K/ps, least squares; nan for a single frame
    elements: dict[str, Temperature]
    strongest_band: tuple[float, float] | None  # share of the kinetic energy, and cm^-1
    occupied_bands: float | None  # how many bands hold the kinetic energy
    phase_spread: float | None  # relative difference of the temperatures of parts of the window
    energies: Energies | None  # None: the potential energies are not known
    energy_change: float | None  # eV, of the total energy, with a thermostat less its heat: mean of
    # the last fifth less that of the first 200 fs; None: potential energies or heat not known
    unexplained_work: float | None  # change of the total energy from frame to frame, as a part of
    # that of the kinetic energy (root mean squares); None: potential energies not known, a
    # thermostat, or frames too far apart
    force_errors: tuple[float, ...] | None  # eV/Å, expected for each atom, root mean squares of the
    # run; None: the model does not know
    centre_of_mass_drift: float  # Å, the farthest from straight-line motion
    angular_momentum_drift: float | None  # the largest change, of the thermal size; None: periodic
    bonds: int  # in the first frame
    broken: tuple[BondChange, ...]
    formed: tuple[BondChange, ...]
    lonely_atoms: tuple[int, ...]  # without a neighbour within the model's cutoff at some time
    unusable_from_fs: float | None  # first frame with a number that is not finite, or atoms that
    # sit on each other; nothing after it is counted
    believable_fs: float  # until when the run may be believed
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing to warn of."""
        return not self.warnings

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text for JSON; None stands for what is not defined."""
        return _plain({**dataclasses.asdict(self), "ok": self.ok})

    def __str__(self) -> str:
        if self.ok:
            verdict = f"no warnings, believable to its end at {self.end_fs:g} fs"
        else:
            count = len(self.warnings)
            until = (
                f"NOT believable beyond {self.believable_fs:g} of {self.end_fs:g} fs"
                if self.believable_fs > self.start_fs
                else "NOT believable"
            )
            verdict = f"{until}, {count} warning{'s' if count > 1 else ''}"
        lines = [f"Trust: {verdict} ({self.frames} frames)"]
        for name, t in {"temperature": self.temperature, **self.elements}.items():
            label = name if name == "temperature" else f"  of {name}"
            value = f"{t.mean:8.1f} K   first fifth {t.first:.1f}, last fifth {t.last:.1f}"
            lines.append(f"  {label:<17}{'not defined' if math.isnan(t.mean) else value}")
        if not math.isnan(self.temperature_drift):
            lines[1] += f", drift {self.temperature_drift:+.1f} K/ps"
        if not math.isnan(self.start_temperature):
            lines[1] += f", first frame {self.start_temperature:.1f} K"
        if self.strongest_band is not None:
            share, where = self.strongest_band
            lines.append(
                f"  strongest band   {100 * share:8.1f} % of the kinetic energy, at "
                f"{where:.0f} cm^-1; it is spread over {self.occupied_bands:.1f} bands"
            )
        if self.phase_spread is not None:
            lines.append(
                f"  in the window    {100 * self.phase_spread:8.1f} % between temperatures of parts"
            )
        if (e := self.energies) is not None:
            of = "" if e.heat is None else " of the total energy less heat"
            drift = "" if e.drift is None else f"; drift{of} {e.drift:+.3f} meV per atom and ps"
            lines.append(
                f"  total energy     {e.total:8.3f} eV on average, potential {e.potential:.3f} and "
                f"kinetic {e.kinetic:.3f}{drift if e.heat is None else ''}"
            )
            if e.heat is not None:
                lines.append(f"  heat put in      {e.heat:+8.3f} eV by the end{drift}")
        if self.energy_change is not None:
            lines.append(
                f"  its last fifth   {self.energy_change:+8.3f} eV beside the first 200 fs"
            )
        if self.unexplained_work is not None:
            lines.append(
                f"  its changes      {100 * self.unexplained_work:8.1f} % of those of the kinetic "
                "energy, from frame to frame"
            )
        if self.force_errors is not None:
            errors = np.array(self.force_errors)
            lines.append(
                f"  force errors     {np.sqrt((errors**2).mean()):8.3f} eV/Å expected, "
                f"{errors.max():.3f} of atom {int(errors.argmax())}"
            )
        lines.append(f"  centre of mass   {self.centre_of_mass_drift:8.1e} Å off a straight line")
        if self.angular_momentum_drift is not None:
            lines.append(
                f"  angular momentum {self.angular_momentum_drift:8.1e} of its thermal size"
            )
        lines.append(
            f"  bonds            {self.bonds:8d}, {len(self.broken)} broken, {len(self.formed)} "
            "formed"
        )
        return "\n".join(lines + [f"  WARNING: {text}" for text in self.warnings])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
