"""Every op's kernels once, on small numpy arrays: what test_sanitized_ops.py runs under the sanitizers.

Without PyTorch, which is slow there. Arrays are as large as the kernels may touch, so that anything beyond is reported;
sizes are odd, so that blocks have threads with nothing to do, and large enough for several blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

import numpy as np
from ops.sanitizer_arrays import BFLOAT16, DEVICE, FLOAT16, FLOAT32, STORED, STREAM, address, normal
from ops.sanitizer_field_cases import field_samples, render_deep_rays, render_rays, render_wide_rays


def limits_of_the_device(module: ModuleType) -> None:
    few = module.multiprocessors(DEVICE)
    for pretended, count in ((132, 132), (0, few)):
        module.pretend_multiprocessors(pretended)
        assert module.multiprocessors(DEVICE) == count > 0
    for pretended in (99 << 10, 0):
        module.pretend_shared_memory(pretended)
        assert module.shared_memory(DEVICE) == (pretended or module.shared_limit())


def bias_leaky_relu(module: ModuleType) -> None:
    for inner in (1, 35, 64):  # one element a row, no vectors, vectors
        batch, channels = 3, 37
        x, bias = normal(batch, channels, inner), normal(channels)
        y, dx, db = np.empty_like(x), np.empty_like(x), np.empty_like(bias)
        sizes = (batch, channels, inner)
        module.bias_leaky_relu(DEVICE, STREAM, FLOAT32, address(x), address(bias), 0, address(y), *sizes, 0.2, 1.5)
        module.bias_leaky_relu(DEVICE, STREAM, FLOAT32, address(x), 0, address(y), address(dx), *sizes, 0.2, 1.5)
        parts = module.bias_leaky_relu_parts(*sizes)
        partial = np.empty((parts, channels), np.float32)
        gradients = (address(x), address(y), address(dx), address(partial), address(db))
        module.bias_leaky_relu_backward(DEVICE, STREAM, FLOAT32, *gradients, *sizes, parts, 0.2, 1.5)


def upfirdn2d(module: ModuleType) -> None:
    planes, height = 8, 9
    # Rows of whole vectors to such, to odd rows and from them; odd rows to odd rows; halved and doubled.
    settings = ((16, 1, 1, 2, 1), (16, 1, 1, 1, 2), (16, 1, 1, 2, 2), (17, 1, 1, 1, 1), (7, 1, 1, 2, 2))
    settings += ((32, 1, 2, 1, 1), (7, 1, 2, 1, 2), (8, 2, 1, 2, 1), (7, 2, 1, 1, 1))
    taps = normal(4)
    for dtype, number in ((np.float32, FLOAT32), (np.float16, FLOAT16)):
        for width, up, down, before, after in settings:
            out_width, out_height = ((n * up + before + after - 4) // down + 1 for n in (width, height))
            x, y = normal(planes, height, width).astype(dtype), np.empty((planes, out_height, out_width), dtype)
            images = (address(x), address(taps), address(y), planes, width, height, out_width, out_height)
            module.upfirdn2d_four_taps(DEVICE, STREAM, number, *images, up, down, before, before, False)
    width, taps_x, taps_y = 13, 5, 3
    x, taps, y = normal(planes, height, width), normal(taps_y, taps_x), np.empty((planes, 7, 7), np.float16)
    columns, rows = (width, 7, taps_x, 2, 4, 1), (height, 7, taps_y, 3, 4, 2)
    filtered = (address(x), address(taps), address(y), planes, *columns, *rows, True)
    module.upfirdn2d_filter(DEVICE, STREAM, FLOAT32, FLOAT16, *filtered)


def stratified_points(module: ModuleType) -> None:
    images, rays = 2, 90
    for samples in (5, 12, 1030):  # 180, 84 rays a block; one in two tiles
        rays = rays if samples < 100 else 3
        u, origins, directions = normal(images, rays, samples), normal(images, rays, 3), normal(images, rays, 3)
        depths, points = np.empty_like(u), np.empty((images, rays, samples, 3), np.float32)
        for origin, shared in ((origins, False), (normal(images, 3), True)):
            tensors = (address(u), address(origin), address(directions), address(depths), address(points))
            sizes = (images, rays) if shared else (1, images * rays)
            module.stratified_points(DEVICE, STREAM, *tensors, *sizes, samples, shared, 0.88, 1.12)
        module.stratified_points(
            DEVICE, STREAM, address(u), 0, 0, address(depths), 0, 1, images * rays, samples, False, 0.88, 1.12
        )
        gradients = (np.empty_like(origins), np.empty_like(directions), np.empty_like(depths))
        tensors = (address(points), address(directions), address(depths), *map(address, gradients))
        module.ray_points_backward(DEVICE, STREAM, *tensors, images * rays, samples)


def importance(module: ModuleType) -> None:
    for rays, coarse, fine in ((19, 12, 11), (5, 40, 35), (9, 3, 0)):
        depths, weights = np.sort(normal(rays, coarse), axis=-1), np.abs(normal(rays, coarse))
        u = np.random.default_rng(1).random((rays, fine), np.float32)
        out = np.empty_like(u), np.empty((rays, coarse + fine), np.float32), np.empty((rays, coarse + fine), np.int64)
        tensors = (address(depths), address(weights), address(u), *map(address, out))
        module.importance(DEVICE, STREAM, *tensors, rays, coarse, fine)


def accumulate(module: ModuleType) -> None:
    # Rows of vectors and of single numbers, more samples and more channels than lanes.
    for rays, samples, channels in ((9, 12, 32), (7, 35, 5), (3, 2, 136)):
        weights, values = normal(rays, samples), normal(rays, samples, channels)
        sums, of_weights, of_values = normal(rays, channels), np.empty_like(weights), np.empty_like(values)
        sizes = (rays, samples, channels)
        module.accumulate(DEVICE, STREAM, FLOAT32, address(weights), address(values), address(sums), *sizes)
        tensors = (address(sums), address(weights), address(values), address(of_weights), address(of_values))
        module.accumulate_backward(DEVICE, STREAM, FLOAT32, *tensors, *sizes)


def composite(module: ModuleType) -> None:
    # As for accumulate; with fine samples and an order, and without.
    for rays, coarse, fine, channels in ((9, 6, 6, 32), (7, 35, 0, 5), (5, 20, 17, 3), (3, 2, 0, 136)):
        samples = coarse + fine
        density, fine_density = 10 * normal(rays, coarse), 10 * normal(rays, fine)
        features, fine_features = normal(rays, coarse, channels), normal(rays, fine, channels)
        depths, noise = np.sort(normal(rays, samples), axis=-1), normal(rays, samples)
        order = np.argsort(normal(rays, samples), axis=-1).astype(np.int64)
        merged = (address(fine_density), address(order)) if fine else (0, 0)
        inputs = (address(density), merged[0], address(depths), merged[1], address(noise), address(features))
        inputs = (*inputs, address(fine_features) if fine else 0)
        sizes, settings = (rays, coarse, samples, channels), (True, True, True)
        scalars = normal(rays), normal(rays), normal(rays)  # depth, transmittance, opacity
        sums, weights = normal(rays, channels), np.empty_like(depths)
        outputs = (address(sums), address(scalars[0]), address(weights), address(scalars[1]), address(scalars[2]))
        module.composite(DEVICE, STREAM, FLOAT32, *inputs, *outputs, *sizes, *settings)
        gradients = [np.empty_like(x) for x in (density, fine_density, depths, features, fine_features)]
        wanted = [address(x) if x.size else 0 for x in gradients]
        workspace = np.empty((2, rays, samples), np.float32)
        module.composite_backward(
            DEVICE, STREAM, FLOAT32, *inputs, *outputs, *wanted, address(workspace), *sizes, *settings
        )


def modulated_epilogue(module: ModuleType) -> None:
    # Vectors and single channels, idle lanes, two parts an image; rows of a few lanes.
    for dtype, number, sizes in (
        (np.float32, FLOAT32, (2, 70, 260)),
        (np.float16, FLOAT16, (2, 70, 260)),
        (np.float16, FLOAT16, (2, 70, 257)),
        (np.float32, FLOAT32, (3, 19, 5)),
    ):
        batch, pixels, channels = sizes
        product, skip, y, modulated = (normal(*sizes).astype(dtype) for _ in range(4))
        demodulation, next_modulation = normal(batch, channels), normal(batch, channels)
        rgb_weight, rgb, rgb_sum = normal(3, channels), normal(batch, pixels, 3), normal(batch, pixels, 3)
        inputs = tuple(map(address, (product, demodulation, skip, next_modulation, rgb_weight)))
        outputs = (address(y), address(modulated), address(rgb_sum))
        largest = np.zeros(1, np.float32)
        measured = (address(largest), *sizes, 0.2)
        module.modulated_epilogue(DEVICE, STREAM, number, *inputs, address(rgb), *outputs, *measured)
        module.modulated_epilogue(DEVICE, STREAM, number, *inputs[:4], 0, 0, *outputs[:2], 0, 0, *sizes, 0.2)
        parts = module.modulated_epilogue_parts(*sizes)
        like = (product, demodulation, skip, next_modulation, rgb_weight)
        gradients = [np.empty_like(x) for x in (*like, np.empty((batch, parts, 5, channels), np.float32))]
        given = (*inputs, *outputs, *map(address, gradients))
        module.modulated_epilogue_backward(DEVICE, STREAM, number, *given, address(largest), *sizes, parts, 0.2)


def modulated_inr(module: ModuleType) -> None:
    """Every kernel: pixels that fill no tile, channels that fill no strip and no slab, two chunks of columns or one."""
    most = module.shared_limit()
    for accurate, limit, allowed, sizes in (
        (False, 227, "0", (1, 140, 37, 262, 4)),
        (False, 163, "0", (1, 140, 20, 70, 2)),
        (False, 99, "0", (2, 70, 262, 262, 2)),
        (False, 227, "modulated_inr", (1, 140, 37, 460, 2)),
        (False, 227, "modulated_inr,clusters", (3, 70, 200, 200, 4)),
        (True, 227, "0", (2, 9, 37, 262, 4)),
        (True, 227, "modulated_inr,clusters", (3, 60, 200, 200, 2)),
        (True, 163, "0", (2, 40, 20, 70, 2)),
    ):
        images, pixels, channels, width, layers = sizes
        blocks, skip_from = layers // 2, int(channels != width)
        tensors = [normal(images, pixels, channels), normal(channels, width), normal(layers - 1, width, width)]
        tensors += [normal(images, channels), normal(images, layers - 1, width), normal(images, layers, width)]
        tensors += [normal(blocks, 3, width)]
        module.set_shared_limit(limit << 10)
        os.environ["CIPS3D_WGMMA"] = allowed
        assert module.modulated_inr_rows(DEVICE, images, pixels, width, accurate) > 0
        assert module.modulated_inr_warpgroups(DEVICE, images, pixels, width, accurate) == (allowed != "0")
        assert module.modulated_inr_cluster(DEVICE, images, pixels, width, accurate) == 1 + ("clusters" in allowed)
        size = module.modulated_inr_workspace(DEVICE, *sizes, blocks, accurate)
        workspace, rgb = np.empty(size, np.uint8), normal(images, pixels, 3)
        given = map(address, [*tensors, workspace, rgb])
        module.modulated_inr(DEVICE, STREAM, *given, *sizes, skip_from, 0, 0.2, accurate)
    module.set_shared_limit(most)
    del os.environ["CIPS3D_WGMMA"]


def film_siren(module: ModuleType) -> None:
    # Several tiles of rows and columns with parts that end within; odd widths; a matrix that streams.
    for fast, dtype, sizes in (
        (False, FLOAT32, (2, 270, 33, 70)),
        (True, FLOAT32, (1, 130, 40, 20)),
        (False, FLOAT16, (1, 140, 36, 132)),
        (True, BFLOAT16, (1, 130, 40, 20)),
        (False, FLOAT32, (1, 9, 600, 66)),
    ):
        batch, rows, width_in, width_out = sizes
        stored = STORED[dtype]
        x, dy = normal(batch, rows, width_in).astype(stored), normal(batch, rows, width_out).astype(stored)
        y, dx = np.empty_like(dy), np.empty_like(x)
        slope = np.empty_like(dy, np.float16 if fast else stored)
        for shared, images in ((True, ()), (False, (batch,))):
            layer = [normal(*images, width_out, width_in), normal(*images, width_out)]
            layer += [normal(batch, width_out), normal(batch, width_out)]
            parameters = tuple(map(address, layer))
            widths = (batch, width_in, width_out, shared)
            workspace = np.empty(module.film_siren_workspace(*widths), np.uint8)
            given = (address(x), *parameters, address(workspace), address(y))
            module.film_siren(DEVICE, STREAM, dtype, fast, *given, *sizes, shared)
            workspace = np.empty(module.film_siren_backward_workspace(*widths), np.uint8)
            given = (address(x), address(dy), *parameters, address(workspace), address(slope))
            module.film_siren_slope(DEVICE, STREAM, dtype, fast, *given, *sizes, shared)
            given = (address(slope), parameters[0], parameters[2], address(workspace), address(dx))
            module.film_siren_input_gradient(DEVICE, STREAM, dtype, fast, *given, *sizes, shared)
        parts = module.film_siren_weight_gradient_parts(DEVICE, *sizes)
        partial = (
            np.empty((parts, batch, width_out, width_in), np.float32),
            np.empty((parts, batch, width_out), np.float32),
        )
        given = (address(slope), address(x), *map(address, partial))
        # Behind samples of a field, gradients of bfloat16 meet activations of float16.
        of_slope = BFLOAT16 if fast else dtype
        for of_x in (dtype, FLOAT16) if dtype == BFLOAT16 else (dtype,):
            module.film_siren_weight_gradient(DEVICE, STREAM, of_slope, of_x, *given, *sizes, parts)


def split_matmul(module: ModuleType) -> None:
    # Several tiles of rows and columns; odd widths; one number. With warpgroups several tiles a block, two panels of
    # columns and one, rows that are not aligned.
    for warpgroups, rows, depth, columns in (
        (False, 270, 36, 132),
        (False, 140, 33, 70),
        (False, 1, 1, 1),
        (True, 390, 68, 132),
        (True, 140, 67, 129),
    ):
        os.environ["CIPS3D_WGMMA"] = str(int(warpgroups))
        assert module.split_matmul_warpgroups(DEVICE, columns) == warpgroups
        assert module.split_matmul_over_rows_warpgroups(DEVICE, depth, columns) == warpgroups
        x, y, weight = normal(rows, depth), normal(rows, columns), normal(depth, columns)
        largest = np.full(1, 4, np.float32)
        for matrix, strides in ((weight, (1, columns)), (weight.T.copy(), (depth, 1))):
            packed = np.empty(module.split_matmul_packed_bytes(columns, depth), np.uint8)
            module.split_matmul_pack(DEVICE, STREAM, address(matrix), address(packed), columns, depth, *strides)
            given = map(address, (x, largest, packed, y))
            module.split_matmul(DEVICE, STREAM, *given, rows, columns, depth)
        parts = module.split_matmul_over_rows_parts(DEVICE, rows, depth, columns)
        partial = np.empty((parts, depth, columns), np.float32)
        given = map(address, (x, y, largest, largest, partial))
        module.split_matmul_over_rows(DEVICE, STREAM, *given, rows, depth, columns, parts)
    del os.environ["CIPS3D_WGMMA"]


def film_siren_points(module: ModuleType) -> None:
    for sizes in ((2, 150, 3, 132), (1, 37, 7, 5)):
        batch, rows, width_in, width_out = sizes
        x, y = normal(batch, rows, width_in), normal(batch, rows, width_out)
        layer = normal(width_out, width_in), normal(width_out), normal(batch, width_out), normal(batch, width_out)
        parameters = tuple(map(address, layer))
        module.film_siren_points(DEVICE, STREAM, FLOAT32, address(x), *parameters, address(y), *sizes, True)
        parts = module.film_siren_points_parts(DEVICE, batch, rows, width_out)
        tiles = module.film_siren_points_tiles(width_out)
        dx = np.empty((tiles, *x.shape), np.float32)
        partial = (
            np.empty((parts, batch, width_out, width_in), np.float32),
            np.empty((parts, batch, width_out), np.float32),
        )
        given = (address(x), address(y), *parameters, address(dx), *map(address, partial))
        module.film_siren_points_backward(DEVICE, STREAM, FLOAT32, *given, *sizes, parts, True)


CASES: dict[str, Callable[[ModuleType], None]] = {
    "limits_of_the_device": limits_of_the_device,
    "bias_leaky_relu": bias_leaky_relu,
    "upfirdn2d": upfirdn2d,
    "stratified_points": stratified_points,
    "importance": importance,
    "accumulate": accumulate,
    "composite": composite,
    "modulated_epilogue": modulated_epilogue,
    "modulated_inr": modulated_inr,
    "film_siren": film_siren,
    "split_matmul": split_matmul,
    "film_siren_points": film_siren_points,
    "field_samples": field_samples,
    "render_rays": render_rays,
    "render_wide_rays": render_wide_rays,
    "render_deep_rays": render_deep_rays,
}
