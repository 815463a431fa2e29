"""LPIPS, the perceptual distance of the lpips package."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.evaluation.consistency import DifferenceMap
from cips3d.evaluation.downloads import weights_of

TRUNK = "alexnet-owt-7be5be79.pth"  # torchvision's file of AlexNet's weights


def lpips_map(device: torch.device | str = "cpu") -> DifferenceMap:
    """LPIPS (AlexNet, version 0.1) as a map: differences [B, 1, H, W] of pictures [B, 3, H, W] in [-1, 1], which must
    not be smaller than the metric's `least_side`.

    Raises:
        UserError: lpips is not installed, or AlexNet's weights cannot be downloaded.

    Source: arXiv 1801.03924.
    """
    try:
        import lpips
    except ImportError as error:
        raise UserError("LPIPS needs the package lpips; install it: pip install lpips") from error
    except RuntimeError as error:  # what torchvision says to a torch that it was not built for
        raise UserError(
            f"lpips cannot be imported ({error}); install the torchvision that belongs to torch {torch.__version__}"
        ) from error
    folder = f"{torch.hub.get_dir()}/checkpoints"
    with weights_of("AlexNet's weights, which LPIPS is made of,", f"put {TRUNK}, fetched elsewhere, into {folder}"):
        network = lpips.LPIPS(net="alex", spatial=True, verbose=False)
    network.requires_grad_(False).eval().to(device)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(a.to(device), b.to(device)).to(a.device)

    return distance
