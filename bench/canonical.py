"""Two ways to a motion at constant temperature, beside Nosé-Hoover molecular dynamics.

    python bench/rollouts.py make warm.h5 --thermostat nose-hoover --molecules CO CC#N C#CC
    python bench/canonical.py warm.h5 --motion molecules-nvt --output canonical

From the first frames of the reference's runs: a thermostat around the windows of a model of
constant energy (stochastic velocity rescaling, at the reference's temperature), and a network that
was trained on trajectories with a thermostat, which is to keep the temperature by itself, by its
plain map and in reversible windows, and in these with a thermostat as well. Spectra, temperatures
and the variance of the kinetic energy are compared, pooled over the starts of each molecule, beside
one half of the reference's starts against the other. bench/README.md says what each column is.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdtrajnet_fast import MDtrajNet, Trajectory, load_model
from mdtrajnet_fast.data.records import Record, as_trajectory, load_records
from mdtrajnet_fast.md.thermostats import CSVR
from mdtrajnet_fast.mechanics import degrees_of_freedom, kinetic_temperature
from mdtrajnet_fast.train.compare_runs import Seen, difference, predicted_runs, spectrum

# Columns: heading, figure, format, and which of the values is the worst.
COLUMNS = (
    ("r", "r", ".2f", min),
    ("W1 (cm-1)", "W1_cm-1", ".0f", max),
    ("T", "temperature", ".2f", lambda x: max(x, key=lambda t: abs(t - 1))),
    ("T element", "element_error", ".0%", max),
    ("var K", "variance", ".2f", lambda x: max(x, key=lambda v: abs(np.log(v)))),
)


MEMORIES = (100.0, 1000.0)  # time constants of the thermostat, fs


def variance(runs: Sequence[Trajectory], kelvin: float) -> float:
    """Of the kinetic energy in all frames of runs, relative to the canonical one at so many K."""
    freedom = degrees_of_freedom(runs[0][0])
    masses = runs[0].atoms.get_masses()
    all_of_them = [kinetic_temperature(run.velocities, masses, freedom) for run in runs]
    return float(np.var(np.concatenate(all_of_them)) / (2 * kelvin**2 / freedom))


def figures(
    runs: Sequence[Trajectory], reference: Sequence[Trajectory], kelvin: float
) -> dict[str, Any]:
    """What COLUMNS show of runs of a molecule beside reference runs."""
    w, _ = spectrum(reference[0])
    seen, known = (Seen.mean([Seen.of(run, None, None) for run in x]) for x in (runs, reference))
    return difference(w, seen, known) | {"variance": variance(runs, kelvin)}


def molecules(records: Sequence[Record]) -> dict[str, list[int]]:
    """Which records are of each molecule, by its SMILES or name."""
    found: dict[str, list[int]] = {}
    for k, record in enumerate(records):
        found.setdefault(record.smiles or record.molecule, []).append(k)
    return found


def ways(
    model: MDtrajNet, motion: MDtrajNet | None, kelvin: float
) -> dict[str, tuple[MDtrajNet, dict[str, Any]]]:
    """What is compared: models and settings of `simulate`."""
    found: dict[str, tuple[MDtrajNet, dict[str, Any]]] = {
        f"{model.name}, CSVR of {tau:g} fs": (model, {"thermostat": CSVR(kelvin, tau)})
        for tau in MEMORIES
    }
    found[f"{model.name}, constant energy"] = model, {}
    if motion is not None:
        for method in ("plain", "reversible"):
            found[f"{motion.name}, {method}"] = (motion, {"method": method})
        kept = {"method": "reversible", "thermostat": CSVR(kelvin, MEMORIES[-1])}
        found[f"{motion.name}, reversible, CSVR of {MEMORIES[-1]:g} fs"] = motion, kept
    return found


def compared(
    options: argparse.Namespace,
) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Rows of molecules for each way, and what was compared, in words."""
    records = load_records(options.reference, molecules=options.molecules)
    kelvins = {record.temperature_K for record in records}
    if len(kelvins) != 1 or None in kelvins or any(r.thermostat is None for r in records):
        raise SystemExit(
            f"expected runs with a thermostat at one temperature, got targets of {kelvins} K and "
            f"thermostats { ({r.thermostat for r in records}) }"
        )
    kelvin = float(next(iter(kelvins)) or 0)
    references = [as_trajectory(record) for record in records]
    model = load_model(options.model)
    motion = None if options.motion is None else load_model(options.motion)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, (of, settings) in ways(model, motion, kelvin).items():
        draws = options.draws if "thermostat" in settings else 1
        runs = [
            predicted_runs(of, references, seed=len(references) * k, progress=True, **settings)
            for k in range(draws)
        ]
        rows[name] = []
        for molecule, own in molecules(records).items():
            all_of_them = [(draw[k], references[k]) for draw in runs for k in own]
            whole = [run for run, other in all_of_them if len(run) == len(other)]
            row: dict[str, Any] = {"molecule": molecule, "broke": len(all_of_them) - len(whole)}
            if whole:
                row |= figures(whole, [references[k] for k in own], kelvin)
            rows[name].append(row)
    rows["halves of the reference"] = [
        {"molecule": molecule, "broke": 0}
        | figures([references[k] for k in own[1::2]], [references[k] for k in own[::2]], kelvin)
        for molecule, own in molecules(records).items()
    ]
    length = max(run.times[-1] for run in references) / 1000
    title = f"{len(records)} runs of {length:g} ps at {kelvin:g} K, {records[0].thermostat}"
    return rows, title


def markdown(title: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over the molecules with the worst in brackets, then r of each molecule."""
    lines = [title, "", f"| | {' | '.join(heading for heading, *_ in COLUMNS)} | broke |"]
    lines.append("|---|" + "---:|" * (len(COLUMNS) + 1))
    for name, own in rows.items():
        cells = []
        for _, figure, form, worst in COLUMNS:
            values = [row[figure] for row in own if figure in row]
            middle, last = (np.median(values), worst(values)) if values else (np.nan, np.nan)
            cells.append(f"{middle:{form}} ({last:{form}})")
        cells.append(str(sum(row["broke"] for row in own)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    names = [row["molecule"] for row in next(iter(rows.values()))]
    lines += ["", f"| r | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for name, own in rows.items():
        cells = [f"{row['r']:.2f}" if "r" in row else "" for row in own]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reference", nargs="+", type=Path)
    parser.add_argument("--model", default="molecules-nve", help="of constant energy")
    parser.add_argument("--motion", help="a network trained on runs with a thermostat")
    parser.add_argument("--draws", type=int, default=2, help="of random numbers, pooled")
    parser.add_argument("--molecules", nargs="+", help="only these")
    parser.add_argument("--output", type=Path, help="new folder for the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.output is not None and options.output.exists():
        raise SystemExit(f"{options.output} exists and is never overwritten: choose another name")
    rows, title = compared(options)
    text = markdown(title, rows)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True)
        (options.output / "canonical.md").write_text(text)
        every = [{"way": name} | row for name, own in rows.items() for row in own]
        with (options.output / "canonical.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, max(every, key=len), restval="")
            writer.writeheader()
            writer.writerows(every)


if __name__ == "__main__":
    main()
