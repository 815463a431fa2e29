"""Closed-form semantic directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from convert.small_networks import CIPS3D_CONFIG, CIPS_CONFIG, PIGAN_CONFIG, STYLEGAN2_CONFIG
from torch import Tensor

from cips3d.editing import edited, principal_directions, semantic_directions
from cips3d.models.cips3d import CIPS3D, CIPS3DStyles
from cips3d.models.family import AnyGenerator, make_generator
from cips3d.models.generator import Generator, styles_by_layer
from cips3d.models.pigan import PiGAN

CONFIGS = {"cips3d": CIPS3D_CONFIG, "pigan": PIGAN_CONFIG, "cips": CIPS_CONFIG, "stylegan2": STYLEGAN2_CONFIG}
BRANCHES = [("cips3d", "shape"), ("cips3d", "appearance"), ("pigan", "style"), ("cips", "w"), ("stylegan2", "w")]
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}  # float32 vectors of length 1


def made(name: str) -> AnyGenerator:
    torch.manual_seed(0)
    return make_generator(CONFIGS[name]).requires_grad_(False).eval()


def styles_from(generator: AnyGenerator, count: int, seed: int = 1) -> tuple[Tensor, ...]:
    styles: tuple[Tensor, ...] = generator.mapping(
        *generator.sample_z(count, generator=torch.Generator().manual_seed(seed))
    )
    return styles


class TestPrincipalDirections:
    def test_equal_to_numpy(self) -> None:
        """Eigenvectors of AᵀA are the right singular vectors of A, eigenvalues its squared singular values."""
        torch.manual_seed(3)
        weights = [torch.randn(5, 7), 3 * torch.randn(9, 7), torch.randn(2, 7)]
        eigenvalues, vectors = principal_directions(weights)
        stacked = np.concatenate([weight.numpy() for weight in weights]).astype(np.float64)
        _, singular, expected = np.linalg.svd(stacked, full_matrices=False)
        np.testing.assert_allclose(eigenvalues.numpy(), singular**2, rtol=1e-10)
        expected *= np.sign(expected[np.arange(7), np.abs(expected).argmax(1)])[:, None]
        # Double precision, but for the gaps between eigenvalues, which are about a tenth of them.
        np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-9)

    def test_as_many_as_the_rank(self) -> None:
        torch.manual_seed(4)
        eigenvalues, vectors = principal_directions([torch.randn(2, 6), torch.randn(1, 6)])
        assert vectors.shape == (3, 6)
        assert eigenvalues.shape == (3,)

    def test_what_float32_would_round_away_is_no_direction(self) -> None:
        """Of singular values 1e-7, 1 and 1e-4, the first."""
        eigenvalues, vectors = principal_directions([torch.diag(torch.tensor([1e-7, 1.0, 1e-4]))])
        assert eigenvalues.tolist() == pytest.approx([1.0, 1e-8])
        torch.testing.assert_close(vectors, torch.eye(3, dtype=torch.float64)[1:])


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
class TestDirections:
    def test_orthonormal_and_sorted(self, name: str, branch: str) -> None:
        directions = semantic_directions(made(name), branch)
        vectors = directions.vectors
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(directions)), **ROUNDING)
        assert (directions.eigenvalues.diff() <= 0).all()
        assert (directions.eigenvalues > 0).all()

    def test_the_first_changes_the_layers_most(self, name: str, branch: str) -> None:
        """Among all unit vectors; and every direction most among those orthogonal to the ones before it."""
        generator = made(name)
        directions = semantic_directions(generator, branch, [0, 2])
        weights = generator.style_weights()[branch]
        stacked = torch.cat([weights[0], weights[2]])
        others = torch.nn.functional.normalize(torch.randn(1000, stacked.shape[1]), dim=1)
        for index in range(min(3, len(directions))):
            change = (stacked @ directions.vectors[index]).norm()
            torch.testing.assert_close(change, directions.eigenvalues[index].sqrt().float(), **ROUNDING)
            assert change >= (others @ stacked.T).norm(dim=1).max() - 1e-5  # rounding
            before = directions.vectors[: index + 1]
            others = torch.nn.functional.normalize(others - others @ before.T @ before, dim=1)

    def test_strength_1_is_a_standard_deviation(self, name: str, branch: str) -> None:
        """Moving by k adds k to a face's place along the direction, in which random faces have deviation 1."""
        generator = made(name)
        directions = semantic_directions(generator, branch)
        styles = styles_from(generator, 4096)

        def places(styles: tuple[Tensor, ...]) -> Tensor:
            along: Tensor = torch.zeros(len(styles[0]))
            size: Tensor = torch.zeros(())
            for style, offset in zip(styles, directions.offsets, strict=True):
                along = along + (styles_by_layer(style, offset.shape[1]) * offset[1]).flatten(1).sum(1)
                size = size + offset[1].square().sum()
            return along / size

        # Two samples of 2048 and 4096 numbers: standard errors of 1.6% and 1.1%.
        torch.testing.assert_close(places(styles).std(), torch.tensor(1.0), atol=0.08, rtol=0)
        moved = edited(styles, directions, 1, 2.5)
        torch.testing.assert_close(places(moved) - places(styles), torch.full((4096,), 2.5), atol=1e-3, rtol=0)

    def test_only_the_chosen_layers_move(self, name: str, branch: str) -> None:
        generator = made(name)
        directions = semantic_directions(generator, branch, [2, 1, 2])
        assert directions.layers == (1, 2)
        styles = styles_from(generator, 3)
        moved = edited(styles, directions, 0, -2.0)
        assert type(moved) is type(styles)
        count = len(generator.style_weights()[branch])
        kept = [layer for layer in range(count) if layer not in (1, 2)]
        for name_of_part, style, after in zip(type(styles)._fields, styles, moved, strict=True):  # type: ignore[attr-defined]
            if branch in type(styles)._fields and name_of_part != branch:  # type: ignore[attr-defined]
                assert after is style
                continue
            before = styles_by_layer(style, count)
            assert torch.equal(after[:, kept], before[:, kept])
            assert (after[:, [1, 2]] != before[:, [1, 2]]).any(dim=-1).all()

    def test_no_strength_leaves_styles_as_they_are(self, name: str, branch: str) -> None:
        generator = made(name)
        styles = styles_from(generator, 2)
        assert edited(styles, semantic_directions(generator, branch), 0, 0.0) is styles


def test_branches_are_decomposed_by_their_own_layers() -> None:
    """CIPS-3D: the shape by gains and shifts of the NeRF, the appearance by modulations of the INR."""
    generator = made("cips3d")
    assert isinstance(generator, CIPS3D)
    films = [*generator.nerf.layers, generator.nerf.color]
    shape = np.concatenate([np.concatenate([film.gain.weight, film.shift.weight]) for film in films])
    appearance = np.concatenate([layer.modulation.weight for layer in generator.inr.layers])
    for branch, stacked in (("shape", shape), ("appearance", appearance)):
        directions = semantic_directions(generator, branch)
        expected = np.linalg.eigvalsh(stacked.astype(np.float64).T @ stacked.astype(np.float64))[::-1]
        np.testing.assert_allclose(directions.eigenvalues.numpy(), expected, rtol=1e-6)  # float32 weights
    assert semantic_directions(generator).branch == "shape"


def test_pigan_moves_as_if_its_last_activations_did() -> None:
    generator = made("pigan")
    assert isinstance(generator, PiGAN)
    last = generator.style_mapping.linears[-1]
    hidden: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, given: hidden.append(given[0]))
    styles = styles_from(generator, 2)
    hook.remove()
    directions = semantic_directions(generator)
    moved = edited(styles, directions, 0, 1.5)
    unit = generator.style_offsets("style", directions.vectors[:1], range(generator.style_layers))
    deviation = directions.offsets[0][0].norm() / unit[0].norm()
    expected = last(hidden[0] + 1.5 * deviation * directions.vectors[0])
    found = torch.cat([part.flatten(1) for part in moved], dim=1)
    torch.testing.assert_close(found, expected, **ROUNDING)


def test_styles_by_layer_are_moved_as_well() -> None:
    generator = made("cips3d")
    directions = semantic_directions(generator, "appearance", [0])
    styles = styles_from(generator, 2)
    assert isinstance(styles, CIPS3DStyles)
    by_layer = styles._replace(appearance=styles_by_layer(styles.appearance, generator.style_layers).clone())
    for one, other in zip(edited(styles, directions, 0, 1.0), edited(by_layer, directions, 0, 1.0), strict=True):
        assert torch.equal(one, other)


def test_mistakes() -> None:
    generator = made("cips3d")
    with pytest.raises(ValueError, match="branch must be one of shape, appearance"):
        semantic_directions(generator, "w")
    for layers in ([], [-1], [0, 3]):
        with pytest.raises(ValueError, match="layers must be one or more of 0 to 2"):
            semantic_directions(generator, "shape", layers)
    directions = semantic_directions(generator, "shape")
    for index in (-1, len(directions)):
        with pytest.raises(ValueError, match="index must be 0 to"):
            edited(styles_from(generator, 1), directions, index, 1.0)


def test_models_without_style_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIPS3D, "style_weights", Generator.style_weights)
    with pytest.raises(ValueError, match="CIPS3D has no styles that could be decomposed"):
        semantic_directions(made("cips3d"))
