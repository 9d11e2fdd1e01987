"""The command `mdtrajnet train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..train.config import TrainConfig
from ..train.fit import fit
from .printing import print_trained

HELP = "Train a model, or go on with an interrupted training."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("config", type=Path, help="TOML file, see mdtrajnet_fast.TrainConfig")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Train, and say where the model is."""
    config = TrainConfig.read(options.config)
    fit(config, progress=not options.quiet)
    print_trained(config.output)
