"""The command `mdtrajnet export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..md.export import export_model
from ..model.checkpoint import load_model
from .printing import describe

HELP = "Write a model to one file, for programs without Python (mdtrajnet.h)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("model", help="bundled name, folder or .pt file")
    parser.add_argument("file", type=Path, help="new file")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])


def run(options: argparse.Namespace) -> None:
    """Write the file."""
    model = load_model(options.model, dtype=options.dtype)
    print(f"Written: {export_model(model, options.file)} ({describe(model)})")
    if model.dipole is not None:
        print("Without its dipole.")
