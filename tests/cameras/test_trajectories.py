"""Moving cameras: what stays, what changes, and that they come back."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor

from cips3d.cameras import FRONT, TRAJECTORIES, CameraRange, Cameras, trajectories
from cips3d.cameras.trajectories import yaw_sweep

FRAMES = 48
EXTENT = CameraRange(pitch=(1.3, 1.7), yaw=(1.2, 2.1), distance=(0.4, 1.8), shift=0.3, fov_degrees=14.0)
MIDDLE_PITCH, MIDDLE_YAW = 1.5, 1.65
ROUNDING = 2e-6  # cameras are float32 numbers around 1; some are made in several steps


def cameras_of(name: str, extent: CameraRange = EXTENT, frames: int = FRAMES) -> Cameras:
    return TRAJECTORIES[name].cameras(frames, extent)


def pictured(cameras: Cameras, points: Tensor) -> Tensor:
    """Places [F, P, 2] of points [P, 3] or [F, P, 3] in units of the picture's half height; right and up."""
    local = (points - cameras.position[:, None]) @ cameras.rotation
    half = torch.tan(torch.deg2rad(cameras.fov_degrees) / 2)[:, None, None]
    return local[..., :2] / (-local[..., 2:] * half)


@pytest.mark.parametrize("name", TRAJECTORIES)
class TestEvery:
    def test_is_a_camera_a_frame(self, name: str) -> None:
        cameras = cameras_of(name)
        assert len(cameras) == FRAMES
        assert {t.dtype for t in (cameras.rotation, cameras.position, cameras.fov_degrees)} == {torch.float32}
        identity = torch.eye(3).expand(FRAMES, 3, 3)
        torch.testing.assert_close(cameras.rotation @ cameras.rotation.mT, identity, atol=ROUNDING, rtol=0)
        assert (torch.linalg.det(cameras.rotation) > 0).all()

    def test_ends_where_it_began_without_jumps(self, name: str) -> None:
        """The step from the last frame to the first is no larger than others; with twice the frames steps halve."""

        def largest_step(frames: int) -> float:
            c = cameras_of(name, frames=frames)
            state = torch.cat([c.rotation.flatten(1), c.position, torch.deg2rad(c.fov_degrees)[:, None]], dim=1)
            return float((state - state.roll(-1, 0)).norm(dim=1).max())

        if name == "front":
            assert largest_step(24) == 0
        else:
            assert largest_step(480) < 0.6 * largest_step(240) < 0.3

    def test_one_frame_will_do(self, name: str) -> None:
        assert torch.isfinite(cameras_of(name, frames=1).position).all()

    def test_no_frames(self, name: str) -> None:
        with pytest.raises(ValueError, match="frames"):
            cameras_of(name, frames=0)

    def test_ranges_are_what_matters(self, name: str) -> None:
        """A trajectory changes with the ranges that it goes through; of the others only the middle counts."""
        wider = {"pitch": (1.2, 1.8), "yaw": (1.1, 2.2), "distance": (0.2, 3.0), "shift": 0.5}
        for field, value in wider.items():
            changed = cameras_of(name, CameraRange(**{**vars(EXTENT), field: value}))
            same = torch.allclose(changed.position, cameras_of(name).position, atol=ROUNDING)
            assert same == (field not in TRAJECTORIES[name].ranges)


@pytest.mark.parametrize("name", ["front", "yaw", "circle"])
class TestOnTheSphere:
    def test_distance_and_angle_of_view_stay(self, name: str) -> None:
        cameras = cameras_of(name)
        torch.testing.assert_close(cameras.distance, torch.ones(FRAMES), atol=ROUNDING, rtol=0)
        assert (cameras.fov_degrees == 14.0).all()

    def test_origin_stays_in_the_middle(self, name: str) -> None:
        assert pictured(cameras_of(name), torch.zeros(1, 3)).abs().max() < 10 * ROUNDING  # 1 / tan(7°) = 8


class TestAngles:
    def test_front(self) -> None:
        cameras = cameras_of("front")
        torch.testing.assert_close(cameras.pitch, torch.full((FRAMES,), MIDDLE_PITCH), atol=ROUNDING, rtol=0)
        torch.testing.assert_close(cameras.yaw, torch.full((FRAMES,), MIDDLE_YAW), atol=ROUNDING, rtol=0)

    def test_yaw(self) -> None:
        cameras = cameras_of("yaw")
        torch.testing.assert_close(cameras.pitch, torch.full((FRAMES,), MIDDLE_PITCH), atol=ROUNDING, rtol=0)
        torch.testing.assert_close(cameras.yaw, yaw_sweep(EXTENT.yaw, FRAMES), atol=ROUNDING, rtol=0)

    @pytest.mark.parametrize("name", ["circle", "dolly"])
    def test_circle_is_an_ellipse(self, name: str) -> None:
        """((yaw - middle) / half)² + ((pitch - middle) / half)² = 1, at even steps of its angle."""
        cameras = cameras_of(name)
        x, y = (cameras.yaw - MIDDLE_YAW) / 0.45, (cameras.pitch - MIDDLE_PITCH) / 0.2
        torch.testing.assert_close(x.square() + y.square(), torch.ones(FRAMES), atol=1e-4, rtol=0)  # acos near π/2
        assert (cameras.yaw.max(), cameras.yaw.min()) == pytest.approx(EXTENT.yaw[::-1], abs=1e-5)
        assert (cameras.pitch.max(), cameras.pitch.min()) == pytest.approx(EXTENT.pitch[::-1], abs=1e-5)


class TestDolly:
    def test_what_lies_across_the_origin_keeps_its_size(self) -> None:
        """A cross in the plane through the origin that faces the camera is pictured the same in every frame."""
        cameras = cameras_of("dolly")
        right, up, _ = cameras.rotation.unbind(-1)
        cross = 0.05 * torch.stack([right, up, -right, -up], dim=1)  # [F, 4, 3]
        half = math.tan(math.radians(14) / 2)
        expected = 0.05 / half * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        torch.testing.assert_close(pictured(cameras, cross), expected.expand(FRAMES, 4, 2), atol=10 * ROUNDING, rtol=0)

    def test_perspective_changes(self) -> None:
        """Of two equal things, the nearer one is larger by (d + z) / (d - z)."""
        cameras = cameras_of("dolly")
        right, _, back = cameras.rotation.unbind(-1)
        pair = torch.stack([0.05 * right + 0.1 * back, 0.05 * right - 0.1 * back], dim=1)
        near, far = pictured(cameras, pair)[..., 0].unbind(1)
        torch.testing.assert_close(near / far, (cameras.distance + 0.1) / (cameras.distance - 0.1), atol=1e-4, rtol=0)

    def test_comes_near_and_goes_far(self) -> None:
        distance = cameras_of("dolly").distance
        assert (float(distance.min()), float(distance.max())) == pytest.approx((0.4, 1.8), abs=1e-5)
        assert distance[12] == pytest.approx(math.sqrt(0.4 * 1.8), abs=1e-5)  # equal ratios, not equal lengths

    def test_at_training_distance_the_angle_of_view_is_the_models(self) -> None:
        still = cameras_of("dolly", CameraRange(distance=(1.0, 1.0)))
        torch.testing.assert_close(still.fov_degrees, torch.full((FRAMES,), 12.0))
        torch.testing.assert_close(still.position, cameras_of("circle", CameraRange()).position)


class TestTranslations:
    @pytest.mark.parametrize("name", ["translate", "translate-rotate"])
    def test_slides_in_its_own_plane(self, name: str) -> None:
        """The origin wanders through the picture by the shift to each side, first across, then up and down."""
        cameras = cameras_of(name, frames=480)
        front = cameras_of("front", frames=480)
        places = pictured(Cameras(front.rotation, cameras.position, front.fov_degrees), torch.zeros(1, 3))[:, 0]
        assert (places.max(), places.min()) == pytest.approx((0.3, -0.3), abs=1e-4)
        across, upward = places.abs().unbind(1)
        assert across.minimum(upward).max() < 10 * ROUNDING  # never both at once
        assert int(across.argmax()) < int(upward.argmax())
        torch.testing.assert_close(
            cameras.position @ front.rotation[0, :, 2], torch.ones(480), atol=ROUNDING, rtol=0
        )  # neither nearer nor farther

    @pytest.mark.parametrize("name", ["translate", "translate-rotate"])
    def test_begins_to_the_right_and_upward(self, name: str) -> None:
        front = cameras_of("front", frames=480)
        moved = ((cameras_of(name, frames=480).position - front.position)[:, None] @ front.rotation)[:, 0]
        for axis in (0, 1):
            assert 0 <= int(moved[:, axis].argmin()) - int(moved[:, axis].argmax()) < 240
            assert moved[:, axis].max() > 0.03 and moved[:, axis].min() < -0.03

    def test_translation_does_not_turn(self) -> None:
        assert torch.equal(cameras_of("translate").rotation, cameras_of("front").rotation)

    def test_then_it_turns_once_around_the_viewing_axis(self) -> None:
        cameras, front = cameras_of("translate-rotate"), cameras_of("front")
        torch.testing.assert_close(cameras.rotation[..., 2], front.rotation[..., 2], atol=ROUNDING, rtol=0)
        up_in_front = (front.rotation.mT @ cameras.rotation[..., 1:2])[..., 0]  # [F, 3]
        angle = torch.atan2(-up_in_front[:, 0], up_in_front[:, 1])
        assert angle[: 2 * FRAMES // 3 + 1].abs().max() < ROUNDING
        turned = torch.diff(angle[2 * FRAMES // 3 :]).remainder(2 * math.pi)
        assert (turned > 0).all()
        assert float(turned.sum()) > 2 * math.pi * 0.95  # the last frame is one step short of the first
        moved = torch.cat([cameras.position[2 * FRAMES // 3 :], front.position[:1]])
        torch.testing.assert_close(moved, front.position[:1].expand_as(moved), atol=ROUNDING, rtol=0)


class TestYawSweep:
    def test_swings_between_the_ends(self) -> None:
        yaw = yaw_sweep((-0.3, 0.5), 48)
        torch.testing.assert_close(yaw[[0, 12, 24, 36]], torch.tensor([0.1, 0.5, 0.1, -0.3]))
        assert yaw.min() >= -0.3 - 1e-6
        assert yaw.max() <= 0.5 + 1e-6

    def test_is_smooth_and_closes(self) -> None:
        steps = torch.cat([yaw_sweep((-0.4, 0.4), 48), yaw_sweep((-0.4, 0.4), 1)]).diff()
        # The largest step of a sine of amplitude a over n frames is at its middle: a · 2π/n.
        assert steps.abs().max() <= 0.4 * 2 * math.pi / 48 + 1e-6
        assert steps[0] > 0
        assert (steps.sign().diff() != 0).sum() == 2  # it turns round twice

    def test_no_frames(self) -> None:
        with pytest.raises(ValueError, match="frames"):
            yaw_sweep((-0.4, 0.4), 0)


class TestCameraRange:
    def test_middle_is_the_front(self) -> None:
        cameras = cameras_of("front", CameraRange())
        torch.testing.assert_close(cameras.position, torch.tensor([[0.0, 0.0, 1.0]]).expand(FRAMES, 3))
        assert pytest.approx(math.pi / 2) == FRONT

    @pytest.mark.parametrize(
        "wrong",
        [
            {"yaw": (0.4, -0.4)},
            {"yaw": (math.nan, 0.0)},
            {"pitch": (0.0, 1.0)},
            {"pitch": (1.0, 3.2)},
            {"distance": (0.0, 1.0)},
            {"distance": (1.0, math.inf)},
            {"fov_degrees": 180.0},
        ],
        ids=str,
    )
    def test_mistakes_name_the_field(self, wrong: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CameraRange(**wrong)


def test_example() -> None:
    """That of the module."""
    assert doctest.testmod(trajectories).failed == 0
