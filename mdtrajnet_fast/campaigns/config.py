"""Settings of a campaign."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.settings import is_number, read_settings
from ..md.thermostats import THERMOSTATS
from ..md.window import METHODS
from ..model.checkpoint import bundled_models
from ..runs import FORMATS


@dataclass(frozen=True)
class CampaignConfig:
    """A campaign: one run for each of structures x temperatures x models x seeds x replicas.

    Reads from TOML with :meth:`read`; paths there are relative to the file.

    output: folder of the campaign.
    structures: files, names or SMILES (:func:`~mdtrajnet_fast.read_structure`).
    temperatures: K, that velocities are drawn at; empty: a structure's own velocities, or 300 K for
        one at rest.
    models: bundled names, folders or .pt files.
    seeds: of velocities and thermostats: whole numbers, or how many, from 0 on.
    replicas: how many runs of each seed. Replica 0 has the seed itself and is the run that
        ``mdtrajnet simulate --seed`` makes; the others have seeds drawn from it.
    dt, duration: spacing of the frames and length of the runs (fs).
    window, method, energy_rate, thermostat, friction, time_constant, equilibration, masses: as for
        ``mdtrajnet simulate``, with its defaults.
    dtype, device: of the models, on the workers.
    format: of the trajectories: "traj", "extxyz" or "h5".
    reports: whether every run gets its page report.html and its plot spectrum.png, which take
        longer than a short run.
    batch_atoms: how many atoms are predicted together, at most; runs larger than that are alone.
        None: 250 on CPUs, which are then as fast as they get, and 20,000 elsewhere; less where
        workers would be idle. The results do not depend on it.
    workers: processes on this machine, of one thread each; None: one for each core that this
        process may use.
    address: of a Dask scheduler that is there, or its scheduler file, in place of these.
    jobqueue: a YAML file of dask-jobqueue, which starts the workers as jobs, in place of these.
    jobs: how many of them.

    Raises ValueError for values out of range.
    """

    output: str
    structures: tuple[str, ...]
    temperatures: tuple[float, ...] = ()
    models: tuple[str, ...] = ("molecules-nve",)
    seeds: tuple[int, ...] | int = (0,)
    replicas: int = 1
    dt: float = 1.0
    duration: float = 1000.0
    window: float | None = None
    method: str | None = None
    energy_rate: float | None = None
    thermostat: str | None = None
    friction: float | None = None
    time_constant: float | None = None
    equilibration: float | None = None
    masses: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    format: str = "h5"
    reports: bool = False
    batch_atoms: int | None = None
    workers: int | None = None
    address: str | None = None
    jobqueue: str | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", str(self.output))
        for name in ("structures", "models"):
            many = tuple(str(one) for one in _tuple(getattr(self, name)))
            object.__setattr__(self, name, many)
        object.__setattr__(self, "temperatures", _tuple(self.temperatures))
        if isinstance(self.seeds, int) and not isinstance(self.seeds, bool):
            object.__setattr__(self, "seeds", tuple(range(self.seeds)))
        object.__setattr__(self, "seeds", _tuple(self.seeds))
        for name in ("structures", "models", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"a campaign needs {name}, at least one; got none")
        for name in ("structures", "temperatures", "models", "seeds"):
            each = getattr(self, name)
            if twice := {one for one in each if each.count(one) > 1}:
                raise ValueError(f"{name} has {', '.join(map(str, twice))} more than once")
        self._check_numbers()
        for name, known in (
            ("method", (None, *METHODS)),
            ("thermostat", (None, *THERMOSTATS)),
            ("masses", (None, "standard")),
            ("dtype", ("float32", "float64")),
            ("format", FORMATS),
        ):
            if (value := getattr(self, name)) not in known:
                listed = ", ".join(str(one) for one in known if one is not None)
                raise ValueError(f"{name} must be one of {listed}, got {value!r}")
        if not isinstance(self.reports, bool):
            raise ValueError(f"reports must be true or false, got {self.reports!r}")
        given = [k for k in ("workers", "address", "jobqueue") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(
                f"workers come from one place, got {' and '.join(given)}: leave all but one out"
            )

    def _check_numbers(self) -> None:
        for kelvin in self.temperatures:
            if not (is_number(kelvin) and kelvin > 0):
                raise ValueError(f"temperatures must be positive numbers of K, got {kelvin!r}")
        for seed in _tuple(self.seeds):
            if not (is_number(seed, whole=True) and seed >= 0):
                raise ValueError(f"seeds must be whole numbers, 0 or more, got {seed!r}")
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        for names, whole, least, said in (
            (("replicas", "batch_atoms", "workers", "jobs"), True, 1, "a whole number, 1 or more"),
            (("dt", "duration", "window", "friction", "time_constant"), False, 1e-6, "positive"),
            (("energy_rate", "equilibration"), False, 0, "a number, 0 or more"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is None and fields[name] is None:
                    continue
                if not (is_number(value, whole) and value >= least):
                    raise ValueError(f"{name} must be {said}, got {value!r}")
        if self.dt > self.duration:
            raise ValueError(
                f"dt must not exceed duration (fs), got dt {self.dt} and duration {self.duration}"
            )

    @classmethod
    def read(cls, path: str | Path) -> CampaignConfig:
        """The campaign that a TOML file describes; unknown names are refused.

        A structure with a ``*`` or ``?`` is a pattern of files, each of which is one.
        """
        path = Path(path)
        values = read_settings(path, cls, {"structures", "output"})
        folder = path.parent
        values["output"] = str(folder / values["output"])
        texts = [str(text) for text in _tuple(values["structures"])]
        values["structures"] = [one for text in texts for one in _beside(folder, text)]
        if "models" in values:
            values["models"] = [
                name if name in bundled_models() else str(folder / name)
                for name in map(str, _tuple(values["models"]))
            ]
        for name in {"address", "jobqueue"} & set(values):
            if (folder / str(values[name])).is_file():
                values[name] = str(folder / values[name])
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


def _beside(folder: Path, text: str) -> list[str]:
    """Files beside a recipe that a structure names, or the structure as it is."""
    if set("*?") & set(text):
        if not (found := sorted(str(file) for file in folder.glob(text))):
            raise ValueError(f"structures: no file in {folder} is like {text}")
        return found
    try:
        return [str(folder / text)] if (folder / text).is_file() else [text]
    except OSError:  # longer than a name can be: a SMILES string
        return [text]


def _tuple(value: Any) -> tuple:
    return (value,) if isinstance(value, str | Path | int | float) else tuple(value)
