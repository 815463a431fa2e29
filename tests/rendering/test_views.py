"""Pictures of styles from cameras."""

from __future__ import annotations

import math

import pytest
import torch
from checkpoints.small_runs import STEP

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3DStyles
from cips3d.models.generator import chosen
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings
from cips3d.rendering import LoadedGenerator, Look, render_pairs, render_views, styles_of_seeds, volume_at
from cips3d.rendering import views as views_module

FRONT = torch.tensor([math.pi / 2])

# Batches of other sizes take other paths through the matrix products: float32 rounding, and no more.
SAME = {"atol": 1e-5, "rtol": 0.0}


class TestRenderViews:
    def test_every_style_at_every_view(self, loaded: LoadedGenerator) -> None:
        """Each picture is what the generator gives for that style and camera alone."""
        styles = styles_of_seeds(loaded, [0, 1])
        pitch, yaw = torch.tensor([1.4, 1.6, 1.7]), torch.tensor([1.2, 1.5, 1.9])
        views = render_views(loaded, styles, pitch, yaw, Look((6, 9), ("image", "aux", "depth")))
        assert views.image.shape == (2, 3, 3, 6, 9)
        assert views.aux_image is not None
        assert views.depth is not None
        for s in range(2):
            for v in range(3):
                single = loaded.generator.synthesis(
                    CIPS3DStyles(styles.shape[s : s + 1], styles.appearance[s : s + 1]),
                    View(
                        (6, 9),
                        Cameras.from_angles(pitch[v : v + 1], yaw[v : v + 1], loaded.fov_degrees),
                        loaded.settings,
                        return_aux=True,
                        jitter=False,
                    ),
                )
                assert single.aux_image is not None
                torch.testing.assert_close(views.image[s, v], single.image[0], **SAME)
                torch.testing.assert_close(views.aux_image[s, v], single.aux_image[0], **SAME)
                filled = single.filled_depth(loaded.settings.t_far)
                torch.testing.assert_close(views.depth[s, v], filled[0], **SAME)
        assert (views.image[0, 0] - views.image[0, 2]).abs().max() > 1e-2
        assert (views.image[0, 0] - views.image[1, 0]).abs().max() > 1e-2

    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_batch_size_changes_nothing(self, loaded: LoadedGenerator, batch_size: int) -> None:
        styles = styles_of_seeds(loaded, [0, 1, 2])
        yaw = torch.tensor([1.4, 1.8])
        views = [
            render_views(loaded, styles, FRONT.expand(2), yaw, Look(5, ("image", "depth"), batch_size=size))
            for size in (batch_size, 3)
        ]
        torch.testing.assert_close(views[0].image, views[1].image, **SAME)
        torch.testing.assert_close(views[0].depth, views[1].depth, **SAME)

    def test_only_what_is_asked_for(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])
        plain = render_views(loaded, styles, FRONT, FRONT, Look(4))
        assert plain.aux_image is None
        assert plain.depth is None
        only_depth = render_views(loaded, styles, FRONT, FRONT, Look(4, ("image", "depth")))
        assert only_depth.aux_image is None
        assert only_depth.depth is not None
        assert only_depth.depth.shape == (1, 1, 1, 4, 4)

    def test_jitter(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])

        def pictures_of(seed: int | None) -> torch.Tensor:
            random = None if seed is None else torch.Generator().manual_seed(seed)
            jitter = seed is not None
            return render_views(loaded, styles, FRONT, FRONT, Look(8, jitter=jitter), generator=random).image

        assert torch.equal(pictures_of(None), pictures_of(None))
        assert torch.equal(pictures_of(1), pictures_of(1))
        assert not torch.equal(pictures_of(1), pictures_of(2))
        assert not torch.equal(pictures_of(1), pictures_of(None))

    def test_empty_space_is_far(self, loaded: LoadedGenerator) -> None:
        with torch.no_grad():
            for parameter in loaded.generator.nerf.parameters():
                parameter.zero_()  # relu(0) = 0: no density anywhere
        depth = render_views(loaded, styles_of_seeds(loaded, [0]), FRONT, FRONT, Look(4, ("image", "depth"))).depth
        assert depth is not None
        torch.testing.assert_close(depth, torch.full_like(depth, loaded.settings.t_far))

    def test_diverged_model(self, loaded: LoadedGenerator) -> None:
        with torch.no_grad():
            loaded.generator.aux_to_rgb.weight.fill_(torch.nan)
        styles = styles_of_seeds(loaded, [0])
        render_views(loaded, styles, FRONT, FRONT, Look(4))  # the auxiliary head is not looked at
        with pytest.raises(UserError, match=f"step {STEP}: its training diverged"):
            render_views(loaded, styles, FRONT, FRONT, Look(4, ("image", "aux")))

    def test_wrong_arguments_are_named(self, loaded: LoadedGenerator) -> None:
        styles = styles_of_seeds(loaded, [0])
        with pytest.raises(ValueError, match="pitch and yaw"):
            render_views(loaded, styles, FRONT, FRONT.expand(2), Look(4))
        with pytest.raises(ValueError, match="batch_size"):
            render_views(loaded, styles, FRONT, FRONT, Look(4, batch_size=0))


def test_generators_of_other_dtypes(loaded: LoadedGenerator) -> None:
    """Cameras are taken to the weights' dtype, whatever theirs is."""
    single = render_views(loaded, styles_of_seeds(loaded, [0]), FRONT, FRONT, Look(4, ("image", "depth")))
    loaded.generator.double()
    styles = styles_of_seeds(loaded, [0])
    double = render_views(loaded, styles, FRONT, FRONT, Look(4, ("image", "depth")))
    again = render_pairs(
        loaded, styles, Cameras.from_angles(FRONT, FRONT, loaded.fov_degrees), Look(4, ("image", "depth"))
    )
    assert double.image.dtype == torch.float64
    torch.testing.assert_close(double.image[0], again.image, atol=1e-6, rtol=0)
    torch.testing.assert_close(double.image.float(), single.image, atol=1e-4, rtol=0)


class TestRenderPairs:
    def test_every_style_from_its_own_camera(self, loaded: LoadedGenerator) -> None:
        """Cameras at several distances, in any order, as if each were alone."""
        styles = styles_of_seeds(loaded, [0, 1, 2, 3])
        radius = torch.tensor([1.0, 0.7, 1.0, 1.4])
        cameras = Cameras.from_angles(FRONT.expand(4), torch.tensor([1.4, 1.6, 1.7, 1.5]), 15.0, radius)
        together = render_pairs(loaded, styles, cameras, Look(6, ("image", "aux", "depth"), batch_size=3))
        for k in range(4):
            alone = render_pairs(
                loaded, chosen(styles, slice(k, k + 1)), cameras[k : k + 1], Look(6, ("image", "aux", "depth"))
            )
            for one, many in zip(alone, together, strict=True):
                assert one is not None
                assert many is not None
                torch.testing.assert_close(many[k], one[0], **SAME)

    def test_the_volume_stays_around_the_origin(self, loaded: LoadedGenerator) -> None:
        """The pictures of a camera at distance d are those of rays over the same ball."""
        styles = styles_of_seeds(loaded, [0])
        cameras = Cameras.from_angles(FRONT, FRONT, 12.0, radius=1.5)
        shown = render_pairs(loaded, styles, cameras, Look(6, ("image", "depth")))
        volume = VolumeSettings(samples=4, t_near=1.38, t_far=1.62)
        expected = loaded.generator.synthesis(styles, View(6, cameras, volume, jitter=False))
        # Near and far are rounded to other float32 numbers, and sines of steep arguments magnify that.
        torch.testing.assert_close(shown.image, expected.image, atol=1e-3, rtol=0)
        torch.testing.assert_close(shown.depth, expected.filled_depth(1.62), atol=1e-4, rtol=0)

    def test_large_pictures_are_rendered_one_by_one(
        self, loaded: LoadedGenerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches: list[int] = []
        original = type(loaded.generator).render

        def counted(self: object, styles: CIPS3DStyles, view: object) -> object:
            batches.append(len(styles.shape))
            return original(self, styles, view)  # type: ignore[arg-type]

        monkeypatch.setattr(type(loaded.generator), "render", counted)
        monkeypatch.setattr(views_module, "PIXELS_AT_ONCE", 2 * 36)
        styles = styles_of_seeds(loaded, [0, 1, 2, 3])
        cameras = Cameras.from_angles(FRONT.expand(4), FRONT.expand(4))
        for resolution in (4, 6, 12):
            render_pairs(loaded, styles, cameras, Look(resolution))
        assert batches == [4, 2, 2, 1, 1, 1, 1]

    def test_as_many_cameras_as_styles(self, loaded: LoadedGenerator) -> None:
        cameras = Cameras.from_angles(FRONT, FRONT)
        with pytest.raises(ValueError, match="styles and cameras"):
            render_pairs(loaded, styles_of_seeds(loaded, [0, 1]), cameras, Look(4))


class TestVolumeAt:
    def test_training_distance_changes_nothing(self) -> None:
        settings = VolumeSettings(samples=7, t_near=0.8, t_far=1.2)
        cameras = Cameras.from_angles(torch.tensor([1.2, 1.5, 1.9]), torch.tensor([0.3, 1.5, 2.9]))
        assert all(volume is settings for volume in views_module.volumes_of(settings, cameras))

    @pytest.mark.parametrize("distance", [0.3, 0.9, 1.0, 2.5])
    def test_rays_hold_the_same_ball(self, distance: float) -> None:
        volume = volume_at(VolumeSettings(t_near=0.8, t_far=1.3), distance)
        assert (volume.t_near, volume.t_far) == pytest.approx((distance - 0.2, distance + 0.3))

    def test_rays_end_behind_their_beginning(self) -> None:
        """Also where the volume, all of it before the origin, lies behind a camera that is very near."""
        volume = volume_at(VolumeSettings(t_near=0.5, t_far=0.9), 0.05)
        assert 0 < volume.t_near < volume.t_far

    @pytest.mark.parametrize("distance", [0.0, 0.05, 0.12])
    def test_rays_do_not_begin_behind_the_camera(self, distance: float) -> None:
        volume = volume_at(VolumeSettings(t_near=0.88, t_far=1.12), distance)
        assert 0 < volume.t_near < volume.t_far
        assert volume.t_far == pytest.approx(distance + 0.12)
