"""Fine-tuning: a trained model goes on with trajectories of what one is interested in.

A training (:mod:`.fit`) with settings that suit it, and a look at the errors on trajectories that
it does not see, before and after. Of a model with window potentials these are tuned, from which its
symplectic windows, forces and energies come, all at once; of others the motion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..data.pairs import Pairs
from ..data.records import Record, load_records
from ..model.checkpoint import load_model, provenance
from ..model.network import MDtrajNet
from .config import TrainConfig, trained_with
from .evaluate import atom_errors, fraction, rms_energy_errors, rms_window_errors
from .fit import fit

# One of so many trajectories is held out.
HELD_OUT = 5
# So often it is validated, and it ends after so many times without a smaller error.
VALIDATIONS, PATIENCE = 15, 5
# In the loss of window potentials: energies of a molecule of twenty atoms that are a kT off weigh
# like velocities that are 6 % off.
ENERGY_WEIGHT = 0.2
# Errors of the potential energy are those of its changes within about this time (fs).
_ENERGY_LAG_FS = 10.0


class Errors(NamedTuple):
    """Root mean square errors on trajectories.

    window: fs, after which they are. position: Å. velocity: part of the thermal one. acceleration:
    part of the true one; None of a model without window potentials. energy: eV, of changes of the
    potential energy within 10 fs; None where it is not known.
    """

    window: float
    position: float
    velocity: float
    acceleration: float | None
    energy: float | None


class FineTuned(NamedTuple):
    """What came of a fine-tuning: the model, its errors and those of the model that it was.

    held_out: names of trajectories, or of files. step: after which the weights were these, the
    best on what was held out.
    """

    model: MDtrajNet
    before: Errors
    after: Errors
    held_out: tuple[str, ...]
    step: int


def finetune(
    model: str | Path,
    data: Sequence[str | Path],
    output: str | Path,
    *,
    held_out: Sequence[str | Path] | None = None,
    replay: Sequence[str | Path] = (),
    steps: int = 1500,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    frame_fs: float | None = None,
    masses: str | None = None,
    processes: int = 1,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> FineTuned:
    """Fine-tune a model on trajectories, or go on where that was interrupted.

    model: a bundled name, or a path for :func:`~mdtrajnet_fast.load_model`.
    data: trajectory files (:func:`~mdtrajnet_fast.data.records.load_records`), at least two
        trajectories in all, with frames close enough: a third of a window apart or less.
    output: folder of the training; the model is in its model/.
    held_out: what it is judged by and not trained on: names of trajectories, or files, of the data
        or others. None: every fifth name, or the last; every fifth file if all trajectories have
        one name, as those of ASE's files do.
    replay: files of other trajectories to be trained on as well, so that the model keeps what it
        knew.
    steps, batch_size, learning_rate, processes, device, seed: of the training, by SOAP.
    frame_fs: spacing of the frames (fs), for files that do not say it.
    masses: as of :class:`.TrainConfig`.

    Training ends where the errors of what is held out have not fallen for a third of the steps; the
    model is the one whose were smallest.

    Raises ValueError for too few trajectories, elements that the model does not know, and what
    :func:`.fit` refuses.
    """
    before = load_model(model)
    files = [str(path) for path in data]
    wanted = [str(one) for one in held_out] if held_out is not None else None
    files += [one for one in wanted or () if one not in files and Path(one).is_file()]
    load = partial(load_records, frame_fs=frame_fs, masses=masses)
    records = load(files)
    apart = _held_out(records, files, wanted)
    if set(apart) <= set(files):  # whole files
        files = [path for path in files if path not in apart]
        judges: dict[str, Any] = {"data": list(apart)}
        names: tuple[str, ...] = ()
    else:
        judges, names = {"data": files, "trajectories": list(apart)}, apart
    windows = before.config.window_potentials is not None
    known = all(record.energy is not None for record in records)
    reversible = all(record.thermostat is None for record in records)
    usual: dict[str, Any] = {"time_reversal": reversible, "mass_power": 1.0}
    if not windows:  # the model's own way is better, where it says so
        usual |= {"velocity_weight_fs": 5.0} | trained_with(str(model))
    config = TrainConfig(
        **usual,
        output=str(output),
        data=tuple(files),
        exclude_trajectories=names,
        more_data=tuple(str(path) for path in replay),
        validation={"held_out": judges},
        frame_fs=frame_fs,
        masses=masses,
        target="window_potentials" if windows else "motion",
        energy_weight=ENERGY_WEIGHT if windows and known else 0.0,
        initial=str(model),
        steps=steps,
        batch_size=batch_size,
        optimizer="soap",
        learning_rate=learning_rate,
        warmup_steps=min(100, steps // 5),
        ema_decay=0.99,
        validate_every=max(1, steps // VALIDATIONS),
        validation_pairs=500,
        patience=PATIENCE,
        processes=processes,
        device=device,
        seed=seed,
    )
    pairs = Pairs(load(judges["data"], trajectories=names or None))
    judged = _errors(before, pairs)  # what cannot be judged is refused before it is trained on
    after = fit(config, progress=progress).cpu()
    step = provenance(Path(output) / "model")["steps"]
    return FineTuned(after, judged, _errors(after, pairs), apart, step)


def _held_out(records: list[Record], files: list[str], wanted: list[str] | None) -> tuple[str, ...]:
    """The names of trajectories, or the files, to be held out."""
    names = sorted({record.trajectory for record in records})
    known = names if len(names) > 1 else files
    if wanted is not None:
        held = tuple(dict.fromkeys(wanted))
        known = files if set(held) <= set(files) else names
        if unknown := sorted(set(held) - set(known)):
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(
                f"held_out: no trajectory and no file is called {unknown[0]!r}; there are the "
                f"trajectories {some} in {files}"
            )
    else:
        held = tuple(known[HELD_OUT - 1 :: HELD_OUT]) or tuple(known[-1:])
    if len(held) == len(known):
        raise ValueError(
            f"all of the data, {list(held)}, would be held out: a model needs others to train on, "
            "and is judged by those; give more trajectories"
        )
    return held


def _errors(model: MDtrajNet, pairs: Pairs) -> Errors:
    count, frame = 1000, max(record.frame_fs for record in pairs.records)
    energy = None
    if model.has_energies and all(record.thermostat is None for record in pairs.records):
        lag = frame * max(1, round(_ENERGY_LAG_FS / frame))
        energy = rms_energy_errors(model, pairs, count, lag)["energy"]
    sizes = model.config.window_potentials
    if sizes is not None:
        wrong = rms_window_errors(model, pairs, count)
        velocity = fraction(wrong["velocity"], wrong["thermal_velocity"])
        force = fraction(wrong["acceleration"], wrong["true_acceleration"])
        return Errors(sizes.window, wrong["position"], velocity, force, energy)
    lag = frame * max(1, math.floor(model.stride() / frame + 1e-9))
    found = atom_errors(model, pairs, count, lag_fs=lag).rms()
    velocity = fraction(found["velocity"], found["thermal_velocity"])
    return Errors(lag, found["position"], velocity, None, energy)
