"""Training: random pairs of frames, AdamW or SOAP, averaged weights, validation, exact resume.

What is trained is the motion, or one of the functions of the positions that a model has beside it.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import io
import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..data.pairs import Pairs
from ..data.records import load_records
from ..io.lock import Lock
from ..model.archive import load_archive, write_whole
from ..model.checkpoint import load_model, provenance, save_model
from ..model.config import DipoleConfig, ModelConfig, PotentialConfig, WindowPotentialsConfig
from ..model.network import MDtrajNet
from ..plots import plot_training
from .config import OPTIMIZERS, TrainConfig, learning_rate
from .process_group import Member, team
from .tasks import TASKS


class _Log:
    """A CSV file that forgets, on resuming, what lies beyond the checkpoint."""

    def __init__(self, path: Path, columns: list[str], step: int):
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, extrasaction="ignore")
        writer.writeheader()
        self.rows = 0
        if path.exists() and step > 0:
            whole, _, _ = path.read_text().rpartition("\n")  # a kill may have cut the last line
            kept = [row for row in csv.DictReader(whole.splitlines()) if int(row["step"]) <= step]
            writer.writerows(kept)
            self.rows = len(kept)
        write_whole(path, table.getvalue().encode())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")

    def write(self, row: dict[str, Any]) -> None:
        self.rows += 1
        try:
            self._writer.writerow(row)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def close(self) -> None:
        self._file.close()


def fit(config: TrainConfig, *, progress: bool = True, stop_after: int | None = None) -> MDtrajNet:
    """Train a model, or go on where an interrupted run of the same configuration stopped.

    Writes checkpoint.pt, log.csv, curves.png and the averaged weights in model/ to config.output.
    A run that is interrupted and resumed gives the same weights, bit for bit and for the same
    number of threads, as one that is not; Ctrl-C takes effect at the end of a step. stop_after ends
    this call at that step.

    Where torchrun has started this process, it is one of those that train together, each with its
    share of every batch and, on CUDA, with the device of its local rank; the first of them writes.

    Returns the model with averaged weights. Raises ValueError for data that do not fit the model,
    where the checkpoint in the folder belongs to another configuration or where processes differ in
    data or version, and FloatingPointError when the loss is not finite; BlockingIOError where
    another process trains in the folder.
    """
    member = Member.here(config.device)
    _set_threads(config, member)
    run = _Run(config, member)
    with ExitStack() as stack:
        if member.rank == 0:
            run.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(run.checkpoint))
        run.begin()
        if member.size == 1 and config.processes > 1:
            run.member = stack.enter_context(team(config.processes, _take_part, config))
            _set_threads(config, run.member)
            run.agree()
        end = config.steps if stop_after is None else min(config.steps, stop_after)
        _train(run, end, progress and member.rank == 0)
        return run.average


def _train(run: _Run, end: int, progress: bool) -> None:
    """Steps up to number `end`, and what is written in the meantime and then."""
    config, first = run.config, run.member.rank == 0
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=not progress)
    saved = time.perf_counter()
    with bar, _deferred_interrupt(run.member) as interrupted:
        while run.step < end and not run.ended:
            run.advance(interrupted())
            bar.update()
            due = time.perf_counter() - saved > 60 * config.checkpoint_minutes
            stop = run.stopping if run.member.equal else interrupted()
            if first and (run.step % config.validate_every == 0 or run.step == config.steps):
                errors_now = run.validate()
                shown = {name: f"{x:.4f} {run.task.unit}" for name, x in errors_now.items()}
                bar.set_postfix(shown)
            if first and (stop or due):
                run.save()
                saved = time.perf_counter()
            if stop:
                raise KeyboardInterrupt
    if first:
        run.save()
        run.finish()


def _take_part(member: Member, config: TrainConfig) -> None:
    """What the other processes of a run do, until the first one ends them."""
    tqdm.set_lock(threading.RLock())  # its own one, among processes, outlives this process
    _set_threads(config, member)
    run = _Run(config, member)
    run.begin()
    with suppress(FloatingPointError):  # the first process reports it
        _train(run, config.steps, progress=False)


def _set_threads(config: TrainConfig, member: Member) -> None:
    if config.threads or member.size > 1:
        shared = max(1, torch.get_num_threads() // member.local[1])
        torch.set_num_threads(config.threads or shared)


_ALONE = Member()


class _Run:
    """The state of a training: model, averaged weights, optimiser, step; and its files."""

    def __init__(self, config: TrainConfig, member: Member = _ALONE):
        self.config = config
        self.member = member
        load = partial(load_records, frame_fs=config.frame_fs, masses=config.masses)
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
            self.model.name = self.folder.name
            if not config.keep_potentials:
                self.model = self.model.with_sizes(potential=None, window_potentials=None)
            if config.target == "motion":
                _say_what_stays(self.model)
            if config.initial_blocks is not None:
                self.model = _with_blocks(self.model, config.initial_blocks)
            if config.target == "potential" and self.model.potential is None:
                self.model = self.model.with_sizes(potential=PotentialConfig(**config.potential))
            if config.target == "window_potentials" and self.model.window_potentials is None:
                new = WindowPotentialsConfig(**config.window_potentials)
                self.model = self.model.with_sizes(window_potentials=new)
            if config.target == "dipole" and self.model.dipole is None:
                self.model = self.model.with_sizes(dipole=DipoleConfig(**config.dipole))
            if config.window is not None:
                window = self.model.stride(config.window)
                self.model.config = dataclasses.replace(self.model.config, window=window)
        else:
            sizes = dict(config.model)
            elements = sorted({int(z) for r in records for z in np.unique(r.numbers)})
            sizes.setdefault("species", tuple(chemical_symbols[z] for z in elements))
            members = 1
            if config.target == "window_potentials":
                sizes["window_potentials"], members = dict(config.window_potentials), 0
            self.model = MDtrajNet(ModelConfig.from_dict(sizes), members, self.folder.name)
        for pairs in (self.pairs, *self.checks.values()):
            for record in pairs.records:
                self.model.species_index(record.numbers)
        device = torch.device(config.device)
        if device.type == "cuda" and member.size > 1:
            device = torch.device("cuda", member.local[0])
        self.model.to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.task = TASKS[config.target](config, self.pairs, self.model, self.average)
        self.weights: list[Tensor] = list(self.model.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.stopping = False  # some process was told to stop, before the last step
        self.best: dict[str, Any] | None = None  # error, step and averaged weights, with patience
        self.stale = 0  # validations since then
        self.ended = False  # patience was at its end before the last step
        self.settings = dataclasses.asdict(config) | {"model": self.model.config.to_dict()}
        self.checkpoint = self.folder / "checkpoint.pt"

    def begin(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.checkpoint.exists():
            self._restore()
        columns = ["step", "samples", "seconds", "lr", "loss"]
        columns += [f"val_{name}{x}" for name in self.checks for x in self.task.columns]
        if self.member.rank == 0:
            self.log = _Log(self.folder / "log.csv", columns, self.step)
        self.agree()

    def agree(self) -> None:
        """Raise ValueError where the processes do not train the same."""
        if self.member.size == 1:
            return
        settings = {k: v for k, v in self.settings.items() if k not in _RUNNING}
        self.member.agree(
            version=__version__,
            settings=_digest(json.dumps(_plain(settings), sort_keys=True).encode()),
            data=_digest(*self.pairs.content),
            step=self.step,
        )

    def advance(self, stopping: bool = False) -> None:
        """One step of the optimiser on one batch. stopping: what to tell the other processes."""
        config, begun = self.config, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        loss = self.task.loss(np.random.default_rng([config.seed, self.step]), self.member)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [x for x in self.weights if x.grad is not None]
        loss = loss.detach().to(self.model.dtype)
        ending = bool(config.patience) and self.stale >= config.patience
        told = [torch.full_like(loss, x) for x in (stopping, ending)]
        whole = self.member.sum([loss, *told, *(x.grad for x in trained if x.grad is not None)])
        value, gradient = whole[0].item(), whole[3:]
        self.stopping = self.member.equal and whole[1].item() > 0
        self.ended = whole[2].item() > 0
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
        with torch.no_grad():  # or the averages would keep the graph of every step that there was
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
        errors = {name: of[self.task.columns[0]] for name, of in figures.items()}
        if self.config.patience:
            self._compare(float(np.mean(list(errors.values()))))
        return errors

    def _compare(self, error: float) -> None:
        """Keep the averaged weights where none before had so small an error."""
        self.stale += 1
        if self.best is None or error < self.best["error"]:
            average = {name: x.clone() for name, x in self.average.state_dict().items()}
            self.best, self.stale = {"error": error, "step": self.step, "average": average}, 0

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
            "best": self.best,
            "stale": self.stale,
            "ended": self.ended,
        }
        packed = io.BytesIO()  # torch does not say which file it cannot write, nor why
        torch.save(content, packed)
        write_whole(self.checkpoint, packed.getvalue())

    def _restore(self) -> None:
        saved = load_archive(self.checkpoint, self.config.device)
        try:
            _same_run(saved["settings"], self.settings, self.checkpoint)
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = int(saved["step"]), float(saved["seconds"])
            self.losses = [float(loss) for loss in saved["losses"]]
            if self.config.patience:
                self.best, self.stale = saved["best"], int(saved["stale"])
                self.ended = bool(saved["ended"])
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{self.checkpoint} does not hold the state of this training ({error}); restore it "
                "from a copy, or delete it to start over"
            ) from error

    def _largest(self, before: int | None) -> int | None:
        """Atoms of the largest molecule that the weights have seen, where that is known."""
        records, unknown = self.pairs.records, self.config.initial and before is None
        if unknown or any(record.pbc.any() for record in records):
            return None
        return max(before or 0, *(len(record.numbers) for record in records))

    def finish(self) -> None:
        """Write the averaged weights and the curves."""
        self.log.close()
        step = self.step
        if self.best is not None:
            self.average.load_state_dict(self.best["average"])
            step = self.best["step"]
        self.average = self.task.finished(list(self.checks.values()))
        about, config = _provenance(self.config, step), self.average.config
        self.average.config = dataclasses.replace(
            config, longest_lag=self.task.longest_lag, largest=self._largest(config.largest)
        )
        save_model(self.average, self.folder / "model", overwrite=True, provenance=about)
        if self.log.rows:
            plot_training(self.folder / "log.csv", self.folder / "curves.png")


@contextmanager
def _deferred_interrupt(member: Member) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait until it is asked for; a second one takes effect at once.

    torchrun hands signals on, SIGTERM too, which its processes may have heard already: all wait.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    signals = (signal.SIGINT, signal.SIGTERM) if member.equal else (signal.SIGINT,)
    before = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: Any) -> None:
        asked.set()
        if not member.equal:
            signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, handle)
    try:
        yield asked.is_set
    finally:
        for number in signals:
            signal.signal(number, before[number])


def _digest(*parts: Any) -> str:
    """Of bytes and arrays."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.hexdigest()


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


def _say_what_stays(model: MDtrajNet) -> None:
    """Warn of potentials, which a training of the motion does not follow."""
    stay = []
    if model.window_potentials is not None:
        stay.append(
            'window potentials, which simulate uses unless method = "reversible" is said: train '
            'them with target = "window_potentials"'
        )
    if model.potential is not None:
        stay.append('potential energy: train it with target = "potential"')
    if stay:
        warnings.warn(
            "this training changes the motion of the model only, not its "
            + "; nor its ".join(stay),
            RuntimeWarning,
            stacklevel=4,
        )


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
