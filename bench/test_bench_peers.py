"""The e3nn peers return what our model returns: without that, no ratio means anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from providers import provider
from systems import crystal, ethanols

pytest.importorskip("e3nn")

# A cell of 64 atoms of diamond is too small for the published minimum image.
CASES = [
    ("e3nn-dense", ethanols(3)),
    ("e3nn-sparse", ethanols(3)),
    ("e3nn-dense", crystal(3)),
    ("e3nn-sparse", crystal(2)),
]
IDS = ["dense-ethanol", "sparse-ethanol", "dense-diamond", "sparse-diamond"]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("name", "systems"), CASES, ids=IDS)
@torch.no_grad()
def test_float64(name, systems):
    ours, peer = (provider(x, systems, dtype=torch.float64) for x in ("ours", name))
    displacement, velocity = ours.motion()
    # 1e-7: e3nn keeps its Wigner symbols in float32
    assert relative(peer.displacement(), displacement) < 1e-7
    # the finite difference errs by its step
    assert relative(peer.motion()[1], velocity) < 1e-3


@pytest.mark.parametrize(("name", "systems"), CASES, ids=IDS)
@torch.no_grad()
def test_float32(name, systems):
    ours, peer = (provider(x, systems) for x in ("ours", name))
    difference = (peer.displacement() - ours.displacement()).abs().max()
    # Å; the dense form holds absolute coordinates, whose rounding grows with the box
    assert difference < 3e-6


@pytest.mark.parametrize("name", ["e3nn-dense", "e3nn-sparse"])
@torch.no_grad()
def test_window(name):
    times = np.array([1.0, 4.0, 9.5])
    ours, peer = (provider(x, ethanols(2), dtype=torch.float64) for x in ("ours", name))
    moved, velocities = ours.window(times)
    peer_moved, peer_velocities = peer.window(times)
    assert abs(peer_moved - moved).max() < 1e-7
    assert abs(peer_velocities - velocities).max() < 1e-3 * abs(velocities).max()


@pytest.mark.parametrize("name", ["e3nn-dense", "e3nn-sparse"])
def test_training_gradient(name):
    ours, peer = (provider(x, ethanols(2), dtype=torch.float64, train=True) for x in ("ours", name))
    for made in (ours, peer):
        made.displacement().square().mean().backward()
    (member,) = ours.model.members
    for k in (0, -1):
        mine, theirs = member.blocks[k].key_layers[0], peer.model.blocks[k].key_weights[0]
        assert relative(theirs.weight.grad, mine.weight.grad) < 1e-6
    theirs = peer.model.species_embedding.grad
    assert relative(theirs, member.species_embedding.grad) < 1e-6
