"""Cameras and rays: conventions of systems that share them, geometry that is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cips3d.cameras import Cameras, aspect, sides

FRONT = math.pi / 2


def cameras_at(*angles: tuple[float, float], fov_degrees: float = 12.0) -> Cameras:
    pitch, yaw = torch.tensor(angles, dtype=torch.float64).T
    return Cameras.from_angles(pitch, yaw, fov_degrees)


def test_front_camera() -> None:
    """(π/2, π/2) stands on +z, looks along -z, sees +x on its right and +y above."""
    camera = cameras_at((FRONT, FRONT))
    assert torch.allclose(camera.position[0], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(camera.rotation[0], torch.eye(3, dtype=torch.float64), atol=1e-12)
    rays = camera.rays(3)
    expected = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    assert torch.allclose(rays.directions[0, 4], expected, atol=1e-12)
    assert rays.directions[0, 0, 0] < 0 < rays.directions[0, 2, 0]  # first row: left to right
    assert rays.directions[0, 0, 1] > 0 > rays.directions[0, 6, 1]  # first column: top to bottom


def test_position_formula() -> None:
    pitch, yaw = 1.2, 2.0
    position = cameras_at((pitch, yaw)).position[0]
    expected = [math.sin(pitch) * math.cos(yaw), math.cos(pitch), math.sin(pitch) * math.sin(yaw)]
    assert position.tolist() == pytest.approx(expected)


def test_angles_are_read_back() -> None:
    angles = [(1.2, 2.0), (1.8, 0.7), (FRONT, FRONT)]
    cameras = cameras_at(*angles)
    assert cameras.pitch.tolist() == pytest.approx([p for p, _ in angles])
    assert cameras.yaw.tolist() == pytest.approx([y for _, y in angles])


def test_rotation_is_orthonormal_and_looks_at_the_origin() -> None:
    cameras = cameras_at((1.2, 2.0), (0.1, -1.0), (3.0, 4.0))
    identity = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    assert torch.allclose(cameras.rotation @ cameras.rotation.transpose(1, 2), identity, atol=1e-12)
    assert torch.allclose(torch.linalg.det(cameras.rotation), torch.ones(3, dtype=torch.float64))
    centre = cameras.rays(5).directions[:, 12]
    assert torch.allclose(centre, -cameras.position, atol=1e-12)  # radius 1


def test_look_at_another_target() -> None:
    position = torch.tensor([[0.3, 0.2, 1.0]], dtype=torch.float64)
    target = torch.tensor([0.1, -0.1, 0.0], dtype=torch.float64)
    camera = Cameras.look_at(position, target)
    direction = camera.rays(1 + 2).directions[0, 4]
    assert torch.allclose(direction, torch.nn.functional.normalize(target - position, dim=1)[0])


@pytest.mark.parametrize("fov", [12.0, 30.0, 90.0])
def test_corner_rays_span_the_angle_of_view(fov: float) -> None:
    directions = cameras_at((FRONT, FRONT), fov_degrees=fov).rays(5).directions[0]
    top, bottom = directions[2], directions[22]
    assert math.degrees(math.acos(float(top @ bottom))) == pytest.approx(fov)
    assert directions.norm(dim=-1).tolist() == pytest.approx([1.0] * 25)


def test_single_rows_and_columns_lie_in_the_middle() -> None:
    camera = Cameras.from_angles(torch.tensor([FRONT]), torch.tensor([FRONT]))
    torch.testing.assert_close(camera.rays(1).directions[0], torch.tensor([[0.0, 0.0, -1.0]]))
    row, column = camera.rays((1, 5)).directions[0], camera.rays((5, 1)).directions[0]
    torch.testing.assert_close(row, camera.rays(5).directions[0].view(5, 5, 3)[2])
    torch.testing.assert_close(column[:, 0], torch.zeros(5))
    assert column[0, 1] > 0 > column[-1, 1]


def test_subset_of_rays() -> None:
    cameras = cameras_at((1.2, 2.0), (1.6, 1.4))
    index = torch.tensor([7, 0, 23, 7])
    every = cameras.rays((4, 6))
    some = every.subset(index)
    assert torch.equal(some.directions, every.directions[:, index])
    assert torch.equal(some.origins, every.origins[:, index])


@pytest.mark.parametrize("resolution", [0, (0, 4), (4, -1)])
def test_pictures_have_pixels(resolution: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="resolution must be at least 1"):
        cameras_at((FRONT, FRONT)).rays(resolution)


def test_a_single_number_is_the_side_of_a_square() -> None:
    assert (sides(5), sides((4, 6))) == ((5, 5), (4, 6))


@pytest.mark.parametrize("resolution", [4.0, (4,), (4, 4.0), "44"])
def test_a_resolution_is_whole_numbers(resolution: Any) -> None:
    with pytest.raises(TypeError, match="resolution must be an int or"):
        sides(resolution)


def test_wide_pictures_have_square_pixels() -> None:
    directions = cameras_at((FRONT, FRONT)).rays((3, 7)).directions[0].view(3, 7, 3)
    x, y = directions[..., 0] / -directions[..., 2], directions[..., 1] / -directions[..., 2]
    assert torch.allclose(x[0, 1:] - x[0, :-1], (y[0, 0] - y[1, 0]).expand(6))
    assert float(x[0, -1] / y[0, -1]) == pytest.approx(aspect(3, 7)) == 3


@pytest.mark.parametrize(("size", "expected"), [((1, 1), 1), ((1, 5), 1), ((5, 1), 1 / 4), ((5, 2), 1 / 4)])
def test_aspect_of_single_rows_and_columns(size: tuple[int, int], expected: float) -> None:
    assert aspect(*size) == expected


def test_fov_of_each_camera() -> None:
    angle = torch.full((2,), FRONT)
    cameras = Cameras.from_angles(angle, angle, torch.tensor([12.0, 24.0]))
    spread = [float(rays[2] @ rays[22]) for rays in cameras.rays(5).directions]
    assert [math.degrees(math.acos(s)) for s in spread] == pytest.approx([12, 24], rel=1e-3)


def test_selection_and_length() -> None:
    cameras = cameras_at((1.2, 2.0), (1.6, 1.4), (1.5, 1.0))
    assert len(cameras) == 3 and len(cameras[1:]) == 2
    assert torch.equal(cameras[torch.tensor([2, 0])].position, cameras.position[[2, 0]])
    assert cameras.to("cpu").device == torch.device("cpu")
    assert cameras.to(dtype=torch.float32).rays(2).directions.dtype == torch.float32
    assert torch.equal(cameras[-1].rotation, cameras.rotation[2:])
    for one in (np.int64(1), torch.tensor(1)):
        assert torch.equal(cameras[one].position, cameras.position[1:2])  # type: ignore[index]
    assert cameras in [cameras] and cameras != cameras_at((1.2, 1.6))
    assert [camera.yaw.item() for camera in cameras] == cameras.yaw.tolist()


@pytest.mark.parametrize("height", [1.0, -1.0])
def test_straight_down_and_up(height: float) -> None:
    """As the front camera, raised or lowered almost as far, sees it."""
    position = torch.tensor([[0.0, height, 0.0]], dtype=torch.float64)
    camera = Cameras.look_at(position)
    nearly = Cameras.look_at(position + torch.tensor([0.0, 0.0, 1e-9], dtype=torch.float64))
    assert torch.allclose(camera.rotation, nearly.rotation, atol=1e-8)
    assert torch.linalg.det(camera.rotation).item() == pytest.approx(1)
    assert Cameras.look_at(position.float()).rotation.tolist() == camera.rotation.tolist()


def test_matrices_of_other_conventions() -> None:
    """OpenCV's axes are right, down and forward, and its focal lengths count pixels."""
    focal, height, width = 40.0, 11, 21
    camera_to_world = torch.eye(3, dtype=torch.float64)[None]  # looks along +z
    rotation = camera_to_world * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    fov = torch.tensor([2 * math.degrees(math.atan((height - 1) / (2 * focal)))], dtype=torch.float64)
    directions = Cameras(rotation, torch.zeros(1, 3, dtype=torch.float64), fov).rays((height, width)).directions
    row, column = 2, 17
    expected = torch.tensor([column - (width - 1) / 2, row - (height - 1) / 2, focal], dtype=torch.float64)
    assert torch.allclose(directions[0, row * width + column], expected / expected.norm(), atol=1e-12)


def test_rays_are_differentiable() -> None:
    """Fitting a camera to a picture needs gradients to its angles."""
    pitch = torch.tensor([1.4], dtype=torch.float64, requires_grad=True)
    yaw = torch.tensor([1.7], dtype=torch.float64, requires_grad=True)

    def rays(p: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(Cameras.from_angles(p, y).rays(2))

    assert torch.autograd.gradcheck(rays, (pitch, yaw))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="pitch and yaw"):
        Cameras.from_angles(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="resolution"):
        cameras_at((FRONT, FRONT)).rays(0)
    for resolution in (16.0, (16.0, 16), (16,), None):
        with pytest.raises(TypeError, match=r"^resolution must be an int or \(height, width\), got"):
            cameras_at((FRONT, FRONT)).rays(resolution)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="yaw must be a tensor, got float"):
        Cameras.from_angles(torch.zeros(1), 1.5)  # type: ignore[arg-type]
    camera = cameras_at((FRONT, FRONT))
    for name, call in {
        "offset": lambda: camera.moved([0.0, 0.0, 1.0]),  # type: ignore[arg-type]
        "angle": lambda: camera.rolled([0.0]),  # type: ignore[arg-type]
        "points": lambda: camera.project([[0.0, 0.0, 0.0]]),  # type: ignore[arg-type]
        "target": lambda: Cameras.look_at(camera.position, [0.0, 0.0, 0.0]),  # type: ignore[arg-type]
    }.items():
        with pytest.raises(TypeError, match=f"^{name} must be a tensor, got list"):
            call()


@pytest.mark.parametrize("fov", [0.0, -12.0, 1e-20, 179.9999999, 200.0, math.nan])
def test_angles_of_view_that_no_picture_has(fov: float) -> None:
    """Where they are numbers; those in tensors might be on a GPU, which would have to be waited for."""
    with pytest.raises(ValueError, match=r"^fov_degrees must (lie between 1e-15 and 179\.99999|be finite), got"):
        cameras_at((FRONT, FRONT), fov_degrees=fov)
    with pytest.raises(TypeError, match=r"^fov_degrees must be a number"):
        cameras_at((FRONT, FRONT), fov_degrees="12")  # type: ignore[arg-type]


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_cameras_stand_at_a_distance(radius: float) -> None:
    angle = torch.full((1,), FRONT)
    with pytest.raises(ValueError, match=r"^radius must be (positive|finite), got"):
        Cameras.from_angles(angle, angle, radius=radius)


def test_parts_have_one_dtype_and_device() -> None:
    camera = cameras_at((FRONT, FRONT))
    parts = {"rotation": camera.rotation, "position": camera.position, "fov_degrees": camera.fov_degrees}
    for name in ("position", "fov_degrees"):
        for other in (parts[name].float(), parts[name].to("meta")):
            with pytest.raises(ValueError, match=f"^{name} must be torch.float64 on cpu like rotation"):
                Cameras(**parts | {name: other})
    point = torch.zeros(1, 3, dtype=torch.float64)
    for name, call in {
        "yaw": lambda: Cameras.from_angles(camera.pitch, camera.yaw.to("meta")),
        "target": lambda: Cameras.look_at(camera.position, point.float()),
        "points": lambda: camera.project(point.float()),
        "offset": lambda: camera.moved(point.to("meta")),
        "angle": lambda: camera.rolled(camera.yaw.to("meta")),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be .* like (position|pitch), got"):
            call()


@pytest.mark.parametrize("shape", [(3,), (5, 2), (4, 5, 3), (1, 1, 5, 3)])
def test_points_that_are_projected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^points must have shape \[N, 3\] or \[2, N, 3\], got"):
        cameras_at((1.2, 2.0), (1.6, 1.4)).project(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rotation", "position", "fov", "named"),
    [
        ((2, 3), (2, 3), (2,), "rotation"),
        ((1, 3, 3), (2, 3), (1,), "position"),
        ((2, 3, 3), (2, 4), (2,), "position"),
        ((2, 3, 3), (2, 3), (1,), "fov_degrees"),
        ((2, 3, 3), (2, 3), (), "fov_degrees"),
    ],
)
def test_parts_are_of_as_many_cameras(
    rotation: tuple[int, ...], position: tuple[int, ...], fov: tuple[int, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named} must have shape"):
        Cameras(torch.ones(rotation), torch.ones(position), torch.ones(fov))


def test_values_are_one_for_all_or_one_for_each_camera() -> None:
    one, two = cameras_at((1.2, 2.0)), cameras_at((1.2, 2.0), (1.6, 1.4))
    pitch, position, four = one.pitch, one.position, torch.ones(4, dtype=torch.float64)
    for name, wrong in {
        "radius": lambda: Cameras.from_angles(pitch, pitch, radius=four),
        "fov_degrees": lambda: Cameras.from_angles(pitch, pitch, four),
        "position": lambda: Cameras.look_at(position[0]),
        "target": lambda: Cameras.look_at(position, torch.zeros(4, 3).double()),
        "angle": lambda: one.rolled(four),
        "offset": lambda: two.moved(four),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must have shape"):
            wrong()
    target = torch.tensor([0.1, -0.1, 0.0], dtype=torch.float64)
    for all_alike, each in (
        (Cameras.look_at(two.position, target), Cameras.look_at(two.position, target.expand(2, 3))),
        (Cameras.look_at(two.position, target[None]), Cameras.look_at(two.position, target.expand(2, 3))),
        (two.rolled(four[0]), two.rolled(four[:2])),
        (two.rolled(four[:1]), two.rolled(four[:2])),
        (two.moved(target), two.moved(target.expand(2, 3))),
    ):
        assert torch.equal(all_alike.rotation, each.rotation) and torch.equal(all_alike.position, each.position)


def test_autocast_does_not_reach_cameras() -> None:
    pitch, yaw = torch.tensor([[1.2, 2.0], [1.6, 1.4]]).T
    cameras = Cameras.from_angles(pitch, yaw)
    points, offset = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.2, 0.3])

    def everything() -> list[torch.Tensor]:
        turned, gone = cameras.rolled(yaw), cameras.moved(offset)
        return [*cameras.rays(4), *cameras.project(points), turned.rotation, gone.position]

    expected = everything()
    with torch.autocast("cpu", torch.bfloat16):
        found = everything()
        half = cameras.rolled(yaw.bfloat16()).moved(offset.bfloat16())  # as a network there gives them
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert half.rotation.dtype == half.position.dtype == torch.float32


def test_radius_of_each_camera() -> None:
    angle = torch.full((2,), FRONT, dtype=torch.float64)
    cameras = Cameras.from_angles(angle, angle, radius=torch.tensor([0.5, 2.0]))
    assert cameras.distance.tolist() == pytest.approx([0.5, 2.0])
    assert torch.equal(cameras.rotation[0], cameras.rotation[1])


def test_moved_along_its_own_axes() -> None:
    cameras = cameras_at((1.2, 2.0), (1.6, 1.4))
    offset = torch.tensor([[0.1, 0.0, 0.0], [0.0, -0.2, 0.3]], dtype=torch.float64)
    moved = cameras.moved(offset)
    local = (moved.position - cameras.position)[:, None] @ cameras.rotation
    assert torch.allclose(local[:, 0], offset)
    assert torch.equal(moved.rotation, cameras.rotation)
    assert torch.allclose(cameras.moved(offset[0]).position[0], moved.position[0])


def test_rolled_around_the_viewing_axis() -> None:
    """A quarter turn to the left: what was up in the picture is on its right."""
    cameras = cameras_at((1.2, 2.0), (1.6, 1.4))
    rolled = cameras.rolled(torch.full((2,), math.pi / 2, dtype=torch.float64))
    assert torch.allclose(rolled.rotation[..., 0], cameras.rotation[..., 1])
    assert torch.allclose(rolled.rotation[..., 1], -cameras.rotation[..., 0])
    assert torch.equal(rolled.rotation[..., 2], cameras.rotation[..., 2])
    top, right = cameras.rays(3).directions[:, 1], rolled.rays(3).directions[:, 5]
    assert torch.allclose(top, right)


@pytest.mark.parametrize("size", [(5, 5), (6, 11), (11, 6)])
def test_points_of_rays_are_projected_onto_their_pixels(size: tuple[int, int]) -> None:
    height, width = size
    pitch, yaw = torch.tensor([[FRONT, FRONT], [1.2, 2.5], [2.0, -0.7]], dtype=torch.float64).T
    cameras = Cameras.from_angles(pitch, yaw, torch.tensor([12.0, 30.0, 70.0], dtype=torch.float64))
    rays = cameras.rays(size)
    t = 0.5 + torch.rand(rays.directions.shape[:2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place, depth = cameras.project(rays.origins + t[..., None] * rays.directions)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([2 * column - (width - 1), 2 * row - (height - 1)], dim=-1).flatten(0, 1) / (height - 1)
    torch.testing.assert_close(place, pixels.double().expand(3, -1, -1))
    along = -(rays.directions @ cameras.rotation)[..., 2]  # cosine of a ray to the viewing axis
    torch.testing.assert_close(depth, t * along)


def test_projection_of_known_points() -> None:
    """From (0, 0, 1) at an angle of 90 degrees, half the picture's height is as long as the depth."""
    camera = cameras_at((FRONT, FRONT), fov_degrees=90.0)
    place, depth = camera.project(torch.tensor([[0.25, 0.0, 0.5], [0.0, 0.5, 0.0], [0.0, 0.0, -1.0]]).double())
    expected = torch.tensor([[0.5, 0.0], [0.0, -0.5], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(place[0], expected, atol=1e-12, rtol=0)
    assert depth[0].tolist() == pytest.approx([0.5, 1.0, 2.0])


def test_projection_behind_the_camera() -> None:
    """Depths tell it; places stay finite, also in the camera's own plane."""
    camera = Cameras.look_at(torch.tensor([[0.0, 0.0, 1.0]]))  # from angles, it would be a rounding off that plane
    place, depth = camera.project(torch.tensor([[0.1, 0.0, 1.5], [0.1, 0.2, 1.0]]))
    assert depth[0].tolist() == [-0.5, 0.0]
    assert torch.isfinite(place).all()


def test_projection_of_every_camera_s_own_points() -> None:
    cameras = cameras_at((1.2, 2.0), (1.6, 1.4))
    points = 0.1 * torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place, depth = cameras.project(points)
    for k in range(2):
        alone = cameras[k : k + 1].project(points[k])
        torch.testing.assert_close((alone.place[0], alone.depth[0]), (place[k], depth[k]))
