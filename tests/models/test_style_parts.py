"""What editing and stylisation take models apart by: blocks of weights, and the weights that styles meet."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from convert.small_networks import CIPS3D_CONFIG, CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG
from torch import Tensor, nn

from cips3d.cameras import Cameras
from cips3d.models.cips import CIPS
from cips3d.models.cips3d import CIPS3D
from cips3d.models.family import AnyGenerator, make_generator
from cips3d.models.generator import styles_by_layer, styles_of
from cips3d.models.nerf import FilmSiren
from cips3d.models.pigan import PiGAN
from cips3d.models.stylegan2 import StyleGAN2
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings

CONFIGS = {
    "cips3d": CIPS3D_CONFIG,
    "pigan": PIGAN_CONFIG,
    "pigan-grid": dataclasses.replace(PIGAN_CONFIG, grid_resolution=3, grid_width=4),
    "cips": CIPS_CONFIG,
    "cips-residual": dataclasses.replace(CIPS_CONFIG, variant="residual"),
    "stylegan2": STYLEGAN2_CONFIG,
}


@pytest.fixture(params=CONFIGS)
def generator(request: pytest.FixtureRequest) -> AnyGenerator:
    torch.manual_seed(0)
    return make_generator(CONFIGS[request.param]).eval()


class TestWeightParts:
    def test_every_weight_is_in_one_part(self, generator: AnyGenerator) -> None:
        parts = generator.weight_parts()
        prefixes = [prefix for block in parts.blocks for prefix in block] + [*parts.mapping, *parts.shape]
        for name in generator.state_dict():
            found = [prefix for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")]
            assert len(found) == 1, (name, found)
        for prefix in prefixes:
            assert any(f"{name}.".startswith(f"{prefix}.") for name in generator.state_dict()), prefix

    def test_blocks_of_cips3d(self) -> None:
        parts = CIPS3D(dataclasses.replace(CIPS3D_CONFIG, inr_blocks=3, inr_rgb_from=1)).weight_parts()
        assert parts.blocks == (
            ("inr.layers.0", "inr.layers.1"),
            ("inr.layers.2", "inr.layers.3", "inr.to_rgb.0"),
            ("inr.layers.4", "inr.layers.5", "inr.to_rgb.1"),
        )

    def test_blocks_of_stylegan2_are_its_resolutions(self) -> None:
        """What a block holds is what a picture of its resolution needs beyond one of half of it."""
        parts = StyleGAN2(STYLEGAN2_CONFIG).weight_parts()
        smaller = StyleGAN2(dataclasses.replace(STYLEGAN2_CONFIG, channels={4: 6, 8: 5})).weight_parts()
        assert parts.blocks[:2] == smaller.blocks
        assert len(parts.blocks) == 3

    def test_blocks_of_cips(self) -> None:
        for variant in ("skip", "residual"):
            generator = CIPS(dataclasses.replace(CIPS_CONFIG, variant=variant))
            blocks = generator.weight_parts().blocks
            assert len(blocks) == 1 + len(CIPS_CONFIG.block_widths)
            assert ("network.to_rgb" in blocks[-1]) == (variant == "residual")

    def test_blocks_of_pigan_are_its_sine_layers(self) -> None:
        assert len(PiGAN(PIGAN_CONFIG).weight_parts().blocks) == PIGAN_CONFIG.layers + 1


class Modulations:
    """What all linear layers that take styles give in a picture."""

    def __init__(self, generator: AnyGenerator) -> None:
        self.generator = generator
        self.given: dict[str, Tensor] = {}
        for name, module in generator.named_modules():
            if name.endswith(".modulation"):
                self._watch(name, module)
            if isinstance(module, FilmSiren):
                self._watch(f"{name}.gain", module.gain)
                self._watch(f"{name}.shift", module.shift)

    def _watch(self, name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: self.given.update({name: output[0]}))

    @torch.no_grad()
    def of(self, styles: tuple[Tensor, ...]) -> dict[str, Tensor]:
        self.given = {}
        front = torch.tensor([math.pi / 2])
        side = self.generator.fixed_resolution or 4
        view = View(side, Cameras.from_angles(front, front), VolumeSettings(samples=4), jitter=False)
        self.generator.render(styles, view)
        return dict(self.given)


class TestStyleWeights:
    @pytest.mark.parametrize("generator", ["cips3d", "cips", "cips-residual", "stylegan2"], indirect=True)
    def test_are_what_a_picture_is_modulated_by(self, generator: AnyGenerator) -> None:
        """Moving layer k of a branch by v changes all modulations in a picture by (matrix k) v, and nothing else."""
        styles = generator.mapping(*generator.sample_z(1))
        modulations = Modulations(generator)
        for branch, matrices in generator.style_weights().items():
            for layer, matrix in enumerate(matrices):
                vector = torch.randn(1, matrix.shape[1])
                offsets = generator.style_offsets(branch, vector, [layer])
                by_layer = styles_of(
                    styles, [styles_by_layer(s, o.shape[1]) for s, o in zip(styles, offsets, strict=True)]
                )
                before = modulations.of(by_layer)
                after = modulations.of(styles_of(styles, [s + o for s, o in zip(by_layer, offsets, strict=True)]))
                moved = [after[name] - before[name] for name in before if (after[name] != before[name]).any()]
                found = torch.cat(moved).square().sum().sqrt()
                # Differences of float32 numbers of size 1 against a change of size 1.
                torch.testing.assert_close(found, (matrix @ vector[0]).norm(), rtol=1e-4, atol=1e-5)
                assert sum(len(part) for part in moved) == len(matrix)

    @pytest.mark.parametrize("generator", ["pigan", "pigan-grid"], indirect=True)
    def test_of_pigan_give_its_styles(self, generator: PiGAN) -> None:
        """Styles are B h + b: moving h by v moves all of them by B v, and by layer those of that layer."""
        (z,) = generator.sample_z(1)
        inputs: list[Tensor] = []
        last = generator.style_mapping.linears[-1]
        last.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
        styles = generator.mapping(z)
        vector = torch.randn(1, inputs[0].shape[1])
        frequencies, phases = (part.view(1, 4, 6) for part in last(inputs[0] + vector).chunk(2, dim=1))
        offsets = generator.style_offsets("style", vector, range(4))
        torch.testing.assert_close(styles.frequencies + offsets.frequencies, frequencies)
        torch.testing.assert_close(styles.phases + offsets.phases, phases)
        one = generator.style_offsets("style", vector, [2])
        for whole, part in zip(offsets, one, strict=True):
            assert torch.equal(part[:, 2], whole[:, 2])
            assert not part[:, [0, 1, 3]].any()
        matrix = generator.style_weights()["style"][2]
        torch.testing.assert_close(torch.cat([one.frequencies[0, 2], one.phases[0, 2]]), matrix @ vector[0])

    def test_all_chosen_layers_move_by_the_whole_vector(self, generator: AnyGenerator) -> None:
        for branch, matrices in generator.style_weights().items():
            vector = torch.randn(1, matrices[0].shape[1])
            together = generator.style_offsets(branch, vector, [0, 2])
            apart = [generator.style_offsets(branch, vector, [layer]) for layer in (0, 2)]
            for found, first, second in zip(together, *apart, strict=True):
                torch.testing.assert_close(found, first + second)

    def test_as_many_as_style_layers(self, generator: AnyGenerator) -> None:
        *_, (_, matrices) = generator.style_weights().items()
        assert len(matrices) == generator.style_layers

    def test_no_such_branch(self, generator: AnyGenerator) -> None:
        with pytest.raises(ValueError, match="branch must be one of"):
            generator.style_offsets("voice", torch.zeros(1, 8), [0])
