"""Synthetic 3-D heads: a data set with ground-truth poses, depths and masks that is made, not downloaded."""

from cips3d.data.heads.dataset import SyntheticHeads, load_heads
from cips3d.data.heads.parameters import HeadParameters, sample_heads
from cips3d.data.heads.render import HeadImages, render_heads

__all__ = ["HeadImages", "HeadParameters", "SyntheticHeads", "load_heads", "render_heads", "sample_heads"]
