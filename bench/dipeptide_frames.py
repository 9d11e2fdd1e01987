"""How many frames of a new molecule does it take, from a trained model and from scratch?

    python recipes/dipeptide_data.py train vacuum data
    python bench/dipeptide_frames.py data/vacuum-100ps.h5 data/vacuum-held-out.h5 --output frames

Trains window potentials on the first picoseconds of frames, begun from `--model` and from random
weights of the same sizes, several seeds, with as many windows (`--steps` of `--batch-size`) either
way. Prints errors of windows on trajectories held out, and draws them. A row is written when it is
known, and what is there is not trained again; several numbers of windows make one table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import loglog

from mdtrajnet_fast import TrainConfig, fit, load_model
from mdtrajnet_fast.data.pairs import Pairs
from mdtrajnet_fast.data.records import load_records, write_records
from mdtrajnet_fast.train.evaluate import fraction, rms_window_errors
from mdtrajnet_fast.train.finetune import ENERGY_WEIGHT

COLUMNS = ("start", "ps", "seed", "windows", "position", "velocity", "acceleration", "core_s")
JUDGED = 1000  # windows


def settings(
    start: str | None, model: str, data: Path, seed: int, steps: int, batch: int, folder: str
) -> TrainConfig:
    """Settings as of `mdtrajnet finetune`; from scratch with the learning rate of a new model."""
    if start:
        begin: dict[str, Any] = {"initial": start}
    else:
        known = load_model(model).config
        assert known.window_potentials is not None
        sizes = dataclasses.asdict(known.window_potentials) | {"usual_uncertainty": None}
        model_sizes = {"radial_cutoff": known.radial_cutoff}
        begin = {"model": model_sizes, "window_potentials": sizes}
    return TrainConfig(
        **begin,
        output=folder,
        data=(str(data),),
        target="window_potentials",
        steps=steps,
        batch_size=batch,
        optimizer="soap",
        learning_rate=1e-3 if start else 4e-3,
        warmup_steps=min(100, steps // 5),
        ema_decay=0.99,
        time_reversal=True,
        mass_power=1.0,
        energy_weight=ENERGY_WEIGHT,
        validate_every=steps,
        seed=seed,
        threads=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="pieces of 1 ps")
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--model", default="molecules-nve")
    parser.add_argument("--ps", type=int, nargs="+", default=[1, 3, 10, 25, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "frames.csv"
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    records, judge = load_records(options.data), Pairs(load_records(options.held_out))
    with path.open() as file:
        done = {tuple(row[name] for name in COLUMNS[:4]) for row in csv.DictReader(file)}
    starts = (options.model, "scratch")
    for seed, ps, start in itertools.product(options.seeds, options.ps, starts):
        key = start, str(ps), str(seed), str(options.steps * options.batch_size)
        if key in done:
            continue
        fresh = start == "scratch"
        with tempfile.TemporaryDirectory() as folder:
            piece = Path(folder) / "piece.h5"
            write_records(piece, records[:ps])
            begun = time.process_time()
            config = settings(
                None if fresh else start,
                options.model,
                piece,
                seed,
                options.steps,
                options.batch_size,
                folder + "/run",
            )
            found = rms_window_errors(fit(config, progress=False), judge, JUDGED)
        values = (
            f"{found['position']:.6f}",
            f"{fraction(found['velocity'], found['thermal_velocity']):.5f}",
            f"{fraction(found['acceleration'], found['true_acceleration']):.5f}",
            f"{time.process_time() - begun:.0f}",
        )
        row = [*key, *values]
        with path.open("a") as file:
            file.write(",".join(row) + "\n")
        print(*row, flush=True)
    draw(path)


def draw(path: Path) -> None:
    """The curves of a table, a point for every seed."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    with loglog(path.with_suffix(".png")) as axes:
        for kind in dict.fromkeys((row["start"], row["windows"]) for row in rows):
            found = sorted(
                (int(row["ps"]), 100 * float(row["velocity"]))
                for row in rows
                if (row["start"], row["windows"]) == kind
            )
            axes.loglog(*zip(*found, strict=True), "o", label=f"{kind[0]}, {kind[1]} windows")
        axes.set_xlabel("ps of frames")
        axes.set_ylabel("error of velocities held out (%)")


if __name__ == "__main__":
    main()
