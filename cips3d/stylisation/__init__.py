"""Models between a base and a stylised copy of it: some weights of one, some of the other, some in between."""

from cips3d.stylisation.checkpoint import write_stylised
from cips3d.stylisation.interpolation import Shares, check_same_networks, interpolated_state, stylised, swapped

__all__ = ["Shares", "check_same_networks", "interpolated_state", "stylised", "swapped", "write_stylised"]
