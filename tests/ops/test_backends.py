"""What the backends of the tests promise."""

from __future__ import annotations

import pytest
import torch
from ops.backends import open_backend


def test_emulated_kernels_meet_no_zeros_by_chance(request: pytest.FixtureRequest) -> None:
    opened = open_backend("emulated", request.node.nodeid)
    next(opened)
    x = torch.zeros(3)
    assert torch.empty(1000).isnan().all() and torch.empty_like(x).isnan().all() and x.new_empty(5).isnan().all()
    assert (torch.empty(5, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
    assert next(opened, None) is None
    assert not torch.are_deterministic_algorithms_enabled()
