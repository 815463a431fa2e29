"""Published CIPS state dicts of both variants, read and written back; the published numbers come out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from ops.backends import Backend
from reference_records import record, relative_l2, requires_record, state, tensor
from torch import Tensor

from cips3d.convert.cips import cips_from_reference, cips_reference_names, cips_to_reference
from cips3d.errors import UserError
from cips3d.models.cips import CIPS, CIPSConfig

RECORD = "cips_skip_r32"
SKIP = CIPSConfig(resolution=8, hidden=5, widths=(7, 6), z_dim=6, style_dim=8, mapping_layers=2)
RESIDUAL = replace(SKIP, variant="residual", widths=(7, 7, 6))


@requires_record(RECORD)
def test_images_and_gradients_of_the_published_generator(backend: Backend) -> None:
    loaded = record(RECORD)
    generator = cips_from_reference(state(loaded)).to(backend.device)
    assert generator.training
    z, coords = (tensor(loaded, f"in/{name}").to(backend.device) for name in ("z", "coords"))
    assert relative_l2(generator.mapping(z).w, tensor(loaded, "mid/w")) < 1e-6  # float32 rounding
    image, expected = generator(z, coords=coords).image, tensor(loaded, "out/image")
    assert (image.cpu() - expected).abs().max() < 1e-5 * expected.abs().max()  # float32 through ten layers
    same = generator(z, resolution=32).image
    assert (same - image).abs().max() < 1e-5 * expected.abs().max()

    (image * tensor(loaded, "in/loss_weight").to(backend.device)).sum().backward()
    parameters, gradients = dict(generator.named_parameters()), state(loaded, "grad/")
    names = {original: ours for ours, original in cips_reference_names(generator.config).items()}
    assert {key for key in names if not key.endswith("noise.weight")} == gradients.keys()
    for key, gradient in gradients.items():
        found = parameters[names[key]].grad
        assert found is not None, key
        # float32 rounding, and leaky ReLUs that it moves to the other side of their kink.
        assert relative_l2(found, gradient.view_as(found)) < 1e-4, key


@requires_record(RECORD)
def test_written_states_are_the_published_ones() -> None:
    original = state(record(RECORD))
    written = cips_to_reference(cips_from_reference(original))
    assert written.keys() == original.keys()
    for key, value in original.items():
        assert torch.equal(written[key], value), key


@pytest.mark.parametrize(
    "config",
    [
        SKIP,
        RESIDUAL,
        replace(SKIP, widths=(4,)),
        replace(RESIDUAL, widths=(4,)),
        replace(SKIP, coordinates=3, mapping_lr_multiplier=0.1),
        replace(RESIDUAL, resolution=5, widths=(3, 4, 4, 2)),
    ],
)
def test_round_trip(config: CIPSConfig) -> None:
    generator = CIPS(config)
    again = cips_from_reference(cips_to_reference(generator), mapping_lr_multiplier=config.mapping_lr_multiplier)
    assert again.config == config
    ours = generator.state_dict()
    assert again.state_dict().keys() == ours.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, ours[name]), name
    z = torch.randn(2, 6)
    assert torch.equal(again(z, resolution=4).image, generator(z, resolution=4).image)


@pytest.mark.parametrize("variant", ["skip", "residual"])
def test_published_widths_are_found(variant: str) -> None:
    config = CIPSConfig(variant=variant, resolution=8, hidden=4, z_dim=4, style_dim=4)  # type: ignore[arg-type]
    assert cips_from_reference(cips_to_reference(CIPS(config))).config == config


def test_names_of_the_residual_variant() -> None:
    """Those of the published class CIPSres: `linears` begins with the first layer, shortcuts are in sequences."""
    written = cips_to_reference(CIPS(RESIDUAL))
    layer = ("conv.weight", "conv.modulation.weight", "conv.modulation.bias", "noise.weight", "activate.bias")
    colour = ("conv.weight", "conv.modulation.weight", "conv.modulation.bias", "bias")
    expected = {"lff.ffm.conv.weight", "lff.ffm.conv.bias", "emb.input"}
    expected |= {f"style.{k}.{kind}" for k in (1, 2) for kind in ("weight", "bias")}
    expected |= {f"linears.0.{part}" for part in layer} | {f"to_rgb_last.{part}" for part in colour}
    expected |= {f"linears.{k}.{conv}.{part}" for k in (1, 2, 3) for conv in ("conv1", "conv2") for part in layer}
    expected |= {"linears.3.skip.0.weight"}  # 7 to 6: only there widths differ
    assert written.keys() == expected
    assert written["linears.1.conv1.conv.weight"].shape == (1, 7, 7, 1, 1)
    assert written["linears.3.skip.0.weight"].shape == (6, 7, 1, 1)
    assert written["to_rgb_last.bias"].shape == (1, 3, 1, 1)


FAULTS: list[tuple[CIPSConfig, dict[str, Tensor | None], str]] = [
    (SKIP, {"linears.2.noise.weight": None}, "linears.2.noise.weight is missing"),
    (SKIP, {"emb.input": None}, "emb.input is missing"),
    (SKIP, {"style.2.bias": None}, "style.2.bias is missing"),
    (SKIP, {"linears.1.conv.weight": None}, "linears.1.conv.weight is missing"),
    (SKIP, {f"linears.{10**20}.conv.weight": torch.zeros(0)}, ".conv.weight is missing"),
    (SKIP, {f"style.{10**20}.weight": torch.zeros(0)}, ".weight is missing"),
    (RESIDUAL, {f"linears.{10**20}.conv2.conv.weight": torch.zeros(0)}, ".conv2.conv.weight is missing"),
    (SKIP, {"extra": torch.zeros(1)}, "extra is unknown"),
    (SKIP, {"linears.0.skip.0.weight": torch.zeros(7, 7, 1, 1)}, "linears.0.skip.0.weight is unknown"),
    (SKIP, {"emb.input": torch.zeros(1, 5, 8, 4)}, "emb.input has shape"),
    (SKIP, {"conv1.conv.weight": torch.zeros(1, 7, 9, 1, 1)}, "conv1.conv.weight has shape"),
    (SKIP, {"lff.ffm.conv.weight": torch.zeros(5, 4, 1, 1)}, "it takes 4 coordinates where 2"),
    (SKIP, {"to_rgbs.0.bias": torch.zeros(3)}, "to_rgbs.0.bias has shape [3]"),
    (RESIDUAL, {"linears.3.skip.0.weight": None}, "linears.3.skip.0.weight is missing"),
    (RESIDUAL, {"linears.1.skip.0.weight": torch.zeros(7, 7, 1, 1)}, "linears.1.skip.0.weight is unknown"),
    (RESIDUAL, {"to_rgb_last.bias": None}, "to_rgb_last.bias is missing"),
    (RESIDUAL, {"linears.1.conv2.conv.weight": torch.zeros(7, 7, 1, 1)}, "linears.1.conv2.conv.weight has shape"),
]


@pytest.mark.parametrize(("config", "change", "named"), FAULTS)
def test_wrong_states_are_refused(config: CIPSConfig, change: dict[str, Tensor | None], named: str) -> None:
    changed = {**cips_to_reference(CIPS(config)), **change}
    with pytest.raises(UserError, match="not that of a CIPS generator: .*" + re.escape(named)):
        cips_from_reference({key: value for key, value in changed.items() if value is not None})


def test_states_of_something_else_are_refused() -> None:
    for other in ({}, {"to_rgb_last.bias": torch.zeros(1, 3, 1, 1)}, {"style.1.weight": torch.zeros(2, 2)}):
        with pytest.raises(UserError, match="not that of a CIPS generator"):
            cips_from_reference(other)
