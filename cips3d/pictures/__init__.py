"""From tensors to what people look at: colours, grids, files of pictures, animations and videos."""

from cips3d.pictures.colors import MAGMA, depth_image, from_uint8, psnr_of, to_uint8
from cips3d.pictures.grids import GAP, PAPER, grid_size, image_grid
from cips3d.pictures.saving import (
    IMAGE_ENDINGS,
    MAX_PIXELS,
    MAX_SIDE,
    check_folder,
    check_is_named,
    check_path,
    check_size,
    reported,
    save_image,
)

__all__ = [
    "GAP",
    "IMAGE_ENDINGS",
    "MAGMA",
    "MAX_PIXELS",
    "MAX_SIDE",
    "PAPER",
    "check_folder",
    "check_is_named",
    "check_path",
    "check_size",
    "depth_image",
    "from_uint8",
    "grid_size",
    "image_grid",
    "psnr_of",
    "reported",
    "save_image",
    "to_uint8",
]
