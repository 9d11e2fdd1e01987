"""What a model knows of its own errors: how far its forces are expected to be off, atom by atom.

Nothing is trained. Of the last layer's features of the training data comes how rigid a prediction
is, and of true errors on validation data the factor that makes it one in eV/Å: F. Bigi, S. Chong,
M. Ceriotti, F. Grasselli, Mach. Learn.: Sci. Technol. 2024, 5, 045018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ase.units import fs

from ..data.pairs import MARGIN, Pairs
from ..model.network import MDtrajNet
from ..model.window_potentials import ENERGY
from ..ops import Graph
from .evaluate import AT_ONCE

# Of the mean eigenvalue of the features' mean squares: directions that training data hardly have.
_FLOOR = 1e-4
_USUAL = 0.999


def calibrated(
    model: MDtrajNet, training: Pairs, validation: Sequence[Pairs], count: int = 4000, seed: int = 0
) -> MDtrajNet:
    """The model with uncertainties of its forces (:meth:`.MDtrajNet.force_uncertainties`).

    Looks at `count` random frames of the training data, and of each of the validation data; their
    frames have to be close enough for accelerations (:meth:`.Pairs.accelerations`). Raises
    ValueError for a model without window potentials.
    """
    potentials, sizes = model.window_potentials, model.config.window_potentials
    if potentials is None or sizes is None:
        raise ValueError(f"model {model.name!r} has no window potentials")
    width, atoms = sizes.layers * sizes.hidden, 0
    mean = np.zeros((width, width))
    for features, _, _ in _frames(model, training, count, seed):
        mean, atoms = mean + features.T @ features, atoms + len(features)
    mean /= atoms
    floor = _FLOOR * np.trace(mean) / width * np.eye(width)
    root = np.linalg.cholesky(np.linalg.inv(mean + floor))
    rigid, wrong = [], []
    for k, pairs in enumerate(validation):
        for features, graph, true in _frames(model, pairs, count, seed + 1 + k):
            forces = -model.predictor().slopes(graph, ENERGY)[1].cpu().numpy()
            rigid.append(np.linalg.norm(features @ root, axis=1))
            wrong.append(np.sqrt(((forces - true) ** 2).mean(1)))
    uncertainty, error = np.concatenate(rigid), np.concatenate(wrong)
    factor = np.sqrt(np.mean((error / uncertainty) ** 2))  # the likeliest, for Gaussian errors
    usual = float(np.quantile(factor * uncertainty, _USUAL))
    sizes = dataclasses.replace(sizes, usual_uncertainty=usual)
    known = model.with_sizes(window_potentials=sizes)
    assert known.window_potentials is not None
    known.window_potentials.rigidity[:] = torch.from_numpy(factor * root)
    return known


@torch.no_grad()
def _frames(
    model: MDtrajNet, pairs: Pairs, count: int, seed: int
) -> Iterator[tuple[np.ndarray, Graph, np.ndarray]]:
    """Random frames, some at a time: features of the atoms, their graph, and the true forces on
    them, [atoms, 3] eV/Å."""
    assert model.window_potentials is not None and model.config.window_potentials is not None
    h, rng = model.config.window_potentials.window, np.random.default_rng(seed)
    for done in range(0, count, AT_ONCE):
        choice = pairs.choose(rng, min(AT_ONCE, count - done), h, lag_fs=h, margin=MARGIN)
        system = pairs.batch(choice).system
        graph = model.graph(system)
        true = pairs.accelerations(choice) * system.masses[:, None] / fs**2
        features = model.window_potentials.features(graph).double().cpu().numpy()
        yield features, graph, true
