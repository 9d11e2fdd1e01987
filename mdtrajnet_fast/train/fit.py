"""Training: random pairs of frames, AdamW or SOAP, averaged weights, validation, exact resume.

What is trained is the motion, or the potential energy with which rollouts conserve the energy.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
import os
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..data.device_pairs import ResidentPairs, TensorBatch, tensor_batch
from ..data.pairs import Batch, Pairs
from ..data.records import load_records
from ..md.rollout import one_window
from ..model.checkpoint import bundled_models, load_model, provenance, save_model
from ..model.config import ModelConfig, PotentialConfig
from ..model.network import MDtrajNet
from ..plots import plot_training
from ..system import System
from .evaluate import energy_errors, errors, rms_energy_errors, rms_errors
from .process_group import Member, team
from .soap_optimizer import SOAP


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Reads from TOML with :meth:`read`; paths there are relative to the file.

    output: folder of the run: checkpoint.pt, log.csv, curves.png, model/.
    data: trajectory files (:func:`~mdtrajnet_fast.data.records.load_records`).
    exclude_trajectories: names of trajectories in `data` held out of training.
    more_data: files all of whose trajectories are trained on.
    frame_fs: spacing of the frames (fs), for files that do not say it.
    validation: sets by name, each with "data" and, optionally, "molecules", "trajectories".
    model: sizes and options (:class:`~mdtrajnet_fast.ModelConfig`); "species" defaults to
        the elements of the data.
    target: "motion", or "potential": the potential energy of the model `initial`, whose motion
        stays as it is. The loss is then <|error of V(R') - V(R)|^2> in eV^2, from data of constant
        energy.
    initial: a model to start from (fine-tuning): a bundled name, or a path. Its sizes replace
        `model`.
    initial_blocks: which of the attention blocks of `initial` to start with, in order; the others
        are dropped, for a smaller model. None: all.
    window: stride (fs) of the rollouts that the model `initial` is trained on for; None: as it was.
    potential: sizes of the potential (:class:`.PotentialConfig`), unless
        `initial` has one to go on from.
    steps, batch_size: optimiser steps, and pairs of frames in each.
    processes: how many share each batch, on the CPU: with one thread each they use the cores of a
        machine far better than threads do. The pairs of a step do not depend on it.
    max_lag_fs: longest lag of a pair (fs); None stands for the longest that `initial` was trained
        on, or the model's time_cutoff.
    lag_power: 0 draws all lags equally often, more favours long ones (see Pairs.draw).
    optimizer: "adamw", or "soap" (:class:`.SOAP`), which gets further in as
        many steps.
    learning_rate, warmup_steps, final_learning_rate, weight_decay, gradient_clip: a linear warm-up
        and a cosine down to final_learning_rate; gradients clipped to that norm.
    velocity_weight_fs: the loss is <|dR|^2> + velocity_weight_fs^2 <|dv|^2> per component; the
        velocities are those the model reports (read-out, or exact time derivative). 0: positions
        only.
    mass_power: errors of an atom weigh like its mass to this power: with 0 the fast hydrogens rule,
        1 counts as kinetic energies and power spectra do.
    time_reversal: half of the pairs run backwards, velocities negated: as true for NVE data.
    own_starts: share of the pairs that start from the averaged model's own prediction of their
        start, as all windows of a rollout but the first do: it teaches a trained model (`initial`)
        to stay on course. Such batches are drawn on the CPU.
    own_windows: the predictions of those starts are 1 to own_windows windows long, equally often.
    ema_decay: decay of the averaged weights, the ones that are validated and saved.
    validate_every, validation_pairs: steps between validations, and pairs of each set, all at the
        model's window.
    checkpoint_minutes: wall-clock time between checkpoints.
    seed: of the weights and the pairs; the pairs of step k depend on nothing but seed and k.
    threads: torch threads of each process; None shares torch's setting among the processes.
    device: torch device.
    """

    output: str
    data: tuple[str, ...]
    model: dict[str, Any] = field(default_factory=dict)
    exclude_trajectories: tuple[str, ...] = ()
    more_data: tuple[str, ...] = ()
    validation: dict[str, dict[str, Any]] = field(default_factory=dict)
    frame_fs: float | None = None
    target: str = "motion"
    initial: str | None = None
    initial_blocks: tuple[int, ...] | None = None
    window: float | None = None
    potential: dict[str, Any] = field(default_factory=dict)
    steps: int = 10_000
    batch_size: int = 32
    processes: int = 1
    max_lag_fs: float | None = None
    lag_power: float = 0.0
    optimizer: str = "adamw"
    learning_rate: float = 5e-3
    warmup_steps: int = 200
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    velocity_weight_fs: float = 0.0
    mass_power: float = 0.0
    time_reversal: bool = False
    own_starts: float = 0.0
    own_windows: int = 1
    ema_decay: float = 0.999
    validate_every: int = 1000
    validation_pairs: int = 1000
    checkpoint_minutes: float = 5.0
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("data", "exclude_trajectories", "more_data"):
            value = getattr(self, name)
            many = (value,) if isinstance(value, str | Path) else value
            object.__setattr__(self, name, tuple(str(one) for one in many))
        if not self.data:
            raise ValueError("a training run needs at least one data file")
        object.__setattr__(self, "validation", _validation_sets(self.validation))
        counts = ("steps", "batch_size", "processes", "own_windows", "validate_every")
        for name in (*counts, "validation_pairs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
        if self.processes > 1 and torch.device(self.device).type != "cpu":
            raise ValueError(
                f"several processes train on the CPU only, got processes = {self.processes} with "
                f'device = "{self.device}"; choose processes = 1'
            )
        if self.processes > self.batch_size:
            raise ValueError(
                f"{self.processes} processes cannot share a batch of {self.batch_size} pairs; "
                "choose a larger batch_size"
            )
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(_OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if self.target not in _TASKS:
            raise ValueError(f'target must be "motion" or "potential", got {self.target!r}')
        if self.target == "potential" and self.initial is None:
            raise ValueError('target = "potential" needs the model whose potential it is: initial')
        if self.initial_blocks is not None:
            if self.initial is None or not self.initial_blocks:
                raise ValueError(
                    "initial_blocks names blocks of the model initial, at least one; got "
                    f"initial_blocks = {self.initial_blocks} and initial = {self.initial}"
                )
            object.__setattr__(self, "initial_blocks", tuple(self.initial_blocks))
        if self.window is not None and self.initial is None:
            raise ValueError(
                "window is that of a model to start from, initial; that of a new model stands in "
                f"[model]: got window = {self.window} without initial"
            )
        for name in ("lag_power", "mass_power"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.own_starts <= 1:
            raise ValueError(f"own_starts must lie in [0, 1], got {self.own_starts}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """The run that a TOML file describes; unknown names are refused."""
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from error
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{path}: unknown settings {unknown}; known are {sorted(known)}")
        missing = sorted({"data", "output"} - set(values))
        if missing:
            raise ValueError(f"{path}: missing settings {missing}")

        def beside(names: str | list[str]) -> list[str]:
            some = [names] if isinstance(names, str) else names
            return [str(path.parent / name) for name in some]

        for name in {"data", "more_data"} & set(values):
            values[name] = beside(values[name])
        values["output"] = beside(values["output"])[0]
        if values.get("initial", "molecules-nve") not in bundled_models():
            values["initial"] = beside(values["initial"])[0]
        for one in values.get("validation", {}).values():
            if "data" in one:
                one["data"] = beside(one["data"])
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "soap": SOAP,
}


def _validation_sets(sets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sets, complete and without unknown keys."""
    for name, one in sets.items():
        if unknown := sorted(set(one) - {"data", "molecules", "trajectories"}):
            raise ValueError(
                f"validation set {name!r} has unknown keys {unknown}; known are data, molecules, "
                "trajectories"
            )
        if not one.get("data"):
            raise ValueError(f'validation set {name!r} lacks "data"')
    return {name: dict(one) for name, one in sets.items()}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to final_learning_rate at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    x = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(x, 1.0)))


class _Log:
    """A CSV file that forgets, on resuming, what lies beyond the checkpoint."""

    def __init__(self, path: Path, columns: list[str], step: int):
        kept: list[dict[str, str]] = []
        if path.exists() and step > 0:
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self.rows = 0
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")
        self._writer.writeheader()
        for row in kept:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def fit(config: TrainConfig, *, progress: bool = True, stop_after: int | None = None) -> MDtrajNet:
    """Train a model, or go on where an interrupted run of the same configuration stopped.

    Writes checkpoint.pt, log.csv, curves.png and the averaged weights in model/ to config.output.
    A run that is interrupted and resumed gives the same weights, bit for bit and for the same
    number of threads, as one that is not; Ctrl-C takes effect at the end of a step. stop_after ends
    this call at that step.

    Returns the model with averaged weights. Raises ValueError for data that do not fit the model or
    where the checkpoint in the folder belongs to another configuration, and FloatingPointError when
    the loss is not finite.
    """
    _set_threads(config)
    run = _Run(config)
    end = config.steps if stop_after is None else min(config.steps, stop_after)
    gradients = 1 + sum(x.numel() for x in run.weights)  # and the loss
    work = (run.model.dtype, _take_part, config)
    with team(config.processes, gradients, *work) as run.member:
        bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=not progress)
        saved = time.perf_counter()
        with bar, _deferred_interrupt() as interrupted:
            while run.step < end:
                run.advance()
                bar.update()
                if run.step % config.validate_every == 0 or run.step == config.steps:
                    errors_now = run.validate()
                    shown = {name: f"{x:.4f} {run.task.unit}" for name, x in errors_now.items()}
                    bar.set_postfix(shown)
                if interrupted() or time.perf_counter() - saved > 60 * config.checkpoint_minutes:
                    run.save()
                    saved = time.perf_counter()
                if interrupted():
                    raise KeyboardInterrupt
        run.save()
        run.finish()
    return run.average


def _take_part(member: Member, config: TrainConfig) -> None:
    """What the other processes of a run do, until the first one ends them."""
    _set_threads(config)
    run = _Run(config, member)
    with suppress(FloatingPointError):  # the first process reports it
        while run.step < config.steps:
            run.advance()


def _set_threads(config: TrainConfig) -> None:
    if config.threads or config.processes > 1:
        shared = max(1, torch.get_num_threads() // config.processes)
        torch.set_num_threads(config.threads or shared)


_ALONE = Member()
_CARBON = 12.011  # amu, an atom that weighs 1 in the loss, whatever mass_power


class _Motion:
    """The task of a run that trains the motion."""

    unit = "Å"  # of the first of the figures
    columns = ("", "_static", "_ballistic", "_velocity")  # figures in the log, for each set

    def __init__(self, config: TrainConfig, pairs: Pairs, model: MDtrajNet, average: MDtrajNet):
        self.config, self.pairs, self.model, self.average = config, pairs, model, average
        lags = (config.max_lag_fs, model.config.longest_lag, model.config.time_cutoff)
        self.max_lag = self.longest_lag = model.stride(next(x for x in lags if x is not None))
        # molecules stay on the GPU; crystals are drawn on the CPU, and so is all for the CPU
        self.source: Pairs | ResidentPairs = pairs
        drawn = config.own_starts or any(r.pbc.any() for r in pairs.records)
        if model.device.type == "cuda" and not drawn:
            self.source = ResidentPairs(pairs, model)

    def loss(self, rng: np.random.Generator, member: Member) -> Tensor:
        """A member's share of the loss of the next batch."""
        config = self.config
        batch, components = self.draw(rng, member)
        if isinstance(batch, Batch):
            batch = tensor_batch(self.model, batch)
        dx, dv = errors(self.model, batch, velocities=config.velocity_weight_fs > 0)
        weight = (batch.graph.masses[:, None] / _CARBON) ** config.mass_power
        loss = (weight * dx.square()).sum() / components
        if dv is not None:
            loss = loss + config.velocity_weight_fs**2 * (weight * dv.square()).sum() / components
        return loss

    def draw(self, rng: np.random.Generator, member: Member) -> tuple[Batch | TensorBatch, int]:
        """A member's share of the next batch, and the Cartesian components in all of it."""
        config = self.config
        how: dict[str, Any] = dict(lag_power=config.lag_power, time_reversal=config.time_reversal)
        if isinstance(self.source, ResidentPairs):
            whole = self.source.draw(rng, config.batch_size, self.max_lag, **how)
            return whole, whole.displacement.numel()
        own = round(config.own_starts * config.batch_size)
        windows = config.own_windows if own else 0
        window = self.model.stride()
        how["history_fs"] = windows * window
        choice = self.pairs.choose(rng, config.batch_size, self.max_lag, **how)
        atoms = self.pairs.atoms[choice.record]
        mine = member.share(atoms)
        choice = choice.part(mine)
        batch = self.pairs.batch(choice)
        moved: System | None = None
        for back in range(windows, 0, -1):  # the first pairs set out earliest, others join them
            joined = int((mine < own * (windows - back + 1) // windows).sum())
            if joined:
                earlier = self.pairs.before(choice.part(slice(joined)), back * window)
                start = self.pairs.batch(earlier)
                start = start if moved is None else start.moved(moved)
                moved = one_window(self.average, start.system)
        if moved is not None:
            batch = batch.moved(moved)
        return batch, 3 * int(atoms.sum())

    def figures(self, pairs: Pairs) -> dict[str, float]:
        """The averaged model's errors on a validation set, and those of guesses, by column."""
        found = rms_errors(self.average, pairs, self.config.validation_pairs, seed=self.config.seed)
        return {"": found["position"]} | {f"_{name}": x for name, x in found.items()}


class _Potential:
    """The task of a run that trains the potential, as :class:`_Motion`; the motion stays."""

    unit, columns = "eV", ("_energy", "_unchanged")

    def __init__(self, config: TrainConfig, pairs: Pairs, model: MDtrajNet, average: MDtrajNet):
        self.config, self.pairs, self.model, self.average = config, pairs, model, average
        self.max_lag = model.config.time_cutoff if config.max_lag_fs is None else config.max_lag_fs
        self.longest_lag = model.config.longest_lag  # of the motion

    def loss(self, rng: np.random.Generator, member: Member) -> Tensor:
        config = self.config
        choice = self.pairs.choose(rng, config.batch_size, self.max_lag, lag_power=config.lag_power)
        mine = choice.part(member.share(self.pairs.atoms[choice.record]))
        wrong = energy_errors(self.model, self.pairs.batch(mine))
        return wrong.square().sum() / config.batch_size

    def figures(self, pairs: Pairs) -> dict[str, float]:
        count, seed = self.config.validation_pairs, self.config.seed
        found = rms_energy_errors(self.average, pairs, count, self.max_lag, seed=seed)
        return {f"_{name}": x for name, x in found.items()}


_TASKS: dict[str, type[_Motion] | type[_Potential]] = {"motion": _Motion, "potential": _Potential}


class _Run:
    """The state of a training: model, averaged weights, optimiser, step; and its files."""

    def __init__(self, config: TrainConfig, member: Member = _ALONE):
        self.config = config
        self.member = member
        load = partial(load_records, frame_fs=config.frame_fs)
        records = load(config.data, exclude_trajectories=config.exclude_trajectories or None)
        if config.more_data:
            records += load(config.more_data)
        self.pairs = Pairs(records)
        self.checks = {
            name: Pairs(load(one["data"], **{k: one[k] for k in one if k != "data"}))
            for name, one in config.validation.items()
        }
        self.folder = Path(config.output)
        torch.manual_seed(config.seed)
        if config.initial is not None:
            self.model = load_model(config.initial).train().requires_grad_(True)
            if config.initial_blocks is not None:
                self.model = _with_blocks(self.model, config.initial_blocks)
            if config.target == "potential" and self.model.potential is None:
                self.model = _with_potential(self.model, PotentialConfig(**config.potential))
            if config.window is not None:
                window = self.model.stride(config.window)
                self.model.config = dataclasses.replace(self.model.config, window=window)
        else:
            sizes = dict(config.model)
            elements = sorted({int(z) for r in records for z in np.unique(r.numbers)})
            sizes.setdefault("species", tuple(chemical_symbols[z] for z in elements))
            self.model = MDtrajNet(ModelConfig.from_dict(sizes), name=self.folder.name)
        for pairs in (self.pairs, *self.checks.values()):
            for record in pairs.records:
                self.model.species_index(record.numbers)
        self.model.to(config.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.task = _TASKS[config.target](config, self.pairs, self.model, self.average)
        self.weights: list[Tensor] = list(self.model.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        self.optimizer = _OPTIMIZERS[config.optimizer](
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.settings = dataclasses.asdict(config) | {"model": self.model.config.to_dict()}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self._restore()
        columns = ["step", "samples", "seconds", "lr", "loss"]
        columns += [f"val_{name}{x}" for name in self.checks for x in self.task.columns]
        if member.rank == 0:
            self.log = _Log(self.folder / "log.csv", columns, self.step)

    def advance(self) -> None:
        """One step of the optimiser on one batch."""
        config, begun = self.config, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        loss = self.task.loss(np.random.default_rng([config.seed, self.step]), self.member)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [x for x in self.weights if x.grad is not None]
        loss = loss.detach().to(self.model.dtype)
        whole = self.member.sum([loss, *(x.grad for x in trained if x.grad is not None)])
        value, gradient = whole[0].item(), whole[1:]
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {self.step}. Choose a smaller learning_rate (now "
                f"{config.learning_rate:g}) and another output folder"
            )
        gradient *= (config.gradient_clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        parts = gradient.split([x.numel() for x in trained])
        for x, part in zip(trained, parts, strict=True):
            x.grad = part.view_as(x)
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema_decay, self.step / (self.step + 10))
        torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        self.losses.append(value)
        self.seconds += time.perf_counter() - begun

    def validate(self) -> dict[str, float]:
        """Log the mean loss since the last time and the errors on the validation sets (Å; eV)."""
        row: dict[str, Any] = {
            "step": self.step,
            "samples": self.step * self.config.batch_size,
            "seconds": round(self.seconds, 1),
            "lr": learning_rate(self.config, self.step - 1),
            "loss": float(np.mean(self.losses)),
        }
        self.losses.clear()
        figures = {name: self.task.figures(pairs) for name, pairs in self.checks.items()}
        row |= {f"val_{name}{x}": value for name, of in figures.items() for x, value in of.items()}
        self.log.write(row)
        return {name: of[self.task.columns[0]] for name, of in figures.items()}

    def save(self) -> None:
        """Replace the checkpoint by the state now."""
        content = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(content, part)
        os.replace(part, self.checkpoint)

    def _restore(self) -> None:
        saved = torch.load(self.checkpoint, map_location=self.config.device, weights_only=True)
        _same_run(saved["settings"], self.settings, self.checkpoint)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds, self.losses = saved["step"], saved["seconds"], saved["losses"]

    def finish(self) -> None:
        """Write the averaged weights and the curves."""
        self.log.close()
        about, config = _provenance(self.config, self.step), self.average.config
        self.average.config = dataclasses.replace(config, longest_lag=self.task.longest_lag)
        save_model(self.average, self.folder / "model", overwrite=True, provenance=about)
        if self.log.rows:
            plot_training(self.folder / "log.csv", self.folder / "curves.png")


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait until it is asked for; a second one takes effect at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# Settings of how a run is carried out, not of what comes out.
_RUNNING = ("output", "processes", "threads", "device", "checkpoint_minutes")


def _same_run(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    different = [
        name
        for name in now
        if name not in _RUNNING and _plain(saved.get(name, defaults.get(name))) != _plain(now[name])
    ]
    if different:
        raise ValueError(
            f"{path} belongs to a run with other settings ({', '.join(different)}); choose another "
            "output folder, or delete the checkpoint to start over"
        )


def _with_potential(model: MDtrajNet, sizes: PotentialConfig) -> MDtrajNet:
    """The model with an untrained potential."""
    config = dataclasses.replace(model.config, potential=sizes)
    new = MDtrajNet(config, members=len(model.members), name=model.name).to(model.dtype)
    new.load_state_dict(model.state_dict(), strict=False)
    return new


def _with_blocks(model: MDtrajNet, chosen: tuple[int, ...]) -> MDtrajNet:
    """The model with these of its attention blocks."""
    count = model.config.num_attn_blocks
    if not all(0 <= k < count for k in chosen):
        raise ValueError(
            f"initial_blocks = {list(chosen)}: model {model.name!r} has blocks 0 to {count - 1}"
        )
    config = dataclasses.replace(model.config, num_attn_blocks=len(chosen))
    new = MDtrajNet(config, members=len(model.members), name=model.name).to(model.dtype)
    state = new.state_dict()
    for name, value in model.state_dict().items():
        member, inside, rest = name.partition(".blocks.")
        number, dot, parameter = rest.partition(".")
        if not inside:
            state[name] = value
            continue
        for place, block in enumerate(chosen):
            if block == int(number):
                state[f"{member}{inside}{place}{dot}{parameter}"] = value
    new.load_state_dict(state)
    return new


def _provenance(config: TrainConfig, step: int) -> dict[str, Any]:
    """What made the weights, free of paths: the settings, and the data by their file names."""
    settings = dataclasses.asdict(config)
    for name in (*_RUNNING, "validation"):
        del settings[name]
    for name in ("data", "more_data"):
        settings[name] = [Path(path).name for path in settings[name]]
    if config.initial is not None:
        settings["initial"] = provenance(config.initial) or Path(config.initial).name
    return {
        "data": ", ".join(settings["data"] + settings["more_data"]),
        "steps": step,
        "pairs": step * config.batch_size,
        "settings": settings,
        "version": __version__,
    }


def _plain(value: Any) -> Any:
    """Settings in a form that compares equal however they were written: lists, names of files."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return Path(value).name if isinstance(value, str) else value
