"""Velocity Verlet with a model's own potential, in the native engine of symplectic windows."""

from __future__ import annotations

from dataclasses import replace

from mdtrajnet_fast import MDtrajNet
from mdtrajnet_fast.model.window_potentials import ENDS, ENERGY, MIDDLE


def verlet_model(model: MDtrajNet, step: float) -> MDtrajNet:
    """A model whose symplectic windows are two steps (fs) of velocity Verlet each.

    A window of h = 2 steps kicks by h/6 of one potential at both ends and by 2h/3 of another in the
    middle. With 3/2 and 3/4 of the potential energy these are the kicks by h/4, h/2 and h/4 of two
    steps of velocity Verlet. Everything else is what symplectic windows have: one native call for
    many of them, one evaluation a step, the last kick of a window kept for the next.

    Raises ValueError for a model without window potentials.
    """
    sizes = model.config.window_potentials
    if sizes is None:
        raise ValueError(f"model {model.name!r} has no window potentials to run dynamics with")
    config = replace(model.config, window_potentials=replace(sizes, window=2 * step))
    made = MDtrajNet(config, len(model.members), f"{model.name}, velocity Verlet, {step:g} fs")
    made.to(model.device, model.dtype).eval().requires_grad_(False)
    made.load_state_dict(model.state_dict())
    potentials = made.window_potentials
    assert potentials is not None
    for role, part in ((ENDS, 3 / 2), (MIDDLE, 3 / 4)):
        potentials.role[:, role] = potentials.role[:, ENERGY]
        potentials.last[:, role] = part * potentials.last[:, ENERGY]
    return made
