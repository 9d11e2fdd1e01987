"""What the runs of a campaign show together: mean spectra with bands, and temperatures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..plots import plot_bands, plot_distributions, write_tables
from .plan import Member

Array = NDArray[np.float64]
Group = tuple[str, str]
_PANELS = 24  # spectra on one page


class MeanSpectrum(NamedTuple):
    """wavenumber [bins] (cm^-1), mean and deviation [bins] (cm) of so many runs."""

    wavenumber: Array
    mean: Array
    deviation: Array  # standard deviation from run to run; 0 of a single one
    runs: int


def write_results(folder: Path, members: Iterable[Member]) -> list[Path]:
    """Write the tables and plots of all complete runs; returns the paths, none if there are none.

    spectra.csv and spectra-1.png, ...: of each structure, temperature and model the mean of the
    vibrational densities of states and their standard deviation from run to run.
    temperatures.csv and temperatures.png: likewise, of the mean kinetic temperatures of the runs.
    """
    groups: dict[Group, list[Member]] = defaultdict(list)
    for one in members:
        if one.outcome == "complete":
            groups[one.group].append(one)
    if not groups:
        return []
    return [*_write_spectra(folder, groups), *_write_temperatures(folder, groups)]


def _titles(groups: Iterable[Group]) -> dict[Group, str]:
    """What plots say of groups: not of which model they are, if all are of one."""
    groups = list(groups)
    several = len({model for _, model in groups}) > 1
    return {group: "-".join(group) if several else group[0] for group in groups}


def mean_spectrum(paths: Iterable[Path]) -> MeanSpectrum | None:
    """Of the spectrum.csv of some runs, those that are there; None: there are none.

    Runs whose bins are not those of the first are left out.
    """
    first: Array | None = None
    count, mean, squares = 0, np.zeros(0), np.zeros(0)
    for path in paths:
        if not path.exists():  # of a run that is too short
            continue
        w, y = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1), unpack=True)
        if first is None:
            first, mean, squares = w, np.zeros(len(w)), np.zeros(len(w))
        if not np.array_equal(w, first):
            continue
        count += 1  # Welford's sums: thousands of runs are not all in memory
        step = y - mean
        mean = mean + step / count
        squares = squares + step * (y - mean)
    if first is None:
        return None
    return MeanSpectrum(first, mean, np.sqrt(squares / max(1, count - 1)), count)


def _write_spectra(folder: Path, groups: dict[Group, list[Member]]) -> Iterator[Path]:
    found = {
        group: spectrum
        for group, some in groups.items()
        if (spectrum := mean_spectrum(one.folder / "spectrum.csv" for one in some)) is not None
    }
    if not found:
        return
    columns: dict[str, list[Any]] = {
        name: [] for name in ("runs_of", "wavenumber_cm-1", "mean_cm", "deviation_cm", "runs")
    }
    for group, one in found.items():
        many = ["-".join(group)] * len(one.wavenumber), [one.runs] * len(one.wavenumber)
        numbers = (x.tolist() for x in one[:3])
        for column, values in zip(columns.values(), (many[0], *numbers, many[1]), strict=True):
            column += values
    write_tables(folder, {"spectra": columns})
    yield folder / "spectra.csv"
    titles = [*_titles(found).items()]
    said = "mean spectra, and their deviation from run to run (of how many)"
    for page, first in enumerate(range(0, len(titles), _PANELS), start=1):
        panels = {
            f"{title} ({found[group].runs})": found[group][:3]
            for group, title in titles[first : first + _PANELS]
        }
        path = folder / f"spectra-{page}.png"
        plot_bands(panels, "wavenumber (cm$^{-1}$)", said, path)
        yield path


def _write_temperatures(folder: Path, groups: dict[Group, list[Member]]) -> Iterator[Path]:
    of_groups: dict[str, Array] = {}
    of_targets: dict[str, list[float]] = defaultdict(list)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("runs_of", "target_K", "mean_K", "deviation_K", "runs")
    }
    titles = _titles(groups)
    for group, some in groups.items():
        kelvins = [_mean_temperature(one) for one in some]
        known = np.array([kelvin for kelvin in kelvins if kelvin is not None])
        if not len(known):  # a single atom
            continue
        target = (some[0].said or {})["settings"]["temperature_K"]
        of_groups[titles[group]] = known
        of_targets["no target" if target is None else f"{target:g} K"] += known.tolist()
        deviation = float(known.std(ddof=1)) if len(known) > 1 else None
        row = ("-".join(group), target, float(known.mean()), deviation, len(known))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    if not of_groups:
        return
    write_tables(folder, {"temperatures": columns})
    yield folder / "temperatures.csv"
    path = folder / "temperatures.png"
    plot_distributions(of_groups, of_targets, "mean temperature of a run (K)", path)
    yield path


def _mean_temperature(member: Member) -> float | None:
    assert member.said is not None
    return member.said["trust"]["temperature"]["mean"]


def counted(members: Sequence[Member]) -> dict[str, int]:
    """How many runs have each outcome."""
    outcomes = [one.outcome for one in members]
    return {name: outcomes.count(name) for name in ("complete", "broken", "failed", "unfinished")}
