"""Weights between those of two models, block by block."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from convert.small_networks import CIPS3D_CONFIG, CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG

from cips3d.cameras import PoseDistribution
from cips3d.errors import UserError
from cips3d.models.family import AnyGeneratorConfig, make_generator
from cips3d.models.generator import WeightParts
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator, Look, render_views, styles_of_seeds
from cips3d.stylisation import Shares, interpolated_state, stylised, swapped

CONFIGS = {
    "cips3d": dataclasses.replace(CIPS3D_CONFIG, inr_blocks=4, inr_rgb_from=1, rgb_init=1.0),
    "pigan": PIGAN_CONFIG,
    "cips": CIPS_CONFIG,
    "stylegan2": STYLEGAN2_CONFIG,
}
FRONT = torch.tensor([math.pi / 2])


def loaded_of(config: AnyGeneratorConfig, seed: int) -> LoadedGenerator:
    torch.manual_seed(seed)
    generator = make_generator(config).requires_grad_(False).eval()
    side = generator.fixed_resolution or 8
    return LoadedGenerator(generator, VolumeSettings(samples=4), 12.0, side, PoseDistribution(), None)


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> tuple[LoadedGenerator, LoadedGenerator]:
    """Two models of the same networks."""
    return loaded_of(CONFIGS[request.param], 0), loaded_of(CONFIGS[request.param], 1)


@pytest.fixture
def cips3d_pair() -> tuple[LoadedGenerator, LoadedGenerator]:
    return loaded_of(CONFIGS["cips3d"], 0), loaded_of(CONFIGS["cips3d"], 1)


def pictures_of(loaded: LoadedGenerator) -> torch.Tensor:
    return render_views(loaded, styles_of_seeds(loaded, [0, 3]), FRONT, FRONT, Look(loaded.resolution)).image


def test_share_0_is_the_base_and_1_of_everything_the_style(pair: tuple[LoadedGenerator, LoadedGenerator]) -> None:
    base, style = pair
    blocks = len(base.generator.weight_parts().blocks)
    ends = [Shares((share,) * blocks, share, share) for share in (0.0, 1.0)]
    for shares, model, other in zip(ends, (base, style), (style, base), strict=True):
        found = pictures_of(stylised(base, style, shares))
        assert torch.equal(found, pictures_of(model))
        assert not torch.equal(found, pictures_of(other))


def test_every_weight_follows_the_share_of_its_part(pair: tuple[LoadedGenerator, LoadedGenerator]) -> None:
    base, style = pair
    parts = base.generator.weight_parts()
    shares = Shares(tuple(0.1 * (k + 1) for k in range(len(parts.blocks))), mapping=-0.5, shape=1.5)
    first, second = base.generator.state_dict(), style.generator.state_dict()
    before = {name: tensor.clone() for name, tensor in first.items()}
    found = stylised(base, style, shares).generator.state_dict()
    expected_of = {prefix: share for block, share in zip(parts.blocks, shares.blocks, strict=True) for prefix in block}
    expected_of |= dict.fromkeys(parts.mapping, -0.5) | dict.fromkeys(parts.shape, 1.5)
    for name, tensor in found.items():
        (share,) = [s for prefix, s in expected_of.items() if f"{name}.".startswith(f"{prefix}.")]
        torch.testing.assert_close(tensor, (1 - share) * first[name] + share * second[name])
    assert all(torch.equal(before[name], tensor) for name, tensor in first.items())


def test_a_block_of_cips3d_takes_its_layers_and_its_rgb(cips3d_pair: tuple[LoadedGenerator, LoadedGenerator]) -> None:
    base, style = cips3d_pair
    found = stylised(base, style, Shares((0.0, 0.0, 0.25, 0.0))).generator.state_dict()
    first, second = base.generator.state_dict(), style.generator.state_dict()
    moved = {name for name in found if not torch.equal(found[name], first[name])}
    assert moved == {
        f"inr.{name}"
        for name in (
            *(f"layers.{layer}.{weight}" for layer in (4, 5) for weight in ("weight", "modulation.weight")),
            *(f"layers.{layer}.modulation.bias" for layer in (4, 5)),
            *("to_rgb.1.weight", "to_rgb.1.bias"),
        )
    }
    for name in moved:
        torch.testing.assert_close(found[name], 0.75 * first[name] + 0.25 * second[name])


def test_swapped_layers_are_those_of_the_models_bit_for_bit(
    cips3d_pair: tuple[LoadedGenerator, LoadedGenerator],
) -> None:
    base, style = cips3d_pair
    assert swapped(4, 2) == (0.0, 0.0, 1.0, 1.0)
    assert swapped(4, 0) == (1.0,) * 4
    assert swapped(4, 4) == (0.0,) * 4
    found = stylised(base, style, Shares(swapped(4, 2))).generator.state_dict()
    for name, tensor in found.items():
        is_late = name.startswith(tuple(f"inr.{part}." for part in ("layers.4", "layers.5", "layers.6", "layers.7")))
        is_late = is_late or name.startswith(("inr.to_rgb.1.", "inr.to_rgb.2."))
        assert torch.equal(tensor, (style if is_late else base).generator.state_dict()[name]), name


def test_the_mean_face_is_that_of_the_mapping(cips3d_pair: tuple[LoadedGenerator, LoadedGenerator]) -> None:
    base, style = cips3d_pair
    base_mean, style_mean = base.mean_styles, style.mean_styles
    blocks_only = stylised(base, style, Shares((1.0,) * 4))
    mapping_too = stylised(base, style, Shares((1.0,) * 4, mapping=1.0))
    assert torch.equal(blocks_only.mean_styles[1], base_mean[1])
    assert torch.equal(mapping_too.mean_styles[1], style_mean[1])
    assert torch.equal(mapping_too.mean_styles[0], base_mean[0])


def test_strength_scales_all_shares() -> None:
    shares = Shares((0.5, 1.0), mapping=1.0).times(0.5)
    assert shares == Shares((0.25, 0.5), mapping=0.5)
    assert not shares.keeps_styles
    assert Shares((1.0, 1.0)).keeps_styles
    assert not Shares((1.0, 1.0), shape=0.5).keeps_styles


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_parts_have_whole_names_and_weights_are_new(share: float) -> None:
    """Layer 10 belongs to another block than layer 1."""
    parts = WeightParts((("layers.1",), ("layers.10",)), mapping=("constant",))
    base = {name: torch.zeros(2) for name in ("layers.1.weight", "layers.10.weight", "constant")}
    before = {name: tensor.clone() for name, tensor in base.items()}
    style = {name: torch.ones(2) for name in base}
    found = interpolated_state(parts, base, style, Shares((share, 0.25), mapping=0.75))
    assert {name: float(tensor[0]) for name, tensor in found.items()} == {
        "layers.1.weight": share,
        "layers.10.weight": 0.25,
        "constant": 0.75,
    }
    for tensor in found.values():
        tensor += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.items())
    assert all((tensor == 1).all() for tensor in style.values())


def test_other_networks_are_refused(cips3d_pair: tuple[LoadedGenerator, LoadedGenerator]) -> None:
    base, _ = cips3d_pair
    with pytest.raises(UserError, match="is a StyleGAN2, the first a CIPS3D"):
        stylised(base, loaded_of(STYLEGAN2_CONFIG, 0), Shares((1.0,) * 4))
    wider = dataclasses.replace(base.generator.config, inr_width=10)
    with pytest.raises(UserError, match="inr_width is 10, not 8"):
        stylised(base, loaded_of(wider, 0), Shares((1.0,) * 4))


def test_mistakes(cips3d_pair: tuple[LoadedGenerator, LoadedGenerator]) -> None:
    base, style = cips3d_pair
    with pytest.raises(ValueError, match="blocks must be 4 numbers, got 3"):
        stylised(base, style, Shares((1.0,) * 3))
    state = base.generator.state_dict()
    with pytest.raises(ValueError, match="hold every weight once, got nerf"):
        interpolated_state(WeightParts((("inr",),), ("appearance_mapping",)), state, state, Shares((1.0,)))
    for first in (-1, 5):
        with pytest.raises(ValueError, match="first must be 0 to 4"):
            swapped(4, first)
