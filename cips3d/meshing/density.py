"""The density of one face's volume: at points, and on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cips3d.cameras import TRAINING_DISTANCE
from cips3d.errors import require_choice
from cips3d.models.family import AnyGenerator
from cips3d.models.volume import VolumeSettings
from cips3d.ops.composite_checks import DENSITY_ACTIVATIONS, DensityActivation

FloatArray = npt.NDArray[np.float32]

# Points evaluated at a time: activations of width 128 take 16 MB on a CPU, near its caches, and 0.5 GB elsewhere.
CPU_CHUNK_POINTS = 2**15
CHUNK_POINTS = 2**20
GRADIENT_CHUNK_POINTS = 2**17  # elsewhere than on a CPU: gradients keep what every layer gives, of pi-GAN 1 KB each


def default_chunk_points(device: torch.device, *, gradients: bool = False) -> int:
    """Points whose density, or its gradient, is evaluated at a time."""
    if device.type == "cpu":
        return CPU_CHUNK_POINTS
    return GRADIENT_CHUNK_POINTS if gradients else CHUNK_POINTS


@dataclass(frozen=True, eq=False)
class DensityField:
    """The volume of one face.

    Raw density is what the network gives; density (per scene unit) is relu or softplus of it, as the volume's settings
    say. A surface of constant density is one of constant raw density too, and the raw one is smooth where relu is not.
    """

    generator: AnyGenerator
    styles: tuple[Tensor, ...]
    """of one face"""
    activation: DensityActivation = "relu"

    def __post_init__(self) -> None:
        if not self.generator.is_3d:
            raise ValueError(f"generator must be a 3-D one, {type(self.generator).__name__} has no volume")
        if len(self.styles[0]) != 1:
            raise ValueError(f"styles must be of one face, got {len(self.styles[0])}")
        require_choice("activation", self.activation, DENSITY_ACTIVATIONS)

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def raw(self, points: Tensor) -> Tensor:
        """Raw density [N] at points [N, 3] in scene units."""
        return self.generator.density(self.styles, points[None])[0].float()

    def gradient(self, points: Tensor) -> Tensor:
        """∇ raw density [N, 3] at points [N, 3]."""
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
            made = getattr(self.styles, "_make", tuple)  # of a named tuple or a plain one
            field = replace(self, styles=made(map(_normal, self.styles)))
            tracked = _normal(points.detach()).requires_grad_()
            return torch.autograd.grad(field.raw(tracked).sum(), tracked)[0]

    def activated(self, raw: Tensor) -> Tensor:
        """Density per scene unit of raw densities."""
        return F.relu(raw) if self.activation == "relu" else F.softplus(raw)

    def raw_level(self, density: float) -> float:
        """The raw density whose activation is `density` > 0: itself, or log(e^density - 1) for softplus."""
        if not 0 < density < math.inf:
            raise ValueError(f"density must be positive, got {density}")
        return density if self.activation == "relu" else density + math.log(-math.expm1(-density))


def _normal(x: Tensor) -> Tensor:
    """x, or a copy that has gradients where x was made in inference mode."""
    return x.clone() if x.is_inference() else x


def visible_side(settings: VolumeSettings, fov_degrees: float) -> float:
    """Side in scene units of the cube around the origin that a frontal camera's rays stay in.

    2 · max(t_far · sin(fov / 2), t_far - 1, 1 - t_near), the camera being at distance 1: 0.24 with CIPS-3D's defaults.
    """
    lateral = settings.t_far * math.sin(math.radians(fov_degrees) / 2)
    return 2 * max(lateral, settings.t_far - TRAINING_DISTANCE, TRAINING_DISTANCE - settings.t_near)


@torch.no_grad()
def density_grid(
    field: DensityField, side: float, resolution: int, *, chunk_points: int | None = None, progress: bool = False
) -> FloatArray:
    """Raw density at the points of a cubic grid around the origin.

    Point (i, j, k) lies at x = -side/2 + side · i / (resolution - 1), and y and z likewise of j and k. Only the result
    grows with the resolution (512 MB at 512³): no more than `chunk_points` points are in work at a time.

    Args:
        side: of the cube, scene units.
        resolution: points along an edge.
        chunk_points: points evaluated at a time; default: `default_chunk_points`.
        progress: show a progress bar on stderr.

    Returns:
        [resolution, resolution, resolution], x first.
    """
    if side <= 0:
        raise ValueError(f"side must be a positive length, got {side}")
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2, got {resolution}")
    if chunk_points is None:
        chunk_points = default_chunk_points(field.device)
    if chunk_points < 1:
        raise ValueError(f"chunk_points must be at least 1, got {chunk_points}")
    axis = torch.linspace(-side / 2, side / 2, resolution, device=field.device)
    grid = np.empty(resolution**3, dtype=np.float32)
    with tqdm(total=grid.size, desc="density", unit="point", unit_scale=True, disable=not progress, leave=False) as bar:
        for start in range(0, grid.size, chunk_points):
            stop = min(start + chunk_points, grid.size)
            place = torch.arange(start, stop, device=field.device)
            row = torch.div(place, resolution, rounding_mode="floor")
            i, j = torch.div(row, resolution, rounding_mode="floor"), row % resolution
            points = torch.stack([axis[i], axis[j], axis[place % resolution]], dim=1)
            grid[start:stop] = field.raw(points).cpu().numpy()
            bar.update(stop - start)
    return grid.reshape(resolution, resolution, resolution)
