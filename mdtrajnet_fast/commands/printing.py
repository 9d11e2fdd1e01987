"""What several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..analysis.observables import peaks
from ..analysis.spectra import Spectra
from ..md.window import method_of, stride_of
from ..model.network import MDtrajNet


def describe(model: MDtrajNet) -> str:
    """A model in a line."""
    count = sum(p.numel() for p in model.parameters())
    members = f"{len(model.members)} members, " if len(model.members) > 1 else ""
    return (
        f"{model.name}: {members}{count:,} parameters, elements {' '.join(model.config.species)}, "
        f"window {stride_of(model, method_of(model, None), None):g} fs, cutoff "
        f"{model.config.radial_cutoff:g} Å"
    )


def print_written(folder: Path) -> None:
    """What there is in a new folder."""
    print(f"Written: {folder}/ ({', '.join(sorted(p.name for p in folder.glob('[!.]*')))})")


def print_trained(folder: str | Path) -> None:
    """What a training has written."""
    print(f"Written: {folder}/ (model/, log.csv, curves.png, checkpoint.pt)")


def print_paths(written: Iterable[Path]) -> None:
    """Where files are that were written."""
    print(f"Written: {', '.join(map(str, written))}")


def print_spectra(found: Spectra, written: Sequence[Path] = ()) -> None:
    """The peaks of spectra, and where files of them are."""
    for what, of in (
        ("Vibrational density of states", found.motion),
        ("Infrared absorption (harmonic quantum correction)", found.infrared),
    ):
        if of is not None:
            lines = (f"{w:.0f} ({y / of.max():.2f})" for w, y in peaks(found.wavenumber, of))
            print(
                f"{what}, {found.resolution:g} cm^-1 resolution; peaks in cm^-1, and their heights "
                f"beside the highest: {', '.join(lines)}"
            )
    if written:
        print_paths(written)
