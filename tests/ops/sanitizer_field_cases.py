"""The kernels of fields along rays once, for test_sanitized_ops.py (see sanitizer_cases.py)."""

from __future__ import annotations

import os
from types import ModuleType

import numpy as np
from ops.sanitizer_arrays import DEVICE, STREAM, address, normal


def render_rays(module: ModuleType) -> None:
    """Both precisions; fewer channels than there is room for, rays that fill no step, odd samples and colours."""
    images, rays, coarse, fine, width, color = 2, 9, 4, 3, 20, 7
    samples = coarse + fine
    uniform = np.random.default_rng(1).random
    origins, directions = normal(images, rays, 3), normal(images, rays, 3)
    draws = [uniform((images, rays, n)).astype(np.float32) for n in (coarse, fine)]
    noise = [normal(images, rays, n) for n in (coarse, samples)]
    layers = [normal(images, width, 3), normal(images, width), normal(images, width, width), normal(images, width)]
    layers += [normal(width), normal(1), normal(images, color, width), normal(images, color)]
    outputs = [normal(images, rays, color), normal(images, rays), normal(images, rays)]
    outputs += [normal(images, rays, samples) for _ in range(3)]
    blocks = 2
    partial = normal(images, blocks, module.render_rays_block_floats())
    sums = normal(images, module.render_rays_gradient_size(width, color))
    of_colors = normal(images, rays, color + color % 2)  # the kernel reads pairs
    grads = [of_colors, normal(images, rays), normal(images, rays), normal(images, rays, samples)]
    of_rays, scales = [normal(images, rays, 3) for _ in range(2)], np.ones(2, np.float32)
    most = module.shared_limit()
    for accurate, limit, warpgroups in (
        (False, most, True),
        (False, most, False),
        (False, 163 << 10, False),
        (False, 99 << 10, False),
        (True, most, False),
    ):
        module.set_shared_limit(limit)
        os.environ["CIPS3D_WGMMA"] = str(int(warpgroups))
        assert module.render_rays_fits(DEVICE, coarse, fine, accurate)
        assert module.render_rays_warpgroups(DEVICE, coarse, fine, accurate) == warpgroups
        assert module.render_rays_backward_fits(DEVICE, accurate)
        assert module.render_rays_backward_has_warpgroups()
        assert module.render_rays_backward_warpgroups(DEVICE, accurate, False) == warpgroups
        given = map(address, [origins, directions, *draws, *noise, *layers, *outputs])
        sizes = (images, rays, coarse, fine, width, color, 1.0, 0.1, 0.88, 1.12)
        module.render_rays(DEVICE, STREAM, *given, *sizes, False, True, accurate)
        _, _, _, weights, depths, transmittance = outputs
        saved = [origins, directions, depths, transmittance, weights, noise[1]]
        given = map(address, [*saved, *grads, scales, *layers, partial, sums, *of_rays])
        sizes = (images, rays, samples, width, color, 1.0, 0.1, blocks)
        module.render_rays_backward(DEVICE, STREAM, *given, *sizes, False, True, accurate)
        without = [*list(map(address, [*saved, *grads, scales, *layers, partial, sums])), 0, 0]
        module.render_rays_backward(DEVICE, STREAM, *without, *sizes, False, True, accurate)
    module.set_shared_limit(most)
    del os.environ["CIPS3D_WGMMA"]


def render_wide_rays(module: ModuleType) -> None:
    """Channels that fill no strip, one to four strips, rays that fill no step."""
    images, rays, coarse, fine, color = 2, 11, 4, 3, 70
    samples = coarse + fine
    uniform = np.random.default_rng(1).random
    origins, directions = normal(images, rays, 3), normal(images, rays, 3)
    draws = [uniform((images, rays, n)).astype(np.float32) for n in (coarse, fine)]
    noise = [normal(images, rays, n) for n in (coarse, samples)]
    outputs = [normal(images, rays, color), normal(images, rays), normal(images, rays)]
    outputs += [normal(images, rays, samples) for _ in range(3)]
    most = module.shared_limit()
    # Half as many samples at a time; layers of one strip; warpgroups.
    for accurate, width, limit in (
        *((True, 130, 163 << 10), (False, 130, 99 << 10), (True, 60, 99 << 10)),
        (False, 200, most),
    ):
        layers = [normal(images, width, 3), normal(images, width), normal(images, width, width), normal(images, width)]
        layers += [normal(width), normal(1), normal(images, color, width), normal(images, color)]
        module.set_shared_limit(limit)
        assert module.render_wide_rays_fits(DEVICE, coarse, fine, width, color, accurate)
        assert module.render_wide_rays_warpgroups(DEVICE, coarse, fine, width, color, accurate) == (limit == most)
        size = module.render_wide_rays_workspace(images, width, color, accurate)
        workspace = np.empty(size, np.uint8)
        given = map(address, [origins, directions, *draws, *noise, *layers, workspace, *outputs])
        sizes = (images, rays, coarse, fine, width, color, 1.0, 0.1, 0.88, 1.12)
        module.render_wide_rays(DEVICE, STREAM, *given, *sizes, False, True, accurate)
    module.set_shared_limit(most)


def render_deep_rays(module: ModuleType) -> None:
    """Both precisions; channels that fill no strip, two strips to four, rays that fill no step."""
    images, rays, coarse, fine, depth, color = 2, 11, 4, 3, 3, 130
    samples = coarse + fine
    uniform = np.random.default_rng(1).random
    origins, directions = normal(images, rays, 3), normal(images, rays, 3)
    draws = [uniform((images, rays, n)).astype(np.float32) for n in (coarse, fine)]
    noise = [normal(images, rays, n) for n in (coarse, samples)]
    outputs = [normal(images, rays, 3), normal(images, rays), normal(images, rays)]
    outputs += [normal(images, rays, samples) for _ in range(2)]
    most = module.shared_limit()
    # Three stages of weights, two, and half as many samples at a time; warpgroups.
    for accurate, width, limit in (
        *((False, 70, most), (True, 70, 163 << 10), (False, 70, 99 << 10)),
        (False, 200, most),
    ):
        field = [normal(width, 3), normal(depth - 1, width, width), normal(depth, width)]
        field += [normal(images, depth, width) for _ in range(2)] + [normal(width), normal(1)]
        field += [normal(color, 3 + width), normal(color), normal(images, color), normal(images, color)]
        field += [normal(3, color), normal(3)]
        module.set_shared_limit(limit)
        warpgroups = module.render_deep_rays_warpgroups(DEVICE, coarse, fine, depth, width, color, accurate)
        assert warpgroups == (width == 200)
        size = module.render_deep_rays_workspace(images, depth, width, color, accurate)
        workspace = np.empty(size, np.uint8)
        given = map(address, [origins, directions, *draws, *noise, *field, workspace, *outputs])
        sizes = (images, rays, coarse, fine, depth, width, color, 0.88, 1.12)
        module.render_deep_rays(DEVICE, STREAM, *given, *sizes, False, True, accurate)
    module.set_shared_limit(most)


def field_samples(module: ModuleType) -> None:
    """With and without a head; channels that fill no strip, one to four strips, samples that fill no tile."""
    images, rays, samples, depth, color = 2, 15, 9, 3, 70
    origins, directions, depths = normal(images, rays, 3), normal(images, rays, 3), normal(images, rays, samples)
    wide_color, all_samples, scales = 128, images * rays * samples, np.ones(2, np.float32)
    density, colors, of_density = normal(all_samples), normal(all_samples, 3), normal(all_samples)
    most = module.shared_limit()
    for head, accurate, width, limit in (
        *((True, False, 130, most), (False, False, 130, most), (True, False, 130, 99 << 10)),
        *((False, False, 130, 163 << 10), (True, True, 130, 99 << 10), (False, True, 130, 163 << 10)),
        *((True, True, 130, most), (False, True, 60, 99 << 10), (False, True, 60, 163 << 10)),
        *((True, False, 200, most), (False, False, 200, most)),  # warpgroups
    ):
        module.set_shared_limit(limit)
        kept, wide = np.float32 if accurate else np.float16, -(-width // 64) * 64
        inputs, slopes = np.empty((depth, all_samples, wide), kept), normal(depth, all_samples, wide).astype(kept)
        color_slopes, activations = (normal(all_samples, wide_color).astype(kept) for _ in range(2))
        matrices, seen = ((), 3) if head else ((images,), 0)
        hidden = normal(*matrices, depth - 1, width, width)
        first = [normal(*matrices, width, 3), normal(*matrices, width), hidden, normal(*matrices, depth - 1, width)]
        gains = [normal(images, depth, width) for _ in range(2)]
        of_heads = [normal(width), normal(1)]
        last = [normal(*matrices, color, seen + width), normal(*matrices, color)]
        modulation, heads = [normal(images, color) for _ in range(2)], [normal(3, color), normal(3)]
        with_head = [*gains, *of_heads, *last, *modulation, *heads]
        none = np.empty(0, np.float32)
        without = [none, none, *of_heads, *last, none, none, none, none]
        field = [address(x) if x.size else 0 for x in (*first, *(with_head if head else without))]
        sizes = (images, depth, width, color, head, accurate)
        choices = (module.field_samples_warpgroups, module.field_samples_backward_warpgroups)
        assert all(chosen(DEVICE, *sizes[1:]) == (width == 200) for chosen in choices)
        workspace = np.empty(module.field_samples_workspace(*sizes), np.uint8)
        records = map(address, (inputs, slopes, color_slopes, activations, density))
        given = (*map(address, (origins, directions, depths)), *field, address(workspace), *records)
        of_colors = address(colors) if head else 0
        cut = (images, rays, samples, depth, width, color, 0.1 * (not head), 0.1, accurate)
        module.field_samples(DEVICE, STREAM, *given, of_colors, *cut)
        workspace = np.empty(module.field_samples_backward_workspace(*sizes), np.uint8)
        of_colors = normal(all_samples, 3 if head else color)
        layers = (field[2], field[4], field[6], field[8], field[10], field[12])  # pointers of first, then of the rest
        given = (address(of_density), address(of_colors), *layers, 0 if head or accurate else address(scales))
        given = (*given, *map(address, (workspace, slopes, color_slopes)))
        module.field_samples_backward(DEVICE, STREAM, *given, images, rays * samples, depth, width, color, accurate)
    module.set_shared_limit(most)
