"""The emulation and the sanitizers find what is wrong in a kernel, and nothing in one that is right."""

from __future__ import annotations

import functools
import re

import emulated_kernels
import numpy as np
import pytest
from emulated_kernels import Sanitizer
from emulation import sanitized
from emulation.planted_bugs import SOURCE, PlantedBugs, line_of

SEEDS = range(8)  # 0 is index order

# Found by what comes out: NaN from memory that is not written yet, or other numbers.
WRONG_NUMBERS = (
    "missing_syncthreads",
    "overwritten_too_early",
    "fragment_index",
    "shared_read_past_the_end",
    "missing_copy_wait",
    "copy_wait_for_too_few",
    "copy_read_without_barrier",
    "missing_syncwarp",
    "sums_read_before_the_wait",
    "sums_of_a_later_group_read",
    "bulk_copy_read_before_the_wait",
)
# So too, but not in index order; and any other order may happen to be harmless.
WRONG_NUMBERS_IN_SOME_ORDER = (
    "hidden_by_index_order",
    "operands_overwritten_in_flight",
    "registers_overwritten_in_flight",
)
# So too, if the compiler helps.
WRONG_NUMBERS_FROM_LOCALS = "uninitialised_sum"
# Found by the emulation itself, with these words; LINE is the one that the source marks.
ERRORS = {
    "shared_write_out_of_bounds": r"write out of bounds, 28 bytes past array 0",
    "return_before_barrier": r"divergence: 156 thread\(s\) returned; 100 thread\(s\) wait in __syncthreads at .*LINE",
    "barriers_at_different_lines": r"barrier divergence: .*LINE",
    "mixed_warp_operations": r"warp divergence: .*__shfl_sync at .*LINE",
    "shuffle_from_absent_lane": r"__shfl_sync: reads a lane that takes no part at .*LINE",
    "not_in_own_mask": r"the calling lane is not in its own mask",
    "mma_of_half_a_warp": r"16 thread\(s\) returned; 16 thread\(s\) wait in mma_m16n8k16_bf16 at .*LINE",
    "misaligned_ldmatrix": r"ldmatrix_x4: shared address not aligned to 16 bytes at .*LINE",
    "ldmatrix_out_of_bounds": r"ldmatrix_x4: shared memory out of bounds at .*LINE",
    "too_much_shared_memory": r"arrays take 2048 bytes, the launch gave 1024",
    "disagreeing_arrays": r"threads disagree on array 0",
    "trapped": r"__trap at .*LINE.*thread \(7, 0, 0\)",
    "missing_wgmma_fence": r"no wgmma_fence since registers were the thread's at .*LINE",
    "missing_wgmma_fence_of_registers": r"no wgmma_fence since registers were the thread's at .*LINE",
    "missing_fence_for_async_reads": r"an operand was written without fence_for_async_reads at .*LINE",
    "operand_out_of_bounds": r"wgmma: shared memory out of bounds at .*LINE",
    "warpgroup_sync_of_three_warps": r"32 thread\(s\) returned; 96 thread\(s\) wait in warpgroup_sync at .*LINE",
    "bulk_copy_out_of_bounds": r"copy_bulk: shared memory out of bounds at .*LINE",
    "more_bytes_expected_than_copied": r"128 thread\(s\) wait in phase_barrier_wait at .*LINE",
    "bulk_copy_nobody_waits_for": r"the block ended before its bulk copies arrived",
}
# So too, in some orders.
ERRORS_IN_SOME_ORDER = {
    "cluster_reached_too_early": r"another block of the cluster has not come so far|no barrier was initialised there",
    "cluster_left_too_early": r"another block of the cluster has ended at ",
}
# Found by a sanitizer, which names the marked line.
REPORTS: dict[Sanitizer, dict[str, str]] = {
    "address": {
        "shared_read_past_the_end": "AddressSanitizer",
        "shared_write_out_of_bounds": "AddressSanitizer",
        "static_read_past_the_end": "AddressSanitizer: global-buffer-overflow",
        "global_write_past_the_end": "AddressSanitizer: heap-buffer-overflow",
        "copy_from_past_the_end": "AddressSanitizer: heap-buffer-overflow",
        "misaligned_vector": "misaligned address",
    },
    "thread": {
        "missing_syncthreads": "data race",
        "hidden_by_index_order": "data race",
        "overwritten_too_early": "data race",
        "copy_read_without_barrier": "data race",
        "missing_syncwarp": "data race",
        "missing_syncwarp_before_ldmatrix": "data race",
        "unordered_sum_across_blocks": "data race",
        "sum_by_the_last_block": "data race",
        "operands_overwritten_in_flight": "data race",
        "missing_warpgroup_sync": "data race",
        "bulk_copy_over_what_is_read": "data race",
        "cluster_copy_over_what_is_read": "data race",
    },
}


@pytest.fixture(scope="module")
def planted() -> PlantedBugs:
    if emulated_kernels.compiler() is None:
        pytest.skip(emulated_kernels.NO_COMPILER)
    return PlantedBugs(emulated_kernels.build(sources=[SOURCE]))


@functools.cache
def output(sanitizer: Sanitizer) -> dict[str, str]:
    """What was reported while the kernels ran under a sanitizer, each right and wrong."""
    sanitized.skip_without(sanitizer)
    return sanitized.run(sanitizer, SOURCE.with_suffix(".py"), emulated_kernels.build(sanitizer, [SOURCE]))


def test_every_case_is_expected_somewhere(planted: PlantedBugs) -> None:
    some = {*WRONG_NUMBERS_IN_SOME_ORDER, *ERRORS_IN_SOME_ORDER, WRONG_NUMBERS_FROM_LOCALS}
    assert {*WRONG_NUMBERS, *some, *ERRORS, *REPORTS["address"], *REPORTS["thread"]} == set(planted.names)


def test_right_kernels_compute_the_same_with_every_schedule(planted: PlantedBugs) -> None:
    for name in planted.names:
        expected = planted.run(name, bug=False)
        for seed in SEEDS:
            result = planted.run(name, bug=False, seed=seed)
            # The order of a sum across blocks is not defined.
            np.testing.assert_allclose(result, expected, rtol=1e-6, err_msg=f"{name}, schedule {seed}")


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_wrong_numbers(planted: PlantedBugs, name: str) -> None:
    assert planted.schedules_that_show(name, SEEDS) == set(SEEDS)


@pytest.mark.parametrize("name", WRONG_NUMBERS_IN_SOME_ORDER)
def test_wrong_numbers_in_some_order(planted: PlantedBugs, name: str) -> None:
    found = planted.schedules_that_show(name, SEEDS)
    assert 0 not in found
    assert len(found) >= 3


def test_wrong_numbers_from_locals(planted: PlantedBugs) -> None:
    if not emulated_kernels.initialises_locals(emulated_kernels.compiler() or ""):
        pytest.skip("the C++ compiler cannot fill uninitialised variables; g++ 12 can")
    assert planted.schedules_that_show(WRONG_NUMBERS_FROM_LOCALS, SEEDS) == set(SEEDS)


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


@pytest.mark.parametrize("sanitizer", REPORTS)
def test_no_reports_where_nothing_is_wrong(sanitizer: Sanitizer) -> None:
    right = [text for label, text in output(sanitizer).items() if label.endswith(" right")]
    assert len(right) == len(output(sanitizer)) // 2 > 0
    for text in right:
        assert not text.strip(), text


@pytest.mark.parametrize(
    ("sanitizer", "name"), [(sanitizer, name) for sanitizer, cases in REPORTS.items() for name in cases]
)
def test_reports(sanitizer: Sanitizer, name: str) -> None:
    text = output(sanitizer)[f"{name} wrong"]
    assert sanitized.has_report(text)
    assert REPORTS[sanitizer][name] in text
    assert line_of(name) in text


@pytest.mark.parametrize(
    ("grid", "block", "shared", "words"),
    [
        ((1, 1, 1), (2048, 1, 1), 0, "a block of 2048 x 1 x 1 threads"),
        ((1, 1, 1), (64, 32, 1), 0, "a block of 64 x 32 x 1 threads"),
        ((1, 1, 1), (1, 1, 65), 0, "a block of 1 x 1 x 65 threads"),
        ((1, 1, 1), (0, 1, 1), 0, "a block of 0 x 1 x 1 threads"),
        ((0, 1, 1), (32, 1, 1), 0, "a grid of 0 x 1 x 1 blocks"),
        ((1, 65536, 1), (32, 1, 1), 0, "a grid of 1 x 65536 x 1 blocks"),
        ((1, 1, 1), (32, 1, 1), 232449, "232449 bytes of shared memory"),
    ],
)
def test_launches_that_are_refused(
    planted: PlantedBugs, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, words: str
) -> None:
    with pytest.raises(RuntimeError, match=f"invalid launch configuration: {words}"):
        planted.launch_nothing(grid, block, shared)


def test_the_largest_launches(planted: PlantedBugs) -> None:
    planted.launch_nothing((1, 65535, 1), (1, 1, 1), 0)
    planted.launch_nothing((1, 1, 1), (1024, 1, 1), 232448)
    planted.launch_nothing((16, 1, 1), (128, 1, 1), 232448, cluster=8)


@pytest.mark.parametrize(
    ("blocks", "threads", "cluster"), [(3, 128, 2), (16, 128, 16), (8, 256, 8), (2, 96, 2), (1, 128, 0)]
)
def test_clusters_that_are_refused(planted: PlantedBugs, blocks: int, threads: int, cluster: int) -> None:
    with pytest.raises(RuntimeError, match=f"invalid launch configuration: clusters of {cluster} blocks"):
        planted.launch_nothing((blocks, 1, 1), (threads, 1, 1), 0, cluster)
