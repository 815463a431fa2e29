"""Fail when a test was skipped that this machine could have run."""

from __future__ import annotations

import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree


def main(report: str) -> int:
    allowed = ["no CUDA device"]
    if shutil.which("nvcc") is None:
        allowed.append("no nvcc")
    if "CIPS3D_REFERENCE_RECORDS" not in os.environ:
        allowed.append("CIPS3D_REFERENCE_RECORDS")
    wrong = []
    for case in ElementTree.parse(report).iter("testcase"):
        for skipped in case.iter("skipped"):
            reason = skipped.get("message", "")
            if not any(text in reason for text in allowed):
                wrong.append(f"{case.get('classname')}.{case.get('name')}: {reason}")
    for line in wrong:
        print(f"skipped without need: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
