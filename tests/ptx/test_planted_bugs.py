"""What nvcc makes of the planted bugs, run as PTX: what the machine finds of them, and nothing in what is right."""

from __future__ import annotations

import re

import emulated_kernels
import numpy as np
import ptx_kernels
import pytest
from emulation.planted_bugs import SOURCE, PlantedBugs, line_of

SEEDS = range(6)

# Found by what comes out, whatever the order of warps; and in some orders.
WRONG_NUMBERS = (
    "fragment_index",
    "uninitialised_sum",
    "missing_copy_wait",
    "copy_wait_for_too_few",
    "copy_read_without_barrier",
    "sums_read_before_the_wait",
    "sums_of_a_later_group_read",
    "operands_overwritten_in_flight",
)
WRONG_NUMBERS_IN_SOME_ORDER = (
    "missing_syncthreads",
    "hidden_by_index_order",
    "overwritten_too_early",
    "cluster_copy_over_what_is_read",
)
# Found by the machine itself, with these words; LINE is the one that the source marks.
ERRORS = {
    "return_before_barrier": r"bar\.sync: not all lanes have come at LINE",
    "mixed_warp_operations": r"not all lanes of the mask come here at ",
    "shuffle_from_absent_lane": r"the value of a lane that is not here at .*LINE",
    "not_in_own_mask": r"shfl\.sync\.idx\.b32: not all lanes of the mask are here at ",
    "mma_of_half_a_warp": r"mma\.sync.*: not all lanes of the warp are here at .*LINE",
    "misaligned_ldmatrix": r"ldmatrix.*: a row that is not aligned to 16 bytes at .*LINE",
    "trapped": r"__trap at LINE",
    "shared_read_past_the_end": r"ld\.shared\.f32: shared memory out of bounds, at 3\d{3} at LINE",
    "static_read_past_the_end": r"ld\.shared\.f32: shared memory out of bounds, at 2048 at LINE",
    "warpgroup_sync_of_three_warps": r"some threads never come at ",
    "more_bytes_expected_than_copied": r"a phase that never ends at .*LINE",
    "bulk_copy_nobody_waits_for": r"a copy that nothing waits for",
    "written_and_read_only": r"ld\.global\.nc\.f32: .* beside a store of the same launch at .*LINE",
}
ERRORS_IN_SOME_ORDER = {
    "cluster_reached_too_early": r"no barrier was initialised there",
    "cluster_left_too_early": r"a block that has ended at .*warpgroup\.h",
}


@pytest.fixture(scope="module")
def planted() -> PlantedBugs:
    if emulated_kernels.compiler() is None or ptx_kernels.nvcc() is None:
        pytest.skip("no nvcc")
    planted = PlantedBugs(emulated_kernels.build("ptx", [SOURCE]))
    for path in ptx_kernels.compile_files("90", [SOURCE]):
        planted.load_ptx(path)
    return planted


def test_right_kernels_compute_the_same_with_every_schedule(planted: PlantedBugs) -> None:
    for name in planted.names:
        expected = planted.run(name, bug=False)
        for seed in SEEDS:
            result = planted.run(name, bug=False, seed=seed)
            np.testing.assert_allclose(result, expected, rtol=1e-6, err_msg=f"{name}, schedule {seed}")


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_wrong_numbers(planted: PlantedBugs, name: str) -> None:
    assert planted.schedules_that_show(name, SEEDS) == set(SEEDS)


@pytest.mark.parametrize("name", WRONG_NUMBERS_IN_SOME_ORDER)
def test_wrong_numbers_in_some_order(planted: PlantedBugs, name: str) -> None:
    assert len(planted.schedules_that_show(name, SEEDS)) >= 2


@pytest.mark.parametrize("name", ERRORS)
def test_errors(planted: PlantedBugs, name: str) -> None:
    words = ERRORS[name].replace("LINE", re.escape(line_of(name)) if "LINE" in ERRORS[name] else "")
    for seed in SEEDS:
        with pytest.raises(RuntimeError, match=words):
            planted.run(name, bug=True, seed=seed)
        planted.run(name, bug=False, seed=seed)  # the next launch is not affected


@pytest.mark.parametrize("name", ERRORS_IN_SOME_ORDER)
def test_errors_in_some_order(planted: PlantedBugs, name: str) -> None:
    found = [error for seed in SEEDS if (error := planted.error_of(name, seed)) is not None]
    assert len(found) >= 2
    assert all(re.search(ERRORS_IN_SOME_ORDER[name], error) for error in found)
