"""What trajectories say, and whether they can be believed."""

from .observables import WAVENUMBER

__all__ = ["WAVENUMBER"]
