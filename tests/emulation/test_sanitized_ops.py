"""The ops' kernels under AddressSanitizer and ThreadSanitizer."""

from __future__ import annotations

import functools
from pathlib import Path

import emulated_kernels
import pytest
from emulated_kernels import SANITIZE, Sanitizer
from emulation import sanitized
from emulation.run_ops import NEVER_CALLED
from ops.sanitizer_cases import CASES


@functools.cache
def output(sanitizer: Sanitizer) -> dict[str, str]:
    """What was reported while each op ran."""
    sanitized.skip_without(sanitizer)
    return sanitized.run(sanitizer, Path(__file__).with_name("run_ops.py"), emulated_kernels.build(sanitizer))


@pytest.mark.parametrize("sanitizer", SANITIZE)
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_reported(name: str, sanitizer: Sanitizer) -> None:
    text = output(sanitizer)[name]
    assert not text.strip(), text


def test_every_launcher_is_called() -> None:
    never_called = output("address")[NEVER_CALLED].split()
    assert not never_called, "add them to tests/ops/sanitizer_cases.py"
