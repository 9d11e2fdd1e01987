"""The command `mdtrajnet report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.page import write_report
from .inputs import one_record

HELP = "One HTML page of a run: 3D view, trust, spectra, energies, temperatures, settings."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of simulate")
    parser.add_argument(
        "--output", type=Path, help="new HTML file (default: report.html of the run, made again)"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        help="trajectory of the same molecule, whose power spectrum is drawn beside",
    )


def run(options: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    if options.output is not None and options.output.exists():
        raise FileExistsError(f"{options.output} exists and is never overwritten: choose another")
    reference = None if options.reference is None else one_record(options.reference)
    print(f"Written: {write_report(options.folder, options.output, reference=reference)}")
