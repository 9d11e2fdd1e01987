"""Plots and tables: spectra, training curves, errors against time and by group.

Figures are made without pyplot, so that no global state and no display is involved. Colours are
those of Okabe and Ito, told apart by all kinds of colour vision; lines differ in dash as well.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import kB, kJ, mol
from numpy.typing import ArrayLike, NDArray

from .analysis.conformations import AngleMap
from .analysis.observables import WAVENUMBER, peaks

if TYPE_CHECKING:  # Matplotlib takes long to import: who draws does it
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
_LABEL_WIDTH = 0.018  # of the width of a plot, that a label of a peak takes
_NAMED = 60  # so many groups can be named along an axis
_GROUPS = {"temperature_K": "target temperature (K)"}  # columns that need more than their heading


def write_spectrum(
    prefix: str | Path,
    wavenumber: ArrayLike,
    intensity: ArrayLike,
    infrared: ArrayLike | None = None,
    title: str = "",
    draw: bool = True,
    terahertz: bool = False,
) -> tuple[Path, ...]:
    """Write ``<prefix>.csv`` and ``<prefix>.png`` of a spectrum; its main peaks are labelled.

    Where labels would touch, those of the higher peaks stay.

    wavenumber [bins] cm^-1 and intensity [bins] cm, as ``vibrational_density_of_states`` returns
    them. infrared: [bins] cm, that of ``infrared_spectrum``, drawn against it and then the one
    whose peaks are labelled. title: of the plot, such as molecule and temperature. draw: False for
    the table alone. terahertz: an axis of frequencies above, as for phonons. Returns the paths.
    Raises ValueError for shapes that do not match.
    """
    w, y = np.asarray(wavenumber, dtype=np.float64), np.asarray(intensity, dtype=np.float64)
    columns = {"wavenumber_cm-1": w, "intensity_cm": y}
    if infrared is not None:
        columns["infrared_cm"] = np.asarray(infrared, dtype=np.float64)
    if w.ndim != 1 or any(x.shape != w.shape for x in columns.values()):
        shapes = " and ".join(f"{k.split('_')[0]} of shape {x.shape}" for k, x in columns.items())
        raise ValueError(f"got {shapes}; expected [bins] of all")
    prefix = Path(prefix)
    table, picture = prefix.with_name(prefix.name + ".csv"), prefix.with_name(prefix.name + ".png")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(
        table,
        np.column_stack(list(columns.values())),
        fmt="%.8g",
        delimiter=",",
        header=",".join(columns),
        comments="",
    )
    if not draw:
        return (table,)
    figure, (axes,) = _figure(1, width=8.0, height=4.0)
    what = "vibrational density of states"
    if infrared is not None:
        axes.plot(w, y, color=COLOURS[1], linestyle=DASHES[1], linewidth=1.0, label=what)
        y, what = columns["infrared_cm"], "infrared absorption"
    axes.plot(w, y, color=COLOURS[0], linewidth=1.0, label=what)
    axes.fill_between(w, y, color=COLOURS[0], alpha=0.15, linewidth=0)
    for x, _ in _apart(peaks(w, y), _LABEL_WIDTH * (w[-1] - w[0])):
        near = abs(w - x) < _LABEL_WIDTH / 2 * (w[-1] - w[0])
        height = max(curve[near].max() for curve in list(columns.values())[1:])  # clear of both
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
    axes.set_title(title, fontsize=10)
    axes.set_xlim(w[0], w[-1])
    axes.set_ylim(0, 1.18 * max(x.max() for x in list(columns.values())[1:]))  # room for labels
    axes.set_xlabel("wavenumber (cm$^{-1}$)")
    axes.set_ylabel("intensity, of area 1 (cm)" if infrared is not None else f"{what} (cm)")
    if infrared is not None:
        axes.legend(frameon=False, fontsize=8)
    if terahertz:
        per = WAVENUMBER / 1000  # cm^-1 of a THz
        above = axes.secondary_xaxis("top", functions=(lambda x: x / per, lambda x: x * per))
        above.set_xlabel("frequency (THz)")
    _save(figure, picture)
    return table, picture


def _apart(peaks: list[tuple[float, float]], distance: float) -> list[tuple[float, float]]:
    """The highest peaks of those that are nearer to each other than a distance."""
    kept: list[tuple[float, float]] = []
    for peak in sorted(peaks, key=lambda one: -one[1]):
        if all(abs(peak[0] - other[0]) >= distance for other in kept):
            kept.append(peak)
    return sorted(kept)


def write_curves(
    prefix: str | Path,
    x: tuple[str, NDArray[np.float64]],
    curves: Mapping[str, NDArray[np.float64]],
    label: str,
    title: str = "",
) -> tuple[Path, Path]:
    """Write ``<prefix>.csv`` and ``<prefix>.png`` of some curves [points] over the same x [points].

    x: name, with its unit, and values. curves: values by their names, the columns of the table.
    label: of the axis that they share. title: of the plot. Returns the two paths.
    """
    prefix = Path(prefix)
    table, picture = prefix.with_name(prefix.name + ".csv"), prefix.with_name(prefix.name + ".png")
    columns = {name: values.tolist() for name, values in {x[0]: x[1], **curves}.items()}
    write_tables(prefix.parent, {prefix.name: columns})
    figure, (axes,) = _figure(1, width=8.0, height=4.0)
    for k, (name, values) in enumerate(curves.items()):
        axes.plot(
            x[1], values, color=COLOURS[k % 7], linestyle=DASHES[k % 4], linewidth=1.2, label=name
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlim(np.min(x[1]), np.max(x[1]))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x[0])
    axes.set_ylabel(label)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    _save(figure, picture)
    return table, picture


def write_angle_maps(
    prefix: str | Path, maps: Mapping[str, AngleMap], temperature_K: float | None
) -> tuple[Path, Path]:
    """Write ``<prefix>.csv`` and ``<prefix>.png`` of Ramachandran maps, side by side.

    maps: by their names, all with the same bins. The table has a row for each bin: the middles of
    phi and psi (degrees) and the densities (1/rad²); the picture shows free energies (kJ/mol) at
    temperature_K or, where that is None, in kT. Returns the two paths.
    """
    prefix = Path(prefix)
    table, picture = prefix.with_name(prefix.name + ".csv"), prefix.with_name(prefix.name + ".png")
    first = next(iter(maps.values()))
    middles = np.rad2deg((first.edges[1:] + first.edges[:-1]) / 2)
    phi, psi = (x.ravel().tolist() for x in np.meshgrid(middles, middles, indexing="ij"))
    densities = {name: one.density.ravel().tolist() for name, one in maps.items()}
    columns = {"phi (degrees)": phi, "psi (degrees)": psi, **densities}
    write_tables(prefix.parent, {prefix.name: columns})
    figure, panels = _figure(1, width=1.0 + 3.6 * len(maps), height=3.4, columns=len(maps))
    edges = np.rad2deg(first.edges)
    if temperature_K is None:
        kelvin, unit, called, most = 1 / kB, 1.0, "kT", 12
    else:
        kelvin, unit, called, most = temperature_K, kJ / mol, "kJ/mol", 30
    for axes, (name, one) in zip(panels, maps.items(), strict=True):
        energy = one.free_energy(kelvin) / unit
        shown = np.ma.masked_invalid(energy.T)  # white where no frame is
        image = axes.pcolormesh(edges, edges, shown, cmap="viridis", vmin=0, vmax=most)
        axes.set_aspect("equal")
        axes.set_xticks(range(-180, 181, 90))
        axes.set_yticks(range(-180, 181, 90))
        axes.set_xlabel("φ (degrees)")
        axes.set_ylabel("ψ (degrees)")
        if len(maps) > 1:
            axes.set_title(name, fontsize=10)
    figure.colorbar(image, ax=panels, label=f"free energy ({called})", extend="max")
    _save(figure, picture)
    return table, picture


def write_tables(folder: str | Path, tables: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Write tables, {name: {column: values}}, as NAME.csv of a folder; None is an empty cell.

    The folder is made where there is none. Raises ValueError for columns of different lengths.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        rows = [map(_in_print, row) for row in zip(*table.values(), strict=True)]
        with (Path(folder) / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(rows)


def _in_print(value: Any) -> Any:
    """Numbers without the noise of their last bits, as 0.075 in place of 0.07500000000000001."""
    return f"{value:.12g}" if isinstance(value, float) else value


def plot_spectra(
    spectra: Mapping[str, tuple[ArrayLike, Mapping[str, ArrayLike]]],
    name: str,
    png_path: str | Path,
) -> None:
    """Draw spectra of many molecules, a panel each, predicted above reference.

    spectra: of each molecule wavenumbers [bins] (cm^-1), and intensities [bins] by "reference" and,
    where there are any, "predicted". name: title of the figure.
    """
    columns = min(4, len(spectra))
    rows = -(-len(spectra) // columns)
    figure, panels = _figure(rows, width=3.2 * columns + 1.0, height=2.0, columns=columns)
    for axes, (molecule, (w, each)) in zip(panels, spectra.items(), strict=False):
        for kind, colour in (("reference", COLOURS[-1]), ("predicted", COLOURS[1])):
            if kind in each:
                axes.plot(w, each[kind], color=colour, linewidth=0.8, label=kind)
        axes.set_title(molecule, fontsize=9)
        axes.set_yticks([])
    for axes in panels[len(spectra) :]:
        axes.remove()
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(name, fontsize=10)
    figure.supxlabel("wavenumber (cm$^{-1}$)", fontsize=9)
    _save(figure, Path(png_path))


def plot_bands(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    x_label: str,
    title: str,
    png_path: str | Path,
) -> None:
    """Draw curves with bands, a panel each.

    panels: by title x, mean and deviation, [points] each; the band is that far above and below the
    mean, and no lower than 0. x_label: of all panels. title: of the figure.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, all_axes = _figure(rows, width=3.2 * columns + 1.0, height=2.0, columns=columns)
    for axes, (name, curves) in zip(all_axes, panels.items(), strict=False):
        x, mean, deviation = (np.asarray(values, dtype=np.float64) for values in curves)
        low = np.maximum(mean - deviation, 0.0)
        axes.fill_between(x, low, mean + deviation, color=COLOURS[0], alpha=0.3, linewidth=0)
        axes.plot(x, mean, color=COLOURS[0], linewidth=0.8)
        axes.set_title(name, fontsize=7)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
    for axes in all_axes[len(panels) :]:
        axes.remove()
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(x_label, fontsize=9)
    _save(figure, Path(png_path))


def plot_distributions(
    groups: Mapping[str, ArrayLike],
    pooled: Mapping[str, ArrayLike],
    label: str,
    png_path: str | Path,
) -> None:
    """Draw values of groups, [values] each: every value and the means, above histograms.

    groups: by name, a column each. pooled: by name, a histogram each. label: of the values.
    """
    figure, (top, bottom) = _figure(2, width=max(7.0, min(16.0, 0.16 * len(groups))), height=3.0)
    for k, values in enumerate(groups.values()):
        y = np.asarray(values, dtype=np.float64)
        top.plot(np.full(len(y), k), y, ".", color=COLOURS[5], markersize=3)
        top.errorbar(k, y.mean(), y.std(), fmt="o", color=COLOURS[0], markersize=3, linewidth=1.0)
    top.set_ylabel(label, fontsize=9)
    if len(groups) > _NAMED:
        top.set_xticks([])
        top.set_xlabel(f"{len(groups)} groups of runs")
    else:
        top.set_xticks(range(len(groups)), list(groups), rotation=90, fontsize=6)
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(x) for x in pooled.values()]), 30)
    for k, (name, values) in enumerate(pooled.items()):
        style = {"color": COLOURS[k % 7], "linestyle": DASHES[k % 4]}
        bottom.hist(values, edges, histtype="step", label=f"{name} ({np.size(values)})", **style)
    bottom.set_xlabel(label)
    bottom.set_ylabel("runs")
    bottom.legend(frameon=False, fontsize=8)
    _save(figure, Path(png_path))


def plot_mode_temperatures(table: Mapping[str, Sequence[Any]], png_path: str | Path) -> None:
    """Draw the temperature of every normal mode in predicted runs, relative to the reference.

    table: columns "wavenumber_cm-1" (cm^-1), "reference_K" and "predicted_K" (K).
    """
    w, reference, predicted = (
        np.asarray(table[x], dtype=np.float64)
        for x in ("wavenumber_cm-1", "reference_K", "predicted_K")
    )
    figure, (axes,) = _figure(1, width=6.5, height=3.5)
    axes.axhline(1.0, color="0.5", linewidth=1.0)
    axes.plot(w, predicted / reference, "o", color=COLOURS[1], markersize=3)
    axes.set_yscale("log")
    ticks = (0.25, 0.5, 1, 2, 4)
    axes.set_yticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel("wavenumber of the normal mode (cm$^{-1}$)")
    axes.set_ylabel("temperature, predicted / reference")
    _save(figure, Path(png_path))


def plot_training(csv_path: str | Path, png_path: str | Path) -> None:
    """Draw the log of a training run: loss, errors on validation sets, learning rate.

    The log has columns samples, lr and loss, and for a validation set NAME any of ``val_NAME``
    (error of positions, Å), ``val_NAME_velocity`` (Å/fs), ``val_NAME_static`` and
    ``val_NAME_ballistic`` (errors of the two guesses that need no model, Å, drawn as level lines);
    for a potential ``val_NAME_energy`` and ``val_NAME_unchanged``, the guess that it is constant
    (eV); for a dipole ``val_NAME_dipole`` and ``val_NAME_zero``, the guess that it is zero (e Å).
    Cells may be empty, and a last line that is still being written is left out.

    Raises ValueError if a column is missing or there is no complete row.
    """
    log = _read_log(Path(csv_path))
    measured = {  # what is drawn in one panel: label, suffix of the columns, and of the guesses
        "position error (Å)": ("", ("_static", "_ballistic")),
        "velocity error (Å/fs)": ("_velocity", ()),
        "energy error (eV)": ("_energy", ("_unchanged",)),
        "dipole error (e Å)": ("_dipole", ("_zero",)),
    }
    known = [x for suffix, guesses in measured.values() for x in (suffix, *guesses) if x]
    columns = [k for k in log if k.startswith("val_")]

    def of(suffix: str) -> list[str]:
        if suffix:
            return [k for k in columns if k.endswith(suffix)]
        return [k for k in columns if not k.endswith(tuple(known))]

    shown = {label: of(suffix) for label, (suffix, _) in measured.items() if of(suffix)}
    figure, panels = _figure(2 + len(shown), width=9.0, height=2.2, share=True)
    panels_left = iter(panels)
    top = next(panels_left)
    _curve(top, log["samples"], log["loss"], 0, None)
    top.set_ylabel("training loss")
    top.set_yscale("log")
    for what, names in shown.items():
        suffix, guesses = measured[what]
        axes = next(panels_left)
        axes.set_yscale("log")
        for k, column in enumerate(names):
            name = column.removesuffix(suffix)
            label = name.removeprefix("val_")
            _curve(axes, log["samples"], log[column], k, label)
            for guess, dash in zip(guesses, (":", "--"), strict=False):
                level = log.get(name + guess, np.empty(0))
                level = level[np.isfinite(level)]
                if len(level):
                    axes.axhline(
                        float(level[-1]),
                        color=COLOURS[k % len(COLOURS)],
                        linestyle=dash,
                        linewidth=1.0,
                        label=f"{label}, {guess.removeprefix('_')} guess",
                    )
        axes.set_ylabel(what)
        _legend(axes)
    bottom = next(panels_left)
    _curve(bottom, log["samples"], log["lr"], 0, None)
    bottom.set_ylabel("learning rate")
    bottom.set_yscale("log")
    bottom.set_xscale("log")
    bottom.set_xlabel("training samples seen")
    _save(figure, Path(png_path))


def plot_errors(table: Mapping[str, Sequence[Any]], name: str, png_path: str | Path) -> None:
    """Draw the errors of the model `name` against time, positions above velocities.

    table: columns "lag_fs" (fs), "position", "static" and "ballistic" (Å), "velocity",
    "velocity_static" and "thermal_velocity" (Å/fs), [points] each, as ``error_table`` returns
    them. Both axes are logarithmic; points at time zero or without error are left out. Raises
    ValueError for columns that are missing or of different lengths.
    """
    figure, panels = _figure(2, width=6.5, height=3.0, share=True)
    for axes, (what, curves) in zip(panels, _error_curves(table, "lag_fs", name), strict=True):
        t = np.asarray(table["lag_fs"], dtype=np.float64)
        for k, (label, y) in enumerate(curves.items()):
            shown = np.where((t > 0) & (y > 0), y, np.nan)
            _curve(axes, t, shown, k, label, DASHES[k % len(DASHES)])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylabel(what)
        _legend(axes)
    _plain_numbers(panels[-1].yaxis)
    _plain_numbers(panels[-1].xaxis)
    panels[-1].set_xlabel("time (fs)")
    _save(figure, Path(png_path))


def plot_groups(
    tables: Mapping[str, Mapping[str, Sequence[Any]]], name: str, png_path: str | Path
) -> None:
    """Draw the errors of the model `name` per group: a row of two panels for each of the tables.

    tables: as ``grouped_tables`` returns them, {heading: columns}; the first column names the
    groups, the others are as for :func:`plot_errors`. Groups are drawn in the order of the table,
    named if there are few enough. Raises ValueError as :func:`plot_errors`.
    """
    figure, panels = _figure(len(tables), width=11.0, height=3.0, columns=2)
    pairs = zip(panels[::2], panels[1::2], strict=True)
    for row, (heading, table) in zip(pairs, tables.items(), strict=True):
        key = next(iter(table))
        labels = [group_label(value) for value in table[key]]
        for axes, (what, curves) in zip(row, _error_curves(table, key, name), strict=True):
            for k, (label, y) in enumerate(curves.items()):
                _dots(axes, y, k, label)
            axes.set_yscale("log")
            axes.set_ylabel(what)
            if len(labels) > _NAMED:
                axes.set_xlabel(f"{len(labels)} {heading}")
                axes.set_xticks([])
            else:
                axes.set_xlabel(_GROUPS.get(key, heading))
                axes.set_xticks(range(len(labels)), labels)
                long = max(map(len, labels)) * len(labels) > 60
                axes.tick_params("x", rotation=90 if long else 0, labelsize=7 if long else 9)
        _plain_numbers(row[1].yaxis)
    for axes in panels[:2]:
        axes.legend(
            frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3
        )
    _save(figure, Path(png_path))


def group_label(value: str | float | None) -> str:
    """The name of a group in print: that of a missing temperature is "unknown"."""
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else value


def _error_curves(
    table: Mapping[str, Sequence[Any]], key: str, name: str
) -> list[tuple[str, dict[str, NDArray[np.float64]]]]:
    """What is drawn of an error table: for positions and velocities a label and the curves."""
    wanted = ("position", "static", "ballistic", "velocity", "velocity_static", "thermal_velocity")
    missing = [column for column in (key, *wanted) if column not in table]
    if missing:
        raise ValueError(
            f"the errors lack the column {', '.join(missing)}; they have {list(table)}"
        )
    column = {k: np.asarray(table[k], dtype=np.float64) for k in wanted}
    for k, y in column.items():
        if y.shape != (len(table[key]),):
            raise ValueError(
                f"got column '{k}' of shape {y.shape}; expected [{len(table[key])}], as '{key}'"
            )
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing moves
        share = 100 / column["thermal_velocity"]
        velocity, unchanged = column["velocity"] * share, column["velocity_static"] * share
    return [
        (
            "rms error of positions (Å)",
            {
                name: column["position"],
                "static, R0": column["static"],
                "ballistic, R0 + v0 t": column["ballistic"],
            },
        ),
        (
            "rms error of velocities\n(% of thermal)",
            {name: velocity, "unchanged, v0": unchanged},
        ),
    ]


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


def _figure(
    rows: int, width: float, height: float, share: bool = False, columns: int = 1
) -> tuple[Figure, list]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, sharex=share, squeeze=False).flat)
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


def _dots(axes: Axes, y: NDArray[np.float64], k: int, label: str) -> None:
    known = np.isfinite(y) & (y > 0)
    axes.plot(
        np.arange(len(y))[known],
        y[known],
        color=COLOURS[k % len(COLOURS)],
        linestyle="none",
        marker=MARKERS[k % len(MARKERS)],
        markersize=4,
        label=label,
    )


def _plain_numbers(axis: Axis) -> None:
    """20 instead of 2 x 10^1 on a logarithmic axis."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
