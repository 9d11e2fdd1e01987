"""The command `mdtrajnet convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..model.checkpoint import save_model
from ..model.mlatom import load_mlatom
from .printing import describe

HELP = "Convert checkpoints of the published implementation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument(
        "files", nargs="+", type=Path, help="one .pt file, or those of a collection"
    )
    parser.add_argument(
        "--output", type=Path, help="new folder (default: the file's name without .pt)"
    )


def run(options: argparse.Namespace) -> None:
    """Write the folder of the model."""
    if options.output is None and (len(options.files) > 1 or not options.files[0].suffix):
        raise ValueError("say where to with --output: there is no one file name to take it from")
    model = load_mlatom(options.files, name=options.output.name if options.output else None)
    folder = options.output or options.files[0].with_suffix("")
    save_model(
        model,
        folder,
        provenance={"converted_from": [str(path.name) for path in options.files]},
    )
    print(f"Written: {folder}/ ({describe(model)})")
