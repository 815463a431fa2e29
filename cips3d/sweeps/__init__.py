"""What `stylise` and `edit` share: faces in rows, strengths in columns or in time, in pictures and animations."""

from cips3d.sweeps.options import SweepOptions, check_options
from cips3d.sweeps.showing import Column, Scene, prepared, write_sweep

__all__ = ["Column", "Scene", "SweepOptions", "check_options", "prepared", "write_sweep"]
