"""Errors of a model on pairs of frames, beside the guesses that need no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .model import MDtrajNet
from .pairs import Batch, Pairs
from .resident import TensorBatch, tensor_batch

COLUMNS = ("position", "velocity", "static", "ballistic", "velocity_static")


def errors(
    model: MDtrajNet, batch: Batch | TensorBatch, velocities: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Position (Å) and velocity (Å/fs) errors [atoms, 3] of a batch; differentiable."""
    if isinstance(batch, Batch):
        batch = tensor_batch(model, batch)
    graph, t, displacement, velocity = batch
    if velocities:
        dx, v = model.motion(graph, t)
        return dx - displacement, v - velocity
    return model(graph, t).displacement - displacement, None


@torch.no_grad()
def rms_errors(
    model: MDtrajNet, pairs: Pairs, count: int, *, lag_fs: float | None = None, seed: int = 0
) -> dict[str, float]:
    """Root mean square errors per Cartesian component over `count` random pairs at one lag.

    Returns position (Å), velocity (Å/fs), and the errors of the guesses that need no model: static
    (R0, in Å), ballistic (R0 + v0 t, in Å) and velocity_static (v0, in Å/fs). lag_fs defaults to
    the model's window.
    """
    if count < 1:
        raise ValueError(f"expected at least one pair to judge a model by, got {count}")
    lag = model.stride(lag_fs)
    rng = np.random.default_rng([seed, 0x7A11DA7E])
    sums, components = np.zeros(len(COLUMNS)), 0
    for k in range(0, count, 64):
        batch = pairs.draw(rng, min(64, count - k), lag, lag_fs=lag)
        dx, dv = errors(model, batch)
        assert dv is not None
        ballistic = batch.displacement - batch.system.velocities * batch.t[:, None]
        accelerated = batch.velocity - batch.system.velocities
        own = dx.double().cpu().numpy(), dv.double().cpu().numpy()
        sums += [float((x**2).sum()) for x in (*own, batch.displacement, ballistic, accelerated)]
        components += batch.displacement.size
    return dict(zip(COLUMNS, np.sqrt(sums / components).tolist(), strict=True))


def error_table(
    model: MDtrajNet,
    pairs: Pairs,
    count: int,
    lags_fs: Sequence[float],
    *,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, list[float]]:
    """:func:`rms_errors` at several lags: a column "lag_fs" and one for each of its figures."""
    table: dict[str, list[float]] = {"lag_fs": [float(lag) for lag in lags_fs]}
    for lag in tqdm(lags_fs, unit="lag", disable=not progress):
        row = rms_errors(model, pairs, count, lag_fs=lag, seed=seed)
        for name, value in row.items():
            table.setdefault(name, []).append(value)
    return table
