"""A page in the browser on which a trained generator's faces are turned, mixed and saved."""

from cips3d.viewing.gallery import Gallery
from cips3d.viewing.page import Exhibit
from cips3d.viewing.server import open_server

__all__ = ["Exhibit", "Gallery", "open_server"]
