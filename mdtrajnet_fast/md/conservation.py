"""Restore what the dynamics conserves: momentum, angular momentum of isolated systems, energy.

In torch, in float64, on any device and without waiting for it. On the CPU rollouts use
csrc/cpu/conservation.cpp, which computes the same; for what every kick needs there are kernels for
CUDA devices (csrc/cuda/conservation.cu).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from ase.units import fs
from torch import Tensor
from torch.linalg import cross

from .. import _C


def conserve(
    positions: Tensor,  # [atoms, 3] Å, at the start
    velocities: Tensor,  # [atoms, 3] Å/fs, at the start
    masses: Tensor,  # [atoms] amu
    t: Tensor,  # [times] fs
    moved: Tensor,  # [times, atoms, 3] Å
    velocity: Tensor,  # [times, atoms, 3] Å/fs
    component: Tensor,  # int64 [atoms], labels from 0 to atoms - 1
    isolated: Tensor | None,  # bool [atoms], where angular momentum is kept; None where nowhere
    steps: int,  # Newton steps
) -> tuple[Tensor, Tensor]:
    """Displacements and velocities with the momenta of the start, component by component.

    Each component's mean displacement becomes its centre-of-mass velocity times t and its momentum
    that of the start. Then each isolated component is turned as a rigid body until its angular
    momentum L about its centre of mass is that of the start: by an angle theta, positions and
    velocities alike, and by an angular velocity omega. To first order L changes by
    theta x L + I omega; of all solutions the one of least

        omega.I omega + theta.(I / t^2 + J) theta

    is taken, I and J being the tensors of inertia of positions and velocities, and found anew until
    L is exact. Turning the velocities alone would not do: to make up for the smallest tilt of a
    nearly linear molecule they would have to spin about its axis at any speed.
    """
    total = _totals(component)
    mass = masses[:, None]
    total_mass = total(mass)

    def mean(x: Tensor) -> Tensor:
        return (total(mass * x) / total_mass)[..., component, :]

    v0 = velocities
    moved = moved - mean(moved - v0 * t[:, None, None])
    velocity = velocity - mean(velocity - v0)
    if isolated is None:
        return moved, velocity
    turns = (isolated & (total(torch.ones_like(mass))[component, 0] > 1))[:, None]
    x = positions + moved
    centre, drift = mean(x), mean(v0)
    wanted = cross(positions - mean(positions), v0)
    r, v = _turn(
        torch.where(turns, x - centre, 0.0),
        torch.where(turns, velocity - drift, 0.0),
        mass,
        total(mass * torch.where(turns, wanted, 0.0)),
        t,
        component,
        steps,
    )
    moved = torch.where(turns, r + (centre - positions), moved)
    return moved, torch.where(turns, v + drift, velocity)


def _totals(label: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that sums [.., atoms, k] over the atoms of each label: [.., atoms, k].

    There is room for as many labels as atoms; sums over none are 0.
    """
    return lambda x: torch.zeros_like(x).index_add(-2, label, x)


def _turn(
    r: Tensor,  # [times, atoms, 3] Å, from the centre of mass; 0 for atoms that do not turn
    v: Tensor,  # [times, atoms, 3] Å/fs, relative to it; likewise
    mass: Tensor,  # [atoms, 1] amu
    wanted: Tensor,  # [labels, 3] amu Å^2/fs, angular momenta
    t: Tensor,  # [times] fs
    label: Tensor,  # int64 [atoms]
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Positions and velocities, turned until the angular momenta are those wanted."""
    total, eye = _totals(label), torch.eye(3, dtype=r.dtype, device=r.device)
    cross_l = cross(eye.expand(len(wanted), 3, 3), wanted[:, None]).mT  # theta -> theta x L
    t2 = (t * t)[:, None, None, None]
    for _ in range(steps):
        lost = wanted - total(mass * cross(r, v))
        inertia = _inertia(total, mass, r)
        by_angle = t2 * _inverse(inertia + t2 * _inertia(total, mass, v)) @ cross_l.mT
        omega = _inverse(inertia + cross_l @ by_angle) @ lost[..., None]
        theta = (by_angle @ omega)[..., 0][:, label]
        r, v = _rotate(theta, r), _rotate(theta, v)
        v = v + cross(omega[..., 0][:, label], r)
    return r, v


def _inertia(total: Callable[[Tensor], Tensor], mass: Tensor, x: Tensor) -> Tensor:
    """Tensors of inertia [.., labels, 3, 3] of masses [atoms, 1] at x [.., atoms, 3]."""
    eye = torch.eye(3, dtype=x.dtype, device=x.device)
    outer = (x * x).sum(-1)[..., None, None] * eye - x[..., :, None] * x[..., None, :]
    return total((mass[..., None] * outer).flatten(-2)).unflatten(-1, (3, 3))


def _rotate(theta: Tensor, x: Tensor) -> Tensor:
    """x turned about theta by |theta|: x + sin a / a theta x x + (1 - cos a) / a^2 theta x (..)."""
    half = theta.square().sum(-1, keepdim=True).sqrt() / (2 * torch.pi)
    once = cross(theta, x)
    return x + torch.sinc(2 * half) * once + 0.5 * torch.sinc(half) ** 2 * cross(theta, once)


def _inverse(a: Tensor) -> Tensor:
    """Pseudo-inverse of tensors of inertia [.., 3, 3], whose rank is 3, 2 (linear molecules) or 0.

    Their two larger eigenvalues are alike in size, so that the smallest is det / tr(cofactors)
    where it is small. One below 1e-10 of the largest is taken for 0, and its direction, n n^T =
    cofactors / their trace, is left out. (Eigenvalue solvers check their success on the host.)
    """

    def cofactors(m: Tensor) -> tuple[Tensor, Tensor]:
        x, y, z = m.unbind(-2)
        rows = torch.stack([cross(y, z), cross(z, x), cross(x, y)], -2)
        return rows, (x * rows[..., 0, :]).sum(-1)[..., None, None]

    def trace(m: Tensor) -> Tensor:
        return m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]

    c, det = cofactors(a)
    size, area = trace(a) / 2, trace(c)
    flat = ~(det > 1e-10 * size * area)
    axis = torch.where(flat & (area > 0), c / area, 0.0)
    c, det = cofactors(a + size * axis)
    return torch.where(det > 0, c / det - axis / size, 0.0)


def internal_velocities(
    positions: Tensor,  # [.., atoms, 3] Å
    velocity: Tensor,  # [.., atoms, 3] Å/fs
    masses: Tensor,  # [atoms] amu
    component: Tensor,  # int64 [atoms]
    isolated: Tensor | None,  # bool [atoms]
) -> Tensor:
    """Velocities without the motion of each component as a rigid body (of others: its drift)."""
    if _on_gpu(velocity):
        return _by_kernel(positions, velocity, masses, component, isolated)
    total = _totals(component)
    mass = masses[:, None]
    total_mass = total(mass)

    def relative(x: Tensor) -> Tensor:
        return x - (total(mass * x) / total_mass)[..., component, :]

    several = total(torch.ones_like(mass))[component] > 1
    v = torch.where(several, relative(velocity), 0.0)  # alone: none, whatever is rounded
    if isolated is None:
        return v
    turns = isolated[:, None] & several
    r = relative(positions)
    spin = total(mass * cross(r, v))
    omega = (_inverse(_inertia(total, mass, r)) @ spin[..., None])[..., 0]
    return torch.where(turns, v - cross(omega[..., component, :], r), v)


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream


def _by_kernel(
    positions: Tensor, velocity: Tensor, masses: Tensor, component: Tensor, isolated: Tensor | None
) -> Tensor:
    x, v, mass = (y.contiguous() for y in (positions, velocity, masses))
    assert x.dtype == v.dtype == mass.dtype == torch.float64 and x.shape == v.shape
    label, alone = component.contiguous(), None if isolated is None else isolated.contiguous()
    atoms, out = len(mass), torch.empty_like(v)
    times = v.numel() // (3 * max(1, atoms))
    room = _C.cuda_internal_velocities_bytes(times, atoms)
    workspace = torch.empty(room, dtype=torch.uint8, device=v.device)
    with torch.cuda.device_of(v):
        _C.cuda_internal_velocities(
            times,
            atoms,
            x.data_ptr(),
            v.data_ptr(),
            mass.data_ptr(),
            label.data_ptr(),
            0 if alone is None else alone.data_ptr(),
            workspace.data_ptr(),
            out.data_ptr(),
            _stream(v),
        )
    return out


def draw_energy(
    velocity: Tensor,  # [times, atoms, 3] Å/fs
    internal: Tensor,  # [times, atoms, 3] Å/fs, those of internal_velocities
    t: Tensor,  # [times] fs
    off: Tensor,  # [systems] eV, how much kinetic energy is too little at the last time
    kinetic: Callable[[Tensor], Tensor],  # energies [systems] (eV) of velocities [atoms, 3]
    system: Tensor,  # int64 [atoms]
    near: Tensor,  # [systems] eV, the differences up to which the pull is weak
    pull: Tensor,  # infinite: all the way
    most: float,
) -> Tensor:
    """Velocities [times, atoms, 3] (Å/fs) drawn to the kinetic energies wanted at the last time.

    The internal velocities are scaled: by up to the part `most` at the last time, where they would
    need more, and before it by a part that grows with the time. See :mod:`.window`.
    """
    own = kinetic(internal[-1])
    wanted = (own + off).clamp(min=0.0)
    scale = torch.where(own > 0, wanted / own, 1.0).sqrt()
    share = -torch.expm1(-pull * (1 + torch.where(own > 0, (wanted - own) / near, 0.0) ** 4))
    more = (share * (scale - 1).clamp(-most, most))[system]
    return velocity + (t / t[-1])[:, None, None] * more[:, None] * internal


class SystemSums:
    """Sums over the atoms of each system.

    masses: [atoms] amu. system: int64 [atoms], the system of each. count: of systems.
    """

    def __init__(self, masses: Tensor, system: Tensor, count: int):
        self._masses, self._system, self._count = masses, system, count

    def sum(self, x: Tensor) -> Tensor:
        """[systems, ...] of [atoms, ...]."""
        return x.new_zeros(self._count, *x.shape[1:]).index_add(0, self._system, x)

    def kinetic(self, v: Tensor) -> Tensor:
        """Kinetic energies [systems] (eV) of velocities [atoms, 3] (Å/fs)."""
        return self.sum(0.5 / fs**2 * self._masses * v.square().sum(-1))

    def to_keep(self, potential: Tensor, v: Tensor) -> Tensor:
        """Energies [2, systems] (eV), as in :class:`.window.Kept`, of potential ones [systems]
        (eV) and velocities [atoms, 3] (Å/fs)."""
        kinetic, momentum = self.kinetic(v), self.sum(self._masses[:, None] * v)
        overall = momentum.square().sum(-1) / self.sum(self._masses)
        return torch.stack([potential + kinetic, kinetic - 0.5 / fs**2 * overall])
