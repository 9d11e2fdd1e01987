"""Whether energy is spread over a molecule as chance would spread it.

In a collapsed rollout one or two vibrations hold the energy of all. That shows in two ways, without
knowing the vibrations: in the spectrum of the kinetic energy, which :class:`BandWatch` collects,
and in the temperatures of the elements. How unlikely they are in equilibrium, is told here.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, fdtr, fdtrc

from .block_means import BlockMeans
from .observables import WAVENUMBER

Array = NDArray[np.float64]

# The spectrum is a mean over segments of this length (fs) that overlap by half. It tells bands of
# this width (cm^-1) from each other.
SEGMENT_FS = 1000.0
BAND = 60.0
_PADDING = 4  # times the length of a segment: bins of 8 cm^-1
_FEWEST = 50  # frames in a segment: below, too many vibrations are folded onto each other
_ATOMS = 64  # so many atoms are looked at, evenly chosen
# Bands hold several vibrations each where there are more than this.
_MODES = 30
_DRAWS = 20_000
_STRETCHES = (2400.0, 3900.0)  # cm^-1, of bonds to hydrogen


class BandWatch:
    """Collects the power spectrum of the mass-weighted velocities, segment by segment.

    masses: [atoms] amu. Without frames that are evenly spaced, and close enough to tell bands from
    each other, there are no segments.
    """

    def __init__(self, masses: Array) -> None:
        self._chosen = slice(None, None, -(-len(masses) // _ATOMS))
        self._root = np.sqrt(masses[self._chosen])[:, None]
        self._times: list[float] = []  # of the frames that wait
        self._frames: list[Array] = []
        self._length: int | None = None  # frames of a segment; 0: there will be none
        self.dt = math.nan  # fs
        self._segments: BlockMeans | None = None  # rows of middle (fs) and power [bins]

    def update(self, t: Array, v: Array) -> None:
        """Look at frames: times [k] fs, velocities [k, atoms, 3] Å/fs."""
        if self._length == 0:
            return
        self._times += t.tolist()
        self._frames += list(v[:, self._chosen] * self._root)
        if self._length is None:
            if len(self._times) < 2:
                return
            self.dt = self._times[1] - self._times[0]
            self._length = round(SEGMENT_FS / self.dt)
            if self._length < _FEWEST:
                self._length = 0
        while self._length and len(self._times) >= self._length:
            self._transform(self._length)
        if self._length == 0:
            self._times, self._frames = [], []

    def _transform(self, n: int) -> None:
        times = np.array(self._times[:n])
        if not np.allclose(np.diff(times), self.dt, rtol=1e-6, atol=1e-6):
            self._length = 0
            return
        taper = np.hanning(n + 1)[:-1, None, None]
        lines = np.fft.rfft(np.array(self._frames[:n]) * taper, _PADDING * n, axis=0)
        power = (abs(lines) ** 2).sum(axis=(1, 2))
        if self._segments is None:
            self._segments = BlockMeans(1 + len(power))
        self._segments.add(np.concatenate([[times.mean()], power]))
        half = max(1, n // 2)
        del self._times[:half], self._frames[:half]

    def means(self) -> tuple[Array, Array, Array]:
        """Middles [rows] (fs), spectra [rows, bins], and of how many segments each is the mean."""
        if self._segments is None:
            return np.empty(0), np.empty((0, 1)), np.empty(0)
        rows, weights = self._segments.means()
        return rows[:, 0], rows[:, 1:], weights

    def power(self, begin: float = -math.inf, end: float = math.inf) -> Array | None:
        """The spectrum [bins] of the segments whose middles lie in this time (fs), if any does."""
        middles, spectra, weights = self.means()
        inside = (middles >= begin) & (middles <= end)
        return weights[inside] @ spectra[inside] if inside.any() else None

    @property
    def bin(self) -> float:
        """Width of a bin of the spectra (cm^-1)."""
        return WAVENUMBER / (_PADDING * round(SEGMENT_FS / self.dt) * self.dt)


def strongest_band(power: Array, bin_width: float) -> tuple[float, float]:
    """The largest share of a spectrum that a band of 60 cm^-1 holds, and where (cm^-1)."""
    width = max(1, round(BAND / bin_width))
    total = np.concatenate([[0.0], np.cumsum(power)])
    share = (total[width:] - total[:-width]) / total[-1]
    k = int(share.argmax())
    return float(share[k]), (k + (width - 1) / 2) * bin_width


def occupied_bands(power: Array, bin_width: float) -> float:
    """How many bands hold the energy: 1 / sum(share^2), for the grid of bands with the fewest."""
    width = max(1, round(BAND / bin_width))
    total = np.concatenate([[0.0], np.cumsum(power)]) / power.sum()
    return min(float(1 / np.square(np.diff(total[k::width])).sum()) for k in range(width))


@lru_cache(maxsize=64)
def _occupied_by_chance(modes: int) -> Array:
    energy = np.random.default_rng(0).exponential(size=(_DRAWS, modes))
    share = energy / energy.sum(axis=1, keepdims=True)
    return np.sort(1 / np.square(share).sum(axis=1))


def chance_of_bands(occupied: float, degrees_of_freedom: float) -> float:
    """How often so few of a molecule's vibrations hold its energy, at equilibrium.

    The energies of harmonic vibrations are distributed exponentially; how many of them count is
    drawn from that. Never below 1 / 20,000.
    """
    drawn = _occupied_by_chance(max(1, min(round(degrees_of_freedom), _MODES)))
    return max(1, int(np.searchsorted(drawn, occupied, side="right"))) / _DRAWS


def share_of_stretches(power: Array, bin_width: float) -> float | None:
    """The share of the energy above 2,400 cm^-1; None where the spectrum does not reach so far."""
    if len(power) * bin_width < _STRETCHES[1]:
        return None
    return float(power[round(_STRETCHES[0] / bin_width) :].sum() / power.sum())


def chance_of_stretches(
    power: Array, bin_width: float, stretches: int, degrees_of_freedom: float
) -> float:
    """How often the stretches of bonds to hydrogen hold so unusual a share of the energy.

    Each such bond has one, the only vibrations above 2,400 cm^-1. Of exponentially distributed
    energies the share of n out of f vibrations follows the beta distribution of n and f - n. 1
    where the spectrum does not reach so far, or there is nothing to compare.
    """
    others = degrees_of_freedom - stretches
    share = share_of_stretches(power, bin_width)
    if stretches < 1 or others < 0.5 or share is None:
        return 1.0
    below = float(betainc(stretches, others, share))
    return max(2 * min(below, 1 - below), 1e-12)


def chance_of_elements(temperatures: ArrayLike, degrees_of_freedom: ArrayLike) -> float:
    """How often an element's temperature is so far from that of the others, at equilibrium.

    Means over many vibrations, each of which keeps its energy: an element with f degrees of freedom
    scatters like 2 f squares (kinetic and potential), a ratio of two as Fisher's F distribution.
    """
    t, f = np.asarray(temperatures, dtype=float), np.asarray(degrees_of_freedom, dtype=float)
    known = f > 1e-3
    t, f = t[known], f[known]
    least = 1.0
    for k in range(len(t) if len(t) > 1 else 0):
        others = float(f.sum() - f[k])
        rest = float(f @ t - f[k] * t[k]) / others
        ratio = t[k] / rest if rest > 0 else math.inf
        tails = fdtr(2 * f[k], 2 * others, ratio), fdtrc(2 * f[k], 2 * others, ratio)
        least = min(least, 2 * float(min(tails)) * len(t))
    return max(least, 1e-12)


def chance_of_work(unexplained: float | None) -> float:
    """How often dynamics leave so much of the kinetic energy's changes unexplained.

    unexplained: change of the total energy from frame to frame, relative to that of the kinetic
    energy. A learned potential is not the one that a run follows, so some is left in good runs too:
    of 180 runs of molecular dynamics, by the potential of molecules-nve, 4 % passed 0.2 and 1 %
    0.3. 1 where there is no potential to ask.
    """
    return 1.0 if unexplained is None else float(10 ** -(max(0.0, unexplained - 0.08) / 0.1))
