"""Small CIPS generators in float64."""

from __future__ import annotations

from dataclasses import replace

import torch
from reference_records import relative_l2
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.models.cips import CIPS, CIPSConfig

SIDE = 6
SKIP = CIPSConfig(resolution=SIDE, hidden=5, widths=(7, 7, 4), z_dim=6, style_dim=8, mapping_layers=2)
RESIDUAL = replace(SKIP, variant="residual")
PANORAMA = replace(SKIP, coordinates=3)
CAMERAS = Cameras.from_angles(torch.ones(2), torch.ones(2))
EXACT = 1e-11  # float64 in another order of summation, through eight layers


def generator_of(config: CIPSConfig, *, train: bool = False) -> CIPS:
    """In float64, its strengths and biases not zero."""
    torch.manual_seed(0)
    model = CIPS(config).double().train(train)
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "modulation" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64) * 0.3)
    return model


def sample_z(batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_gradients(model: CIPS, found: Tensor, expected: Tensor) -> None:
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    parameters = {name: p for name, p in model.network.named_parameters() if not name.endswith("noise_strength")}
    ours, theirs = (
        torch.autograd.grad((image * upstream).sum(), list(parameters.values())) for image in (found, expected)
    )
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        assert relative_l2(a, b) < EXACT, name
