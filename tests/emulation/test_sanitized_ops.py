"""The ops' kernels under AddressSanitizer and ThreadSanitizer."""

from __future__ import annotations

from pathlib import Path

import emulated_kernels
import pytest
from emulated_kernels import SANITIZE, Sanitizer
from emulation import sanitized
from emulation.run_ops import NEVER_CALLED
from ops.sanitizer_cases import CASES


@pytest.mark.parametrize("sanitizer", SANITIZE)
def test_nothing_is_reported(sanitizer: Sanitizer) -> None:
    """Of any op, and every launcher is called. One test a sanitizer, since all ops run in one process."""
    sanitized.skip_without(sanitizer)
    script = Path(__file__).with_name("run_ops.py")
    output = sanitized.run(sanitizer, script, emulated_kernels.build(sanitizer))
    assert not output.pop(NEVER_CALLED).split(), "add them to tests/ops/sanitizer_cases.py"
    assert output.keys() == CASES.keys()
    reports = {name: text for name, text in output.items() if text.strip()}
    assert not reports, "\n".join(f"{name}:\n{text}" for name, text in reports.items())
