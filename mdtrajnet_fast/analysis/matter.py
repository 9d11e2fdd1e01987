"""Solids, fluids and ensembles: where neighbours are, how far atoms go, how heat is spread.

Units: Å, fs, K, eV. Positions are unwrapped, as this package writes them; :func:`unwrapped` mends
those of other programs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers
from ase.units import kB
from numpy.typing import NDArray

from ..io.trajectory import Trajectory
from ..mechanics import InternalMotion, centre_of_mass, check_even
from ..neighbors.host import NeighborList
from .observables import FRAME_ROWS, Array, frames_as_systems

# Parts of the longest time over which a mean-square displacement grows like diffusion: neither
# free flight and the cage of the neighbours, nor times of which there are few.
FIT = (0.1, 0.5)
_FARTHEST = 10.0  # Å, of a radial distribution by default


class RadialDistribution(NamedTuple):
    """r [bins] Å, the middles of the bins; g [bins], 1 without order."""

    r: Array
    g: Array


class MeanSquareDisplacement(NamedTuple):
    """times [lags] fs; squares [lags] Å², the mean over atoms and starts."""

    times: Array
    squares: Array


class Diffusion(NamedTuple):
    """A self-diffusion coefficient and its standard error, Å²/fs (each is 0.1 cm²/s)."""

    coefficient: float
    error: float


class KineticEnergies(NamedTuple):
    """Kinetic energies [frames] (eV) of the internal motion, of so many degrees of freedom."""

    energies: Array
    freedom: int

    @property
    def temperature(self) -> float:
        """Mean kinetic temperature, K."""
        return float(2 * self.energies.mean() / (self.freedom * kB))

    def errors(self, blocks: int = 8) -> tuple[float, float]:
        """Standard errors of temperature (K) and variance, from so many equal parts of the run.

        nan where the parts would have fewer than two frames.
        """
        length = len(self.energies) // blocks
        if length < 2:
            return np.nan, np.nan
        parts = [
            KineticEnergies(self.energies[k * length : (k + 1) * length], self.freedom)
            for k in range(blocks)
        ]
        each = np.array([(part.temperature, part.variance) for part in parts])
        kelvin, variance = each.std(0, ddof=1) / np.sqrt(blocks)
        return float(kelvin), float(variance)

    def canonical(self, energies: Array) -> Array:
        """Density (1/eV) of the canonical ensemble at that temperature, of energies (eV)."""
        from scipy.stats import gamma  # here, for it takes long to import

        return gamma.pdf(energies, self.freedom / 2, scale=kB * self.temperature)

    @property
    def variance(self) -> float:
        """Beside that of the canonical ensemble: 1 with a thermostat, less without."""
        return float(self.energies.var() / self.energies.mean() ** 2 * self.freedom / 2)


def radial_distribution(
    trajectory: Trajectory,
    pair: tuple[str, str] | None = None,
    *,
    farthest: float | None = None,
    width: float = 0.05,
) -> RadialDistribution:
    """g(r): how many atoms there are at a distance, beside how many an ideal gas would have.

    pair: symbols of two elements; None: all atoms. farthest: Å, beyond half of the cell, too, where
    images count like other atoms; by default half of the cell's smallest height, at most 10 Å.
    width: Å of a bin.

    Raises ValueError for a cell that is not periodic in three directions, elements that are not
    there, and distances that are not positive.
    """
    atoms = trajectory.atoms
    if not atoms.pbc.all():
        raise ValueError(
            f"a radial distribution needs a density, thus a cell that is periodic in three "
            f"directions; pbc is {atoms.pbc.tolist()}"
        )
    volume = atoms.cell.volume
    if farthest is None:
        heights = volume / np.linalg.norm(
            np.cross(atoms.cell[[1, 2, 0]], atoms.cell[[2, 0, 1]]), axis=1
        )
        farthest = min(_FARTHEST, heights.min() / 2)
    if not 0 < width <= farthest:
        raise ValueError(f"expected 0 < width <= farthest (Å), got {width} and {farthest}")
    first, second = (_chosen(trajectory, symbol) for symbol in pair or (None, None))
    edges = width * np.arange(1 + round(farthest / width))
    counts, near = np.zeros(len(edges) - 1), NeighborList(edges[-1], skin=0.5)
    step = max(1, FRAME_ROWS // len(atoms))
    for k in range(0, len(trajectory), step):
        x = trajectory.positions[k : k + step]
        found = near.update(x.reshape(-1, 3), *frames_as_systems(x, atoms.cell[:], atoms.pbc))
        i = np.repeat(np.arange(x.size // 3), np.diff(found.row_ptr))
        j = found.neighbor.astype(np.int64)
        kept = first[i % len(atoms)] & second[j % len(atoms)]
        i, j, flat = i[kept], j[kept], x.reshape(-1, 3)
        r = flat[j] - flat[i] + found.shift[kept] @ atoms.cell[:]
        counts += np.histogram(np.sqrt((r**2).sum(1)), edges)[0]
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    # an atom is no neighbour of itself
    pairs = first.sum() * second.sum() - (first & second).sum()
    if not pairs:
        raise ValueError("a radial distribution needs two atoms")
    g = counts / (len(trajectory) * pairs * shells / volume)
    return RadialDistribution((edges[1:] + edges[:-1]) / 2, g)


def unwrapped(trajectory: Trajectory) -> Trajectory:
    """The same with atoms that do not jump when they leave the cell.

    Where an atom moves by more than half of a periodic cell vector from frame to frame, it is taken
    to have moved by the image of that which is shortest: frames have to be close enough for that.
    """
    cell, pbc = trajectory.atoms.cell, trajectory.atoms.pbc
    if not pbc.any():
        return trajectory
    steps = np.diff(trajectory.positions, axis=0)
    whole = np.rint(steps @ np.linalg.inv(cell.complete()[:])) * pbc
    jumps = np.concatenate([np.zeros_like(whole[:1]), np.cumsum(whole, axis=0)])
    if not jumps.any():
        return trajectory
    return Trajectory(
        trajectory.atoms,
        trajectory.times,
        trajectory.positions - jumps @ cell.complete()[:],
        trajectory.momenta,
        trajectory.metadata,
        **trajectory.scalars,
    )


def mean_square_displacement(
    trajectory: Trajectory, element: str | None = None
) -> MeanSquareDisplacement:
    """How far atoms get from where they were, relative to the centre of mass of all.

    Averaged over all starts, by Fourier transforms (V. Calandrini, E. Pellegrini, P. Calligari,
    K. Hinsen, G. R. Kneller, École thématique de la Société Française de la Neutronique 12, 201
    (2011)). element: its symbol; None: all atoms.

    Raises ValueError for fewer than two frames, frames that are not even and an element that is not
    there.
    """
    times = trajectory.times - trajectory.times[0]
    if len(times) < 2:
        raise ValueError("a displacement needs two frames")
    check_even(times, "mean-square displacement", rtol=1e-6)
    chosen = _chosen(trajectory, element)
    centre = centre_of_mass(trajectory.positions, trajectory.atoms.get_masses())
    x = trajectory.positions[:, chosen] - centre[:, None]
    frames = len(x)
    total = np.zeros(frames)
    for atom in range(x.shape[1]):  # one by one: transforms are twice as long as the run
        one = x[:, atom] - x[:, atom].mean(0)
        power = np.abs(np.fft.rfft(one, 2 * frames, axis=0)) ** 2
        product = np.fft.irfft(power, axis=0)[:frames].sum(1)  # sum over starts of x(0) . x(t)
        square = (one**2).sum(1)
        ends = square.cumsum()[::-1] + square[::-1].cumsum()[::-1]
        total += ends - 2 * product
    starts = frames - np.arange(frames)
    return MeanSquareDisplacement(times, total / (starts * x.shape[1]))


def diffusion(trajectory: Trajectory, element: str | None = None, *, blocks: int = 5) -> Diffusion:
    """Self-diffusion coefficient D, where the mean-square displacement is 6 D t (A. Einstein).

    A straight line through times from a tenth to a half of the run's; the error from how those of
    `blocks` parts of the run scatter. A periodic cell of length L makes D smaller, by
    2.84 kB T / (6 pi viscosity L) (I.-C. Yeh, G. Hummer, J. Phys. Chem. B 108, 15873 (2004)).

    Raises ValueError for fewer than ten frames in a part, and as :func:`mean_square_displacement`.
    """
    part = len(trajectory) // blocks
    if blocks < 2 or part < 10:
        raise ValueError(
            f"{len(trajectory)} frames in {blocks} parts: a diffusion coefficient needs two parts "
            "or more, of at least 10 frames each"
        )

    def slope(run: Trajectory) -> float:
        times, squares = mean_square_displacement(run, element)
        begin, end = (max(1, round(share * len(times))) for share in FIT)
        return float(np.polyfit(times[begin:end], squares[begin:end], 1)[0]) / 6

    parts = [slope(trajectory[k * part : (k + 1) * part]) for k in range(blocks)]
    return Diffusion(slope(trajectory), float(np.std(parts, ddof=1) / np.sqrt(blocks)))


def kinetic_energies(trajectory: Trajectory) -> KineticEnergies:
    """Those of the internal motion: without that of the whole and, of molecules, its rotation."""
    motion = InternalMotion(trajectory[0])
    energies = np.empty(len(trajectory))
    for k, (x, p) in enumerate(zip(trajectory.positions, trajectory.momenta, strict=True)):
        motion.at(x)
        energies[k] = motion.kinetic(motion.of(p))[0]
    return KineticEnergies(energies, int(motion.freedom[0]))


def _chosen(trajectory: Trajectory, symbol: str | None) -> NDArray[np.bool_]:
    numbers = trajectory.atoms.numbers
    if symbol is None:
        return np.ones(len(numbers), dtype=bool)
    chosen = numbers == atomic_numbers.get(symbol, -1)
    if not chosen.any():
        there = sorted(set(trajectory.atoms.get_chemical_symbols()))
        raise ValueError(f"no atom of {symbol!r} is there; elements are {', '.join(there)}")
    return chosen
