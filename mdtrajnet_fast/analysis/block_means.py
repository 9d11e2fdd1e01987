"""Means of a series of unknown length, in constant memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class BlockMeans:
    """Means of a series over blocks of equal length: at most ``capacity``, then pairs merge."""

    def __init__(self, width: int, capacity: int = 128) -> None:
        self.capacity, self.length, self.count = capacity, 1, 0
        self.full: list[Array] = []
        self.sum = np.zeros(width)

    def add(self, row: Array) -> None:
        self.sum = self.sum + row
        self.count += 1
        if self.count == self.length:
            self.full.append(self.sum / self.count)
            self.sum, self.count = np.zeros_like(self.sum), 0
            if len(self.full) == self.capacity:
                self.full = [
                    (a + b) / 2 for a, b in zip(self.full[::2], self.full[1::2], strict=True)
                ]
                self.length *= 2

    def means(self) -> tuple[Array, Array]:
        """Block means [blocks, width] and how many frames each holds [blocks]."""
        rows, weights = list(self.full), [float(self.length)] * len(self.full)
        if self.count:
            rows, weights = rows + [self.sum / self.count], weights + [float(self.count)]
        return np.array(rows), np.array(weights)
