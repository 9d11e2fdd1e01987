"""Settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..io.settings import is_number, read_settings
from ..model.checkpoint import bundled_models, provenance
from .soap_optimizer import SOAP
from .tasks import TASKS


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Reads from TOML with :meth:`read`; paths there are relative to the file.

    output: folder of the run: checkpoint.pt, log.csv, curves.png, model/.
    data: trajectory files (:func:`~mdtrajnet_fast.data.records.load_records`).
    exclude_trajectories: names of trajectories in `data` held out of training.
    more_data: files all of whose trajectories are trained on.
    frame_fs: spacing of the frames (fs), for files that do not say it.
    masses: "standard": those of the elements in place of the data's, in which isotopes are refused
        otherwise.
    validation: sets by name, each with "data" and, optionally, "molecules", "trajectories".
    model: sizes and options (:class:`~mdtrajnet_fast.ModelConfig`); "species" defaults to
        the elements of the data.
    target: "motion"; "window_potentials": those of the model `initial`, whose motion stays, or,
        without it, a model of nothing else (:class:`.tasks.WindowPotentials` says the loss);
        "potential": that of the model `initial`, with the loss <|error of V(R') - V(R)|^2> in
        eV^2, from data of constant energy; "dipole": its dipole moment, with the mean square error
        in (e Å)^2, from data that hold dipoles.
    initial: a model to start from (fine-tuning): a bundled name, or a path. Its sizes replace
        `model`, its potentials stay as they are, and the new model is named after `output`.
    keep_potentials: whether the new model has the potentials of `initial` at all; false for a
        motion that is not at constant energy, which they would draw it to.
    initial_blocks: which of the attention blocks of `initial` to start with, in order; the others
        are dropped, for a smaller model. None: all.
    window: stride (fs) of the rollouts that the model `initial` is trained on for; None: as it was.
    potential, window_potentials, dipole: sizes of the potential (:class:`.PotentialConfig`), of the
        window potentials (:class:`.WindowPotentialsConfig`) and of the dipole
        (:class:`.DipoleConfig`), unless `initial` has them to go on from.
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
    energy_weight: of the potential energies in the loss of window potentials
        (:class:`.tasks.WindowPotentials`). 0: forces and windows alone.
    time_reversal: half of the pairs run backwards, velocities negated: as true for NVE data.
    own_starts: share of the pairs that start from the averaged model's own prediction of their
        start, as all windows of a rollout but the first do: it teaches a trained model (`initial`)
        to stay on course. Such batches are drawn on the CPU.
    own_windows: the predictions of those starts are 1 to own_windows windows long, equally often.
    ema_decay: decay of the averaged weights, the ones that are validated and saved.
    validate_every, validation_pairs: steps between validations, and pairs of each set, all at the
        model's window.
    patience: validations in a row without a smaller error, in the mean of the sets, after which
        training ends; the model is then the best that was validated. 0: it goes on to its last
        step, and the model is that of then.
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
    masses: str | None = None
    target: str = "motion"
    initial: str | None = None
    keep_potentials: bool = True
    initial_blocks: tuple[int, ...] | None = None
    window: float | None = None
    potential: dict[str, Any] = field(default_factory=dict)
    window_potentials: dict[str, Any] = field(default_factory=dict)
    dipole: dict[str, Any] = field(default_factory=dict)
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
    energy_weight: float = 0.0
    time_reversal: bool = False
    own_starts: float = 0.0
    own_windows: int = 1
    ema_decay: float = 0.999
    validate_every: int = 1000
    validation_pairs: int = 1000
    patience: int = 0
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
            if not is_number(value, whole=True) or value < 1:
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
        for name in ("warmup_steps", "seed", "patience"):
            value = getattr(self, name)
            if not is_number(value, whole=True) or value < 0:
                raise ValueError(f"{name} must be a whole number, at least 0, got {value!r}")
        if self.threads is not None and not (is_number(self.threads, True) and self.threads >= 1):
            raise ValueError(f"threads must be a whole number, at least 1, got {self.threads!r}")
        for name in ("learning_rate", "gradient_clip", "checkpoint_minutes"):
            if not is_number(value := getattr(self, name)) or value <= 0:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name in ("frame_fs", "window"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise ValueError(f"{name} must be a positive number of fs, got {value!r}")
        for name in (
            "final_learning_rate",
            "weight_decay",
            "velocity_weight_fs",
            "lag_power",
            "mass_power",
            "energy_weight",
            "own_starts",
            "ema_decay",
        ):
            if not is_number(value := getattr(self, name)) or value < 0:
                raise ValueError(f"{name} must not be negative, but a number, got {value!r}")
        for name in ("time_reversal", "keep_potentials"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
        if self.patience and not self.validation:
            raise ValueError(
                f"patience = {self.patience} is for a training with validation sets, by which it "
                "ends; expected some, or patience = 0"
            )
        if not self.keep_potentials and (self.initial is None or self.target != "motion"):
            raise ValueError(
                'keep_potentials = false is for target = "motion" and the potentials of a model '
                f'initial; got target = "{self.target}" and initial = {self.initial}'
            )
        if self.energy_weight and self.target != "window_potentials":
            raise ValueError(
                'energy_weight is for target = "window_potentials", got energy_weight = '
                f'{self.energy_weight} with target = "{self.target}"'
            )
        if self.masses not in (None, "standard"):
            raise ValueError(f'masses must be "standard", or left out, got {self.masses!r}')
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if self.target not in TASKS:
            raise ValueError(f"target must be one of {', '.join(TASKS)}, got {self.target!r}")
        if self.target in ("potential", "dipole") and self.initial is None:
            raise ValueError(f'target = "{self.target}" needs the model that it is of: initial')
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
        if not 0 <= self.own_starts <= 1:
            raise ValueError(f"own_starts must lie in [0, 1], got {self.own_starts}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """The run that a TOML file describes; unknown names are refused.

        What a recipe that fine-tunes the motion of `initial` does not say of the loss and the pairs
        (velocity_weight_fs, mass_power, time_reversal, lag_power, max_lag_fs) is as that motion was
        trained last: with the defaults, its velocities would get worse in silence.
        """
        path = Path(path)
        values = read_settings(path, cls, {"data", "output"})

        def beside(names: str | list[str]) -> list[str]:
            some = [names] if isinstance(names, str) else names
            return [str(path.parent / name) for name in some]

        for name in {"data", "more_data"} & set(values):
            values[name] = beside(values[name])
        values["output"] = beside(values["output"])[0]
        if values.get("initial", "molecules-nve") not in bundled_models():
            values["initial"] = beside(values["initial"])[0]
        if not isinstance(sets := values.get("validation", {}), dict):
            raise ValueError(f"{path}: validation must be sets by name, got {sets!r}")
        if values.get("target", "motion") == "motion" and "initial" in values:
            values = trained_with(values["initial"]) | values
        for one in sets.values():
            if isinstance(one, dict) and "data" in one:
                one["data"] = beside(one["data"])
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "soap": SOAP,
}


_INHERITED = ("velocity_weight_fs", "mass_power", "time_reversal", "lag_power", "max_lag_fs")


def trained_with(initial: str) -> dict[str, Any]:
    """Settings that the motion of a model was last trained with; none where it does not say."""
    about: Any = provenance(initial)
    while isinstance(about, dict) and isinstance(settings := about.get("settings"), dict):
        if settings.get("target", "motion") == "motion":
            return {k: settings[k] for k in _INHERITED if settings.get(k) is not None}
        about = settings.get("initial")
    return {}


def _validation_sets(sets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sets, complete and without unknown keys."""
    for name, one in sets.items():
        if not isinstance(one, dict):
            raise ValueError(f"validation set {name!r} must have data, got {one!r}")
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
