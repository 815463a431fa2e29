"""Faces that integers stand for."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from host_waits import copies

from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D, CIPS3DStyles
from cips3d.rendering import LoadedGenerator, parse_seeds, styles_of_seeds
from cips3d.rendering.seeds import check_seed, check_truncation

# Batches of other sizes take other paths through the matrix products: float32 rounding, and no more.
SAME = {"atol": 1e-5, "rtol": 0.0}


class TestStylesOfSeeds:
    def test_a_seed_is_the_same_face_in_any_company(self, loaded: LoadedGenerator) -> None:
        together = styles_of_seeds(loaded, [3, 11, 2**62, 0])
        for index, seed in enumerate([3, 11, 2**62, 0]):
            alone = styles_of_seeds(loaded, [seed])
            torch.testing.assert_close(together.shape[index], alone.shape[0], **SAME)
            torch.testing.assert_close(together.appearance[index], alone.appearance[0], **SAME)

    def test_any_integers_will_do(self, loaded: LoadedGenerator) -> None:
        expected = styles_of_seeds(loaded, [0, 1, 2])
        for seeds in (range(3), (k for k in range(3)), np.arange(3), torch.arange(3)):
            assert all(map(torch.equal, styles_of_seeds(loaded, seeds), expected))
        with pytest.raises(ValueError, match="seeds must hold at least one integer"):
            styles_of_seeds(loaded, np.arange(0))

    def test_seeds_differ_and_leave_the_global_generator_alone(self, loaded: LoadedGenerator) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        styles = styles_of_seeds(loaded, [0, 1])
        assert torch.equal(torch.get_rng_state(), before)
        assert (styles.shape[0] - styles.shape[1]).norm() > 1e-2
        assert (styles.appearance[0] - styles.appearance[1]).norm() > 1e-2

    def test_seeds_count_modulo_2_to_the_32(self, loaded: LoadedGenerator) -> None:
        """As torch's generators on the CPU do."""
        (a,), (b,) = (loaded.generator.z_of_seeds([seed])[0] for seed in (3, 2**32 + 3))
        assert torch.equal(a, b)

    def test_all_faces_are_copied_at_once(self, loaded: LoadedGenerator) -> None:
        """To the device, where it is another; here, to another dtype."""
        generator = copy.deepcopy(loaded.generator).double()
        with copies() as copied:
            z = generator.z_of_seeds([3, 11, 0, 4, 5])
        assert copied.count == len(z) == 2
        for seed, *drawn in zip((3, 11, 0, 4, 5), *z, strict=True):
            alone = loaded.generator.sample_z(1, generator=torch.Generator().manual_seed(seed))
            assert all(torch.equal(a, b[0].double()) for a, b in zip(drawn, alone, strict=True))

    def test_truncation(self, loaded: LoadedGenerator) -> None:
        free, half, none = (styles_of_seeds(loaded, [1, 2], psi) for psi in (1.0, 0.5, 0.0))
        for k in range(2):
            torch.testing.assert_close(half[k], (free[k] + loaded.mean_styles[k]) / 2, **SAME)
            torch.testing.assert_close(none[k], loaded.mean_styles[k].expand_as(none[k]), **SAME)

    def test_mean_is_computed_once_and_only_when_needed(
        self, loaded: LoadedGenerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        original = CIPS3D.mean_styles

        def counted(self: CIPS3D) -> CIPS3DStyles:
            calls.append(1)
            return original(self, 64)

        monkeypatch.setattr(CIPS3D, "mean_styles", counted)
        styles_of_seeds(loaded, [1])
        assert not calls
        styles_of_seeds(loaded, [1], 0.7)
        styles_of_seeds(loaded, [2], 0.3)
        assert len(calls) == 1

    def test_no_seeds(self, loaded: LoadedGenerator) -> None:
        with pytest.raises(ValueError, match="seeds"):
            styles_of_seeds(loaded, [])


class TestParseSeeds:
    @pytest.mark.parametrize(
        ("text", "seeds"),
        [
            ("3", [3]),
            ("0-7", list(range(8))),
            ("1,5,9-12", [1, 5, 9, 10, 11, 12]),
            (" 4 , 2 - 3 ", [4, 2, 3]),
            ("5-5", [5]),
            (str(2**63 - 1), [2**63 - 1]),
        ],
    )
    def test_lists(self, text: str, seeds: list[int]) -> None:
        assert parse_seeds(text) == seeds

    @pytest.mark.parametrize(
        "text",
        ["", ",", "a", "1,,2", "1-", "-3", "1-2-3", "7-0", "1.5", "0x3", "²", "٣", "0-99999", "9" * 5000, str(2**63)],
    )
    def test_mistakes_name_the_flag(self, text: str) -> None:
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_are_none(seed: int) -> None:
    check_seed(0)
    check_seed(2**63 - 1)
    with pytest.raises(UserError, match=f"--seed {seed} is out of range"):
        check_seed(seed)


@pytest.mark.parametrize("truncation", [math.inf, math.nan, 1e300, -1001.0])
def test_truncations_that_are_none(truncation: float) -> None:
    check_truncation(-2.5)
    with pytest.raises(UserError, match=re.escape(f"--truncation {truncation:g} is out of range")):
        check_truncation(truncation)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_of_faces_that_are_none(loaded: LoadedGenerator, seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seeds must lie between 0 and 2\^63 - 1, got {seed}"):
        styles_of_seeds(loaded, [0, seed])
