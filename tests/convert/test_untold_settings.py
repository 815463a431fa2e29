"""What no published state dict tells: networks that have it otherwise would be read as others, and are not written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from convert.small_networks import (
    CIPS3D_CONFIG,
    CIPS3D_DISCRIMINATOR_CONFIG,
    CIPS_CONFIG,
    PIGAN_CONFIG,
    PIGAN_DISCRIMINATOR_CONFIG,
    STYLEGAN2_CONFIG,
    STYLEGAN2_DISCRIMINATOR_CONFIG,
)
from torch import nn

from cips3d.cameras import Cameras
from cips3d.convert import from_reference, to_reference
from cips3d.errors import UserError
from cips3d.models.family import make_discriminator, make_generator
from cips3d.models.residual_discriminator import ImageDiscriminator, ResidualDiscriminator
from cips3d.models.view import View
from cips3d.training.presets import preset

PIGAN_GRID = replace(PIGAN_CONFIG, grid_resolution=4, grid_width=3)
PIGAN_ONE_OUTPUT = replace(PIGAN_DISCRIMINATOR_CONFIG, latent_dim=0, predict_pose=False)
MAIN_ALONE = replace(CIPS3D_DISCRIMINATOR_CONFIG, aux_channels=None)


def made(config: Any) -> nn.Module:
    return make_generator(config) if hasattr(config, "system") else make_discriminator(config)


def check_round_trip(config: Any, **options: Any) -> None:
    """What is written is read as a network of the same configuration."""
    module = made(config)
    system = getattr(config, "system", None) or f"{SYSTEM_OF_KIND[config.kind]}-discriminator"
    if system == "cips3d-discriminator" and not config.progressive:
        system = "stylegan2-discriminator"
    again = from_reference(to_reference(module), system, **options)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in module.state_dict().items()
    }
    for field in fields(config):
        if field.name not in INITIAL:
            assert getattr(again.config, field.name) == getattr(config, field.name), field.name


SYSTEM_OF_KIND = {"residual": "cips3d", "pigan": "pigan"}
INITIAL = ("rgb_init", "aux_init", "grid_init_std")  # matter to new networks alone
# Another value of every field, and what `from_reference` has to be told of it.
OTHERS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    *(
        (CIPS3D_CONFIG, {field.name: getattr(CIPS3D_CONFIG, field.name) + 1}, {})
        for field in fields(CIPS3D_CONFIG)
        if field.name not in ("system", "initial_radius", "initial_density")
    ),
    (CIPS3D_CONFIG, {"initial_radius": 0.1}, {}),
    (replace(CIPS3D_CONFIG, initial_radius=0.1), {"initial_density": 3.0}, {}),
    *(
        (PIGAN_GRID, {field.name: getattr(PIGAN_GRID, field.name) + 1}, {})
        for field in fields(PIGAN_GRID)
        if field.name not in ("system", "box_warp", "grid_resolution")
    ),
    (PIGAN_GRID, {"grid_resolution": 5}, {}),
    (PIGAN_CONFIG, {"box_warp": False}, {"box_warp": False}),
    (CIPS_CONFIG, {"resolution": 16}, {}),
    (CIPS_CONFIG, {"variant": "residual"}, {}),
    (CIPS_CONFIG, {"coordinates": 3}, {}),
    (CIPS_CONFIG, {"hidden": 7}, {}),
    (CIPS_CONFIG, {"widths": (5, 4, 3)}, {}),
    (CIPS_CONFIG, {"z_dim": 6}, {}),
    (CIPS_CONFIG, {"style_dim": 7}, {}),
    (CIPS_CONFIG, {"mapping_layers": 3}, {}),
    (CIPS_CONFIG, {"mapping_lr_multiplier": 0.1}, {"mapping_lr_multiplier": 0.1}),
    (STYLEGAN2_CONFIG, {"channels": {4: 6, 8: 5}}, {}),
    (STYLEGAN2_CONFIG, {"z_dim": 6}, {}),
    (STYLEGAN2_CONFIG, {"style_dim": 7}, {}),
    (STYLEGAN2_CONFIG, {"mapping_layers": 3}, {}),
    (STYLEGAN2_CONFIG, {"mapping_lr_multiplier": 0.1}, {"mapping_lr_multiplier": 0.1}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"main_channels": {4: 8, 8: 7}}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"aux_channels": None}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"main_minibatch_std_group": 4}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"main_minibatch_std_group": 2}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"aux_minibatch_std_group": 4}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"aux_minibatch_std_group": 8}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"main_downsample_first": True}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"aux_downsample_first": False}, {}),
    (CIPS3D_DISCRIMINATOR_CONFIG, {"predict_pose": True}, {}),
    (MAIN_ALONE, {"progressive": False}, {}),
    (STYLEGAN2_DISCRIMINATOR_CONFIG, {"main_channels": {4: 6, 8: 5}}, {}),
    (STYLEGAN2_DISCRIMINATOR_CONFIG, {"main_minibatch_std_group": 0}, {}),
    (STYLEGAN2_DISCRIMINATOR_CONFIG, {"main_minibatch_std_group": 2}, {}),
    (PIGAN_DISCRIMINATOR_CONFIG, {"channels": {2: 5, 4: 5}}, {}),
    (PIGAN_DISCRIMINATOR_CONFIG, {"strided": True}, {}),
    (PIGAN_DISCRIMINATOR_CONFIG, {"coord_conv": False}, {}),
    (PIGAN_DISCRIMINATOR_CONFIG, {"latent_dim": 4}, {}),
    (PIGAN_ONE_OUTPUT, {"predict_pose": True}, {}),
]
REFUSED = {
    "inr_skip_from": "inr_skip_from 5 (published: 4)",
    "inr_rgb_from": "inr_rgb_from 4 (published: 3)",
    "point_scale": "point_scale 9.33333 (published: 8.33333)",
    "density_scale": "density_scale 2 (published: 1)",
    "initial_radius": "initial_radius 0.1 (published: None)",
    "initial_density": "initial_radius 0.1 (published: None)",
    "box_side": "box_side 1.24 (published: 0.24)",
    "predict_pose": "main.predict_pose True (published: False)",
}


def refused(config: Any, change: dict[str, Any]) -> str | None:
    (name, value), *_ = change.items()
    if name.endswith("minibatch_std_group"):
        return None if value in (0, 4) else f"{name[:-20]}.minibatch_std_group {value} (published: 4)"
    return None if config is PIGAN_ONE_OUTPUT else REFUSED.get(name)


@pytest.mark.parametrize(("config", "change", "options"), OTHERS)
def test_every_setting_comes_back_or_is_refused(config: Any, change: dict[str, Any], options: dict[str, Any]) -> None:
    changed, named = replace(config, **change), refused(config, change)
    if named is None:
        check_round_trip(changed, **options)
        return
    with pytest.raises(UserError, match=re.escape(f" with {named} has no published state dict; write one")) as refusal:
        to_reference(made(changed))
    assert "\n" not in str(refusal.value)


def test_every_setting_is_tried() -> None:
    tried = {(type(config), name) for config, change, _ in OTHERS for name in change}
    for kind in {type(config) for config, _, _ in OTHERS}:
        assert {name for of, name in tried if of is kind} == {f.name for f in fields(kind)} - {"system", "kind"}


def test_all_that_differ_are_named() -> None:
    with pytest.raises(
        UserError, match=r"inr_skip_from 1 .*inr_rgb_from 0 .*density_scale 100 .*initial_radius 0\.08 "
    ):
        to_reference(made(preset("tiny").generator))


def parts(main: dict[str, Any], aux: dict[str, Any]) -> ResidualDiscriminator:
    return ResidualDiscriminator(*(ImageDiscriminator(max(part["channels"]), **part) for part in (main, aux)))


@pytest.mark.parametrize(
    ("aux", "named"),
    [
        ({"channels": {4: 3, 8: 2}, "progressive": False}, "aux.progressive False (published: True)"),
        ({"channels": {4: 3, 8: 2}, "predict_pose": True}, "aux.predict_pose True (published: False)"),
    ],
)
def test_auxiliary_discriminators_are_looked_at(aux: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"a CIPS-3D discriminator with {named}")):
        to_reference(parts({"channels": {4: 3}}, aux))


def image_of(module: nn.Module) -> Callable[[nn.Module], torch.Tensor]:
    """What gives the picture of the same face with any generator like this one."""

    def image(of: Any) -> torch.Tensor:
        front = torch.full((1,), torch.pi / 2)
        view = View(4, Cameras.from_angles(front, front), jitter=False)
        return of.render(of.mapping(*z), view).image

    z = module.sample_z(1)  # type: ignore[operator]
    return image


@pytest.mark.parametrize(
    "config",
    [
        replace(CIPS3D_CONFIG, inr_blocks=4, inr_skip_from=9),
        replace(CIPS3D_CONFIG, initial_radius=0.0),
        replace(CIPS3D_CONFIG, point_scale=8.333333),
        replace(PIGAN_CONFIG, grid_width=3),
        replace(PIGAN_CONFIG, mapping_layers=1, mapping_width=3),
    ],
)
def test_settings_without_influence_are_not_looked_at(config: Any) -> None:
    generator = made(config)
    image = image_of(generator)
    again = from_reference(to_reference(generator), config.system)
    assert torch.allclose(image(again), image(generator), atol=1e-6)  # one of them is rounded in its 7th digit


def test_no_box_has_no_side() -> None:
    generator = made(replace(PIGAN_CONFIG, box_warp=False, box_side=0.5))
    image = image_of(generator)
    again = from_reference(to_reference(generator), "pigan", box_warp=False)
    assert torch.equal(image(again), image(generator))


def test_one_resolution_has_one_entry_and_no_blocks() -> None:
    discriminator = parts({"channels": {4: 3}, "downsample_first": True}, {"channels": {4: 2}, "progressive": False})
    again = from_reference(to_reference(discriminator), "cips3d-discriminator")
    image = torch.randn(2, 3, 4, 4)
    for a, b in zip(again(image, image), discriminator(image, image), strict=True):
        assert torch.equal(a, b)
