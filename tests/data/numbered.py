"""Pictures that tell which ones they are; in a module that processes of every kind can import."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Numbered:
    """Picture i is filled with i, except for a mark on its left edge."""

    resolution = 4

    def __init__(self, count: int, fails_at: int = -1, error: Exception | None = None, delay: float = 0.0) -> None:
        self.count = count
        self.delay = delay  # seconds a picture
        self.fails_at = fails_at
        self.error = error

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.delay)
        if index == self.fails_at and self.error is not None:
            raise self.error
        picture = torch.full((3, 4, 4), index, dtype=torch.uint8)
        picture[:, :, 0] = 255
        return picture
