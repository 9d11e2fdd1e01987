"""The command `mdtrajnet finetune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..train.finetune import finetune
from .inputs import MASSES, femtoseconds
from .printing import print_trained

HELP = "Fine-tune a model on trajectories, or go on with that; prints errors before and after."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("model", help="name or path, as for simulate")
    parser.add_argument("data", nargs="+", help="trajectory files, as of generate or an ASE run")
    parser.add_argument("--output", required=True, type=Path, help="folder of the training")
    parser.add_argument(
        "--held-out",
        nargs="+",
        help="trajectories to judge by, or files (default: every fifth name, or the last)",
    )
    parser.add_argument(
        "--replay", nargs="+", default=(), help="other trajectories to train on, to keep them known"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--frame", type=femtoseconds, help="spacing of the frames, fs, if files lack it"
    )
    parser.add_argument("--masses", choices=["standard"], help=MASSES)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Fine-tune, and say the errors before and after."""
    done = finetune(
        options.model,
        options.data,
        options.output,
        held_out=options.held_out,
        replay=options.replay,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        frame_fs=options.frame,
        masses=options.masses,
        processes=options.processes,
        device=options.device,
        seed=options.seed,
        progress=not options.quiet,
    )
    print(
        f"Errors after {done.before.window:g} fs on trajectories held out "
        f"({', '.join(done.held_out)}):\n"
    )
    print(f"{'':12}{'before':>12}{'after':>12}")
    units = {"position": "Å", "velocity": "%", "acceleration": "%", "energy": "eV"}
    for name, unit in units.items():
        pair = getattr(done.before, name), getattr(done.after, name)
        if None not in pair:
            shown = [f"{100 * x:.1f} %" if unit == "%" else f"{x:.4f} {unit}" for x in pair]
            print(f"{name:12}{shown[0]:>12}{shown[1]:>12}")
    print()
    if done.step < options.steps:
        print(f"Smallest after {done.step} of {options.steps} steps: the weights are those.")
    print_trained(options.output)
