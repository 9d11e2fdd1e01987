"""Training data: records of trajectories, pairs of frames, and how they are made."""

from .records import load_records

__all__ = ["load_records"]
