"""Fixtures of the op tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ops.backends import Backend, open_backend


@pytest.fixture(params=["reference", "emulated", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The test runs once with every backend."""
    yield from open_backend(request.param, request.node.nodeid)


@pytest.fixture(params=["emulated", "cuda"])
def kernel_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The test runs once with every backend that has kernels."""
    yield from open_backend(request.param, request.node.nodeid)
