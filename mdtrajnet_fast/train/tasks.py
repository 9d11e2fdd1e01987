"""What a training can aim at: tasks, with their loss and what they say of validation sets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.units import fs, kB
from torch import Tensor

from ..data.device_pairs import ResidentPairs, TensorBatch, tensor_batch, window_batch
from ..data.pairs import MARGIN, Batch, Pairs
from ..data.records import check_constant_energy, thermostatted_at
from ..md.rollout import one_window
from ..model.network import MDtrajNet
from ..system import System
from .calibrate import calibrated
from .evaluate import (
    dipole_errors,
    energy_errors,
    errors,
    rms_dipole_errors,
    rms_energy_errors,
    rms_errors,
    rms_window_errors,
    window_errors,
)
from .process_group import Member

if TYPE_CHECKING:
    from .config import TrainConfig

_CARBON = 12.011  # amu, an atom that weighs 1 in the loss, whatever mass_power
_KT = 300 * kB  # eV


def resident(pairs: Pairs, model: MDtrajNet) -> ResidentPairs | None:
    """Pairs that stay on the GPU: molecules do. Crystals are drawn on the CPU, as is all for it."""
    if model.device.type == "cpu" or any(r.pbc.any() for r in pairs.records):
        return None
    return ResidentPairs(pairs, model)


class _Task:
    """What tasks share."""

    average: MDtrajNet

    def finished(self, checks: Sequence[Pairs]) -> MDtrajNet:
        """The model to keep, with validation sets to judge it by."""
        return self.average


class Motion(_Task):
    """The task of a run that trains the motion."""

    unit = "Å"  # of the first of the figures
    columns = ("", "_static", "_ballistic", "_velocity")  # figures in the log, for each set

    def __init__(self, config: TrainConfig, pairs: Pairs, model: MDtrajNet, average: MDtrajNet):
        self.config, self.pairs, self.model, self.average = config, pairs, model, average
        lags = (config.max_lag_fs, model.config.longest_lag, model.config.time_cutoff)
        self.max_lag = self.longest_lag = model.stride(next(x for x in lags if x is not None))
        self._kept_K = None if model.has_energies else thermostatted_at(pairs.records)
        own = bool(config.own_starts)
        self.source: Pairs | ResidentPairs = (None if own else resident(pairs, model)) or pairs

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

    def finished(self, checks: Sequence[Pairs]) -> MDtrajNet:
        """The averaged model, which keeps the temperature that all of the data are at."""
        config = dataclasses.replace(self.average.config, temperature_K=self._kept_K)
        self.average.config = config
        return self.average

    def draw(self, rng: np.random.Generator, member: Member) -> tuple[Batch | TensorBatch, int]:
        """A member's share of the next batch, and the Cartesian components in all of it."""
        config = self.config
        how: dict[str, Any] = dict(lag_power=config.lag_power, time_reversal=config.time_reversal)
        own = round(config.own_starts * config.batch_size)
        windows = config.own_windows if own else 0
        window = self.model.stride()
        how["history_fs"] = windows * window
        choice = self.pairs.choose(rng, config.batch_size, self.max_lag, **how)
        atoms = self.pairs.atoms[choice.record]
        mine = member.share(atoms)
        choice = choice.part(mine)
        batch = self.source.batch(choice)
        moved: System | None = None
        for back in range(windows, 0, -1):  # the first pairs set out earliest, others join them
            joined = int((mine < own * (windows - back + 1) // windows).sum())
            if joined:
                earlier = self.pairs.before(choice.part(slice(joined)), back * window)
                start = self.pairs.batch(earlier)
                start = start if moved is None else start.moved(moved)
                moved = one_window(self.average, start.system)
        if moved is not None:
            assert isinstance(batch, Batch)  # own starts are drawn on the CPU
            batch = batch.moved(moved)
        return batch, 3 * int(atoms.sum())

    def figures(self, pairs: Pairs) -> dict[str, float]:
        """The averaged model's errors on a validation set, and those of guesses, by column."""
        found = rms_errors(self.average, pairs, self.config.validation_pairs, seed=self.config.seed)
        return {"": found["position"]} | {f"_{name}": x for name, x in found.items()}


class Potential(_Task):
    """The task of a run that trains the potential, as :class:`Motion`; the motion stays.

    Raises ValueError for data that were made with a thermostat.
    """

    unit, columns = "eV", ("_energy", "_unchanged")

    def __init__(self, config: TrainConfig, pairs: Pairs, model: MDtrajNet, average: MDtrajNet):
        check_constant_energy(pairs.records, 'target = "potential"')
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


class WindowPotentials(_Task):
    """The task of a run that trains window potentials, as :class:`Motion`; the motion stays.

    The loss is the mean square of what their kicks leave of a window, in units of the mean square
    of thermal velocities at 300 K: of the velocity at the end, of the position there and of the
    acceleration at the start. And, times energy_weight, that of the potential energy at the start
    in units of kT at 300 K, where the data have energies: forces alone leave open by how much far
    conformations differ. Systems made of the same atoms are compared with their mean in a batch, or
    in a process's share of it: a constant of what they are made of does not count, and one that is
    alone there says nothing.
    """

    unit, columns = "Å/fs", ("_velocity", "_position", "_acceleration")

    def __init__(self, config: TrainConfig, pairs: Pairs, model: MDtrajNet, average: MDtrajNet):
        assert model.config.window_potentials is not None
        self.config, self.pairs, self.model, self.average = config, pairs, model, average
        self.longest_lag = model.config.longest_lag  # of the motion
        self._window = h = model.config.window_potentials.window
        self._resident = resident(pairs, model)
        # a vibration that turns by 1.5 in a window has about such positions beside its velocities
        self._scales = (1.5 / h, 1.0, h / math.sqrt(2))
        if config.energy_weight:
            self._energies, self._kinds = _relative_energies(pairs)

    def loss(self, rng: np.random.Generator, member: Member) -> Tensor:
        config, h = self.config, self._window
        how: dict[str, Any] = dict(lag_fs=h, time_reversal=config.time_reversal, margin=MARGIN)
        choice = self.pairs.choose(rng, config.batch_size, h, **how)
        atoms = self.pairs.atoms[choice.record]
        mine = choice.part(member.share(atoms))
        if self._resident is None:
            batch = window_batch(self.model, self.pairs, mine)
        else:
            batch = self._resident.windows(mine)
        found, energies = window_errors(self.model, batch)
        masses = batch.masses[:, None] / _CARBON
        weight = masses**config.mass_power * (_CARBON / (_KT * fs**2))
        wrong = torch.stack([(weight * x.square()).sum() for x in found])
        loss = wrong @ wrong.new_tensor(self._scales).square()
        if config.energy_weight:
            known = self._energies[self.pairs.starts(mine)]
            of_atoms = np.repeat(np.arange(len(known)), self.pairs.atoms[mine.record])
            system, kind = (
                torch.from_numpy(x).to(energies.device, non_blocking=True)
                for x in (of_atoms, self._kinds[mine.record])
            )
            missed = energies.new_tensor(known).index_add(0, system, -energies)
            missed = _less_means(missed, kind, int(self._kinds.max()) + 1)
            loss = loss + config.energy_weight * (missed / _KT).square().sum()
        return loss / (3 * int(atoms.sum()))

    def figures(self, pairs: Pairs) -> dict[str, float]:
        found = rms_window_errors(
            self.average, pairs, self.config.validation_pairs, seed=self.config.seed
        )
        return {name: found[name.removeprefix("_")] for name in self.columns}

    def finished(self, checks: Sequence[Pairs]) -> MDtrajNet:
        """The averaged model; with validation data to tell by, it knows its uncertainties."""
        if not checks:
            return self.average
        count, seed = self.config.validation_pairs, self.config.seed
        return calibrated(self.average, self.pairs, checks, count, seed)


def _relative_energies(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Potential energies of all frames of all records, less the mean of their kind (eV), and not
    numbers where they are not known; and the kind of each record: what made it, and of what."""
    makings = [(record.method, tuple(sorted(record.numbers))) for record in pairs.records]
    numbers = {making: k for k, making in enumerate(dict.fromkeys(makings))}
    kinds = np.array([numbers[making] for making in makings])
    energies = np.concatenate(pairs.potential_energies)
    if not np.isfinite(energies).any():
        raise ValueError(
            "energy_weight is for data with energies, and no trajectory has any: leave it out, or "
            "make data with `mdtrajnet generate`"
        )
    of_frames = np.repeat(kinds, [len(one) for one in pairs.potential_energies])
    there = np.isfinite(energies)  # large numbers would lose digits
    total, count = (
        np.bincount(of_frames[there], weights=weights, minlength=len(numbers))
        for weights in (energies[there], None)
    )
    return energies - (total / np.maximum(count, 1))[of_frames], kinds


def _less_means(values: Tensor, kind: Tensor, kinds: int) -> Tensor:
    """Values less the mean of their kind, times sqrt(n / (n - 1)), so that the n of a kind spread
    as much as many would; 0 for what is alone, or no number."""
    there = values.isfinite().to(values.dtype)
    values = values.nan_to_num()
    n, total = (values.new_zeros(kinds).index_add(0, kind, x) for x in (there, values))
    spread = torch.where(n > 1, n / (n - 1), 0.0).sqrt()
    return there * spread[kind] * (values - (total / n.clamp(min=1))[kind])


class Dipole(_Task):
    """The task of a run that trains the dipole, as :class:`Motion`; all else stays."""

    unit, columns = "e Å", ("_dipole", "_zero")

    def __init__(self, config: TrainConfig, pairs: Pairs, model: MDtrajNet, average: MDtrajNet):
        self.config, self.pairs, self.model, self.average = config, pairs, model, average
        self.longest_lag = model.config.longest_lag  # of the motion

    def loss(self, rng: np.random.Generator, member: Member) -> Tensor:
        count = self.config.batch_size
        choice = self.pairs.choose_frames(rng, count)
        mine = choice.part(member.share(self.pairs.atoms[choice.record]))
        return dipole_errors(self.model, self.pairs, mine).square().sum() / (3 * count)

    def figures(self, pairs: Pairs) -> dict[str, float]:
        count, seed = self.config.validation_pairs, self.config.seed
        found = rms_dipole_errors(self.average, pairs, count, seed=seed)
        return {f"_{name}": x for name, x in found.items()}


TASKS: dict[str, type[Motion] | type[Potential] | type[WindowPotentials] | type[Dipole]] = {
    "motion": Motion,
    "potential": Potential,
    "window_potentials": WindowPotentials,
    "dipole": Dipole,
}
