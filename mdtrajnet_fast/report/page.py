"""The page: what there is to show of a run, put into the template."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .. import __version__
from ..analysis.spectra import spectra
from ..analysis.trust import trust_summary
from ..io.run_folder import describing, run_json, trajectory_name
from ..io.trajectory import Trajectory
from ..model.archive import write_whole
from ..model.checkpoint import load_model, model_card
from ..model.network import MDtrajNet
from .charts import (
    Chart,
    band_chart,
    energy_chart,
    ramachandran_chart,
    rdf_chart,
    spectrum_charts,
    temperature_chart,
)
from .movie import movie
from .verdict import duration, verdict

_STATIC = Path(__file__).with_name("static")
# The page may run what is in it and ask for nothing that is not.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    model: MDtrajNet | None = None,
    trajectory: Trajectory | None = None,
    reference: Trajectory | None = None,
) -> Path:
    """Write one self-contained HTML page of a run: viewer, verdict, spectra, energies, settings.

    Arguments
        folder: of ``mdtrajnet simulate``: run.json and the trajectory.
        output: where to; None: report.html in the folder. It replaces what is there.
        model: that made the run, if it is at hand; None: it is loaded. Where it cannot be, the page
            says so, and has no infrared spectrum.
        trajectory: of the run, if it is at hand; None: it is read.
        reference: another trajectory of the same molecule, whose spectrum is drawn beside.

    Returns the path. Raises FileNotFoundError where there is no run.json or no trajectory, and
    ValueError for a run.json that is damaged and as :meth:`.Trajectory.read`.
    """
    folder = Path(folder)
    run = _run(folder)
    path = Path(output) if output is not None else folder / "report.html"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; make it first")
    if trajectory is None:
        trajectory = Trajectory.read(folder / run["trajectory"])
    missing = []
    if model is None:
        try:
            model = load_model(run["settings"]["model"])
        except (OSError, ValueError) as error:
            missing.append(f"The model is not at hand: {error}")
    trust = run.get("trust")
    if trust is None or trust["frames"] != len(trajectory):  # killed, or still at work
        cutoff = None if model is None else model.config.radial_cutoff
        trust = trust_summary(trajectory, cutoff).to_dict()
    charts = list(_charts(run, trajectory, model, trust, reference, missing))
    name = run["structure"]["name"]
    page = _environment().get_template("template.html").render(
        title=f"{name}, {_kelvin(trust)}",
        name=name,
        formula=trajectory.atoms.get_chemical_formula(),
        length=duration(float(trajectory.times[-1] - trajectory.times[0])),
        frames=len(trajectory),
        verdict=verdict(trust),
        charts=charts,
        missing=missing,
        data={"charts": [chart.to_dict() for chart in charts], "movie": movie(trajectory)},
        command=shlex.join(map(str, run["command"])),
        facts=_facts(run),
        card=_card(run["settings"]["model"]),
        model=run["settings"]["model"],
        version=__version__,
        policy=_POLICY,
    )  # fmt: skip
    write_whole(path, page.encode())
    return path


def _run(folder: Path) -> dict[str, Any]:
    file = run_json(folder)
    with describing(file):
        run = json.loads(file.read_text())
        run["trajectory"] = trajectory_name(run)
        _ = run["settings"]["model"], run["structure"]["name"], run["command"], _facts(run)
    return run


def _charts(
    run: dict[str, Any],
    trajectory: Trajectory,
    model: MDtrajNet | None,
    trust: dict[str, Any],
    reference: Trajectory | None,
    missing: list[str],
) -> Iterable[Chart]:
    """Those that apply; what does not, and why, is added to `missing`."""
    of = f"{run['structure']['name']} at {_kelvin(trust)}"
    periodic = trajectory.atoms.pbc

    def spectrum() -> Iterable[Chart]:
        known = model is not None and model.dipole is not None and not periodic.any()
        dipoles = model.dipoles(trajectory) if known and model is not None else None
        if reference is None:
            return spectrum_charts(spectra(trajectory, dipoles=dipoles), of)
        resolution = max(spectra(one).resolution for one in (trajectory, reference))
        found = spectra(trajectory, resolution=resolution, dipoles=dipoles)
        return spectrum_charts(found, of, spectra(reference, resolution=resolution))

    settings = run["settings"]
    target = settings.get("temperature_K") if settings.get("thermostat") else None
    kinds: dict[str, Callable[[], Any]] = {
        "spectrum": spectrum,
        "energies": lambda: energy_chart(trajectory, of),
        "temperatures": lambda: temperature_chart(trajectory, of, target),
        "bands": lambda: band_chart(trajectory, of),
        "radial distribution": lambda: rdf_chart(trajectory, of) if periodic.all() else None,
        "Ramachandran map": lambda: ramachandran_chart(trajectory, of),
    }
    for kind, make in kinds.items():
        try:
            made = make()
            yield from [made] if isinstance(made, Chart) else made or ()
        except ValueError as error:  # too short, or frames too far apart
            missing.append(f"No {kind}: {error}")


def _kelvin(trust: dict[str, Any]) -> str:
    mean = trust["temperature"]["mean"]
    return "no temperature" if mean is None else f"{mean:.0f} K"


def _facts(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was run, by headings."""
    structure = run["structure"]
    took = {} if "seconds" not in run else {"time taken": f"{run['seconds']:g} s"}
    return {
        "System": {
            "structure": f"{structure['text']} ({structure.get('source', 'unknown source')})",
            "atoms": len(structure["numbers"]),
            "temperature": run.get("temperature", ""),
        },
        "Settings": {
            key.replace("_", " "): value
            for key, value in run["settings"].items()
            if value is not None
        },
        "Made with": {**run.get("versions", {}), "weights": run.get("model_hash", ""), **took},
    }


def _card(model: str) -> Markup | None:
    """The card of a model as HTML; what is HTML in it stays text."""
    from markdown_it import MarkdownIt  # here: every command would take longer to start

    card = model_card(model)
    if card is None:
        return None
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(card))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_STATIC),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["static"] = lambda name: Markup((_STATIC / name).read_text("utf-8"))
    return environment
