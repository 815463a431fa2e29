"""Semantic directions of styles, in closed form, and faces moved along them."""

from cips3d.editing.directions import Directions, edited, principal_directions, semantic_directions

__all__ = ["Directions", "edited", "principal_directions", "semantic_directions"]
