"""What the charts of a report show: columns of numbers, and which are drawn against which.

Times are in ps here, for people; all else in Å, K, eV, degrees and cm^-1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..analysis.conformations import backbone_torsions
from ..analysis.equipartition import BandWatch
from ..analysis.matter import radial_distribution
from ..analysis.observables import peaks
from ..analysis.spectra import Spectra
from ..io.trajectory import Trajectory
from ..mechanics import (
    atomic_degrees_of_freedom,
    centre_of_mass,
    kinetic_temperature,
    temperature_per_element,
)

Array = NDArray[np.float64]

_POINTS = 500  # of a curve in time, at most
_SMOOTH_FS = 100.0  # temperatures are means over this time, at least: some periods of vibrations
_DOTS = 3000  # of a map, at most
_RDF_FRAMES, _RDF_PLACES = 200, 50_000  # frames, and atoms times frames, at most; evenly chosen
_VISIBLE = 0.01  # of the highest peak: what is seen of a spectrum
_BANDS = (0.0, 500.0, 1000.0, 1500.0, 2000.0, 4500.0)  # cm^-1
_LEAST = 0.005  # of the kinetic energy, that a band has to hold to be drawn


class Series(NamedTuple):
    """A curve: its name, and which columns of the chart are its x and y."""

    name: str
    x: int
    y: int


@dataclass(frozen=True)
class Chart:
    """columns: by heading, the same number of values each; the table that goes with the chart."""

    name: str  # of its file of numbers
    title: str
    x_label: str
    y_label: str
    columns: Mapping[str, ArrayLike]
    series: tuple[Series, ...]
    note: str = ""
    kind: str = "line"  # or "dots"
    peaks: tuple[tuple[float, float], ...] = ()  # (x, y) of the first series
    x_range: tuple[float, float] | None = None  # None: that of the values
    y_range: tuple[float, float] | None = None
    rules: tuple[float, ...] = ()  # y of level lines, such as a target

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers to six digits, None for what is not finite."""
        return {
            "name": self.name,
            "title": self.title,
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "columns": [
                {"name": name, "values": [_rounded(v) for v in np.asarray(values).tolist()]}
                for name, values in self.columns.items()
            ],
            "series": [series._asdict() for series in self.series],
            "kind": self.kind,
            "peaks": [[_rounded(v) for v in peak] for peak in self.peaks],
            "xRange": self.x_range,
            "yRange": self.y_range,
            "rules": self.rules,
        }


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def spectrum_charts(found: Spectra, of: str, reference: Spectra | None = None) -> Iterator[Chart]:
    """Power and infrared spectrum; `of`: what they are of, in the titles.

    reference: the spectrum of another trajectory at the same resolution, drawn beside the first.
    """
    heading = "wavenumber (cm⁻¹)"
    seen = (0.0, _seen(found))
    resolved = f"Resolution {found.resolution:g} cm⁻¹."
    columns, series = {heading: found.wavenumber, "this run": found.motion}, [Series("", 0, 1)]
    if reference is not None:
        columns["reference"] = np.interp(
            found.wavenumber, reference.wavenumber, reference.motion, right=np.nan
        )
        series = [Series("this run", 0, 1), Series("reference", 0, 2)]
    yield Chart(
        "power-spectrum",
        f"Power spectrum of {of}",
        heading,
        "density of states (cm)",
        columns,
        tuple(series),
        note="Vibrational (in a crystal: phonon) density of states: how fast atoms vibrate. "
        f"{resolved}",
        peaks=tuple(peaks(found.wavenumber, found.motion)),
        x_range=seen,
    )
    if found.infrared is not None:
        yield Chart(
            "infrared-spectrum",
            f"Infrared spectrum of {of}",
            heading,
            "absorption, of area 1 (cm)",
            {heading: found.wavenumber, "absorption": found.infrared},
            (Series("", 0, 1),),
            note="Classical line shape of the model's dipoles, with the harmonic quantum "
            f"correction. {resolved}",
            peaks=tuple(peaks(found.wavenumber, found.infrared)),
            x_range=seen,
        )


def _seen(found: Spectra) -> float:
    """Up to where a spectrum is drawn (cm^-1): a bit beyond the last that there is of motion."""
    last = np.flatnonzero(found.motion > _VISIBLE * found.motion.max())[-1]
    return float(min(1.08 * found.wavenumber[last], found.wavenumber[-1]))


def energy_chart(trajectory: Trajectory, of: str) -> Chart:
    """Kinetic energy and, where they are known, potential, total and conserved energy."""
    columns = {"kinetic": trajectory.kinetic_energies}
    note = ""
    if trajectory.potential_energies is not None:
        lowest = float(trajectory.potential_energies.min())
        note = f"Potential energies are those above their lowest, {lowest:.3f} eV. "
        columns["potential"] = trajectory.potential_energies - lowest
        columns["total"] = columns["kinetic"] + columns["potential"]
        if trajectory.heat is not None:
            columns["total less heat"] = columns["total"] - trajectory.heat
    times, means, over = _in_time(trajectory.times, columns, 0.0)
    return _of_time("energies", f"Energies of {of}", "energy (eV)", times, means, note + over)


def temperature_chart(trajectory: Trajectory, of: str, target_K: float | None = None) -> Chart:
    """Kinetic temperature of all atoms and of every element; target_K: of a thermostat."""
    atoms, velocities = trajectory.atoms, trajectory.velocities
    masses = atoms.get_masses()
    velocities = velocities - centre_of_mass(velocities, masses)[:, None]
    freedom = atomic_degrees_of_freedom(trajectory[0])
    columns = {"all": kinetic_temperature(velocities, masses, float(freedom.sum()))}
    if len(set(atoms.numbers)) > 1:
        columns |= temperature_per_element(velocities, masses, atoms.numbers, freedom)
    times, means, over = _in_time(trajectory.times, columns, _SMOOTH_FS)
    rules = () if target_K is None else (target_K,)
    note = (
        over if target_K is None else f"{over} The level line is the thermostat's {target_K:g} K."
    )
    return _of_time(
        "temperatures", f"Temperatures of {of}", "temperature (K)", times, means, note, rules
    )


def band_chart(trajectory: Trajectory, of: str) -> Chart | None:
    """How the kinetic energy is spread over bands of the spectrum; None: too short a run for it."""
    watch = BandWatch(trajectory.atoms.get_masses())
    velocities = trajectory.velocities
    drift = centre_of_mass(velocities, trajectory.atoms.get_masses())
    watch.update(trajectory.times, velocities - drift[:, None])
    middles, spectra, _ = watch.means()
    if len(middles) < 2:
        return None
    wavenumber = watch.bin * np.arange(spectra.shape[1])
    total = spectra.sum(axis=1)
    columns = {}
    for low, high in pairwise(_BANDS):
        inside = (wavenumber >= low) & (wavenumber < high)
        share = 100 * spectra[:, inside].sum(axis=1) / total
        if share.mean() > 100 * _LEAST:
            columns[f"{low:g} to {high:g} cm⁻¹"] = share
    note = "Stretches of 1 ps that overlap by half. In equilibrium every band keeps its share."
    title, label = f"Kinetic energy of {of} by band", "share of the kinetic energy (%)"
    return _of_time("bands", title, label, middles / 1000, columns, note)


def rdf_chart(trajectory: Trajectory, of: str) -> Chart:
    """Radial distribution functions of a periodic system, of every pair of elements."""
    elements = Counter(sorted(trajectory.atoms.get_chemical_symbols()))
    frames = min(_RDF_FRAMES, max(1, _RDF_PLACES // len(trajectory.atoms)))
    some = trajectory[:: -(-len(trajectory) // frames)]
    heading, columns = "distance (Å)", {}
    for a, b in combinations_with_replacement(elements, 2):
        if a != b or elements[a] > 1:
            r, columns[f"{a}-{b}"] = radial_distribution(some, (a, b))
    if not columns:
        raise ValueError("a radial distribution needs two atoms")
    return Chart(
        "rdf",
        f"Radial distribution of {of}",
        heading,
        "g(r)",
        {heading: r, **columns},
        tuple(Series(name, 0, k) for k, name in enumerate(columns, 1)),
        note=f"Of {len(some)} frames. 1: as many neighbours as without order.",
    )


def ramachandran_chart(trajectory: Trajectory, of: str) -> Chart | None:
    """Backbone torsions of a peptide; None where there is none."""
    some = trajectory[:: -(-len(trajectory) // _DOTS)]
    carbons, phi, psi = backbone_torsions(some)
    if not carbons:
        return None
    columns: dict[str, ArrayLike] = {"time (ps)": some.times / 1000}
    series = []
    for k, atom in enumerate(carbons):
        columns |= {f"phi of C{atom} (°)": phi[:, k], f"psi of C{atom} (°)": psi[:, k]}
        series.append(Series(f"at atom {atom}", 2 * k + 1, 2 * k + 2))
    return Chart(
        "ramachandran",
        f"Ramachandran map of {of}",
        "φ (°)",
        "ψ (°)",
        columns,
        tuple(series),
        note="Torsions of the backbone, a dot for each frame.",
        kind="dots",
        x_range=(-180, 180),
        y_range=(-180, 180),
    )


def _in_time(
    times: Array, columns: Mapping[str, Array], least_fs: float
) -> tuple[Array, dict[str, Array], str]:
    """Means over stretches, few enough to draw and of at least so many fs; and a note of that."""
    frames = len(times)
    spacing = float(np.median(np.diff(times))) if frames > 1 else 1.0
    each = max(1, -(-frames // _POINTS), min(round(least_fs / spacing), frames))
    starts = np.arange(0, frames - each + 1, each)  # the rest of the last frames is left out

    def means(values: Array) -> Array:
        return np.add.reduceat(values[: len(starts) * each], starts) / each

    said = "Every frame." if each == 1 else f"Means over {each * spacing:g} fs."
    return means(times) / 1000, {name: means(values) for name, values in columns.items()}, said


def _of_time(
    name: str,
    title: str,
    label: str,
    times: Array,
    columns: Mapping[str, Array],
    note: str,
    rules: tuple[float, ...] = (),
) -> Chart:
    heading = "time (ps)"
    series = tuple(Series(each, 0, k) for k, each in enumerate(columns, 1))
    return Chart(
        name, title, heading, label, {heading: times, **columns}, series, note=note, rules=rules
    )
