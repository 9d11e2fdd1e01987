"""What runs a campaign has, where they are, and which of them are predicted together."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import ase
import numpy as np

from ..io.structures import read_structure
from ..model.checkpoint import load_model
from ..model.network import MDtrajNet
from ..runs import DEFAULTS, Run, check, describe_run, read_run, write_json
from .config import CampaignConfig

RUNS = "runs"  # the folder of the folders of the runs
# What runs have in common: all that a run is told but what it is told for itself.
COMMON = sorted(DEFAULTS.keys() - {"model", "temperature", "seed"})


@dataclass
class Member:
    """One run of a campaign. temperature: K, asked for. seed, replica: as the campaign counts.

    group: names of what it shares with its other seeds and replicas, the model last. folder, said:
    of the run, and the content of its run.json; said is None for one that cannot be run, for the
    reason `error`. atoms: how many.
    """

    folder: Path
    group: tuple[str, str]
    structure: str
    temperature: float | None
    model: str
    seed: int
    replica: int
    said: dict[str, Any] | None = None
    error: str | None = None

    @property
    def number(self) -> int:
        """The seed of the run itself: of replica 0 its seed, of others drawn from it."""
        if self.replica == 0:
            return self.seed
        drawn = np.random.SeedSequence(self.seed, spawn_key=(self.replica,)).generate_state(1)
        return int(drawn[0] >> 1)

    @property
    def atoms(self) -> int:
        """How many there are."""
        return 0 if self.said is None else len(self.said["structure"]["numbers"])

    @property
    def outcome(self) -> str:
        """ "complete", "broken", "failed", or "unfinished"."""
        if self.error is not None:
            return "failed"
        return "unfinished" if self.said is None else self.said.get("outcome", "unfinished")


@dataclass
class _Names:
    """Short names of structures and models, each its own; campaign.json remembers them."""

    structures: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)


def open_campaign(config: CampaignConfig) -> list[Member]:
    """All runs of a campaign, each with a run.json in its folder.

    Those that are there are read. Others are made, if their structure can be read and their model
    is for it. campaign.json keeps what they have in common: a campaign may grow by structures,
    temperatures, models, seeds and replicas, and to a longer duration.

    Raises ValueError where the folder holds a campaign of other settings, or a damaged one; and
    FileNotFoundError and ValueError for models that cannot be read.
    """
    folder = Path(config.output).resolve()
    file = folder / "campaign.json"
    common = {name: getattr(config, name) for name in COMMON}
    names = _Names()
    if file.exists():
        held, names = _read(file)
        grows = common["duration"] >= held["duration"]
        wrong = [k for k in COMMON if held.get(k) != common[k] and not (grows and k == "duration")]
        if wrong:
            listed = "; ".join(f"{k}: {held.get(k)!r} there, {common[k]!r} given" for k in wrong)
            raise ValueError(
                f"{folder} holds a campaign of other settings: {listed}. Give the same ones, or "
                "another output"
            )
    models = {name: load_model(name, config.dtype) for name in config.models}
    members = list(_members(config, folder, names))
    (folder / RUNS).mkdir(exist_ok=True)
    write_json(file, {"settings": common, **dataclasses.asdict(names)})
    read = lru_cache(read_structure)  # the same atoms, whatever they are run with
    for one in members:
        try:
            if (one.folder / "run.json").exists():
                one.said = _continued(one.folder, config.duration)
            else:
                one.said = _made(one, common, models[one.model], read)
        except (ValueError, OSError) as error:  # the others go on without it
            one.error = str(error)
    return members


def _members(config: CampaignConfig, folder: Path, names: _Names) -> Iterator[Member]:
    axes = (config.temperatures or (None,), _whole(config.seeds), range(config.replicas))
    for structure, model in itertools.product(config.structures, config.models):
        short = _short(names.structures, structure, folder)
        of_model = _short(names.models, model, folder)
        for kelvin, seed, replica in itertools.product(*axes):
            group = (short if kelvin is None else f"{short}-{kelvin:g}K"), of_model
            name = "-".join((*group, f"s{seed}", *([f"r{replica}"] if replica else [])))
            yield Member(folder / RUNS / name, group, structure, kelvin, model, seed, replica)


def _short(names: dict[str, str], text: str, folder: Path) -> str:
    """The name of a structure or model; of a file the one without its suffix."""
    try:
        is_path = Path(text).exists()
    except OSError:  # longer than a name can be: a SMILES string
        is_path = False
    key = os.path.relpath(text, folder) if is_path else text
    slug = re.sub(r"[^A-Za-z0-9.+-]+", "_", Path(text).stem if is_path else text).strip("_.")
    slug = slug[:60] or "run"
    free = itertools.chain([slug], (f"{slug}-{k}" for k in itertools.count(2)))
    return names.setdefault(key, next(one for one in free if one not in names.values()))


def _made(
    member: Member,
    common: dict[str, Any],
    model: MDtrajNet,
    read: Callable[[str], ase.Atoms],
) -> dict[str, Any]:
    own = {"model": member.model, "temperature": member.temperature, "seed": member.number}
    atoms, command = read(member.structure), ["mdtrajnet", "campaign"]
    run = Run(member.folder, *describe_run(member.structure, common | own, command, atoms))
    check(run, model)
    run.folder.mkdir(exist_ok=True)
    run.write()
    return run.said


def _continued(folder: Path, duration: float) -> dict[str, Any]:
    run = read_run(folder)
    if run.settings["duration"] < duration:
        run.settings["duration"] = duration
        run.said.pop("outcome", None)
        run.write()
    return run.said


def _read(file: Path) -> tuple[dict[str, Any], _Names]:
    try:
        said = json.loads(file.read_text())
        _ = said["settings"]["duration"] + 0.0
        return said["settings"], _Names(dict(said["structures"]), dict(said["models"]))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{file} does not describe a campaign ({type(error).__name__}: {error}); restore it "
            "from a copy"
        ) from error


def _whole(seeds: tuple[int, ...] | int) -> tuple[int, ...]:
    assert isinstance(seeds, tuple)  # a config makes numbers of a count
    return seeds


def batches(members: Sequence[Member], most: int, workers: int = 1) -> list[list[Member]]:
    """Members of one model each, of at most so many atoms together; the largest batches first.

    For several workers the last ones get smaller, down to a quarter, so that all end together.
    """
    made: list[list[Member]] = []
    left, room = sum(one.atoms for one in members), 0
    for one in sorted(members, key=lambda one: (one.model, -one.atoms, one.folder)):
        if not made or made[-1][0].model != one.model or one.atoms > room:
            made.append([])
            room = most if workers == 1 else min(most, max(most // 4, left // (3 * workers)))
        made[-1].append(one)
        room -= one.atoms
        left -= one.atoms
    return sorted(made, key=lambda some: -sum(one.atoms for one in some))
