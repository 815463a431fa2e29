"""Discriminators with residual blocks from the published ones and back, and the original's records."""

from __future__ import annotations

import pytest
import torch
from models.small_residual_discriminator import CHANNELS, images
from reference_records import meta, record, relative_l2, requires_record, state, tensor
from torch import Tensor

from cips3d.convert.cips3d_discriminator import (
    discriminator_from_reference,
    discriminator_reference_names,
    discriminator_to_reference,
)
from cips3d.errors import UserError
from cips3d.models.residual_discriminator import ImageDiscriminator, ResidualDiscriminator
from cips3d.training.losses import r1_penalty

RECORDS = ["cips3d_discriminator_r32", "cips3d_discriminator_aux_r64"]
# float32 in another order of summation: about 1e-6, but up to 3e-5 from float64 on either side for bias gradients of
# R1 that reach the loss through the minibatch deviation alone.
TOLERANCE = 1e-4


def pair() -> ResidualDiscriminator:
    torch.manual_seed(0)
    main = ImageDiscriminator(16, CHANNELS)
    aux = ImageDiscriminator(8, {4: 5, 8: 3}, minibatch_std_group=4, downsample_first=True)
    discriminator = ResidualDiscriminator(main, aux)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.normal_()  # biases too
    return discriminator


@pytest.mark.parametrize("with_aux", [True, False])
@pytest.mark.parametrize("with_blurs", [True, False])
def test_conversion_there_and_back(with_aux: bool, with_blurs: bool) -> None:
    discriminator = pair() if with_aux else ResidualDiscriminator(pair().main)
    published = discriminator_to_reference(discriminator)
    assert all(key.startswith(("main_disc.", "aux_disc.")) == with_aux for key in published)
    if not with_blurs:
        published = {key: value for key, value in published.items() if "down_blur" not in key}
    back = discriminator_from_reference(published)
    ours, again = discriminator.state_dict(), back.state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    x = images(4, 8)
    if with_aux:
        for a, b in zip(discriminator(x, x, fade=0.5), back(x, x, fade=0.5), strict=True):
            assert torch.equal(a, b)
    else:
        assert torch.equal(discriminator(x), back(x))


def test_entries_that_lead_nowhere_are_left_out() -> None:
    """The published code makes one for every resolution of its table, also beyond the largest picture."""
    published = discriminator_to_reference(pair())
    entries = {
        f"main_disc.conv_in.{r}.{name}": torch.zeros(shape)
        for r in (64, 128)
        for name, shape in (("equal_conv.weight", (2, 3, 1, 1)), ("flrelu.bias", (2,)))
    }
    back = discriminator_to_reference(discriminator_from_reference(published | entries))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], value) for key, value in published.items())


def test_names_cover_all_parameters_once() -> None:
    discriminator = pair()
    names = discriminator_reference_names(discriminator)
    assert names.keys() == dict(discriminator.named_parameters()).keys()
    assert len(set(names.values())) == len(names)
    assert names["main.blocks.16.conv2.bias"] == "main_disc.convs.16.conv2.flrelu.bias"
    assert names["aux.hidden.weight"] == "aux_disc.space_linear.weight"


def _without(key: str) -> object:
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_without("main_disc.convs.8.conv1.flrelu.bias"), "convs.8.conv1.flrelu.bias is missing"),
        (_without("main_disc.conv_in.8.equal_conv.weight"), "conv_in.8.equal_conv.weight is missing"),
        (_without("main_disc.final_conv.equal_conv.weight"), "final_conv.equal_conv.weight is missing"),
        (lambda s: s | {"main_disc.extra": torch.zeros(1)}, "extra is unknown"),
        (lambda s: s | {"extra": torch.zeros(1)}, "extra has neither the prefix"),
        (lambda s: {k: v for k, v in s.items() if k.startswith("aux")}, r"main_disc.*missing"),
        (lambda s: s | {"aux_disc.out_linear.bias": torch.zeros(2)}, r"out_linear.bias has shape \[2\]"),
        (lambda s: s | {"aux_disc.convs.8.skip.down_blur.kernel": torch.ones(4, 4) / 16}, r"not \[1, 3, 3, 1\] · 1/8"),
        (
            lambda s: s | {"aux_disc.convs.8.conv2.down_blur.kernel": s["aux_disc.convs.8.skip.down_blur.kernel"]},
            "both",
        ),
        (lambda s: {}, "missing"),
    ],
)
def test_wrong_states_are_named(change: object, named: str) -> None:
    published = change(discriminator_to_reference(pair()))  # type: ignore[operator]
    with pytest.raises(UserError, match=named):
        discriminator_from_reference(published)


@pytest.mark.parametrize("name", [pytest.param(name, marks=requires_record(name)) for name in RECORDS])
class TestMatchesOriginal:
    def load(self, name: str) -> tuple[dict, ImageDiscriminator, Tensor]:
        loaded = record(name)
        discriminator = discriminator_from_reference(state(loaded))
        assert discriminator.aux is None
        return loaded, discriminator.main, tensor(loaded, "in/image")

    def test_settings_are_read_off(self, name: str) -> None:
        loaded, discriminator, _ = self.load(name)
        settings = meta(loaded)
        assert discriminator.downsample_first == settings["first_downsample"]
        assert discriminator.minibatch_std_group == settings["stddev_group"]
        assert discriminator.channels == {int(r): c for r, c in settings["channels"].items()}

    @pytest.mark.parametrize("fade", [1.0, 0.3])
    def test_logits(self, name: str, fade: float) -> None:
        loaded, discriminator, image = self.load(name)
        assert relative_l2(discriminator(image, fade), tensor(loaded, f"out/logits_alpha_{fade}")) < TOLERANCE

    def test_input_gradient_and_r1(self, name: str) -> None:
        loaded, discriminator, image = self.load(name)
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(image).sum(), image)
        assert relative_l2(gradient, tensor(loaded, "out/input_grad")) < TOLERANCE
        r1 = tensor(loaded, "out/r1")
        torch.testing.assert_close(
            gradient.square().sum((1, 2, 3), keepdim=True)[..., 0, 0], r1, rtol=TOLERANCE, atol=0
        )
        penalty = r1_penalty(discriminator(image), image)
        torch.testing.assert_close(penalty, r1.mean(), rtol=TOLERANCE, atol=0)

    def test_parameter_gradients_of_r1(self, name: str) -> None:
        loaded, main, image = self.load(name)
        discriminator = ResidualDiscriminator(main)
        image.requires_grad_()
        r1_penalty(discriminator(image), image).backward()
        expected = state(loaded, "grad/")
        originals = discriminator_reference_names(discriminator)
        seen = {originals[n]: p.grad for n, p in discriminator.named_parameters() if p.grad is not None}
        assert expected.keys() <= seen.keys()
        for key, gradient in seen.items():
            if key in expected:
                assert relative_l2(gradient, expected[key]) < TOLERANCE, key
            else:
                assert not gradient.any(), key

    def test_state_is_written_back(self, name: str) -> None:
        published = state(record(name))
        written = discriminator_to_reference(discriminator_from_reference(published))
        assert written.keys() == published.keys()
        assert all(torch.equal(written[key], published[key]) for key in published)
