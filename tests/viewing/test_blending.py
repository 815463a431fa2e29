"""Models between two checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from convert.small_networks import PIGAN_CONFIG

from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D
from cips3d.models.pigan import PiGAN
from cips3d.rendering import LoadedGenerator, load_generator
from cips3d.viewing.blending import Blend


@pytest.fixture
def other(loaded: LoadedGenerator) -> LoadedGenerator:
    """The same networks with other weights."""
    torch.manual_seed(5)
    return dataclasses.replace(loaded, generator=CIPS3D(loaded.generator.config).requires_grad_(False))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 0.25])
def test_weights_between(loaded: LoadedGenerator, other: LoadedGenerator, share: float) -> None:
    blend = Blend(loaded, other)
    first, second = loaded.generator.state_dict(), other.generator.state_dict()
    before = {name: tensor.clone() for name, tensor in first.items()}
    blend.at(0.6)
    for name, tensor in blend.at(share).generator.state_dict().items():
        expected = (1 - share) * before[name] + share * second[name]
        assert torch.allclose(tensor, expected, atol=1e-6), name  # single precision of weights below 10
    assert all(torch.equal(before[name], tensor) for name, tensor in first.items())


def test_the_ends_are_the_models_themselves(loaded: LoadedGenerator, other: LoadedGenerator) -> None:
    blend = Blend(loaded, other)
    assert blend.at(0.0) is loaded
    ended = blend.at(1.0).generator.state_dict()
    assert all(torch.equal(ended[name], tensor) for name, tensor in other.generator.state_dict().items())


def test_the_mean_face_follows(loaded: LoadedGenerator, other: LoadedGenerator) -> None:
    blend = Blend(loaded, other)
    means = [blend.at(share).mean_styles[0].clone() for share in (0.5, 1.0)]
    assert not torch.allclose(means[0], means[1])
    assert torch.equal(means[1], other.mean_styles[0])
    assert blend.at(1.0) is blend.at(1.0)  # so that its mean is computed once


def test_share_out_of_range(loaded: LoadedGenerator, other: LoadedGenerator) -> None:
    with pytest.raises(ValueError, match="share must lie"):
        Blend(loaded, other).at(1.5)


def test_other_networks_are_refused(loaded: LoadedGenerator) -> None:
    config = dataclasses.replace(loaded.generator.config, inr_width=10)
    with pytest.raises(UserError, match="inr_width is 10, not 8"):
        Blend(loaded, dataclasses.replace(loaded, generator=CIPS3D(config)))
    pigan = PiGAN(PIGAN_CONFIG)
    with pytest.raises(UserError, match="is a PiGAN, the first a CIPS3D"):
        Blend(loaded, dataclasses.replace(loaded, generator=pigan))


def test_second_from_a_file(loaded: LoadedGenerator, run_folder: Path) -> None:
    same = Blend(loaded, load_generator(run_folder)).at(0.5).generator.state_dict()
    assert all(torch.allclose(same[name], tensor) for name, tensor in loaded.generator.state_dict().items())
