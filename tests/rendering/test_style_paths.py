"""Ways through faces, and mixtures of two."""

from __future__ import annotations

import pytest
import torch
from convert.small_networks import PIGAN_CONFIG, STYLEGAN2_CONFIG

from cips3d.cameras import PoseDistribution
from cips3d.models.cips3d import CIPS3DStyles
from cips3d.models.generator import Generator, chosen
from cips3d.models.pigan import PiGAN
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator, interpolated_styles, mixed_styles, styles_of_seeds
from cips3d.rendering.style_paths import spline_weights

ROUNDING = {"atol": 1e-6, "rtol": 0.0}  # float32 styles of size 1


def loaded_of(generator: Generator) -> LoadedGenerator:
    return LoadedGenerator(generator, VolumeSettings(samples=4), 12.0, 8, PoseDistribution(), None)


class TestSplineWeights:
    def test_every_key_is_met(self) -> None:
        weights = spline_weights(5, 40)
        torch.testing.assert_close(weights[::8], torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(weights.sum(1), torch.ones(40, dtype=torch.float64))

    def test_straight_and_evenly_through_keys_on_a_line(self) -> None:
        """Between the inner keys of an arithmetic series, the spline is the line: Catmull-Rom has linear precision."""
        position = spline_weights(8, 80) @ torch.arange(8, dtype=torch.float64)
        torch.testing.assert_close(position[10:61], torch.linspace(1, 6, 51, dtype=torch.float64))

    def test_slopes_at_keys_are_those_of_their_neighbours(self) -> None:
        keys = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.9], dtype=torch.float64)
        frames = 5 * 1000
        position = spline_weights(5, frames) @ keys
        slope = (position.roll(-1) - position.roll(1)) / 2 * 1000
        expected = (keys.roll(-1) - keys.roll(1)) / 2
        torch.testing.assert_close(slope[::1000], expected, atol=1e-2, rtol=0)  # second derivatives jump at keys

    def test_two_keys_are_joined_by_a_straight_way(self) -> None:
        weights = spline_weights(2, 32)
        assert (weights >= 0).all()
        assert (weights <= 1).all()
        u = torch.arange(16, dtype=torch.float64) / 16
        torch.testing.assert_close(weights[:16, 1], u.square() * (3 - 2 * u))

    def test_one_key_and_odd_counts(self) -> None:
        torch.testing.assert_close(spline_weights(1, 3), torch.ones(3, 1, dtype=torch.float64))
        assert torch.isfinite(spline_weights(3, 7)).all()

    def test_nothing(self) -> None:
        for keys, frames in ((0, 3), (3, 0)):
            with pytest.raises(ValueError, match="keys and frames"):
                spline_weights(keys, frames)


class TestInterpolation:
    def test_parts_of_cips3d_move_apart(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [3, 4, 5])
        both = interpolated_styles(styles, 9)
        shape = interpolated_styles(styles, 9, "shape")
        appearance = interpolated_styles(styles, 9, "appearance")
        assert isinstance(both, CIPS3DStyles)
        assert isinstance(shape, CIPS3DStyles)
        assert isinstance(appearance, CIPS3DStyles)
        for moving in (both.shape, shape.shape):
            torch.testing.assert_close(moving[::3], styles.shape, **ROUNDING)
        for moving in (both.appearance, appearance.appearance):
            torch.testing.assert_close(moving[::3], styles.appearance, **ROUNDING)
        assert torch.equal(shape.appearance, styles.appearance[:1].expand(9, -1))
        assert torch.equal(appearance.shape, styles.shape[:1].expand(9, -1))

    @pytest.mark.parametrize(
        "generator", [PiGAN(PIGAN_CONFIG), StyleGAN2(STYLEGAN2_CONFIG)], ids=["pigan", "stylegan2"]
    )
    def test_other_models_move_as_a_whole(self, generator: Generator) -> None:
        styles = styles_of_seeds(loaded_of(generator), [0, 1])
        way = interpolated_styles(styles, 4)
        assert type(way) is type(styles)
        for moved, style in zip(way, styles, strict=True):
            torch.testing.assert_close(moved[::2], style, **ROUNDING)
            torch.testing.assert_close(moved[1], (style[0] + style[1]) / 2, **ROUNDING)
        with pytest.raises(ValueError, match="part must be both"):
            interpolated_styles(styles, 4, "shape")


class TestMixing:
    def test_every_pair(self, loaded: LoadedGenerator) -> None:
        first, second = styles_of_seeds(loaded, [0, 1]), styles_of_seeds(loaded, [2, 3, 4])
        layers = loaded.generator.style_layers
        mixed = mixed_styles(loaded, first, second, 1)
        assert isinstance(mixed, CIPS3DStyles)
        assert mixed.appearance.shape == (6, layers, 8)
        for pair in range(6):
            row, column = divmod(pair, 3)
            assert torch.equal(mixed.shape[pair], first.shape[row])
            assert torch.equal(mixed.appearance[pair, 0], first.appearance[row])
            assert torch.equal(mixed.appearance[pair, 1], second.appearance[column])

    @pytest.mark.parametrize(
        "generator", [PiGAN(PIGAN_CONFIG), StyleGAN2(STYLEGAN2_CONFIG)], ids=["pigan", "stylegan2"]
    )
    def test_ends_are_the_faces_themselves(self, generator: Generator) -> None:
        loaded = loaded_of(generator)
        first, second = styles_of_seeds(loaded, [0]), styles_of_seeds(loaded, [1])
        layers = generator.style_layers
        own, other = mixed_styles(loaded, first, second, layers), mixed_styles(loaded, first, second, 0)
        for whole, expected in ((own, first), (other, second)):
            for mixed, style in zip(whole, expected, strict=True):
                assert torch.equal(mixed, style if style.dim() == 3 else style[:, None].expand_as(mixed))
        assert len(chosen(own, slice(0, 1))[0]) == 1

    def test_no_such_layer(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])
        for layer in (-1, loaded.generator.style_layers + 1):
            with pytest.raises(ValueError, match="layer must be 0 to"):
                mixed_styles(loaded, styles, styles, layer)
