"""What the compiled kernels are made of: the build writes it into the module, and importing it compares.

It imports nothing that a build would have to install.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

PATTERNS = ("*.cu", "*.h", "bindings.cpp")


def digest(csrc: Path) -> str:
    """Of the sources in a folder: their names and contents."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in PATTERNS for path in csrc.glob(pattern)):
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]
