"""Plots hold the data they were given; tables can be read back."""

from __future__ import annotations

from pathlib import Path

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from mdtrajnet_fast.plots import (
    plot_bands,
    plot_distributions,
    plot_errors,
    plot_groups,
    plot_mode_temperatures,
    plot_spectra,
    plot_training,
    write_spectrum,
    write_tables,
)


@pytest.fixture
def drawn(monkeypatch) -> list[matplotlib.figure.Figure]:
    """The figures that are saved, to look into."""
    figures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def is_a_picture(path: Path) -> bool:
    pixels = matplotlib.image.imread(path)
    return min(pixels.shape[:2]) > 300 and bool(np.ptp(pixels[..., :3]) > 0.5)


def test_spectrum(tmp_path: Path, drawn) -> None:
    w = np.linspace(0, 4000, 801)
    y = np.exp(-(((w - 1600) / 20) ** 2)) + 0.5 * np.exp(-(((w - 3700) / 20) ** 2))
    table, picture = write_spectrum(tmp_path / "new" / "run.v1", w, y)
    assert table == tmp_path / "new" / "run.v1.csv"
    assert table.read_text().splitlines()[0] == "wavenumber_cm-1,intensity_cm"
    back = np.loadtxt(table, delimiter=",", skiprows=1)
    np.testing.assert_allclose(back, np.column_stack((w, y)), rtol=1e-7)
    assert is_a_picture(picture)
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["1600", "3700"]
    assert "cm" in axes.get_xlabel()
    with pytest.raises(ValueError, match=r"\(801,\) and intensity of shape \(800,\)"):
        write_spectrum(tmp_path / "x", w, y[1:])
    assert write_spectrum(tmp_path / "table", w, y, draw=False) == (tmp_path / "table.csv",)
    assert not (tmp_path / "table.png").exists()


def test_frequencies_of_phonons(tmp_path: Path, drawn) -> None:
    w = np.linspace(0, 2000, 401)
    write_spectrum(tmp_path / "run", w, np.exp(-(((w - 1332) / 20) ** 2)), terahertz=True)
    (above,) = drawn[0].axes[0].child_axes
    assert above.get_xlabel() == "frequency (THz)"
    highest = 2000 * 100 * 299792458 / 1e12
    np.testing.assert_allclose(above.get_xlim(), (0, highest), rtol=1e-12)


def test_labels_of_peaks_do_not_touch(tmp_path: Path, drawn) -> None:
    w = np.linspace(0, 4000, 4001)
    lines = {1000: 1.0, 1030: 0.9, 1060: 0.8, 1200: 0.3, 2900: 0.7, 2925: 0.8}
    y = sum(height * np.exp(-(((w - x) / 6) ** 2)) for x, height in lines.items())
    write_spectrum(tmp_path / "run", w, y, title="C2H6O, 300 K")
    (axes,) = drawn[0].axes
    assert axes.get_title() == "C2H6O, 300 K"
    assert [text.get_text() for text in axes.texts] == ["1000", "1200", "2925"]
    drawn[0].canvas.draw()
    boxes = sorted((box.x0, box.x1) for box in (t.get_window_extent() for t in axes.texts))
    assert all(right <= left for (_, right), (left, _) in zip(boxes, boxes[1:], strict=False))


def test_infrared_against_the_motion(tmp_path: Path, drawn) -> None:
    w = np.linspace(0, 4000, 801)
    y, infrared = (np.exp(-(((w - x) / 20) ** 2)) for x in (3700, 1600))
    table, picture = write_spectrum(tmp_path / "ir", w, y, 2 * infrared)
    assert table.read_text().splitlines()[0] == "wavenumber_cm-1,intensity_cm,infrared_cm"
    back = np.loadtxt(table, delimiter=",", skiprows=1)
    np.testing.assert_allclose(back, np.column_stack((w, y, 2 * infrared)), rtol=1e-7)
    assert is_a_picture(picture)
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["1600"]
    assert len(axes.lines) == 2 and axes.get_ylim()[1] > 2
    with pytest.raises(ValueError, match=r"infrared of shape \(800,\)"):
        write_spectrum(tmp_path / "x", w, y, y[1:])


LOG = """step,samples,seconds,lr,loss,val_a,val_a_static,val_a_ballistic,val_a_velocity
10,640,1.0,0.001,0.5,,,,
20,1280,2.0,0.002,0.3,0.05,0.10,0.16,0.004
30,1920,3.0,0.001,0.2,0.02,0.10,0.16,0.002
"""


def test_training_curves(tmp_path: Path, drawn) -> None:
    (tmp_path / "log.csv").write_text(LOG + "40,2560,4.0,0.0")  # a line still being written
    plot_training(tmp_path / "log.csv", tmp_path / "curves.png")
    assert is_a_picture(tmp_path / "curves.png")
    loss, position, velocity, rate = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[640, 0.5], [1280, 0.3], [1920, 0.2]]
    assert position.lines[0].get_xydata().tolist() == [[1280, 0.05], [1920, 0.02]]
    levels = {line.get_label(): line.get_ydata()[0] for line in position.lines[1:]}
    assert levels == {"a, static guess": 0.10, "a, ballistic guess": 0.16}
    assert velocity.lines[0].get_ydata().tolist() == [0.004, 0.002]
    assert rate.lines[0].get_ydata().tolist() == [0.001, 0.002, 0.001]
    assert "Å" in position.get_ylabel() and "Å/fs" in velocity.get_ylabel()
    assert {axes.get_xscale() for axes in drawn[0].axes} == {"log"}
    assert {axes.get_yscale() for axes in drawn[0].axes} == {"log"}


def test_training_without_validation(tmp_path: Path, drawn) -> None:
    rows = [",".join(line.split(",")[:5]) for line in LOG.splitlines()]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    plot_training(tmp_path / "log.csv", tmp_path / "curves.png")
    assert len(drawn[0].axes) == 2


def test_training_log_refusals(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("step,samples,lr,loss\n")
    with pytest.raises(ValueError, match="no complete row"):
        plot_training(tmp_path / "empty.csv", tmp_path / "x.png")
    (tmp_path / "other.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="lacks the column samples, lr; it has step, loss"):
        plot_training(tmp_path / "other.csv", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def error_columns(points: int) -> dict[str, list]:
    """An error table without its first column; every figure is different."""
    rise = np.arange(1.0, points + 1)
    return {
        "atoms": [9] * points,
        "position": (0.001 * rise).tolist(),
        "velocity": (0.0002 * rise).tolist(),
        "static": (0.01 * rise).tolist(),
        "ballistic": (0.002 * rise**2).tolist(),
        "velocity_static": (0.003 * rise).tolist(),
        "thermal_velocity": [0.01] * points,
    }


def test_errors(tmp_path: Path, drawn) -> None:
    table = {"lag_fs": list(range(11))} | error_columns(11)
    plot_errors(table, "mine", tmp_path / "errors.png")
    assert is_a_picture(tmp_path / "errors.png")
    positions, velocities = drawn[0].axes
    labels = ["mine", "static, R0", "ballistic, R0 + v0 t"]
    assert [line.get_label() for line in positions.lines] == labels
    for line, name in zip(positions.lines, ("position", "static", "ballistic"), strict=True):
        assert line.get_xydata().tolist() == [
            [t, y] for t, y in zip(table["lag_fs"], table[name], strict=True) if t
        ]
    shares = [line.get_ydata()[-1] for line in velocities.lines]
    np.testing.assert_allclose(shares, [22, 330])  # % of the thermal velocity
    assert "%" in velocities.get_ylabel() and "Å" in positions.get_ylabel()
    assert {axes.get_xscale() for axes in drawn[0].axes} == {"log"}
    assert {axes.get_yscale() for axes in drawn[0].axes} == {"log"}
    with pytest.raises(ValueError, match="'static' of shape"):
        plot_errors(table | {"static": [1.0]}, "mine", tmp_path / "x.png")
    del table["velocity"]
    with pytest.raises(ValueError, match="lack the column velocity;"):
        plot_errors(table, "mine", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_groups(tmp_path: Path, drawn) -> None:
    tables = {
        "elements": {"element": ["H", "O"]} | error_columns(2),
        "temperatures": {"temperature_K": [300.0, 1000.0, None]} | error_columns(3),
        "molecules": {"molecule": [f"C{k}" for k in range(200)]} | error_columns(200),
    }
    plot_groups(tables, "mine", tmp_path / "groups.png")
    assert is_a_picture(tmp_path / "groups.png")
    axes = np.array(drawn[0].axes).reshape(3, 2)
    for row, count in zip(axes, (2, 3, 200), strict=True):
        model = row[0].lines[0].get_xydata()
        np.testing.assert_allclose(model, [[k, 0.001 * (k + 1)] for k in range(count)])
        np.testing.assert_allclose(row[1].lines[0].get_ydata()[1], 4)
    ticks = [[text.get_text() for text in one.get_xticklabels()] for one in axes[:, 0]]
    assert ticks == [["H", "O"], ["300", "1000", "unknown"], []]
    headings = ["elements", "target temperature (K)", "200 molecules"]
    assert [one.get_xlabel() for one in axes[:, 0]] == headings


def test_tables(tmp_path: Path) -> None:
    write_tables(tmp_path / "new", {"a": {"name": ["x", "y"], "value": [0.1 + 0.2, None]}})
    assert (tmp_path / "new" / "a.csv").read_text().splitlines() == ["name,value", "x,0.3", "y,"]
    with pytest.raises(ValueError, match="shorter"):
        write_tables(tmp_path, {"a": {"name": ["x", "y"], "value": [0.5]}})


def test_spectra_of_many(tmp_path: Path, drawn) -> None:
    """A panel for each molecule; one without predictions shows the reference alone."""
    w = np.linspace(0, 4000, 101)
    both = {"reference": np.ones(101), "predicted": np.arange(101.0)}
    spectra = {name: (w, both) for name in "abcde"} | {"f": (w, {"reference": np.ones(101)})}
    plot_spectra(spectra, "title", tmp_path / "s.png")
    assert is_a_picture(tmp_path / "s.png")
    assert [len(axes.lines) for axes in drawn[0].axes] == [2, 2, 2, 2, 2, 1]
    np.testing.assert_array_equal(drawn[0].axes[4].lines[1].get_ydata(), np.arange(101.0))


def test_temperatures_of_modes(tmp_path: Path, drawn) -> None:
    table = {"wavenumber_cm-1": [100, 3000], "reference_K": [200, 300], "predicted_K": [400, 150]}
    plot_mode_temperatures(table, tmp_path / "m.png")
    assert is_a_picture(tmp_path / "m.png")
    _, dots = drawn[0].axes[0].lines
    np.testing.assert_array_equal(dots.get_ydata(), [2, 0.5])


def test_bands(tmp_path: Path, drawn) -> None:
    x, mean = np.linspace(0, 4000, 50), np.linspace(0, 1, 50)
    panels = {f"molecule {k}": (x, mean + k, np.full(50, 0.5)) for k in range(5)}
    plot_bands(panels, "wavenumber", "mean", tmp_path / "bands.png")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == list(panels)
    line, (band,) = figure.axes[1].lines[0], figure.axes[1].collections
    np.testing.assert_array_equal(line.get_xydata(), np.column_stack([x, mean + 1]))
    inside = band.get_paths()[0]
    assert inside.contains_points([(2000, 1.1), (2000, 1.9)]).all()
    assert not inside.contains_points([(2000, 0.9), (2000, 2.1)]).any()
    assert figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].min() == 0
    assert is_a_picture(tmp_path / "bands.png")


@pytest.mark.parametrize("count", [2, 70])
def test_distributions(tmp_path: Path, drawn, count) -> None:
    rng = np.random.default_rng(0)
    groups = {f"group {k}": rng.normal(300, 20, 1 + k % 4) for k in range(count)}
    pooled = {"300 K": np.concatenate(list(groups.values()))}
    plot_distributions(groups, pooled, "temperature (K)", tmp_path / "a.png")
    top, bottom = drawn[0].axes
    assert [text.get_text() for text in top.get_xticklabels()] == (list(groups) * (count == 2))
    heights = bottom.patches[0].get_xy()[:, 1]
    assert heights.max() >= len(pooled["300 K"]) / 30
    assert f"300 K ({len(pooled['300 K'])})" in bottom.get_legend().get_texts()[0].get_text()
    assert is_a_picture(tmp_path / "a.png")
