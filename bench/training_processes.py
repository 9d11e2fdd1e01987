"""Train on several processes beside one: time of a step, and whether the losses are the same.

    python bench/training_processes.py RECIPE.toml [--processes 2] [--steps 60] [--output DIRECTORY]

The recipe's data, model and batch, which processes share; one thread a process, started by
torchrun. Numbers of processes take turns, twice; times are medians over stretches of steps, without
the first of each run.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which reads it

from report import HERE, began, heading, launched, write  # noqa: E402

from mdtrajnet_fast import TrainConfig, fit  # noqa: E402

ROUNDS = 2
STRETCHES = 4


def worker(recipe: str, steps: int, folder: str) -> None:
    """What each of the processes does."""
    config = dataclasses.replace(
        TrainConfig.read(recipe),
        output=folder,
        steps=steps * STRETCHES,
        validation={},
        validate_every=steps,
        checkpoint_minutes=60.0,
        processes=1,  # torchrun's are those that there are
        threads=1,
        initial=None,
    )
    fit(config, progress=False)


def measure(count: int, recipe: str, steps: int) -> tuple[list[float], list[float]]:
    """Wall time (s) of a step in each stretch but the first, and the mean losses of all."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        words = [__file__, recipe, "--steps", str(steps), "--worker", run]
        subprocess.run([*launched(count), *words], check=True)
        with open(f"{run}/log.csv") as file:
            rows = list(csv.DictReader(file))
    ends = [float(row["seconds"]) for row in rows]
    each = [(b - a) / steps for a, b in zip(ends, ends[1:], strict=False)]
    return each, [float(row["loss"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=60, help="of a stretch")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.recipe, options.steps, options.worker)
        return
    counts = [1, *options.processes]
    times: dict[int, list[float]] = {n: [] for n in counts}
    losses: dict[int, list[float]] = {}
    for _ in range(ROUNDS):
        for n in counts:
            each, losses[n] = measure(n, options.recipe, options.steps)
            times[n] += each
            print(f"{n}: {statistics.median(each):.3f} s a step", flush=True)
    report = began(False) | {"recipe": Path(options.recipe).stem, "rows": []}
    report["batch"] = TrainConfig.read(options.recipe).batch_size
    for n in counts:
        differences = [abs(a / b - 1) for a, b in zip(losses[n], losses[1], strict=True)]
        row = {"processes": n, "seconds": statistics.median(times[n]), "apart": max(differences)}
        report["rows"].append(row)
    write(report, markdown(report), options.output, "training-processes")


def markdown(report: dict[str, Any]) -> str:
    rows, cores = report["rows"], os.cpu_count()
    out = [
        *heading(report),
        f"{report['recipe']}, batches of {report['batch']} pairs whatever the processes, {cores} "
        "cores; times are of one step.",
        "",
        "| processes | s | speed-up | largest difference of a mean loss |",
        "|---:|---:|---:|---:|",
    ]
    for row in rows:
        n, seconds = row["processes"], row["seconds"]
        faster = rows[0]["seconds"] / seconds
        out.append(f"| {n} | {seconds:.3f} | {faster:.2f} | {row['apart']:.1e} |")
    return "\n".join([*out, ""])


if __name__ == "__main__":
    main()
