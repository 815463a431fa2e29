"""Models between two checkpoints: their weights, interpolated."""

from __future__ import annotations

import copy
from dataclasses import replace

from cips3d.rendering.loading import LoadedGenerator
from cips3d.stylisation import Shares, check_same_networks, interpolated_state


class Blend:
    """A model, and all between it and a second one.

    θ = (1 - share) θ_first + share θ_second for all weights and buffers; the second model's cameras and settings of
    rays are not used. Two models that came from one, by going on with its training in two ways, have a sensible way
    between them; others may not.

    Args:
        first: the model at 0.
        second: the model at 1.

    Raises:
        UserError: they have not the same networks.

    Source: J. Pinkney and D. Adler, Resolution dependent GAN interpolation (arXiv 2010.05334), section 2.
    """

    def __init__(self, first: LoadedGenerator, second: LoadedGenerator) -> None:
        check_same_networks(first, second)
        self.first = first
        self.second = second
        self._between: LoadedGenerator | None = None
        self._share = 0.0

    def at(self, share: float) -> LoadedGenerator:
        """The model at `share` of the way, in [0, 1]; it is the same object from call to call, with other weights."""
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        if share == 0:
            return self.first
        if self._between is None:
            self._between = replace(self.first, generator=copy.deepcopy(self.first.generator))
        if share != self._share:
            parts = self.first.generator.weight_parts()
            first, second = (model.generator.state_dict() for model in (self.first, self.second))
            everywhere = Shares((share,) * len(parts.blocks), share, share)
            self._between.generator.load_state_dict(interpolated_state(parts, first, second, everywhere))
            # The mean styles that a model remembers are those of its weights.
            self._between = replace(self._between)
            self._share = share
        return self._between
