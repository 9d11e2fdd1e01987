"""The folder of a run: what run.json says, and the prediction that it describes.

`mdtrajnet simulate` makes one such folder, a campaign many. Whatever is predicted together, each
run has its own folder and can be continued from it.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch

from . import __version__
from .analysis.spectra import Spectra, spectra
from .io.run_folder import describing, run_json, trajectory_name
from .io.trajectory import Trajectory, description, set_description
from .md.domains import Processes
from .md.rollout import RolloutError, exact
from .md.simulation import check_run, method_begun, model_hash, simulate
from .md.thermostats import THERMOSTATS, Thermostat
from .md.window import method_of
from .mechanics import (
    centre_of_mass,
    degrees_of_freedom,
    kinetic_temperature,
    set_standard_masses,
    thermal_velocities,
)
from .model.archive import write_whole
from .model.checkpoint import bundled_models
from .model.network import MDtrajNet
from .plots import write_spectrum
from .report.page import write_report
from .system import System, check_velocities_named

# What a run is where nothing is said.
DEFAULTS: dict[str, Any] = {
    "model": "molecules-nve",
    "dtype": "float32",
    "device": "cpu",
    "dt": 1.0,
    "duration": 1000.0,
    "temperature": None,
    "seed": 0,
    "window": None,
    "method": None,
    "energy_rate": None,
    "thermostat": None,
    "friction": None,
    "time_constant": None,
    "equilibration": None,
    "masses": None,
    "format": "traj",
}
FORMATS = ("traj", "extxyz", "h5")  # of the trajectory
DEFAULT_TEMPERATURE_K = 300.0
EQUILIBRATION_FS = 1000.0
# Of these, those that run.json keeps elsewhere or in another form.
_NOT_SETTINGS = ("model", "temperature", "format")
# What runs that are predicted together may differ in.
_OWN = ("temperature_K", "seed")
# What a run cannot go on without; runs of before there was the rest go on.
_NEEDED = {"model", "dtype", "device", "dt", "duration", "window", "temperature_K", "seed"}


@dataclass
class Run:
    """A run: its folder, the content of its run.json, and the atoms that it starts from.

    said["outcome"], once all is written, is "complete" or "broken".
    """

    folder: Path
    said: dict[str, Any]
    atoms: ase.Atoms

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the run: what `simulate` takes."""
        return self.said["settings"]

    @property
    def trajectory(self) -> Path:
        """The file of the frames."""
        return self.folder / self.said["trajectory"]

    def write(self) -> None:
        """Write run.json, in place of the one that is there."""
        write_json(self.folder / "run.json", self.said)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


# ----------------------------------------------------------------------------- what there is to run


def describe_run(
    structure: str, chosen: dict[str, Any], command: Sequence[str], atoms: ase.Atoms
) -> tuple[dict[str, Any], ase.Atoms]:
    """The content of a new run.json, and the atoms it starts from.

    Arguments
        structure: file, name or SMILES, to be kept.
        chosen: values in place of :data:`DEFAULTS`; None stands for the default.
        command: that was given, to be kept.
        atoms: what :func:`~mdtrajnet_fast.read_structure` made of it.

    Raises ValueError for settings that do not go together, and for velocities under names that ASE
    does not use.
    """
    chosen = DEFAULTS | {name: value for name, value in chosen.items() if value is not None}
    atoms = atoms.copy()
    if chosen["masses"] == "standard":
        set_standard_masses(atoms)
    temperature = chosen["temperature"]
    if temperature is None and not atoms.get_momenta().any():
        check_velocities_named(atoms, structure)
        temperature = DEFAULT_TEMPERATURE_K
    if chosen["equilibration"] is None:
        chosen["equilibration"] = 0.0 if temperature is None else EQUILIBRATION_FS
    if temperature is not None:
        thermal_velocities(atoms, temperature, chosen["seed"])
    settings = {
        "model": from_anywhere(chosen["model"]),
        "temperature_K": temperature,
        **{k: v for k, v in chosen.items() if k not in _NOT_SETTINGS},
    }
    thermostat(settings)  # refuses what does not go together
    run = {
        "command": [*command],
        "structure": {
            "text": structure,
            "name": str(atoms.info["name"]),
            "source": atoms.info["source"],
            "numbers": atoms.numbers.tolist(),
            "masses_amu": atoms.get_masses().tolist(),
            "cell_A": atoms.cell[:].tolist(),
            "pbc": atoms.pbc.tolist(),
            "positions_A": atoms.positions.tolist(),
            "momenta_ase": atoms.get_momenta().tolist(),
            "described": description(atoms),
        },
        "settings": settings,
        "temperature": heating(settings),
        "trajectory": f"trajectory.{chosen['format']}",
        "versions": versions(),
    }
    return run, atoms


def read_run(folder: Path, duration: float | None = None) -> Run:
    """The run in a folder. duration: in place of its own (fs).

    Raises FileNotFoundError where there is no run.json, and ValueError for one that is damaged.
    """
    file = run_json(folder)
    with describing(file):
        said = json.loads(file.read_text())
        if duration is not None:
            said["settings"]["duration"] = duration
        if missing := sorted(_NEEDED - said["settings"].keys()):
            raise ValueError(f"its settings lack {', '.join(missing)}")
        said["versions"] = versions()
        start, said["trajectory"] = said["structure"], trajectory_name(said)
        _ = start["positions_A"], start["momenta_ase"]  # of frame 0, where that is another state
        start = start | said.get("before_equilibration", {})
        atoms = ase.Atoms(
            start["numbers"],
            positions=start["positions_A"],
            masses=start["masses_amu"],
            cell=start["cell_A"],
            pbc=start["pbc"],
            momenta=start["momenta_ase"],
        )
        set_description(atoms, start.get("described", {}))
    return Run(folder, said, atoms)


def folder_name(said: dict[str, Any]) -> str:
    """What to call the folder of a run: after its structure and what its temperature is like."""
    slug = re.sub(r"[^A-Za-z0-9.+-]+", "_", said["structure"]["name"]).strip("_") or "run"
    settings = said["settings"]
    if (kelvin := settings["temperature_K"]) is None:
        return slug
    name = settings["thermostat"]
    how = f"-{name}" if name else "" if settings["equilibration"] else "-unequilibrated"
    return f"{slug}-{kelvin:g}K{how}"


def thermostat(settings: dict[str, Any]) -> Thermostat | None:
    """The thermostat that settings name. Raises ValueError for what does not go together."""
    name, kelvin = settings.get("thermostat"), settings["temperature_K"]
    constants = {"langevin": "friction", "csvr": "time_constant"}
    for kind, constant in constants.items():
        if settings.get(constant) is not None and name != kind:
            raise ValueError(
                f"{constant} is a constant of the thermostat {kind}, got thermostat {name}"
            )
    if name is None:
        return None
    if name not in list(THERMOSTATS):  # a run.json may say anything
        raise ValueError(f"thermostat is {name!r}, expected one of {', '.join(THERMOSTATS)}")
    if kelvin is None:
        raise ValueError(f"the thermostat {name} needs a temperature to keep (--temperature)")
    given = settings.get(constants[name])
    return THERMOSTATS[name](kelvin, *([] if given is None else [given]))


def heating(settings: dict[str, Any]) -> str:
    """Where the velocities of a run come from and what keeps its temperature, in words."""
    kelvin, name = settings["temperature_K"], settings.get("thermostat")
    start = "the structure's velocities" if kelvin is None else f"velocities drawn at {kelvin:g} K"
    if equilibration := settings.get("equilibration"):
        start += f", {equilibration:g} fs of equilibration ({name or 'langevin'}) before frame 0"
    elif kelvin is not None and name is None:
        start += ", not equilibrated: a start at a minimum cools to half of it"
    then = "constant energy" if name is None else f"{name} at {kelvin:g} K"
    return f"{start}; {then}"


def from_anywhere(model: str) -> str:
    """A bundled model's name, or a model's path from anywhere."""
    known = model in bundled_models() or not Path(model).exists()
    return model if known else str(Path(model).resolve())


def versions() -> dict[str, str]:
    """Of what a run is made with."""
    return {
        "mdtrajnet_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "ase": ase.__version__,
        "platform": platform.platform(),
    }


# ------------------------------------------------------------------------------------------ running


def check(run: Run, model: MDtrajNet) -> None:
    """Refuse, before anything is written, a run that cannot start or go on; note its method.

    Raises ValueError for other weights of the model than it was begun with, and as
    :func:`.check_run`.
    """
    settings, weights = run.settings, model_hash(model)
    if run.said.setdefault("model_hash", weights) != weights:
        raise ValueError(
            f"{run.folder} was made with other weights of the model {settings['model']!r}; use "
            "those"
        )
    if settings.get("method", "") is None:
        settings["method"] = method_of(model, None)
    check_run(
        model,
        System.from_atoms(run.atoms),
        settings["dt"],
        settings["duration"],
        settings["window"],
        method_begun(settings),
        settings.get("equilibration") or 0.0,
    )
    thermostat(settings)


def predict(
    runs: Sequence[Run],
    model: MDtrajNet,
    *,
    resume: bool = False,
    keep: bool = True,
    processes: Processes | None = None,
    progress: bool = False,
) -> list[Trajectory]:
    """Predict runs, all in the same batches, whose folders are there and locked.

    They differ in their atoms, temperatures and seeds alone. run.json is written before and after.
    processes: that share the only run and all call this, the first of which writes.
    resume, keep, progress: as for :func:`~mdtrajnet_fast.simulate`, which says what is raised.
    """
    writes = processes is None or processes.rank == 0
    settings = runs[0].settings
    for run in runs[1:]:
        if wrong := [k for k in settings if k not in _OWN and run.settings[k] != settings[k]]:
            raise ValueError(
                f"runs of one batch differ in {', '.join(_OWN)} alone; {run.folder} and "
                f"{runs[0].folder} differ in {', '.join(wrong)}"
            )
    for run in runs if writes else ():
        run.said.pop("outcome", None)
        run.write()
    baths = [bath for run in runs if (bath := thermostat(run.settings)) is not None]
    kelvins = [run.settings["temperature_K"] for run in runs]
    begun = time.perf_counter()
    try:
        done = simulate(
            [run.atoms for run in runs],
            settings["dt"],
            duration=settings["duration"],
            model=model,
            window=settings["window"],
            method=method_begun(settings),
            energy_rate=settings.get("energy_rate"),
            temperature_K=kelvins,
            seed=[run.settings["seed"] for run in runs],
            thermostat=baths or None,
            equilibration=settings.get("equilibration") or 0.0,
            trajectory=[run.trajectory for run in runs],
            resume=resume,
            keep=keep,
            decompose=processes is not None,
            progress=progress,
        )
    except RolloutError as error:
        for run, trajectory in zip(runs if writes else (), error.trajectories, strict=False):
            _note(run, trajectory, time.perf_counter() - begun)
        raise
    assert isinstance(done, list)
    seconds, atoms = time.perf_counter() - begun, sum(len(run.atoms) for run in runs)
    for run, trajectory in zip(runs, done, strict=True) if writes else ():
        _note(run, trajectory, seconds * len(run.atoms) / atoms)
    return done


def _note(run: Run, trajectory: Trajectory, seconds: float) -> None:
    """Write to run.json how a run went. seconds: that it took."""
    if run.settings.get("equilibration"):  # `structure` is frame 0, as without
        first = Trajectory.read(run.trajectory, slice(0, 1))
        moved = {"positions_A": first.positions[0], "momenta_ase": first.momenta[0]}
        start = run.said["structure"]
        if "before_equilibration" not in run.said:
            run.said["before_equilibration"] = {name: start[name] for name in moved}
        start |= {name: x.tolist() for name, x in moved.items()}
    assert trajectory.trust is not None
    run.said["seconds"] = round(seconds, 3)
    run.said["trust"] = trajectory.trust.to_dict()
    run.write()


def finish(
    run: Run, trajectory: Trajectory, report: MDtrajNet | None, draw: bool = True
) -> Spectra | str:
    """Write what a run that was predicted leaves beside its frames; last of all, its outcome.

    report: the model of the run, for its page; None: no page. draw: whether its spectrum is plotted
    as well. Returns the spectra, or why there are none.
    """
    found: Spectra | str
    try:
        found, _ = write_spectra(trajectory, run.folder / "spectrum", draw=draw)
    except ValueError as error:  # too short, or frames too far apart
        found = str(error)
    if report is not None:
        write_report(run.folder, model=report, trajectory=trajectory)
    dt = exact(run.settings["dt"])
    last = float(exact(run.settings["duration"]) // dt * dt)
    run.said["outcome"] = "complete" if trajectory.times[-1] >= last else "broken"
    run.write()
    return found


def title(trajectory: Trajectory) -> str:
    """Formula and mean kinetic temperature, of a plot."""
    atoms, velocities = trajectory.atoms, trajectory.velocities
    velocities = velocities - centre_of_mass(velocities, atoms.get_masses())[:, None]
    freedom = degrees_of_freedom(trajectory[0])
    kelvin = kinetic_temperature(velocities, atoms.get_masses(), freedom or None).mean()
    return f"{atoms.get_chemical_formula()}, {kelvin:.0f} K"


def write_spectra(
    trajectory: Trajectory,
    prefix: Path,
    resolution: float | None = None,
    max_wavenumber: float | None = None,
    dipoles: np.ndarray | None = None,
    draw: bool = True,
) -> tuple[Spectra, tuple[Path, ...]]:
    """Write the spectra of a trajectory, which :func:`.spectra` finds, as a table and a plot.

    draw: False for the table alone. Returns them and the paths; raises ValueError as it does.
    """
    found = spectra(
        trajectory, resolution=resolution, max_wavenumber=max_wavenumber, dipoles=dipoles
    )
    curves = found.wavenumber, found.motion, found.infrared
    crystal = bool(trajectory.atoms.pbc.all())
    return found, write_spectrum(prefix, *curves, title(trajectory), draw, terahertz=crystal)
