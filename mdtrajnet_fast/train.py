"""Training: random pairs of frames, AdamW, averaged weights, validation, exact resume."""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
import os
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from tqdm import tqdm

from . import __version__
from .checkpoint import load_model, provenance, save_model
from .config import ModelConfig
from .data import load_records
from .evaluate import errors, rms_errors
from .model import MDtrajNet
from .pairs import Pairs
from .report import plot_training


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Reads from TOML with :meth:`read`; paths there are relative to the file.

    output: folder of the run: checkpoint.pt, log.csv, curves.png, model/.
    data: trajectory files (:func:`~mdtrajnet_fast.data.load_records`).
    exclude_trajectories: names of trajectories held out of training.
    validation: sets by name, each with "data" and, optionally, "molecules", "trajectories".
    model: sizes and options (:class:`~mdtrajnet_fast.config.ModelConfig`); "species" defaults to
        the elements of the data.
    initial: a model to start from (fine-tuning): name or path. Its sizes replace `model`.
    steps, batch_size: optimiser steps, and pairs of frames in each.
    max_lag_fs: longest lag of a pair (fs); None stands for the model's time_cutoff.
    lag_power: lags are drawn as often as lag^lag_power; 0 is uniform, more favours long lags.
    learning_rate, warmup_steps, final_learning_rate, weight_decay, gradient_clip: AdamW with a
        linear warm-up and a cosine down to final_learning_rate; gradients clipped to that norm.
    velocity_weight_fs: the loss is <|dR|^2> + velocity_weight_fs^2 <|dv|^2> per component; the
        velocities are those the model reports (read-out, or exact time derivative). 0: positions
        only.
    time_reversal: half of the pairs run backwards, velocities negated: as true for NVE data.
    ema_decay: decay of the averaged weights, the ones that are validated and saved.
    validate_every, validation_pairs: steps between validations, and pairs of each set, all at the
        model's window.
    checkpoint_minutes: wall-clock time between checkpoints.
    seed: of the weights and the pairs; the pairs of step k depend on nothing but seed and k.
    threads: torch threads; None leaves torch's setting.
    device: torch device.
    """

    output: str
    data: tuple[str, ...]
    model: dict[str, Any] = field(default_factory=dict)
    exclude_trajectories: tuple[str, ...] = ()
    validation: dict[str, dict[str, Any]] = field(default_factory=dict)
    initial: str | None = None
    steps: int = 10_000
    batch_size: int = 32
    max_lag_fs: float | None = None
    lag_power: float = 0.0
    learning_rate: float = 5e-3
    warmup_steps: int = 200
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    velocity_weight_fs: float = 0.0
    time_reversal: bool = False
    ema_decay: float = 0.999
    validate_every: int = 1000
    validation_pairs: int = 1000
    checkpoint_minutes: float = 5.0
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("data", "exclude_trajectories"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.data:
            raise ValueError("a training run needs at least one data file")
        for name in ("steps", "batch_size", "validate_every", "validation_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.lag_power < 0:
            raise ValueError(f"lag_power must not be negative, got {self.lag_power}")
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

        values["data"] = beside(values["data"])
        values["output"] = beside(values["output"])[0]
        if "initial" in values and (path.parent / values["initial"]).exists():
            values["initial"] = beside(values["initial"])[0]
        for name, one in values.get("validation", {}).items():
            if "data" not in one:
                raise ValueError(f'{path}: validation set {name!r} lacks "data"')
            one["data"] = beside(one["data"])
        return cls(**values)


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
    number of threads, as one that is not. stop_after ends this call at that step.

    Returns the model with averaged weights. Raises ValueError where the checkpoint in the
    folder belongs to another configuration, and FloatingPointError when the loss is not finite.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    records = load_records(config.data, exclude_trajectories=config.exclude_trajectories or None)
    pairs = Pairs(records)
    checks = {}
    for name, one in config.validation.items():
        checks[name] = Pairs(
            load_records(
                one["data"],
                molecules=one.get("molecules"),
                trajectories=one.get("trajectories"),
            )
        )

    torch.manual_seed(config.seed)
    if config.initial is not None:
        model = load_model(config.initial).train().requires_grad_(True)
    else:
        sizes = dict(config.model)
        elements = sorted({int(z) for r in records for z in np.unique(r.numbers)})
        sizes.setdefault("species", tuple(chemical_symbols[z] for z in elements))
        model = MDtrajNet(ModelConfig.from_dict(sizes), name=folder.name)
    model.to(config.device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    settings = dataclasses.asdict(config) | {"model": model.config.to_dict()}
    step, seconds = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=config.device, weights_only=True)
        _same_run(saved["settings"], settings, checkpoint)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]

    def save() -> None:
        content = {
            "settings": settings,
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": seconds,
        }
        part = checkpoint.with_suffix(".part")
        torch.save(content, part)
        os.replace(part, checkpoint)

    columns = ["step", "samples", "seconds", "lr", "loss"]
    for name in checks:
        columns += [f"val_{name}{x}" for x in ("", "_static", "_ballistic", "_velocity")]
    log = _Log(folder / "log.csv", columns, step)
    max_lag = config.max_lag_fs or model.config.time_cutoff
    end = config.steps if stop_after is None else min(config.steps, stop_after)
    losses: list[float] = []
    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not progress)
    last_save = last_tick = time.perf_counter()
    try:
        while step < end:
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rng = np.random.default_rng([config.seed, step])
            batch = pairs.draw(
                rng,
                config.batch_size,
                max_lag,
                lag_power=config.lag_power,
                time_reversal=config.time_reversal,
            )
            dx, dv = errors(model, batch, velocities=config.velocity_weight_fs > 0)
            loss = dx.square().mean()
            if dv is not None:
                loss = loss + config.velocity_weight_fs**2 * dv.square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} at step {step}; the last checkpoint is kept in "
                    f"{checkpoint}. Use a smaller learning_rate (now {config.learning_rate:g})"
                )
            optimizer.step()
            step += 1
            decay = min(config.ema_decay, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            losses.append(value)
            now = time.perf_counter()
            seconds, last_tick = seconds + now - last_tick, now
            bar.update()
            if step % config.validate_every == 0 or step == config.steps:
                row: dict[str, Any] = {
                    "step": step,
                    "samples": step * config.batch_size,
                    "seconds": round(seconds, 1),
                    "lr": rate,
                    "loss": float(np.mean(losses)),
                }
                losses.clear()
                for name, check in checks.items():
                    result = rms_errors(average, check, config.validation_pairs, seed=config.seed)
                    row[f"val_{name}"] = result["position"]
                    row[f"val_{name}_static"] = result["static"]
                    row[f"val_{name}_ballistic"] = result["ballistic"]
                    row[f"val_{name}_velocity"] = result["velocity"]
                log.write(row)
                bar.set_postfix({k: f"{row[f'val_{k}']:.4f} Å" for k in checks})
                last_tick = time.perf_counter()
            if now - last_save > 60 * config.checkpoint_minutes:
                save()
                last_save = time.perf_counter()
    finally:
        bar.close()
        log.close()
        if all(torch.isfinite(p).all() for p in model.parameters()):
            save()
    about = _provenance(config, step)
    save_model(average, folder / "model", overwrite=True, provenance=about)
    if log.rows:
        plot_training(folder / "log.csv", folder / "curves.png")
    return average


def _same_run(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    free = {"output", "threads", "device", "checkpoint_minutes"}
    different = [k for k in now if k not in free and _plain(saved.get(k)) != _plain(now[k])]
    if different:
        raise ValueError(
            f"{path} belongs to a run with other settings ({', '.join(different)}); choose another "
            "output folder, or delete the checkpoint to start over"
        )


def _provenance(config: TrainConfig, step: int) -> dict[str, Any]:
    """What made the weights, free of paths: the settings, and the data by their file names."""
    settings = dataclasses.asdict(config)
    for name in ("output", "validation", "threads", "device", "checkpoint_minutes"):
        del settings[name]
    settings["data"] = [Path(path).name for path in config.data]
    if config.initial is not None:
        settings["initial"] = provenance(config.initial) or Path(config.initial).name
    return {
        "data": ", ".join(settings["data"]),
        "steps": step,
        "pairs": step * config.batch_size,
        "settings": settings,
        "version": __version__,
    }


def _plain(value: Any) -> Any:
    """Tuples as lists, so that settings compare equal however they were written."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
