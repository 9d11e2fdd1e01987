"""Train on several processes beside one: time of a step, and whether the losses are the same.

    python bench/training_processes.py RECIPE.toml [--processes 2] [--batch 80 160] [--steps 60]

The recipe's data and model, and its batch if no other is said, which processes share; one thread a
process, started by torchrun. Numbers of processes take turns, twice; times are medians over
stretches of steps, without the first of each run.
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


def worker(recipe: str, batch: int, steps: int, folder: str) -> None:
    """What each of the processes does."""
    config = dataclasses.replace(
        TrainConfig.read(recipe),
        output=folder,
        batch_size=batch,
        steps=steps * STRETCHES,
        validation={},
        validate_every=steps,
        checkpoint_minutes=60.0,
        processes=1,  # torchrun's are those that there are
        threads=1,
        initial=None,
    )
    fit(config, progress=False)


def measure(count: int, recipe: str, batch: int, steps: int) -> tuple[list[float], list[float]]:
    """Wall time (s) of a step in each stretch but the first, and the mean losses of all."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        words = [__file__, recipe, "--batch", str(batch), "--steps", str(steps), "--worker", run]
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
    parser.add_argument("--batch", type=int, nargs="+", help="pairs a step, of all processes")
    parser.add_argument("--steps", type=int, default=60, help="of a stretch")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    batches = options.batch or [TrainConfig.read(options.recipe).batch_size]
    if options.worker:
        worker(options.recipe, batches[0], options.steps, options.worker)
        return
    counts = [1, *options.processes]
    report = began(False) | {"recipe": Path(options.recipe).stem, "rows": []}
    for batch in batches:
        times: dict[int, list[float]] = {n: [] for n in counts}
        losses: dict[int, list[float]] = {}
        for _ in range(ROUNDS):
            for n in counts:
                each, losses[n] = measure(n, options.recipe, batch, options.steps)
                times[n] += each
                print(f"{batch} pairs, {n}: {statistics.median(each):.3f} s a step", flush=True)
        for n in counts:
            apart = max(abs(a / b - 1) for a, b in zip(losses[n], losses[1], strict=True))
            row = {"batch": batch, "processes": n, "apart": apart}
            report["rows"].append(row | {"seconds": statistics.median(times[n])})
    kind = f"training-processes-{report['recipe']}"
    write(report, markdown(report), options.output, kind)


def markdown(report: dict[str, Any]) -> str:
    rows, cores = report["rows"], os.cpu_count()
    out = [
        *heading(report),
        f"{report['recipe']}, batches of as many pairs whatever the processes, {cores} cores; "
        "times are of one step.",
        "",
        "| pairs | processes | s | speed-up | largest difference of a mean loss |",
        "|---:|---:|---:|---:|---:|",
    ]
    alone = {row["batch"]: row["seconds"] for row in rows if row["processes"] == 1}
    for row in rows:
        batch, seconds = row["batch"], row["seconds"]
        faster, apart = alone[batch] / seconds, row["apart"]
        out.append(f"| {batch} | {row['processes']} | {seconds:.3f} | {faster:.2f} | {apart:.1e} |")
    return "\n".join([*out, ""])


if __name__ == "__main__":
    main()
