"""Plots and tables: spectra, training curves, errors against time.

Figures are made without pyplot, so that no global state and no display is involved. Colours are
those of Okabe and Ito, told apart by all kinds of colour vision; lines differ in dash as well.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from .analysis import peaks

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def write_spectrum(
    prefix: str | Path, wavenumber: ArrayLike, intensity: ArrayLike
) -> tuple[Path, Path]:
    """Write ``<prefix>.csv`` and ``<prefix>.png`` of a spectrum; its main peaks are labelled.

    wavenumber [bins] cm^-1 and intensity [bins] cm, as ``vibrational_density_of_states`` returns
    them. Returns the two paths. Raises ValueError for shapes that do not match.
    """
    w, y = np.asarray(wavenumber, dtype=np.float64), np.asarray(intensity, dtype=np.float64)
    if w.ndim != 1 or w.shape != y.shape:
        raise ValueError(
            f"got wavenumber of shape {w.shape} and intensity of shape {y.shape}; expected [bins] "
            "of both"
        )
    prefix = Path(prefix)
    table, picture = prefix.with_name(prefix.name + ".csv"), prefix.with_name(prefix.name + ".png")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(
        table,
        np.column_stack((w, y)),
        fmt="%.8g",
        delimiter=",",
        header="wavenumber_cm-1,intensity_cm",
        comments="",
    )
    figure, (axes,) = _figure(1, width=8.0, height=4.0)
    axes.plot(w, y, color=COLOURS[0], linewidth=1.0)
    axes.fill_between(w, y, color=COLOURS[0], alpha=0.15, linewidth=0)
    for x, height in peaks(w, y):
        axes.annotate(
            f"{x:.0f}",
            (x, height),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axes.set_xlim(w[0], w[-1])
    axes.set_ylim(0, 1.18 * y.max())  # room for the labels
    axes.set_xlabel("wavenumber (cm$^{-1}$)")
    axes.set_ylabel("vibrational density of states (cm)")
    _save(figure, picture)
    return table, picture


def plot_training(csv_path: str | Path, png_path: str | Path) -> None:
    """Draw the log of a training run: loss, errors on validation sets, learning rate.

    The log has columns samples, lr and loss, and for a validation set NAME any of ``val_NAME``
    (error of positions, Å), ``val_NAME_velocity`` (Å/fs), ``val_NAME_static`` and
    ``val_NAME_ballistic`` (errors of the two guesses that need no model, Å, drawn as level lines).
    Cells may be empty, and a last line that is still being written is left out.

    Raises ValueError if a column is missing or there is no complete row.
    """
    log = _read_log(Path(csv_path))
    suffixes = ("_static", "_ballistic", "_velocity")
    sets = [k for k in log if k.startswith("val_") and not k.endswith(suffixes)]
    speeds = [k for k in log if k.startswith("val_") and k.endswith("_velocity")]

    figure, panels = _figure(2 + bool(sets) + bool(speeds), width=9.0, height=2.2, share=True)
    panels_left = iter(panels)
    top = next(panels_left)
    _curve(top, log["samples"], log["loss"], 0, None)
    top.set_ylabel("training loss")
    top.set_yscale("log")
    if sets:
        axes = next(panels_left)
        axes.set_yscale("log")
        for k, name in enumerate(sets):
            label = name.removeprefix("val_")
            _curve(axes, log["samples"], log[name], k, label)
            for guess, dash in (("static", ":"), ("ballistic", "--")):
                level = log.get(f"{name}_{guess}", np.empty(0))
                level = level[np.isfinite(level)]
                if len(level):
                    axes.axhline(
                        float(level[-1]),
                        color=COLOURS[k % len(COLOURS)],
                        linestyle=dash,
                        linewidth=1.0,
                        label=f"{label}, {guess} guess",
                    )
        axes.set_ylabel("position error (Å)")
        _legend(axes)
    if speeds:
        axes = next(panels_left)
        axes.set_yscale("log")
        for k, name in enumerate(speeds):
            label = name.removeprefix("val_").removesuffix("_velocity")
            _curve(axes, log["samples"], log[name], k, label)
        axes.set_ylabel("velocity error (Å/fs)")
        _legend(axes)
    bottom = next(panels_left)
    _curve(bottom, log["samples"], log["lr"], 0, None)
    bottom.set_ylabel("learning rate")
    bottom.set_yscale("log")
    bottom.set_xscale("log")
    bottom.set_xlabel("training samples seen")
    _save(figure, Path(png_path))


def plot_errors(times: ArrayLike, errors: Mapping[str, ArrayLike], png_path: str | Path) -> None:
    """Draw root-mean-square errors of positions against time, both axes logarithmic.

    times [points] fs, errors {label: [points] Å}; points at time zero or without error cannot be
    shown on such axes and are left out. Raises ValueError for shapes that do not match.
    """
    t = np.asarray(times, dtype=np.float64)
    figure, (axes,) = _figure(1, width=6.0, height=4.0)
    for k, (label, values) in enumerate(errors.items()):
        y = np.asarray(values, dtype=np.float64)
        if t.ndim != 1 or y.shape != t.shape:
            raise ValueError(
                f"got times of shape {t.shape} and errors '{label}' of shape {y.shape}; expected "
                "[points] of both"
            )
        _curve(axes, t, np.where((t > 0) & (y > 0), y, np.nan), k, label, DASHES[k % len(DASHES)])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("time (fs)")
    axes.set_ylabel("rms error of positions (Å)")
    _legend(axes)
    _save(figure, Path(png_path))


def _read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    with path.open(newline="") as file:
        # Without its line break the last line may be cut short: "0.05" of "0.0512".
        lines = [line for line in file if line.endswith("\n")]
    rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError(f"{path} holds no complete row: has a training step been logged yet?")
    missing = [k for k in ("samples", "loss", "lr") if k not in rows[0]]
    if missing:
        raise ValueError(
            f"{path} lacks the column {', '.join(missing)}; it has {', '.join(rows[0])}"
        )
    return {k: np.array([float(row[k] or "nan") for row in rows]) for k in rows[0]}


def _figure(panels: int, width: float, height: float, share: bool = False) -> tuple[Figure, list]:
    figure = Figure(figsize=(width, height * panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(panels, 1, sharex=share, squeeze=False)[:, 0])
    for one in axes:
        one.grid(True, which="major", color="0.9", linewidth=0.6)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(
    axes: Axes, x: ArrayLike, y: ArrayLike, k: int, label: str | None, dash: str = "-"
) -> None:
    x, y = np.asarray(x), np.asarray(y)
    known = np.isfinite(y)
    axes.plot(
        x[known],
        y[known],
        color=COLOURS[k % len(COLOURS)],
        linestyle=dash,
        linewidth=1.5,
        marker="o" if known.sum() < 40 else None,
        markersize=3,
        label=label,
    )


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
