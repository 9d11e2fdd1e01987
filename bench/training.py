"""Train the published architecture with its published settings beside a recipe, as long.

    python bench/training.py recipes/molecules-nve.toml --minutes 10 [--output DIRECTORY]

Both see the same data in one thread of one process, one after the other; the time is processor
time. bench/README.md says what the published settings are.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from providers import THREADS
from report import HERE, began, heading, loglog, write

from mdtrajnet_fast import TrainConfig, fit

PROBE = 60  # steps that tell how long a step takes
CHECKS = 10  # points of a curve
PAIRS = 4096  # that judge each of them, of each set


def published(recipe: TrainConfig) -> TrainConfig:
    """The recipe's data with the published architecture, loss, optimiser and batch."""
    plain = TrainConfig(output=recipe.output, data=recipe.data)
    kept = ("data", "exclude_trajectories", "more_data", "validation", "frame_fs")
    return dataclasses.replace(
        plain,
        **{name: getattr(recipe, name) for name in kept},
        batch_size=64,
        learning_rate=1e-3,
        final_learning_rate=1e-3,  # its plateau scheduler waits longer than such a run takes
        warmup_steps=0,
        weight_decay=0.01,
        gradient_clip=1e9,
        ema_decay=0.0,
        velocity_weight_fs=0.0,
        model={},
    )


def trained(config: TrainConfig, minutes: float, folder: Path) -> dict[str, Any]:
    """Train for so many minutes; what was done, the curve, and the errors after a window."""
    config = dataclasses.replace(config, processes=1, threads=THREADS, initial=None)

    def seconds_of(steps: int) -> float:
        """Processor time of so many steps, and of what goes before and after them."""
        short = dataclasses.replace(config, output=str(folder / f"{steps}"), validation={})
        begun = time.process_time()
        fit(short, progress=False, stop_after=steps)
        return time.process_time() - begun

    seconds_of(1)  # to fill caches
    seconds_a_step = (seconds_of(2 + PROBE) - seconds_of(2)) / PROBE
    steps = max(CHECKS, round(60 * minutes / seconds_a_step))
    config = dataclasses.replace(
        config,
        output=str(folder / "run"),
        steps=steps,
        warmup_steps=min(config.warmup_steps, steps // 10),
        validate_every=-(-steps // CHECKS),
        validation_pairs=PAIRS,
    )
    model = fit(config)
    with (folder / "run" / "log.csv").open(newline="") as file:
        curve = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    last = curve[-1]
    errors = {
        name: {"position": last[f"val_{name}"], "velocity": last[f"val_{name}_velocity"]}
        for name in config.validation
    }
    return {
        "window_fs": model.stride(),
        "steps": steps,
        "pairs": steps * config.batch_size,
        "seconds_a_step": seconds_a_step,
        "parameters": sum(x.numel() for x in model.parameters()),
        "errors": errors,
        "curve": curve,
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    out = heading(report)
    out += [
        f"{report['recipe']} for {report['minutes']:g} minutes of processor time, and the "
        "published architecture with the published settings for as long, on the same data. Errors "
        f"after a window, root mean squares per Cartesian component of {PAIRS} pairs.",
        "",
        "| | parameters | steps | pairs | ms a step | set | fs | position, Å | velocity, Å/fs |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, run in report["runs"].items():
        for where, found in run["errors"].items():
            out.append(
                f"| {name} | {run['parameters']} | {run['steps']} | {run['pairs']} "
                f"| {1e3 * run['seconds_a_step']:.0f} | {where} | {run['window_fs']:g} "
                f"| {found['position']:.4f} | {found['velocity']:.5f} |"
            )
    return "\n".join(out) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Errors on the validation sets against the minutes of training."""
    with loglog(path) as axes:
        for (name, run), line in zip(report["runs"].items(), ("-", "--"), strict=True):
            for k, where in enumerate(run["errors"]):
                x = [report["minutes"] * row["step"] / run["steps"] for row in run["curve"]]
                y = [row[f"val_{where}"] for row in run["curve"]]
                axes.loglog(x, y, line, color=f"C{k}", marker="o", label=f"{name}: {where}")
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("error of positions after a window, Å")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="processor time of each")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    recipe = TrainConfig.read(options.recipe)
    runs = {}
    for name, config in {options.recipe.stem: recipe, "published": published(recipe)}.items():
        with tempfile.TemporaryDirectory() as folder:
            runs[name] = trained(config, options.minutes, Path(folder))
    report = began(quick=False) | {
        "recipe": options.recipe.stem,
        "minutes": options.minutes,
        "runs": runs,
    }
    base = write(report, markdown(report), options.output, "training")
    plot(report, base.with_suffix(".png"))
    print(f"written to {base}.json, .md and .png")


if __name__ == "__main__":
    main()
