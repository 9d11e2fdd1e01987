"""Rollouts and velocity Verlet with the same model's potential, beside molecular dynamics.

    python bench/rollouts.py make reference.h5 --molecules CCO CO NC=O    # or --data val.h5
    python bench/rollouts.py compare reference.h5 --model molecules-nve --output rollouts

`make` runs GFN2-xTB for 10 ps from six starts of every molecule (20 molecules of 7 to 9 atoms:
about an hour of one core); `mdtrajnet generate` with other settings serves as well. `compare`
predicts the same runs from the same first frames, by the model's symplectic windows and by velocity
Verlet with its own potential energy, and prints one table of what each costs and how near to the
reference it comes: figures of `mdtrajnet evaluate --rollout`, over all molecules. bench/README.md
says what each column is. `--output` keeps the table (rivals.csv, rivals.md) and, in a folder for
each, what `evaluate --rollout --output` writes.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

import ase.build
import torch
from report import interleave
from verlet import verlet_model

from mdtrajnet_fast import MDtrajNet, load_model, simulate, thermal_velocities
from mdtrajnet_fast.data.generate import THERMOSTATS, generate
from mdtrajnet_fast.data.records import load_records
from mdtrajnet_fast.md.window import method_of, stride_of
from mdtrajnet_fast.train.compare_runs import (
    Comparison,
    compare_runs,
    predicted_runs,
    reference_runs,
)

STEPS = (0.5, 1.0, 2.0)  # fs, of velocity Verlet
FRAME = 12.0  # fs between the frames of what is timed: whole windows of all


def make(options: argparse.Namespace) -> None:
    smiles = list(options.molecules)
    if options.data:
        smiles += sorted({r.smiles for r in load_records(options.data) if r.smiles is not None})
    print(
        generate(
            [f"smiles:{one}" for one in smiles],
            options.output,
            trajectories=options.starts,
            temperatures_K=[options.temperature],
            conformers=2,
            step_fs=0.5,
            frame_fs=2.0,
            duration_fs=options.duration,
            seed=options.seed,
            processes=options.processes,
            max_energy_std_eV=0.05,
            split="reference",
            thermostat=options.thermostat,
            equilibration_fs=options.equilibration,
        )
    )


def milliseconds(models: dict[str, MDtrajNet], rounds: int = 9) -> dict[str, float]:
    """Wall-clock time of a picosecond of ethanol at 300 K, one thread; medians, taken in turn."""
    atoms = ase.build.molecule("CH3CH2OH")
    thermal_velocities(atoms, 300.0, 0)
    duration = 83 * FRAME
    calls = {
        name: lambda model=model: simulate(atoms, FRAME, duration=duration, model=model)
        for name, model in models.items()
    }
    times = interleave(calls, rounds)
    return {name: 1e6 / duration * timing["median"] for name, timing in times.items()}


def row(comparison: Comparison, halves: bool = False) -> dict[str, float]:
    """The table's columns of one way to make the runs, or of the reference's halves."""
    table, summary = comparison.tables["molecules"], comparison.summary()
    end = "_halves" if halves else ""
    columns = (summary["figure"], summary["median" + end], summary["worst" + end])
    found: dict[str, Any] = {}
    for name, median, worst in zip(*columns, strict=True):
        found |= {name: median, f"{name}_worst": worst}
    drifts = table["drift_reference" if halves else "drift"]
    known = [abs(x) for x in drifts if x is not None]
    if known:
        found |= {"drift": statistics.median(known), "drift_worst": max(known)}
    if not halves:
        found |= {name: sum(table[name]) for name in ("changed", "warned")}
    return found


# Columns: heading, figures, format.
COLUMNS = (
    ("ms per ps", ("ms_per_ps",), ".0f"),
    ("r", ("r", "r_worst"), ".2f"),
    ("W1 (cm-1)", ("W1_cm-1", "W1_cm-1_worst"), ".0f"),
    ("peak shift (cm-1)", ("shift_cm-1", "shift_cm-1_worst"), ".0f"),
    ("T", ("temperature", "temperature_worst"), ".2f"),
    ("T element", ("element_error", "element_error_worst"), ".0%"),
    ("T modes", ("mode_error", "mode_error_worst"), ".0%"),
    ("drift", ("drift", "drift_worst"), ".2f"),
    ("bonds", ("changed",), ".0f"),
    ("trust", ("warned",), ".0f"),
)


def markdown(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """The table: medians over the molecules, the worst in brackets."""
    lines = [title, "", f"| | {' | '.join(heading for heading, *_ in COLUMNS)} |"]
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for name, found in rows.items():
        cells = []
        for _, figures, form in COLUMNS:
            values = [format(found[x], form) for x in figures if found.get(x) is not None]
            cells.append(f"{values[0]} ({values[1]})" if len(values) > 1 else "".join(values))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def compare(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    model = load_model(options.model)
    if options.output is not None and options.output.exists():
        raise SystemExit(f"{options.output} exists and is never overwritten: choose another name")
    records = load_records(options.reference, molecules=options.molecules)
    references = reference_runs(model, records, duration=options.duration, spacing=options.spacing)
    method = method_of(model, None)
    ways = {f"{method} windows of {stride_of(model, method, None):g} fs": model}
    ways |= {f"velocity Verlet, {step:g} fs": verlet_model(model, step) for step in options.verlet}
    compared = {}
    for name, way in ways.items():
        runs = predicted_runs(way, references, progress=True)
        title = f"{model.name}, {name}"
        compared[name] = compare_runs(model, records, references, runs, title, progress=True)
        if options.output is not None:
            compared[name].write(options.output / name.replace(" ", "-").replace(",", ""))
    costs = milliseconds(ways)
    rows = {name: {"ms_per_ps": costs[name], **row(one)} for name, one in compared.items()}
    first = next(iter(compared.values()))
    rows["halves of the reference"] = row(first, halves=True)
    number, duration = len(references), max(run.times[-1] for run in references)
    text = markdown(f"{model.name}, {number} runs of {duration / 1000:g} ps", rows)
    print(text)
    if options.output is not None:
        (options.output / "rivals.md").write_text(text)
        with (options.output / "rivals.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"": name, **found} for name, found in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="make | compare")
    sub = commands.add_parser("make", help="reference runs with GFN2-xTB")
    sub.set_defaults(run=make)
    sub.add_argument("output", type=Path, help="new file, or one to continue")
    sub.add_argument("--molecules", nargs="+", default=[], metavar="SMILES")
    sub.add_argument("--data", nargs="+", type=Path, help="files all of whose molecules to take")
    sub.add_argument("--starts", type=int, default=6)
    sub.add_argument("--temperature", type=float, default=300.0, help="K")
    sub.add_argument("--duration", type=float, default=10_000.0, help="fs")
    sub.add_argument("--equilibration", type=float, default=200.0, help="before that, fs")
    sub.add_argument("--thermostat", choices=list(THERMOSTATS), help="default: constant energy")
    sub.add_argument("--seed", type=int, default=101)
    sub.add_argument("--processes", type=int, default=1)
    sub = commands.add_parser("compare", help="predict the same runs and compare")
    sub.set_defaults(run=compare)
    sub.add_argument("reference", nargs="+", type=Path)
    sub.add_argument("--model", default="molecules-nve")
    sub.add_argument(
        "--verlet",
        type=float,
        nargs="*",
        default=STEPS,
        metavar="STEP",
        help="steps of velocity Verlet, fs (default: 0.5 1 2)",
    )
    sub.add_argument("--duration", type=float, help="fs (default: the reference's)")
    sub.add_argument("--spacing", type=float, help="of frames, fs (default: the reference's)")
    sub.add_argument("--molecules", nargs="+", help="only groups of these names")
    sub.add_argument("--output", type=Path, help="new folder for tables and pictures")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
