"""Training pictures: sources (`open_images`), their endless stream (`TrainingImages`), prepared sets."""

from cips3d.data.decoding import decode_image
from cips3d.data.images import ImageFiles, ImageSource, open_images
from cips3d.data.loader import TrainingImages
from cips3d.data.prepare import PreparedSet, prepare_dataset

__all__ = [
    "ImageFiles",
    "ImageSource",
    "PreparedSet",
    "TrainingImages",
    "decode_image",
    "open_images",
    "prepare_dataset",
]
