"""Whether predicted runs are dynamics: beside reference runs from the same starts.

What is compared is pooled over the starts of each molecule. How far one half of the reference's
runs is from the other half stands beside it: what the choice of starts alone makes of a figure. A
prediction shares its starts with the reference and can be nearer than that.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.optimize import LBFGS
from numpy.typing import NDArray
from tqdm import tqdm

from ..analysis.normal_modes import NormalModes, mode_temperatures, normal_modes
from ..analysis.observables import (
    FRAME_ROWS,
    infrared_spectrum,
    peaks,
    vibrational_density_of_states,
)
from ..analysis.trust import trust_summary
from ..data.generate import teacher
from ..data.records import Record, as_trajectory, check_constant_energy
from ..io.trajectory import Trajectory
from ..md.calculator import MDtrajNetCalculator
from ..md.rollout import potential_energies
from ..md.simulation import simulate
from ..mechanics import (
    atomic_degrees_of_freedom,
    kinetic_temperature,
    temperature_per_element,
)
from ..model.network import MDtrajNet
from ..model.window_potentials import ENERGY
from ..plots import plot_mode_temperatures, plot_spectra, write_tables
from ..system import System, check_masses

Array = NDArray[np.float64]

RESOLUTION, HIGHEST = 30.0, 4000.0  # of spectra, cm^-1
PEAKS = 10  # so many of the reference's lines are looked for
_FAINTEST = 0.005  # prominence of a line that may be one of them, of the highest intensity
_SINGLE_POINTS = 40  # of the teacher, along a run
_FORCE, _RELAX_STEPS, _SHIFT = 0.01, 500, 0.01  # eV/Å; of the minimum; Å, of the Hessian

# Figures of a molecule: heading, format, and whether the worst is the largest, the smallest, or the
# one farthest from 1.
FIGURES = {
    "r": ("r", ".2f", "smallest"),
    "W1_cm-1": ("W1", ".0f", "largest"),
    "W1_of_width": ("of width", ".1%", "largest"),
    "shift_cm-1": ("shift", ".0f", "largest"),
    "largest_shift_cm-1": ("largest", ".0f", "largest"),
    "temperature": ("T", ".2f", "from 1"),
    "element_error": ("element", ".0%", "largest"),
    "mode_error": ("modes", ".0%", "largest"),
    "r_ir": ("r IR", ".2f", "smallest"),
}
_SAID = {
    "r": "spectra: correlation",
    "W1_cm-1": "  Wasserstein-1 distance (cm-1)",
    "W1_of_width": "  of the width of the spectrum",
    "shift_cm-1": "  shift of the strongest peaks (cm-1)",
    "largest_shift_cm-1": "  largest shift (cm-1)",
    "temperature": "temperature, relative",
    "element_error": "  of the element farthest off",
    "mode_error": "  of normal modes (rms)",
    "r_ir": "infrared spectra: correlation",
}


def reference_runs(
    model: MDtrajNet,
    records: Sequence[Record],
    *,
    duration: float | None = None,
    spacing: float | None = None,
) -> list[Trajectory]:
    """The frames of records that predictions are compared with.

    duration: at most so long (fs). spacing: of the frames (fs); None for the records' own.

    Raises ValueError, naming the trajectory, for elements that the model does not know, a spacing
    that is no multiple of the record's or differs from that of others, frames too far apart for
    4,000 cm^-1, runs too short for a resolution of 30 cm^-1 (1.6 ps), and runs with a thermostat.
    """
    check_constant_energy(records, "a comparison of runs")
    runs: list[Trajectory] = []
    for record in records:
        where = f"{record.molecule}/{record.trajectory}"
        every = 1 if spacing is None else round(spacing / record.frame_fs)
        if spacing is not None and not np.isclose(every * record.frame_fs, spacing, atol=1e-6):
            raise ValueError(
                f"{where}: frames every {record.frame_fs:g} fs cannot be thinned to {spacing:g} "
                "fs: expected a multiple"
            )
        last = None if duration is None else 1 + round(duration / record.frame_fs)
        run = as_trajectory(record)[:last:every]
        try:
            model.species_index(run.atoms.numbers)
            check_masses(run.atoms.numbers, run.atoms.get_masses(), "the molecule")
            spectrum(run)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if runs and not np.isclose(run.times[1], runs[0].times[1]):
            raise ValueError(
                f"{where}: frames every {run.times[1]:g} fs, but those before every "
                f"{runs[0].times[1]:g} fs: give a spacing that all can be thinned to"
            )
        runs.append(run)
    return runs


def predicted_runs(
    model: MDtrajNet, references: Sequence[Trajectory], **settings: Any
) -> list[Trajectory]:
    """Runs from the first frames of others, with frames at the same times, in one batch.

    settings: those of :func:`~mdtrajnet_fast.simulate`. A run that breaks down is shorter. Runs of
    different lengths are predicted one length after the other.
    """
    made: dict[int, Trajectory] = {}
    for length in sorted({len(run) for run in references}):
        some = [k for k, run in enumerate(references) if len(run) == length]
        times = references[some[0]].times
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runs that break down are counted
            runs = simulate(
                [references[k][0] for k in some],
                dt=float(times[1]),
                duration=float(times[-1]),
                model=model,
                **settings,
            )
        assert isinstance(runs, list)
        made |= dict(zip(some, runs, strict=True))
    return [made[k] for k in range(len(references))]


# ---- What is looked at in a run.


def spectrum(run: Trajectory) -> tuple[Array, Array]:
    """Wavenumbers (cm^-1) and intensities of the power spectrum; the latter add up to 1."""
    w, intensity = vibrational_density_of_states(
        run.velocities,
        run.atoms.get_masses(),
        float(run.times[1] - run.times[0]),
        resolution=RESOLUTION,
        max_wavenumber=HIGHEST,
    )
    return w, intensity / intensity.sum()


def infrared(dipoles: Array, dt: float) -> Array:
    """Infrared intensities on the wavenumbers of :func:`spectrum`; they add up to 1.

    dipoles: [frames, 3] e Å, dt fs apart.
    """
    how = {"resolution": RESOLUTION, "max_wavenumber": HIGHEST}
    _, intensity = infrared_spectrum(dipoles, dt, **how)
    return intensity / intensity.sum()


def wasserstein(w: Array, a: Array, b: Array) -> float:
    """Wasserstein-1 distance (cm^-1) of two spectra on the same wavenumbers, even from 0 on.

    The area between their cumulative distributions; a line that is shifted as a whole is as far
    away as it is shifted.
    """
    return float(abs(np.cumsum(a) - np.cumsum(b)).sum() * w[1])


def width(w: Array, a: Array) -> float:
    """What holds 98 % of a spectrum, between its first and its last hundredth (cm^-1)."""
    total = np.cumsum(a)
    return float(np.subtract(*w[np.searchsorted(total, [0.99, 0.01])]))


def peak_shifts(w: Array, reference: Array, other: Array) -> Array:
    """How far the strongest peaks of a spectrum (up to ten) are from the nearest ones of another.

    [peaks] cm^-1; empty where one of them has none.
    """
    strongest = np.array([x for x, _ in peaks(w, reference, PEAKS)])
    there = np.array([x for x, _ in peaks(w, other, len(w), _FAINTEST)])
    if not len(strongest) or not len(there):
        return np.empty(0)
    apart = there - strongest[:, None]
    return apart[np.arange(len(strongest)), abs(apart).argmin(1)]


def modes_near(model: MDtrajNet, atoms: ase.Atoms) -> NormalModes:
    """The normal modes of a model's potential at the minimum nearest to where atoms are.

    Of the Hessian by central differences of the native slopes. Where the relaxation does not end
    within 500 steps, at its last geometry. Raises ValueError for a model without window potentials.

    Modes of a Hessian, and not bands of the spectrum, because these tell the temperature of a
    vibration from where its line lies: a line that a prediction puts elsewhere is not a cold band
    beside a hot one.
    """
    relaxed = atoms.copy()
    relaxed.calc = MDtrajNetCalculator(model)
    LBFGS(relaxed, logfile=os.devnull).run(fmax=_FORCE, steps=_RELAX_STEPS)
    relaxed.calc = None
    numbers = 3 * len(atoms)
    moved = _SHIFT * np.eye(numbers).reshape(numbers, -1, 3)
    many = []
    for positions in (*(relaxed.positions + moved), *(relaxed.positions - moved)):
        one = relaxed.copy()
        one.positions = positions
        many.append(one)
    _, slopes = model.predictor().slopes(model.graph(System.from_atoms(many)), ENERGY)
    ahead, behind = slopes.cpu().numpy().reshape(2, numbers, numbers)
    return normal_modes(relaxed, (ahead - behind) / (2 * _SHIFT))


@dataclass(frozen=True)
class Seen:
    """What is compared of a run, or the means over several.

    spectrum: [bins]. temperature: K. elements: K by symbol. modes: [modes] K, softest first; None
    where no modes are known. infrared: [bins]; None where no dipoles are known.
    """

    spectrum: Array
    temperature: float
    elements: dict[str, float]
    modes: Array | None
    infrared: Array | None

    @classmethod
    def of(cls, run: Trajectory, modes: NormalModes | None, dipoles: Array | None) -> Seen:
        """Of one run; dipoles: [frames, 3] e Å."""
        v, m, z = run.velocities, run.atoms.get_masses(), run.atoms.numbers
        freedom = atomic_degrees_of_freedom(run[0])
        elements = temperature_per_element(v, m, z, freedom)
        return cls(
            spectrum(run)[1],
            float(kinetic_temperature(v, m, freedom.sum()).mean()),
            {symbol: float(kelvin.mean()) for symbol, kelvin in elements.items()},
            None if modes is None else mode_temperatures(run, modes),
            None if dipoles is None else infrared(dipoles, float(run.times[1] - run.times[0])),
        )

    @classmethod
    def mean(cls, runs: Sequence[Seen]) -> Seen:
        """Pooled over runs. Conformers that count as linear have a mode more, a soft one."""
        modes = None
        if all(run.modes is not None for run in runs):
            each = [run.modes for run in runs if run.modes is not None]
            least = min(map(len, each))
            modes = np.mean([one[len(one) - least :] for one in each], axis=0)
        lines = [run.infrared for run in runs if run.infrared is not None]
        return cls(
            np.mean([run.spectrum for run in runs], axis=0),
            float(np.mean([run.temperature for run in runs])),
            {e: float(np.mean([run.elements[e] for run in runs])) for e in runs[0].elements},
            modes,
            np.mean(lines, axis=0) if len(lines) == len(runs) else None,
        )


def difference(w: Array, seen: Seen, reference: Seen) -> dict[str, Any]:
    """The figures of FIGURES, and element: the one farthest off. None: not known.

    w: wavenumbers of the spectra, cm^-1. Errors are relative to the reference; that of the modes is
    the root mean square of their differences, relative to the reference's mean, because a single
    mode may be near 0 K.
    """
    apart = wasserstein(w, seen.spectrum, reference.spectrum)
    shifts = abs(peak_shifts(w, reference.spectrum, seen.spectrum))
    errors = {e: abs(kelvin / reference.elements[e] - 1) for e, kelvin in seen.elements.items()}
    farthest = max(errors, key=lambda e: errors[e])
    modes = None
    if seen.modes is not None and reference.modes is not None:
        apart_K = seen.modes - reference.modes
        modes = float(np.sqrt(np.mean(apart_K**2)) / reference.modes.mean())
    r_ir = None
    if seen.infrared is not None and reference.infrared is not None:
        r_ir = float(np.corrcoef(seen.infrared, reference.infrared)[0, 1])
    return {
        "r": float(np.corrcoef(seen.spectrum, reference.spectrum)[0, 1]),
        "W1_cm-1": apart,
        "W1_of_width": apart / width(w, reference.spectrum),
        "shift_cm-1": float(np.median(shifts)) if len(shifts) else None,
        "largest_shift_cm-1": float(shifts.max()) if len(shifts) else None,
        "temperature": seen.temperature / reference.temperature,
        "element": farthest,
        "element_error": errors[farthest],
        "mode_error": modes,
        "r_ir": r_ir,
    }


def energy_drift(run: Trajectory, calculator: Calculator) -> float:
    """Slope of the total energy along a run, meV per atom and ps, by single points of a calculator.

    Of 40 frames, evenly chosen. nan where the calculator fails.
    """
    chosen = run[:: max(1, (len(run) - 1) // (_SINGLE_POINTS - 1))]
    atoms, energies = run.atoms.copy(), []
    atoms.calc = calculator
    for positions in chosen.positions:
        atoms.positions = positions
        try:
            energies.append(atoms.get_potential_energy())
        except CalculationFailed:
            return np.nan
    kinetic = [frame.get_kinetic_energy() for frame in chosen]
    return slope(chosen.times, np.add(energies, kinetic), len(atoms))


def slope(times: Array, energies: Array, atoms: int) -> float:
    """By least squares, of energies (eV) against times (fs), in meV per atom and ps."""
    return 1e6 * float(np.polyfit(times, energies, 1)[0]) / atoms


# ---- The comparison.


@dataclass
class Comparison:
    """What :func:`compare_runs` found. ``print`` shows it; ``write`` keeps it.

    title: what was predicted. tables: "molecules" (a row each: FIGURES, the same with "_halves",
    drifts, broken bonds, warnings of trust), "elements" and "modes" (K), as columns. spectra: of
    each molecule wavenumbers (cm^-1), and intensities by "reference" and "predicted". notes: on all
    of the runs.
    """

    title: str
    tables: dict[str, dict[str, list[Any]]]
    spectra: dict[str, tuple[Array, dict[str, Array]]]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, list[Any]]:
        """Medians over the molecules and worst values of FIGURES, halves beside: a row each."""
        table = self.tables["molecules"]
        found: dict[str, list[Any]] = {"figure": list(FIGURES)}
        for end in ("", "_halves"):
            columns = [_known(table[name + end]) for name in FIGURES]
            kinds = [worst for _, _, worst in FIGURES.values()]
            found["median" + end] = [float(np.median(x)) if len(x) else None for x in columns]
            found["worst" + end] = [
                float(x[_WORST[kind](x)]) if len(x) else None
                for x, kind in zip(columns, kinds, strict=True)
            ]
        return found

    def __str__(self) -> str:
        lines = [self.title, "", *self._summary_lines(), "", *self._molecule_lines()]
        return "\n".join([*lines, "", *self.notes])

    def _summary_lines(self) -> list[str]:
        table = self.summary()
        wide = max(map(len, _SAID.values()))
        lines = [f"{'':<{wide}}    median   worst    halves: median   worst"]
        for name, *values in zip(*table.values(), strict=True):
            cells = [_cell(x, FIGURES[name][1], 7) for x in values]
            lines.append(f"{_SAID[name]:<{wide}}   {' '.join(cells[:2]):<25} {' '.join(cells[2:])}")
        return lines

    def _molecule_lines(self) -> list[str]:
        table = self.tables["molecules"]
        alone = ("W1_of_width", "largest_shift_cm-1")  # in the summary and the files only
        shown = [name for name in FIGURES if name not in alone]
        wide = max(map(len, table["molecule"]))
        heads = " ".join(f"{FIGURES[name][0]:>7}" for name in shown)
        ends = f"{'drift':>7} {'(ref.)':>7} {'bonds':>7} {'at (ps)':>7} {'warned':>7}"
        over = len(heads)
        lines = [
            f"{'':<{wide}}      {'predicted':<{over}}  | {'halves':<{over}}  | meV/(atom ps)  runs",
            f"{'':<{wide}} runs {heads}  | {heads}  | {ends}",
        ]
        for k, molecule in enumerate(table["molecule"]):
            parts = [
                " ".join(_cell(table[name + end][k], FIGURES[name][1], 7) for name in shown)
                for end in ("", "_halves")
            ]
            drifts = [_cell(table[x][k], "+.2f", 7) for x in ("drift", "drift_reference")]
            counts = [
                f"{table['changed'][k]:7d}",
                _cell(table["first_broken_ps"][k], ".2f", 7),
                f"{table['warned'][k]:7d}",
            ]
            lines.append(
                f"{molecule:<{wide}} {table['runs'][k]:4d} {parts[0]}  | {parts[1]}  | "
                f"{' '.join(drifts + counts)}"
            )
        return lines

    def write(self, folder: str | Path) -> None:
        """Write tables (.csv) and plots (.png) to a folder, which is made where there is none."""
        spectra: dict[str, list[Any]] = {
            name: [] for name in ("molecule", "wavenumber_cm-1", "reference", "predicted")
        }
        for molecule, (w, each) in self.spectra.items():
            spectra["molecule"] += [molecule] * len(w)
            spectra["wavenumber_cm-1"] += w.tolist()
            for kind in ("reference", "predicted"):
                spectra[kind] += each[kind].tolist() if kind in each else [None] * len(w)
        write_tables(folder, self.tables | {"summary": self.summary(), "spectra": spectra})
        plot_spectra(self.spectra, self.title, Path(folder) / "spectra.png")
        if self.tables["modes"]["molecule"]:
            plot_mode_temperatures(self.tables["modes"], Path(folder) / "modes.png")


_WORST: dict[str, Callable[[Array], Any]] = {
    "largest": np.argmax,
    "smallest": np.argmin,
    "from 1": lambda x: np.argmax(abs(x - 1)),
}


def _known(column: Sequence[float | None]) -> Array:
    values = np.array([np.nan if x is None else x for x in column], dtype=float)
    return values[np.isfinite(values)]


def _cell(value: float | None, form: str, wide: int) -> str:
    return f"{'-' if value is None or np.isnan(value) else format(value, form):>{wide}}"


def compare_runs(
    model: MDtrajNet,
    records: Sequence[Record],
    references: Sequence[Trajectory],
    predicted: Sequence[Trajectory],
    title: str = "",
    *,
    progress: bool = False,
) -> Comparison:
    """Compare predicted runs with reference runs from the same starts, molecule by molecule.

    records: which references are of. model: its potential's modes and its judgement of the
    reference runs are asked for. title: what was predicted. Runs that broke down count as broken
    and take part in nothing else.

    Spectra: :func:`spectrum`, up to 4,000 cm^-1 with a resolution of 30. Their width holds 98 % of
    the intensity. Shifts are those of the reference's ten strongest peaks to the nearest ones of
    the prediction. Temperatures are relative to the reference's. Drifts are slopes of the total
    energy, meV per atom and ps, by single points of the data's own method where it is installed;
    beside them those of the energies in the data. Infrared spectra are those of the dipoles in the
    data and of the model's, where both have any.
    """
    teachers: dict[str | None, Calculator | str] = {}
    for record in records:
        if record.method not in teachers:
            try:
                teachers[record.method] = teacher(record.method)
            except ValueError as error:
                teachers[record.method] = str(error)
    groups: dict[str, list[_Pair]] = {}
    triples = list(zip(records, references, predicted, strict=True))
    for record, reference, run in tqdm(triples, unit="run", disable=not progress):
        pair = _Pair.of(model, record, reference, run, teachers[record.method])
        groups.setdefault(record.smiles or record.molecule, []).append(pair)
    w = spectrum(references[0])[0]
    rows = {name: _row(w, pairs) for name, pairs in groups.items()}
    spectra: dict[str, tuple[Array, dict[str, Array]]] = {}
    elements: list[tuple[Any, ...]] = []
    modes: list[tuple[Any, ...]] = []
    for name, pairs in groups.items():
        both = _pooled(pairs)
        spectra[name] = w, {kind: seen.spectrum for kind, seen in both.items()}
        if "predicted" not in both:
            continue
        wanted, seen = both["reference"], both["predicted"]
        elements += [
            (name, e, kelvin, seen.elements[e]) for e, kelvin in sorted(wanted.elements.items())
        ]
        if wanted.modes is not None and seen.modes is not None:
            count = len(wanted.modes)
            lines = np.mean([p.modes.wavenumbers[-count:] for p in pairs if p.modes], axis=0)
            each = zip(lines, wanted.modes, seen.modes, strict=True)
            modes += [(name, k, *map(float, one)) for k, one in enumerate(each, start=1)]
    tables: dict[str, dict[str, list[Any]]] = {
        "molecules": {"molecule": list(rows)}
        | {column: [row[column] for row in rows.values()] for column in next(iter(rows.values()))},
        "elements": _table(("molecule", "element", *_KELVIN), elements),
        "modes": _table(("molecule", "mode", "wavenumber_cm-1", *_KELVIN), modes),
    }
    missing = [f"Energy drift: missing, {why}" for why in teachers.values() if isinstance(why, str)]
    if model.window_potentials is None:
        missing.append(f"Normal modes: missing, model {model.name!r} has no window potentials")
    longest, every = max(run.times[-1] for run in references), references[0].times[1]
    runs = f"{len(references)} runs of {len(groups)} molecules"
    title = f"{title}: {runs}, {longest / 1000:g} ps, frames every {every:g} fs"
    return Comparison(title, tables, spectra, [*missing, *_notes(list(groups.values()))])


_KELVIN = ("reference_K", "predicted_K")


def _table(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


@dataclass(frozen=True)
class _Pair:
    """A predicted run beside the reference run from the same start, and what is seen in them."""

    reference: Seen
    predicted: Seen | None  # None: it broke down
    modes: NormalModes | None
    drift: float  # meV per atom and ps; nan: not known
    drift_reference: float
    broken_fs: float  # when the first bond broke, or the run broke down; inf: never
    changed: bool  # whether it broke down, or a bond broke or formed
    believed: bool  # by trust
    reference_believed: bool

    @classmethod
    def of(
        cls,
        model: MDtrajNet,
        record: Record,
        reference: Trajectory,
        predicted: Trajectory,
        calculator: Calculator | str,
    ) -> _Pair:
        modes = None if model.window_potentials is None else modes_near(model, reference[0])
        whole = len(predicted) == len(reference)
        every = round(float(reference.times[1]) / record.frame_fs)
        own = predicted_own = None
        if record.dipole is not None and model.dipole is not None:
            own = record.dipole[::every][: len(reference)]
            predicted_own = model.dipoles(predicted)
        drift = drift_reference = np.nan
        if whole and not isinstance(calculator, str):
            drift = energy_drift(predicted, calculator)
        if record.energy is not None:
            energies = record.energy[::every][: len(reference)]
            drift_reference = slope(reference.times, energies, len(reference.atoms))
        trust = predicted.trust or trust_summary(predicted, model.config.radial_cutoff)
        times = [change.time_fs for change in trust.broken]
        if not whole:
            times.append(float(predicted.times[-1]))
        return cls(
            Seen.of(reference, modes, own),
            Seen.of(predicted, modes, predicted_own) if whole else None,
            modes,
            drift,
            drift_reference,
            min(times, default=np.inf),
            not whole or bool(trust.broken or trust.formed),
            trust.ok,
            trust_summary(_seen_by(model, reference), model.config.radial_cutoff).ok,
        )


def _seen_by(model: MDtrajNet, run: Trajectory) -> Trajectory:
    """A run with the model's energies, as one of the model's own has them."""
    if not model.has_energies:
        return run
    step = max(1, FRAME_ROWS // len(run.atoms))
    parts = (run.positions[k : k + step] for k in range(0, len(run), step))
    energies = np.concatenate([potential_energies(model, run.atoms, part) for part in parts])
    return Trajectory(run.atoms, run.times, run.positions, run.momenta, run.metadata, energies)


def _pooled(pairs: Sequence[_Pair]) -> dict[str, Seen]:
    """Means over the runs that did not break down, "reference" and "predicted"; or of all."""
    whole = [(pair.reference, pair.predicted) for pair in pairs if pair.predicted is not None]
    if not whole:
        return {"reference": Seen.mean([pair.reference for pair in pairs])}
    reference, predicted = zip(*whole, strict=True)
    return {"reference": Seen.mean(reference), "predicted": Seen.mean(predicted)}


def _row(w: Array, pairs: Sequence[_Pair]) -> dict[str, Any]:
    """What there is to say of a molecule."""
    unknown = dict.fromkeys((*FIGURES, "element"))
    both, references = _pooled(pairs), [pair.reference for pair in pairs]
    row = {"runs": len(pairs), **unknown}
    if "predicted" in both:
        row |= difference(w, both["predicted"], both["reference"])
    halves = unknown
    if len(pairs) > 1:
        halves = difference(w, *(Seen.mean(references[k::2]) for k in (1, 0)))
    first = min(pair.broken_fs for pair in pairs)
    return {
        **row,
        **{f"{name}_halves": value for name, value in halves.items()},
        "drift": _mean([pair.drift for pair in pairs]),
        "drift_reference": _mean([pair.drift_reference for pair in pairs]),
        "changed": sum(pair.changed for pair in pairs),
        "first_broken_ps": first / 1000 if np.isfinite(first) else None,
        "warned": sum(not pair.believed for pair in pairs),
        "warned_reference": sum(not pair.reference_believed for pair in pairs),
    }


def _mean(values: Sequence[float]) -> float | None:
    known = _known(values)
    return float(known.mean()) if len(known) else None


def _notes(molecules: Sequence[Sequence[_Pair]]) -> list[str]:
    """What there is to say of all runs together."""
    pairs = [pair for molecule in molecules for pair in molecule]
    notes = []
    for name, whose in (("drift", "predicted runs, by"), ("drift_reference", "reference runs, in")):
        known = _known([getattr(pair, name) for pair in pairs])
        if len(known) > 1:
            error = known.std(ddof=1) / np.sqrt(len(known))
            notes.append(
                f"Energy drift of {len(known)} {whose} the teacher's energies: {known.mean():+.3f} "
                f"± {error:.3f} meV/(atom ps), {abs(known).max():.2f} at most"
            )
    first = min(pair.broken_fs for pair in pairs)
    when = f", the first after {first / 1000:g} ps" if np.isfinite(first) else ""
    notes.append(
        f"Of {len(pairs)} runs {sum(p.changed for p in pairs)} broke or changed a bond{when}; "
        f"trust warns of {sum(not p.believed for p in pairs)}, and of "
        f"{sum(not p.reference_believed for p in pairs)} reference runs"
    )
    return [*notes, _collapsed(molecules)]


def _collapsed(molecules: Sequence[Sequence[_Pair]]) -> str:
    """How many runs have collapsed, and of how many of them trust warns.

    Collapsed: the spectrum is less like that of the other starts' reference runs than any reference
    run's is.
    """
    like: list[tuple[float, float, bool]] = []  # others: a reference run, a prediction; believed
    for pairs in molecules:
        spectra = [pair.reference.spectrum for pair in pairs]
        for k, pair in enumerate(pairs if len(pairs) > 1 else ()):
            others = np.mean(spectra[:k] + spectra[k + 1 :], axis=0)
            own = np.corrcoef(others, spectra[k])[0, 1]
            r = -1.0
            if pair.predicted is not None:
                r = np.corrcoef(others, pair.predicted.spectrum)[0, 1]
            like.append((own, r, pair.believed))
    if not like:
        return "One start a molecule: whether runs have collapsed is not known"
    least = min(reference for reference, _, _ in like)
    believed = [ok for _, r, ok in like if r < least]
    return (
        f"Collapsed runs (r with other starts below {least:.2f}): {len(believed)}; trust warns of "
        f"{believed.count(False)} of them"
    )
