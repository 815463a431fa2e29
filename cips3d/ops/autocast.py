"""Autocast of a tensor's device; tensors of the device "meta", which are shapes without numbers, know none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, products have the dtype of their factors."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def is_autocasting(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
