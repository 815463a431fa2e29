"""Sets of pictures: made on the fly, reproducible, and known by their content."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation.analytic import Analytic, loaded_of, plane, sphere, waves
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.data.heads import load_heads
from cips3d.data.images import open_images
from cips3d.errors import UserError
from cips3d.evaluation.image_sets import (
    BLOCK,
    SERIES_BATCH,
    GeneratedImages,
    SourceImages,
    WithProgress,
    generated_series,
    identity,
)
from cips3d.evaluation.views import FaceSample, seeds_of
from cips3d.models.cips3d import CIPS3D, CIPS3DConfig
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.pictures import to_uint8
from cips3d.rendering import LoadedGenerator, styles_of_seeds


@pytest.fixture(scope="module")
def loaded() -> LoadedGenerator:
    torch.manual_seed(0)
    config = CIPS3DConfig(
        z_shape_dim=4,
        shape_style_dim=4,
        nerf_width=8,
        z_appearance_dim=4,
        inr_width=8,
        rgb_init=1.0,
        density_scale=100.0,
    )
    return LoadedGenerator(CIPS3D(config).eval(), VolumeSettings(samples=4), 12.0, 8, PoseDistribution(), 7)


def test_picture_depends_on_seed_and_index_alone(loaded: LoadedGenerator) -> None:
    whole = torch.stack(list(DataLoader(GeneratedImages(loaded, 2 * BLOCK + 3), batch_size=None)))
    torch.manual_seed(99)
    other = GeneratedImages(loaded, 3 * BLOCK)
    for index in (2 * BLOCK + 2, 0, BLOCK, 1):
        assert torch.equal(other[index], whole[index])
    assert whole.dtype == torch.uint8
    assert whole.shape == (2 * BLOCK + 3, 3, 8, 8)
    changed = GeneratedImages(loaded, 2, seed=1)
    assert not torch.equal(changed[0], whole[0])
    assert len({image.numpy().tobytes() for image in whole}) == len(whole)


def test_every_block_is_rendered_once(loaded: LoadedGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    original = GeneratedImages._rendered
    monkeypatch.setattr(
        GeneratedImages, "_rendered", lambda self, block: rendered.append(block) or original(self, block)
    )
    images = GeneratedImages(loaded, BLOCK + 1)
    assert torch.equal(images[0], images[0])
    list(DataLoader(images, batch_size=4))
    assert rendered == [0, 1]


def test_series_is_one_stream(loaded: LoadedGenerator) -> None:
    """z, poses and jitter of a batch follow those of the batch before; pictures are as the generator gives them."""
    before = torch.get_rng_state()
    batches = list(generated_series(loaded, SERIES_BATCH + 3, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch) for batch in batches] == [SERIES_BATCH, 3]
    random = torch.Generator().manual_seed(5)
    for batch in batches:
        z = loaded.generator.sample_z(len(batch), generator=random)
        cameras = Cameras.from_angles(*loaded.poses.sample(len(batch), generator=random), loaded.fov_degrees)
        with torch.no_grad():
            shown = loaded.generator.render(
                loaded.generator.mapping(*z), View(8, cameras, loaded.settings, generator=random)
            )
        assert torch.equal(batch, shown.image)
    assert not torch.equal(next(generated_series(loaded, 3, seed=6)), batches[1])


def test_faces_and_cameras_are_those_of_training() -> None:
    """Colours tell the pose: its mean and spread are the distribution's, and faces are those of `seeds_of`."""

    def texture(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
        angles = [cameras.yaw - torch.pi / 2, cameras.pitch - torch.pi / 2, phase[:, 0] / 10]
        return torch.stack(angles, dim=1)[:, None].expand(*points.shape)

    known = replace(
        loaded_of(Analytic(plane(), texture), 2), poses=PoseDistribution("gaussian", yaw_std=0.2, pitch_std=0.1)
    )
    count = 400
    pictures = torch.stack(_all(GeneratedImages(known, count)))
    values = pictures[:, :, 0, 0].double() / 127.5 - 1
    spread = values[:, :2].std(0)
    assert spread.tolist() == pytest.approx([0.2, 0.1], rel=0.15)  # deviations of 400 draws: 3.5 % each
    assert values[:, :2].mean(0).tolist() == pytest.approx([0, 0], abs=0.04)
    styles = styles_of_seeds(known, seeds_of(0, range(count)))
    torch.testing.assert_close(values[:, 2], styles[0][:, 0].double() / 10, atol=1 / 127, rtol=0)


def _all(images: GeneratedImages) -> list[Tensor]:
    return [images[i] for i in range(len(images))]


def test_truncation_and_resolution(loaded: LoadedGenerator) -> None:
    typical = torch.stack(_all(GeneratedImages(loaded, 6, truncation=0.0, resolution=12))).float()
    free = torch.stack(_all(GeneratedImages(loaded, 6, resolution=12))).float()
    assert typical.shape == (6, 3, 12, 12)
    assert typical.std(0).mean() < free.std(0).mean()  # one face, from six sides


def test_jitter_is_that_of_training(loaded: LoadedGenerator) -> None:
    """The same face and camera without jitter look a little different."""
    random = PoseDistribution("fixed")
    image = GeneratedImages(replace(loaded, poses=random), 1)[0]
    styles = styles_of_seeds(loaded, seeds_of(0, range(1)))
    front = torch.tensor([torch.pi / 2])
    still = loaded.generator.render(styles, View(8, Cameras.from_angles(front, front), loaded.settings, jitter=False))
    difference = (to_uint8(still.image)[0].int() - image.int()).abs()
    assert 0 < difference.float().mean() < 40


def test_diverged_model() -> None:
    def texture(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
        return waves(points, phase, cameras) * torch.nan

    with pytest.raises(UserError, match="training diverged"):
        GeneratedImages(loaded_of(Analytic(sphere(0.08), texture)), 1)[0]


def test_ends_and_mistakes(loaded: LoadedGenerator) -> None:
    images = GeneratedImages(loaded, 3)
    with pytest.raises(IndexError, match="picture 3 of 3"):
        images[3]
    with pytest.raises(ValueError, match="count"):
        GeneratedImages(loaded, 0)


def test_seeds_have_no_face_in_common() -> None:
    first, second = FaceSample(100).seeds(), FaceSample(100, seed=1).seeds()
    assert len({*first, *second}) == 200
    assert FaceSample(5).seeds() == first[:5]
    assert all(0 <= seed < 2**63 for seed in first)


def test_bar_counts_every_picture_once(loaded: LoadedGenerator) -> None:
    with tqdm(total=5, disable=True) as silent, tqdm(total=5, file=Path(os.devnull).open("w")) as bar:
        assert len(WithProgress(GeneratedImages(loaded, 5), silent)) == 5
        watched = WithProgress(GeneratedImages(loaded, 5), bar)
        watched[0]
        for index in range(5):
            watched[index]
        assert bar.n == 5


class TestIdentity:
    def test_folders(self, photo_folder: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(photo_folder, copy)  # with the times of the files
        name = identity(open_images(copy, 8))
        assert name == identity(open_images(photo_folder, 8))
        assert name != identity(open_images(copy, 16))
        assert "/" not in name
        (copy / "00.png").write_bytes((copy / "01.png").read_bytes())
        changed = identity(open_images(copy, 8))
        assert changed != name
        (copy / "00.png").unlink()
        assert identity(open_images(copy, 8)) not in (name, changed)

    def test_files_of_one_size(self, photo_folder: Path, tmp_path: Path) -> None:
        """Another picture may have as many bytes; the time tells that it was written."""
        copy = tmp_path / "copy"
        shutil.copytree(photo_folder, copy)
        name = identity(open_images(copy, 8))
        os.utime(copy / "00.png", ns=(0, (copy / "00.png").stat().st_mtime_ns + 1000))
        assert identity(open_images(copy, 8)) != name

    def test_zips_by_content(self, photo_folder: Path, tmp_path: Path) -> None:
        names = []
        for archive, extra in (("a.zip", b""), ("b.zip", b""), ("c.zip", b"x")):
            with zipfile.ZipFile(tmp_path / archive, "w") as file:
                for photo in sorted(photo_folder.iterdir()):
                    file.writestr(photo.name, photo.read_bytes() + extra)
            names.append(identity(open_images(tmp_path / archive, 8)))
        assert names[0] == names[1] != names[2]

    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_files_that_change_while_they_are_open(self, photo_folder: Path, tmp_path: Path, kind: str) -> None:
        """What was decoded at the beginning is what counts, and the new pictures are others."""
        data = tmp_path / ("photos" if kind == "folder" else "photos.zip")

        def write(order: int) -> None:
            photos = [path.read_bytes() for path in sorted(photo_folder.iterdir())[:4]][::order]
            if kind == "folder":
                data.mkdir(exist_ok=True)
                for index, photo in enumerate(photos):
                    (data / f"{index}.png").write_bytes(photo)
                return
            with zipfile.ZipFile(tmp_path / "new.zip", "w") as file:
                for index, photo in enumerate(photos):
                    file.writestr(f"{index}.png", photo)
            (tmp_path / "new.zip").replace(data)

        write(1)
        opened = open_images(data, 8)
        name = identity(opened)
        write(-1)
        assert identity(opened) == name != identity(open_images(data, 8))
        shutil.rmtree(data) if kind == "folder" else data.unlink()
        assert identity(opened) == name

    def test_heads(self, tmp_path: Path) -> None:
        first, second = (load_heads(8, 2, seed, cache=tmp_path, progress=False) for seed in (0, 1))
        assert identity(first) == load_heads(8, 2, 0, cache=tmp_path, progress=False).folder.name
        assert identity(first) != identity(second)


def test_source_images(photo_folder: Path) -> None:
    source = open_images(photo_folder, 8)
    images = SourceImages(source)
    assert len(images) == 12
    assert torch.equal(images[3], source[3])
