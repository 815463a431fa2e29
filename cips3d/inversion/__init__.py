"""Inversion: from a photograph to a face of a generator, its camera and, by choice, tuned weights."""

from cips3d.inversion.losses import psnr
from cips3d.inversion.objective import Record
from cips3d.inversion.stages import Inversion, InversionSettings, invert
from cips3d.inversion.style_space import StyleSpace

__all__ = ["Inversion", "InversionSettings", "Record", "StyleSpace", "invert", "psnr"]
