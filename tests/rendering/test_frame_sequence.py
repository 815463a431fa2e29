"""Films: which picture of which face stands where."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from convert.small_networks import CIPS_CONFIG, PIGAN_CONFIG
from evaluation.analytic import Analytic, loaded_of, sphere

from cips3d import pictures
from cips3d.cameras import TRAJECTORIES, CameraRange, Cameras
from cips3d.models.cips import CIPS
from cips3d.models.generator import chosen
from cips3d.models.pigan import PiGAN
from cips3d.rendering import (
    LoadedGenerator,
    interpolated_styles,
    load_generator,
    render_pairs,
    styles_of_seeds,
)
from cips3d.rendering.frame_sequence import (
    EMPTY,
    FrameSequence,
    Layout,
    arranged,
    arranged_size,
    every_face,
    interpolation,
    kinds_of,
    mixing,
    strip,
    take_pictures,
)
from cips3d.rendering.normals import normals_from_depth
from cips3d.rendering.views import Look

ALL = ("image", "aux", "depth", "normals")
CAMERAS = TRAJECTORIES["dolly"].cameras(5, CameraRange())  # a distance and an angle of view a frame

# Batches of other sizes take other paths through the matrix products: float32 rounding, and no more.
SAME = {"atol": 1e-5, "rtol": 0.0}


class TestKinds:
    def test_of_generators(self, loaded: LoadedGenerator) -> None:
        assert kinds_of(loaded.generator) == ALL
        assert kinds_of(PiGAN(PIGAN_CONFIG)) == ("image", "depth", "normals")
        assert kinds_of(CIPS(CIPS_CONFIG)) == ("image",)

    def test_each_is_what_it_says(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0, 1, 2, 3, 4])
        shown = take_pictures(loaded, styles, CAMERAS, Look(6, ALL)).unbind(1)
        views = render_pairs(loaded, styles, CAMERAS, Look(6, ("image", "aux", "depth")))
        assert views.aux_image is not None
        assert views.depth is not None
        torch.testing.assert_close(shown[0], views.image, **SAME)
        torch.testing.assert_close(shown[1], views.aux_image, **SAME)
        for k, distance in enumerate(CAMERAS.distance.tolist()):
            expected = pictures.depth_image(views.depth[k : k + 1], distance - 0.12, distance + 0.12)[0]
            torch.testing.assert_close(shown[2][k], expected, atol=1e-3, rtol=0)  # distances in steps of 1e-4
        for kind in ALL:
            alone = take_pictures(loaded, styles, CAMERAS, Look(6, (kind,)))
            torch.testing.assert_close(alone[:, 0], shown[ALL.index(kind)], **SAME)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_gpu_makes_normals_a_few_at_a_time_cuda(
        self, loaded: LoadedGenerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[tuple[str, int]] = []

        def counted(depth: torch.Tensor, cameras: Cameras) -> torch.Tensor:
            made.append((depth.device.type, len(depth)))
            return normals_from_depth(depth, cameras)

        monkeypatch.setattr("cips3d.rendering.frame_sequence.normals_from_depth", counted)
        gpu = replace(loaded, generator=copy.deepcopy(loaded.generator).to("cuda"))
        shown = take_pictures(gpu, styles_of_seeds(gpu, [0, 1, 2, 3, 4]), CAMERAS, Look(6, ALL, batch_size=2))
        assert made == [("cuda", 2), ("cuda", 2), ("cuda", 1)]
        assert (shown.shape, shown.device.type) == ((5, 4, 3, 6, 6), "cpu")
        expected = take_pictures(loaded, styles_of_seeds(loaded, [0, 1, 2, 3, 4]), CAMERAS, Look(6, ALL))
        torch.testing.assert_close(shown[:, :3], expected[:, :3], atol=5e-3, rtol=0)  # as on every device, see below

    def test_normals_are_grey_in_empty_space(self) -> None:
        generator = Analytic(sphere(0.05))
        styles = generator.mapping(torch.zeros(1, 3))
        cameras = Cameras.from_angles(torch.tensor([math.pi / 2]), torch.tensor([math.pi / 2]))
        normals = take_pictures(loaded_of(generator), styles, cameras, Look(33, ("normals",)))[0, 0]
        assert (normals[:, 0] == 0).all()
        torch.testing.assert_close(normals[:, 16, 16], torch.tensor([0.0, 0.0, 1.0]), atol=0.02, rtol=0)  # 1 degree


class TestFrameSequence:
    def test_every_face_in_every_frame(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0, 1, 2])
        sequence = every_face(loaded, styles, CAMERAS, Look(5, ALL, batch_size=7))
        whole = sequence.part(0, 5)
        assert whole.shape == (5, 3, 4, 3, 5, 5)
        for frame in range(5):
            for face in range(3):
                one = chosen(styles, slice(face, face + 1))
                expected = take_pictures(loaded, one, CAMERAS[frame : frame + 1], sequence.look)[0]
                torch.testing.assert_close(whole[frame, face], expected, **SAME)

    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_frames_are_its_parts(self, loaded: LoadedGenerator, batch_size: int) -> None:
        sequence = every_face(loaded, styles_of_seeds(loaded, [0, 1]), CAMERAS, Look(4, batch_size=batch_size))
        torch.testing.assert_close(torch.stack(list(sequence.frames())), sequence.part(0, 5), **SAME)

    def test_frames_are_made_when_they_are_asked_for(
        self, loaded: LoadedGenerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rendered: list[tuple[int, int]] = []
        original = FrameSequence.part

        def counted(self: FrameSequence, start: int, stop: int) -> torch.Tensor:
            rendered.append((start, stop))
            return original(self, start, stop)

        monkeypatch.setattr(FrameSequence, "part", counted)
        frames = every_face(loaded, styles_of_seeds(loaded, [0]), CAMERAS, Look(4, batch_size=2)).frames()
        assert rendered == []
        next(frames)
        next(frames)
        assert rendered == [(0, 2)]
        next(frames)
        assert rendered == [(0, 2), (2, 4)]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_frames_of_a_gpu_cuda(self, loaded: LoadedGenerator) -> None:
        """They come in their order, with the jitter of their turns."""
        loaded = replace(loaded, generator=copy.deepcopy(loaded.generator).to("cuda"))
        sequence = every_face(loaded, styles_of_seeds(loaded, [0]), CAMERAS, Look(4, jitter=True, batch_size=1))
        random = torch.Generator().manual_seed(0)
        parts = [replace(sequence, random=random).part(k, k + 1)[0] for k in range(len(sequence))]
        torch.testing.assert_close(torch.stack(list(sequence.frames())), torch.stack(parts), **SAME)

    def test_interpolation(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0, 1])
        sequence = interpolation(loaded, styles, CAMERAS, Look(4), "shape")
        expected = render_pairs(loaded, interpolated_styles(styles, 5, "shape"), CAMERAS, Look(4)).image
        torch.testing.assert_close(sequence.part(0, 5)[:, 0, 0], expected, **SAME)

    def test_mixing(self, loaded: LoadedGenerator) -> None:
        """First row and column are faces of their own, the corner is white, the rest are mixtures."""
        first, second = styles_of_seeds(loaded, [0, 1]), styles_of_seeds(loaded, [2, 3, 4])
        sequence = mixing(loaded, first, second, 1, CAMERAS[:2], Look(4))
        table = sequence.part(0, 2)[:, :, 0].unflatten(1, (3, 4))
        assert sequence.faces[0, 0] == EMPTY
        assert (table[:, 0, 0] == 1).all()
        look = Look(4)
        for frame in range(2):
            camera = CAMERAS[frame : frame + 1]
            for styles, places in ((first, table[frame, 1:, 0]), (second, table[frame, 0, 1:])):
                for k, place in enumerate(places):
                    own = take_pictures(loaded, chosen(styles, slice(k, k + 1)), camera, look)[0, 0]
                    torch.testing.assert_close(place, own, **SAME)
            mixed = loaded.generator.mixed(chosen(first, slice(1, 2)), chosen(second, slice(2, 3)), 1)
            torch.testing.assert_close(table[frame, 2, 3], take_pictures(loaded, mixed, camera, look)[0, 0], **SAME)

    def test_jitter_is_the_same_every_time(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])

        def shown(jitter: bool) -> torch.Tensor:
            return every_face(loaded, styles, CAMERAS, Look(4, jitter=jitter)).part(0, 5)

        assert torch.equal(shown(True), shown(True))
        assert not torch.equal(shown(True), shown(False))


class TestLayouts:
    def test_strip_has_a_column_a_frame(self, loaded: LoadedGenerator) -> None:
        sequence = every_face(loaded, styles_of_seeds(loaded, [0, 1]), CAMERAS[:3], Look(4, ("image", "depth")))
        picture = np.asarray(strip(sequence, None, None, 2))
        cell = 2 * 4 + pictures.GAP
        assert picture.shape == (4 * cell - pictures.GAP, 3 * cell - pictures.GAP, 3)
        shown = pictures.to_uint8(sequence.part(0, 3)).numpy()
        for row in range(4):
            for column in range(3):
                expected = shown[column, row // 2, row % 2].transpose(1, 2, 0)
                found = picture[row * cell : row * cell + 8 : 2, column * cell : column * cell + 8 : 2]
                np.testing.assert_array_equal(found, expected)

    def test_frame_has_kinds_side_by_side(self) -> None:
        frame = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, 4, 4).unflatten(0, (3, 2))  # 3 faces, 2 kinds
        picture = arranged(frame, Layout(2, ("a", "b"), ("c", "d")))
        width, height = arranged_size(3, Look(4, ("image", "depth")), Layout(2))
        grid = np.asarray(picture)[-height:, -width:]
        levels = pictures.to_uint8(torch.linspace(-1, 1, 6)).tolist()
        step = 4 + pictures.GAP
        assert grid[1, 1::step, 0].tolist() == levels[:4]
        assert grid[1 + step, 1 : 2 * step : step, 0].tolist() == levels[4:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to compare with the CPU")
def test_a_seed_is_the_same_face_on_every_device(run_folder: Path) -> None:
    """Also between faces, on any camera and with jitter, whose random numbers come from the CPU."""
    shown = []
    for device in ("cpu", "cuda"):
        loaded = load_generator(run_folder, device)
        styles = styles_of_seeds(loaded, [0, 7], 0.7)
        look = Look(8, ("image", "aux", "depth"), jitter=True)
        shown.append(interpolation(loaded, styles, CAMERAS, look).part(0, 5))
    # Products in another order: float32 rounding, magnified by sines of arguments of up to a hundred.
    torch.testing.assert_close(shown[1], shown[0], atol=5e-3, rtol=0)
