"""Sizes and options of a model: frozen dataclasses that go to and from JSON."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from ase.data import atomic_numbers

# Options that came after the first models were saved, and are not said where they are None.
LATER = ("longest_lag", "window_potentials", "dipole", "systems", "temperature_K", "largest")
_IRREPS = re.compile(r"^\s*(\d+)x0e\s*\+\s*(\d+)x1o\s*$")


def irreps_channels(irreps: str, name: str = "irreps") -> tuple[int, int]:
    """Channels of an irreps string such as ``"8x0e + 8x1o"``: ``(scalars, vectors)``.

    Raises ValueError, naming the irreps, for anything but even scalars followed by odd vectors.
    """
    match = _IRREPS.match(irreps)
    if match is None:
        raise ValueError(
            f"{name} = {irreps!r} is not supported: the attention block knows even scalars "
            'followed by odd vectors, "<scalars>x0e + <vectors>x1o", such as "8x0e + 8x1o"'
        )
    scalars, vectors = int(match[1]), int(match[2])
    if scalars < 1 or vectors < 1:
        raise ValueError(f"{name} = {irreps!r} needs at least one scalar and one vector channel")
    return scalars, vectors


def _check_whole(sizes: object, least: dict[str, int]) -> None:
    for name, value in least.items():
        given = getattr(sizes, name)
        if not isinstance(given, int) or isinstance(given, bool) or given < value:
            raise ValueError(f"{name} must be a whole number, at least {value}, got {given!r}")


@dataclasses.dataclass(frozen=True)
class PotentialConfig:
    """Sizes of a :class:`~mdtrajnet_fast.model.potential.Potential`.

    radial: Gaussians of the distance, for each element of the neighbours.
    products: invariants of each harmonic. hidden: width of the layers that follow.
    """

    radial: int = 14
    products: int = 48
    hidden: int = 64

    def __post_init__(self) -> None:
        _check_whole(self, {"radial": 2, "products": 1, "hidden": 1})


@dataclasses.dataclass(frozen=True)
class WindowPotentialsConfig:
    """Sizes of :class:`~mdtrajnet_fast.model.window_potentials.WindowPotentials`.

    window: what their kicks make (fs).
    layers: of messages. radial: Gaussians of the distance. channels: of a density. products:
    invariants of each kind. hidden: width of the layers that follow.
    usual_uncertainty: of the forces on 999 of 1,000 atoms of the validation data (eV/Å), above
    which an atom is outside of what the model was trained on; None: uncertainties are not known.
    """

    window: float = 3.0
    layers: int = 2
    radial: int = 20
    channels: int = 32
    products: int = 32
    hidden: int = 96
    usual_uncertainty: float | None = None

    def __post_init__(self) -> None:
        _check_whole(self, {"layers": 1, "radial": 2, "channels": 1, "products": 1, "hidden": 1})
        if not (isinstance(self.window, (int, float)) and 0 < self.window < math.inf):
            raise ValueError(f"window (fs) must be a positive number, got {self.window!r}")
        usual = self.usual_uncertainty
        if usual is not None and not (isinstance(usual, (int, float)) and 0 < usual < math.inf):
            raise ValueError(f"usual_uncertainty (eV/Å) must be a positive number, got {usual!r}")


@dataclasses.dataclass(frozen=True)
class DipoleConfig:
    """Sizes of a :class:`~mdtrajnet_fast.model.dipole.Dipole`; as those of window potentials."""

    layers: int = 2
    radial: int = 20
    channels: int = 24
    products: int = 24
    hidden: int = 64

    def __post_init__(self) -> None:
        _check_whole(self, {"layers": 1, "radial": 2, "channels": 1, "products": 1, "hidden": 1})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of an :class:`~mdtrajnet_fast.model.network.MDtrajNet`.

    The defaults are the published sizes and the published function (Ge, Chen, Dral,
    arXiv 2505.16301); the names are those of the published checkpoints where they have one.

    species: element symbols, in the order of the embedding.
    num_attn_blocks: attention blocks.
    lmax: highest spherical harmonic, at least 2. Harmonics above 2 have no path into scalars or
        vectors, so a larger value names the same function.
    sp_embed_dim, t_embed_dim, d_embed_dim: species channels, time Gaussians, distance Gaussians.
    time_cutoff: end of the time basis (fs): the longest time the model may be asked for.
    radial_cutoff: neighbours are atoms at most this far away at the input geometry (Å).
    num_heads: attention heads.
    irreps_key, irreps_query, irreps_value: channels of one head.
    key_weight_hidden_neurons, value_weight_hidden_neurons: hidden layers of the radial networks.
    window: stride of a rollout (fs), at most time_cutoff; None stands for time_cutoff.
    longest_lag: the longest time that the weights were trained on (fs). Longer ones are predicted,
        with a warning. None: not known.

    Options, off in the published model:

    residual: "input" adds a block's increment to the input state (published), "running" adds it
        to the running state.
    envelope: multiply attention weights and messages by a smooth cutoff, so that the prediction is
        continuous when an atom crosses radial_cutoff.
    head: "published" returns R0 plus the last increment. "conserving" returns
        R0 + v0 t + (v_mean - v0) t c(x) + 5 x^2 / (4 x + 1) increment, x = t / time_cutoff, the
        last two terms without their mass-weighted mean in each connected component. An atom flies
        freely at first and is then carried along: c(x) = 1 - exp(-9 x^2), v_mean being the smooth,
        mass-weighted mean velocity of an atom and its neighbours. R(0) = R0, dR/dt(0) = v0, total
        momentum and Galilean covariance hold exactly.
    velocity_readout: report v(t) from the last block's velocity channel (with "conserving":
        v(0) = v0 and exact total momentum) in place of the time derivative of the positions.
    potential: sizes of the potential energy, with which rollouts conserve the total energy; None
        for a model without one.
    window_potentials: sizes of the potentials of symplectic windows; None for a model without them.
    dipole: sizes of the read-out of dipole moments; None for a model without one.
    systems: what the model is for: "molecules", isolated ones (in a box, too, if it keeps them from
        their images), "periodic" matter, in cells periodic in three directions; others are refused
        (:meth:`.MDtrajNet.check_systems`). None: any.
    temperature_K: what the motion keeps the temperature at by itself, K, of a network trained on
        trajectories with a thermostat. Its rollouts take its plain map: reversible windows undo
        whatever is not reversible, the exchange of heat too. Such a model has no potential, to
        whose energy rollouts would return. None: constant energy.
    largest: atoms of the largest molecule that the weights were trained on; others are predicted
        with a warning. None: not known.
    """

    species: tuple[str, ...]
    num_attn_blocks: int = 8
    lmax: int = 3
    sp_embed_dim: int = 16
    time_cutoff: float = 10.0
    t_embed_dim: int = 4
    radial_cutoff: float = 4.0
    d_embed_dim: int = 16
    num_heads: int = 4
    irreps_key: str = "8x0e + 8x1o"
    irreps_query: str = "8x0e + 8x1o"
    irreps_value: str = "8x0e + 8x1o"
    key_weight_hidden_neurons: tuple[int, ...] = (128,)
    value_weight_hidden_neurons: tuple[int, ...] = (128,)
    window: float | None = None
    residual: str = "input"
    envelope: bool = False
    head: str = "published"
    velocity_readout: bool = False
    potential: PotentialConfig | None = None
    longest_lag: float | None = None
    window_potentials: WindowPotentialsConfig | None = None
    dipole: DipoleConfig | None = None
    systems: str | None = None
    temperature_K: float | None = None
    largest: int | None = None

    def __post_init__(self) -> None:
        for name in ("species", "key_weight_hidden_neurons", "value_weight_hidden_neurons"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.window is None:
            object.__setattr__(self, "window", float(self.time_cutoff))
        unknown = [s for s in self.species if s not in atomic_numbers or s == "X"]
        if not self.species or unknown or len(set(self.species)) != len(self.species):
            raise ValueError(f"species must be distinct element symbols, got {self.species}")
        for name in ("irreps_key", "irreps_query", "irreps_value"):
            irreps_channels(getattr(self, name), name)
        if not isinstance(self.lmax, int) or self.lmax < 2:
            raise ValueError(
                f"lmax = {self.lmax} is not supported: the closed forms need the harmonics "
                "up to l = 2; use lmax >= 2"
            )
        _check_whole(self, {"num_attn_blocks": 1, "sp_embed_dim": 1, "num_heads": 1})
        _check_whole(self, {"t_embed_dim": 2, "d_embed_dim": 2})
        if self.largest is not None:
            _check_whole(self, {"largest": 1})
        for name in ("key_weight_hidden_neurons", "value_weight_hidden_neurons"):
            layers = getattr(self, name)
            if not layers or not all(isinstance(n, int) and n >= 1 for n in layers):
                raise ValueError(f"{name} needs at least one layer of one neuron, got {layers}")
        if not (0 < self.time_cutoff < math.inf and 0 < self.radial_cutoff < math.inf):
            raise ValueError("time_cutoff (fs) and radial_cutoff (Å) must be positive numbers")
        if not 0 < self.window <= self.time_cutoff:  # type: ignore[operator]
            raise ValueError(
                f"window = {self.window} fs must lie in (0, time_cutoff = {self.time_cutoff} fs]"
            )
        if self.residual not in ("input", "running"):
            raise ValueError(f'residual must be "input" or "running", got {self.residual!r}')
        for name in ("envelope", "velocity_readout"):
            if not isinstance(given := getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {given!r}")
        if self.systems not in (None, "molecules", "periodic"):
            raise ValueError(f'systems must be "molecules" or "periodic", got {self.systems!r}')
        if (kelvin := self.temperature_K) is not None:
            if not 0 < kelvin < math.inf:
                raise ValueError(f"temperature_K must be a positive number of K, got {kelvin}")
            if self.potential is not None or self.window_potentials is not None:
                raise ValueError(
                    f"a motion that keeps a temperature (temperature_K = {kelvin:g}) cannot keep "
                    "an energy: expected no potential and no window_potentials"
                )
        if self.head not in ("published", "conserving"):
            raise ValueError(f'head must be "published" or "conserving", got {self.head!r}')

    @property
    def scalars(self) -> int:
        """Scalar channels of an atom's state: species and time."""
        return self.sp_embed_dim + self.t_embed_dim

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary that :meth:`from_dict` reads."""
        values = dataclasses.asdict(self)
        for name in LATER:
            if values[name] is None:  # as it was before there was this: models keep their hash
                del values[name]
        if (windows := values.get("window_potentials")) and windows["usual_uncertainty"] is None:
            del windows["usual_uncertainty"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration that a dictionary describes; unknown names are refused."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown model settings {unknown}; known are {sorted(known)}")
        if isinstance(sizes := values.get("potential"), dict):
            values = values | {"potential": PotentialConfig(**sizes)}
        if isinstance(sizes := values.get("window_potentials"), dict):
            values = values | {"window_potentials": WindowPotentialsConfig(**sizes)}
        if isinstance(sizes := values.get("dipole"), dict):
            values = values | {"dipole": DipoleConfig(**sizes)}
        return cls(**values)
