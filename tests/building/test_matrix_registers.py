"""The check of registers that asynchronous matrix instructions still use."""

from __future__ import annotations

import pytest
from building.scripts import matrix_registers

START = """\
	.section	.text.kernel,"ax",@progbits
"""


def listing(*lines: str) -> str:
    """As nvdisasm prints it."""
    text = START
    for at, line in enumerate(lines):
        text += f"{line}\n" if line.startswith(".") else f"        /*{16 * at:04x}*/                   {line} ;\n"
    return text


def hazards(*lines: str) -> list[str]:
    (kernel,) = matrix_registers.kernels_of(listing(*lines))
    return [line.rpartition(": ")[2] for line in matrix_registers.hazards(kernel)]


FIRST = "HGMMA.64x64x16.F32 R24, R4, gdesc[UR8], RZ, !UPT"  # sums in R24 to R55, an operand in R4 to R7
SECOND = "HGMMA.64x64x16.F32 R24, R8, gdesc[UR12], R24, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def test_registers_are_free_after_the_wait() -> None:
    assert hazards(FIRST, SECOND, "FADD R0, R1, R2", WAIT, "FADD R4, R24, R8", "EXIT") == []


@pytest.mark.parametrize(
    ("instruction", "wrong"),
    [
        ("FADD R0, R30, R2", "R30 is a sum in flight"),
        ("MOV R55, R2", "R55 is a sum in flight"),
        ("@P0 MOV R9, R2", "R9 is an operand in flight"),
        ("LDS.128 R4, [R1]", "R4 is an operand in flight"),
        ("LDG.E.64 R22, [R2.64]", None),
        ("STS.64 [R1], R4", None),
        ("MOV R20, R4", None),
    ],
)
def test_registers_in_flight(instruction: str, wrong: str | None) -> None:
    """Sums are nobody's; operands may be read."""
    assert hazards(FIRST, SECOND, instruction, WAIT, "EXIT") == ([] if wrong is None else [wrong])


def test_the_groups_that_a_wait_leaves_are_still_under_way() -> None:
    first, second = (f"HGMMA.64x64x16.F32 R{r}, gdesc[UR8], RZ, !UPT, gsb0" for r in (24, 64))
    one_left = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert hazards(first, second, one_left, "FADD R0, R24, R1", "EXIT") == []
    assert hazards(first, second, one_left, "FADD R0, R64, R1", "EXIT") == ["R64 is a sum in flight"]


def test_every_path_is_followed() -> None:
    """Around a loop, whose first round is not the second, and past a wait that is jumped over."""
    loop = (".L_x_0:", "MOV R4, R2", FIRST, SECOND, "@P0 BRA `(.L_x_0)", WAIT, "EXIT")
    assert hazards(*loop) == ["R4 is an operand in flight"]
    jump = (FIRST, SECOND, "@P0 BRA `(.L_x_0)", WAIT, ".L_x_0:", "MOV R24, R2", "EXIT")
    assert hazards(*jump) == ["R24 is a sum in flight"]
    assert hazards(FIRST, SECOND, "BRA `(.L_x_0)", "MOV R24, R2", ".L_x_0:", WAIT, "EXIT") == []


def test_loops_without_a_wait_end() -> None:
    assert hazards(".L_x_0:", SECOND, "@P0 BRA `(.L_x_0)", WAIT, "EXIT") == []


def test_sums_are_no_operands() -> None:
    other = "HGMMA.64x64x16.F32 R64, R28, gdesc[UR8], RZ, !UPT, gsb0"
    assert hazards(FIRST, SECOND, other, WAIT, "EXIT") == ["an operand is a sum in flight"]
    overlapping = "HGMMA.64x128x16.F32 R20, gdesc[UR8], RZ, !UPT, gsb0"
    assert hazards(SECOND, overlapping, WAIT, "EXIT") == ["sums overlap others in flight"]


def test_jumps_that_cannot_be_followed() -> None:
    with pytest.raises(ValueError, match="a jump that is computed"):
        hazards(SECOND, "BRX R4 -0x10", "EXIT")
