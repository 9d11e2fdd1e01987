"""MDtrajNet: species embedding, attention blocks, displacement. A thin layer over `ops`."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import ase
import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import _C
from ..neighbors.host import Edges, is_endless, neighbor_list
from ..ops import (
    Backend,
    Blocks,
    BlockWeights,
    Graph,
    choose_backend,
    cutoff_envelope,
    fold,
    gaussian_basis,
)
from ..system import System
from .config import ModelConfig, irreps_channels
from .dipole import Dipole, dipole_moments
from .initial import normal
from .potential import Potential
from .predictor import NativePredictor, Predictor, TorchPredictor
from .window_potentials import ENERGY, WindowPotentials

_T = TypeVar("_T")

# Edges below which one thread is faster than many: waking threads for small tensors costs
# microseconds on a quiet machine and milliseconds on a busy one.
_SERIAL_EDGES = 1 << 14
# Atoms whose dipoles are computed together: bounds memory for long trajectories.
_DIPOLE_ATOMS = 1 << 14


# torch has one level of forward mode in a process: threads take turns.
_FORWARD_MODE = threading.Lock()


@contextmanager
def _threads(edges: int) -> Iterator[None]:
    """One torch thread for small inputs, torch's setting for others and for training."""
    threads = torch.get_num_threads()
    if edges >= _SERIAL_EDGES or threads == 1 or torch.is_grad_enabled():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Motion(NamedTuple):
    """What a network predicts at a time, relative to the input state."""

    displacement: Tensor  # [atoms, 3] Å, R(t) - R(0)
    velocity: Tensor | None  # [atoms, 3] Å/fs, the read-out of v(t); None without one


class AttentionBlock(nn.Module):
    """Weights of one attention block (see :mod:`mdtrajnet_fast.ops.reference`)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        s, h = config.scalars, config.num_heads
        basis = config.d_embed_dim + config.t_embed_dim
        (k0, k1), (q0, q1), (v0, v1) = (
            irreps_channels(x)
            for x in (config.irreps_key, config.irreps_query, config.irreps_value)
        )

        def layers(widths: tuple[int, ...]) -> nn.ModuleList:
            sizes = (basis, *widths)
            return nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

        def paths(hidden: int, *shape: int) -> nn.Parameter:
            bound = 1 / math.sqrt(hidden)  # torch's initialisation of the published linear layer
            return nn.Parameter(torch.empty(hidden + 1, *shape).uniform_(-bound, bound))

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(normal(*shape))

        self.key_layers = layers(config.key_weight_hidden_neurons)
        self.value_layers = layers(config.value_weight_hidden_neurons)
        n_key = config.key_weight_hidden_neurons[-1]
        n_value = config.value_weight_hidden_neurons[-1]
        self.key_scalar = paths(n_key, s + 2, h, k0)
        self.key_vector = paths(n_key, s + 4, h, k1)
        self.value_scalar = paths(n_value, s + 2, h, v0)
        self.value_vector = paths(n_value, s + 4, h, v1)
        self.query_scalar = random(s, h, q0)
        self.query_vector = random(2, h, q1)
        self.bilinear_scalar = random(q0, k0)
        self.bilinear_vector = random(q1, k1)
        self.out_scalar = random(h, v0, s)
        self.out_vector = random(h, v1, 2)
        if config.residual == "running":  # increments add up: start with little motion in each
            with torch.no_grad():
                self.out_scalar.mul_(0.3)
                self.out_vector.mul_(0.1)

    def weights(self) -> BlockWeights:
        """The block's parameters as the operation takes them."""
        return BlockWeights(
            key_layers=[(m.weight, m.bias) for m in self.key_layers],  # type: ignore[misc]
            value_layers=[(m.weight, m.bias) for m in self.value_layers],  # type: ignore[misc]
            **{name: getattr(self, name) for name in BlockWeights._fields[2:]},
        )


class Network(nn.Module):
    """One network: from a graph and a time to the motion at that time."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.species_embedding = nn.Parameter(normal(len(config.species), config.sp_embed_dim))
        self.blocks = nn.ModuleList(AttentionBlock(config) for _ in range(config.num_attn_blocks))

    def prepare(self, backend: Backend) -> Blocks:
        """The attention blocks with their weights as they are now, folded for a backend."""
        config = self.config
        return Blocks(
            folded=[fold(block.weights(), backend.networks) for block in self.blocks],  # type: ignore[operator]
            running=config.residual == "running",
            radial_cutoff=config.radial_cutoff,
            distance_centres=config.d_embed_dim,
            time_channels=config.t_embed_dim,
            envelope=config.envelope,
            backend=backend,
        )

    def forward(self, graph: Graph, t: Tensor, blocks: Blocks) -> Motion:
        """The motion of the graph's atoms, each at its own time t [times x atoms] (fs)."""
        config = self.config
        times = t.shape[0] // max(1, graph.atoms)

        def each(x: Tensor) -> Tensor:  # time
            return x if times == 1 else x.repeat(times, 1)

        time = gaussian_basis(t, config.time_cutoff, config.t_embed_dim)
        species = each(self.species_embedding[graph.species])
        dx, dv = blocks(torch.cat([species, time], dim=1), graph)
        v = each(graph.velocities)
        if config.head == "published":
            return Motion(dx, v + dv if config.velocity_readout else None)
        t = t[:, None]
        x = t / config.time_cutoff
        carried = 1 - torch.exp(-((3 * x) ** 2))
        drift = each(mean_velocity(graph, config.radial_cutoff)) - v
        dx = drift * (t * carried) + (5 * x * x / (4 * x + 1)) * dx
        if not config.velocity_readout:
            return Motion(v * t + dx - graph.component_mean(dx), None)
        dv = x * dv
        dx_mean, dv_mean = graph.component_mean(torch.cat([dx, dv])).chunk(2)
        return Motion(v * t + dx - dx_mean, v + dv - dv_mean)


def mean_velocity(graph: Graph, radial_cutoff: float) -> Tensor:
    """Smooth, mass-weighted mean velocity [atoms, 3] (Å/fs) of each atom and its neighbours.

    The neighbours' weights fall smoothly to zero at radial_cutoff. An atom without neighbours keeps
    its own velocity, and a fragment that drifts as a whole its drift.
    """
    p = graph.padded
    d = (p.r * p.r).sum(-1).sqrt()
    mass = graph.masses[p.neighbor] * cutoff_envelope(d, radial_cutoff) * p.mask
    total = graph.masses + mass.sum(1)
    return graph.velocities + (mass[..., None] * p.w).sum(1) / total[:, None]


@dataclass
class _Kept:
    """What was made of a model, by what it is called, and of which model."""

    config: ModelConfig
    device: torch.device
    weights: list[np.ndarray]
    made: dict[Any, Any]


# Not attributes of the models: copies and files of a model have nothing of it.
_KEPT: WeakKeyDictionary[MDtrajNet, _Kept] = WeakKeyDictionary()


def _heights(cell: np.ndarray) -> np.ndarray:
    """Distances [systems, 3] (Å) of opposite faces of cells [systems, 3, 3]; 0 of flat ones."""
    faces = np.linalg.norm(np.cross(cell[:, [1, 2, 0]], cell[:, [2, 0, 1]]), axis=2)
    volume = abs(np.linalg.det(cell))[:, None]
    return np.divide(volume, faces, out=np.zeros_like(faces), where=faces > 0)


@runtime_checkable
class _Frames(Protocol):
    """What a Trajectory has: the atoms of all frames, and positions [frames, atoms, 3] (Å)."""

    atoms: ase.Atoms
    positions: np.ndarray


class MDtrajNet(nn.Module):
    """A model: one network, or a collection of equal networks whose mean it predicts.

    A collection (the published MDtrajNet-1 has four members) predicts the mean of its members.
    Without members it consists of window potentials alone, and its windows are symplectic ones.
    backend: what computes the attention blocks: "cpu", "cuda" or "triton" (kernels for CPU and CUDA
    tensors), "reference" (plain torch), or None for the device's own; may be changed at any time.
    """

    def __init__(
        self,
        config: ModelConfig,
        members: int = 1,
        name: str = "unnamed",
        backend: str | None = None,
    ):
        super().__init__()
        if members < (1 if config.window_potentials is None else 0):
            raise ValueError(
                f"a model needs at least one member, or window potentials, got {members} members"
            )
        self.config = config
        self.name = name
        self.backend = backend
        self.members = nn.ModuleList(Network(config) for _ in range(members))
        species, cutoff = len(config.species), config.radial_cutoff
        self.potential: Potential | None = None
        if config.potential is not None:
            self.potential = Potential(config.potential, species, cutoff)
        self.window_potentials: WindowPotentials | None = None
        if config.window_potentials is not None:
            self.window_potentials = WindowPotentials(config.window_potentials, species, cutoff)
        self.dipole: Dipole | None = None
        if config.dipole is not None:
            self.dipole = Dipole(config.dipole, species, cutoff)
        self._index = np.full(len(chemical_symbols), -1)
        for k, symbol in enumerate(config.species):
            self._index[atomic_numbers[symbol]] = k

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and so of what is predicted."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._first.device

    @property
    def _first(self) -> Tensor:
        """One of the weights, of whose kind all are. (The first of parameters() takes longer.)"""
        if not len(self.members):
            assert self.window_potentials is not None
            return self.window_potentials.scale
        return self.members[0].species_embedding  # type: ignore[return-value]

    def species_index(self, numbers: np.ndarray) -> np.ndarray:
        """Embedding indices [atoms] of atomic numbers; elements the model lacks are refused."""
        index = self._index[numbers]
        if (index < 0).any():
            unknown = sorted({chemical_symbols[z] for z in numbers[index < 0]})
            raise ValueError(
                f"model {self.name!r} does not know the elements {', '.join(unknown)} (first at "
                f"atom {int(np.argmax(index < 0))}); it knows {', '.join(self.config.species)}"
            )
        return index

    def check_systems(self, system: System) -> None:
        """Refuse systems that the model is not for, by its configuration's `systems`.

        Raises ValueError, with the first of them: for a model of molecules, a periodic one in which
        anything is within the cutoff of its own images, or reaches them from neighbour to
        neighbour, as crystals and liquids do; for one of periodic matter, one that is not periodic
        in three directions, or whose cell is smaller than the model's cutoff, so that atoms would
        meet their own images.
        """
        kind, pbc = self.config.systems, system.pbc
        for k in np.flatnonzero(pbc.any(1)).tolist() if kind == "molecules" else ():
            own = slice(*system.ptr[k : k + 2])
            reach = self.config.radial_cutoff
            if is_endless(neighbor_list(system.positions[own], reach, system.cell[k], pbc[k])):
                raise ValueError(
                    f"model {self.name!r} is for isolated molecules, and system {k} is periodic "
                    f"(pbc = {pbc[k].tolist()}) and meets its own images within the cutoff, "
                    f"{reach:g} Å: for crystals and fluids choose a model of theirs (bundled: "
                    "diamond, of carbon, and argon); for a molecule alone give a larger cell, in "
                    "which it can turn as well, or none: atoms.pbc = False, or a file without one"
                )
        if kind != "periodic":
            return
        if not pbc.all():
            k = int(np.argmin(pbc.all(1)))
            raise ValueError(
                f"model {self.name!r} is for matter that is periodic in three directions, and "
                f"system {k} has pbc = {pbc[k].tolist()}: give a cell of a crystal or a fluid, "
                "with pbc = True; molecules are for molecules-nve"
            )
        heights, cutoff = _heights(system.cell).min(1), self.config.radial_cutoff
        if (small := (0 < heights) & (heights < cutoff)).any():
            k = int(np.argmax(small))
            times = math.ceil(cutoff / heights[k])
            raise ValueError(
                f"the cell of system {k} is {heights[k]:.3g} Å high where it is flattest, less "
                f"than the cutoff of model {self.name!r}, {cutoff:g} Å: atoms would meet their own "
                f"images, which move as they do. Repeat it {times} times along each edge at least "
                f"(mdtrajnet simulate --repeat {times}; in Python, atoms.repeat({times})), for "
                "phonons or g(r) until it holds some hundred atoms"
            )

    def graph(self, system: System, edges: Edges | None = None) -> Graph:
        """The graph of a system on the model's device; edges default to a fresh neighbour list.

        Raises ValueError for systems that the model is not for (:meth:`check_systems`), elements
        that it does not know, and geometries that the neighbour list refuses.
        """
        self.check_systems(system)
        if edges is None:
            edges = neighbor_list(
                system.positions,
                self.config.radial_cutoff,
                cell=system.cell,
                pbc=system.pbc,
                ptr=system.ptr,
            )
        like = self._first
        return Graph.build(
            system,
            self.species_index(system.numbers),
            edges,
            dtype=like.dtype,
            device=like.device,
        )

    def check_network(self) -> None:
        """Raises ValueError for a model that predicts no motion: of window potentials alone."""
        if not len(self.members):
            raise ValueError(
                f"model {self.name!r} has window potentials and no network: it predicts by "
                'symplectic windows alone; use simulate with method="symplectic"'
            )

    def prepare(self, backend: str | None = None) -> list[Blocks]:
        """The members' weights as they are now, in the form that their kernels read.

        For predictions :meth:`predictor` is faster. backend: None for the model's own.
        """
        chosen = choose_backend(backend or self.backend, self.device, self.dtype)
        return [member.prepare(chosen) for member in self.members]  # type: ignore[operator]

    def predictor(self, backend: str | None = None) -> Predictor:
        """The weights as they are now, folded for predictions by a backend; :meth:`kept`.

        backend: None for the model's own.
        """
        chosen = choose_backend(backend or self.backend, self.device, self.dtype)
        kind = NativePredictor if chosen.networks else TorchPredictor
        # the kernels for CPUs of this name are chosen when the weights are packed
        key = (chosen.name, os.environ.get("MDTRAJNET_INSTRUCTION_SET"))
        return self.kept(key, lambda: kind(self, chosen.name))

    def kept(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """make(), or what it returned for this key before, if the weights are what they were then.

        They are compared with a copy: it does not matter what may have changed them. For what takes
        longer to make than that: folded weights, their hash.
        """
        weights = [x.detach().cpu().numpy() for x in self.parameters()]
        kept = _KEPT.get(self)
        if (
            kept is None
            or (kept.config, kept.device) != (self.config, self.device)
            or [x.dtype for x in kept.weights] != [x.dtype for x in weights]
            or not all(map(_C.same_bytes, kept.weights, weights))
        ):
            kept = _KEPT[self] = _Kept(self.config, self.device, [x.copy() for x in weights], {})
        if key not in kept.made:
            with torch.inference_mode(False), torch.no_grad():
                kept.made[key] = make()
        return kept.made[key]

    def forward(self, graph: Graph, t: Tensor, blocks: list[Blocks] | None = None) -> Motion:
        """The mean motion of the members, each atom at its own time t [times x atoms] (fs).

        Several times of one graph may be asked for at once, one after another. blocks: what
        :meth:`prepare` returned, to use again; None for the weights as they are now.
        """
        self.check_network()
        with _threads(len(graph.neighbor)):
            blocks = self.prepare() if blocks is None else blocks
            motions = [
                member(graph, t, prepared)
                for member, prepared in zip(self.members, blocks, strict=True)
            ]
        if len(motions) == 1:
            return motions[0]
        displacement = torch.stack([m.displacement for m in motions]).mean(0)
        if motions[0].velocity is None:
            return Motion(displacement, None)
        return Motion(displacement, torch.stack([m.velocity for m in motions]).mean(0))

    def with_sizes(self, **sizes: Any) -> MDtrajNet:
        """A copy in which parts of the configuration are others: what is new is untrained."""
        config = dataclasses.replace(self.config, **sizes)
        new = MDtrajNet(config, members=len(self.members), name=self.name).to(self.dtype)
        new.load_state_dict(self.state_dict(), strict=False)
        return new.to(self.device)

    @property
    def has_energies(self) -> bool:
        """Whether :meth:`potential_energy` can say something."""
        return self.potential is not None or self.window_potentials is not None

    def potential_energy(self, system: System, edges: Edges | None = None) -> Tensor:
        """Potential energies of systems: float64 [systems], eV.

        Each up to a constant that depends on its molecule. Those of the window potentials, where
        the model has them. edges default to a fresh neighbour list. Where gradients are asked for,
        plain torch computes them. Raises ValueError for a model without a potential.
        """
        if not self.has_energies:
            raise ValueError(
                f"model {self.name!r} has no potential energy; train one with "
                'target = "window_potentials" or "potential" in a recipe'
            )
        graph = self.graph(system, edges)
        learning = torch.is_grad_enabled() and self._first.requires_grad
        if not learning:
            energy = self.predictor().energies(graph)
        elif self.window_potentials is not None:
            energy = self.window_potentials(graph, torch.full_like(graph.species, ENERGY))
        else:
            assert self.potential is not None
            energy = self.potential(graph)
        energy = energy.double()
        owner = torch.from_numpy(system.system_index).to(energy.device)
        return energy.new_zeros(len(system)).index_add(0, owner, energy)

    @property
    def usual_uncertainty(self) -> float | None:
        """Of forces on atoms like those it was trained on (eV/Å); None: it does not know."""
        sizes = self.config.window_potentials
        return None if sizes is None else sizes.usual_uncertainty

    def force_uncertainties(self, system: System, edges: Edges | None = None) -> Tensor:
        """How far the forces on atoms are expected to be off: [atoms] eV/Å, per component.

        Root mean squares, as they were on validation data (:mod:`..train.calibrate`). edges default
        to a fresh neighbour list. Raises ValueError for a model that does not know.
        """
        if self.window_potentials is None or self.usual_uncertainty is None:
            raise ValueError(
                f"model {self.name!r} does not know its uncertainties; training with "
                'target = "window_potentials" finds them, where the recipe has validation data'
            )
        return self.window_potentials.uncertainties(self.graph(system, edges))

    def dipole_moments(self, system: System, edges: Edges | None = None) -> Tensor:
        """Dipole moments of systems: float64 [systems, 3], e Å, see :mod:`.dipole`.

        edges default to a fresh neighbour list. Where gradients are asked for, plain torch computes
        the charges. Raises ValueError for a model without a dipole and for periodic systems.
        """
        if self.dipole is None:
            raise ValueError(
                f'model {self.name!r} has no dipole: train one with target = "dipole" in a recipe'
            )
        if system.pbc.any():
            raise ValueError(
                f"system {int(np.argmax(system.pbc.any(1)))} is periodic, and a crystal or a "
                "liquid has no dipole moment of its own: give molecules, with pbc = False"
            )
        graph = self.graph(system, edges)
        learning = torch.is_grad_enabled() and self._first.requires_grad
        charges = (self.dipole if learning else self.predictor()).charges(graph)
        return dipole_moments(charges, graph, system)

    def dipoles(self, atoms: ase.Atoms | Iterable[ase.Atoms]) -> np.ndarray:
        """Dipole moments of molecules, float64, e Å (0.2082 e Å are a debye).

        atoms: one Atoms, for [3], or several, as the frames of a Trajectory are, for [frames, 3].
        Raises ValueError for a model without a dipole, periodic systems, elements the model does
        not know, and geometries the neighbour list refuses.
        """
        if isinstance(atoms, ase.Atoms):
            return self.dipoles([atoms])[0]
        parts: Iterator[System]
        if isinstance(atoms, _Frames):  # making Atoms of each would take longer than its dipole
            one, x = System.from_atoms(atoms.atoms), atoms.positions
            step = max(1, _DIPOLE_ATOMS // len(one.numbers))
            parts = (one.copies(x[k : k + step]) for k in range(0, len(x), step))
        else:
            every = list(atoms)
            step = max(1, _DIPOLE_ATOMS // max(map(len, every), default=1))
            parts = (System.from_atoms(every[k : k + step]) for k in range(0, len(every), step))
        found = [self.dipole_moments(part).detach().cpu().numpy() for part in parts]
        return np.concatenate([np.zeros((0, 3)), *found])

    def motion(
        self, graph: Graph, t: Tensor, blocks: list[Blocks] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Displacements (Å) and velocities (Å/fs), [times x atoms, 3], at times t (fs).

        t, blocks: as for :meth:`forward`. Without a velocity read-out the velocity is dR/dt,
        carried through the network as a tangent (forward mode): exact. Where its gradient may be
        asked for as well (training without a read-out), plain torch computes both, whatever
        the backend: the kernels have no gradient of a tangent.
        """
        if self.config.velocity_readout:
            displacement, velocity = self(graph, t, blocks)
            return displacement, velocity
        if torch.is_grad_enabled() and self._first.requires_grad:
            blocks = self.prepare("reference")
        with _FORWARD_MODE, forward_ad.dual_level():
            dual = forward_ad.make_dual(t, torch.ones_like(t))
            primal, tangent = forward_ad.unpack_dual(self(graph, dual, blocks).displacement)
        return primal, torch.zeros_like(primal) if tangent is None else tangent

    def displacements(self, graph: Graph, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacements (Å) and velocities (Å/fs), both float64 [times, atoms, 3], for no training.

        The frames of a window share one neighbour list and are predicted together; the last time
        has the same bits whatever the others.
        """
        self.check_network()
        return self.predictor().motion(graph, times)

    def check_times(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Times as a float64 array; refused outside 0 <= t <= time_cutoff."""
        array = np.atleast_1d(np.asarray(times, dtype=np.float64))
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"times must be a number or a list of numbers, got {times!r}")
        bad = ~((array >= 0) & (array <= self.config.time_cutoff))
        if bad.any():
            raise ValueError(
                f"times must lie in [0, {self.config.time_cutoff:g}] fs, the model's time window; "
                f"got {array[bad][0]:g}. Longer times need a rollout: mdtrajnet_fast.simulate"
            )
        return array

    def extrapolates(self, time: float) -> str | None:
        """What is wrong with a time (fs), if it is longer than the weights were trained on."""
        longest = self.config.longest_lag
        if longest is None or time <= longest:
            return None
        return (
            f"{time:g} fs are beyond the {longest:g} fs that model {self.name!r} was trained on: "
            "what it predicts there is worth little"
        )

    def outgrown(self, system: System) -> str | None:
        """What to say of the first molecule that is larger than those of the training."""
        largest, sizes = self.config.largest, np.diff(system.ptr)
        if largest is None or (beyond := sizes > largest).sum() == 0:
            return None
        k = int(np.argmax(beyond))
        return (
            f"system {k} has {sizes[k]} atoms, and the molecules that model {self.name!r} was "
            f"trained on at most {largest}: how right it is there has not been tested"
        )

    def stride(self, window: float | None = None) -> float:
        """The stride of a rollout (fs): the model's own, or `window` if it reaches so far."""
        stride = self.config.window if window is None else window
        assert stride is not None
        if not 0 < stride <= self.config.time_cutoff:
            raise ValueError(
                f"window must lie in (0, {self.config.time_cutoff:g}] fs for model {self.name!r}, "
                f"got {window}"
            )
        return float(stride)

    def predict(
        self, atoms: ase.Atoms | Sequence[ase.Atoms], times: Sequence[float] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | list[tuple[np.ndarray, np.ndarray]]:
        """Positions (Å, unwrapped) and velocities (Å/fs) at the given times.

        atoms: one Atoms with velocities, or a list of them (predicted in one batch).
        times: [times] fs, each in 0 <= t <= time_cutoff.

        Returns two float64 arrays [times, atoms, 3], or a list of such pairs for a list. With
        published weights this is the published function as it is, which ignores the
        centre-of-mass velocity and does not return R0 at t = 0; `simulate` mends both.

        Warns of times beyond those that the model was trained on. Raises ValueError for times
        outside [0, time_cutoff], elements the model does not know, isotopes, and geometries the
        neighbour list refuses.
        """
        array = self.check_times(times)
        if (wrong := self.extrapolates(float(array.max()))) is not None:
            warnings.warn(wrong, RuntimeWarning, stacklevel=2)
        system = System.from_atoms(atoms)
        system.check_masses()
        moved, velocities = self.displacements(self.graph(system), array)
        positions = system.positions + moved
        if isinstance(atoms, ase.Atoms):
            return positions, velocities
        return [
            (positions[:, a:b], velocities[:, a:b])
            for a, b in zip(system.ptr, system.ptr[1:], strict=False)
        ]
