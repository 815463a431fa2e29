"""Lists of cameras in JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cips3d.cameras import FRONT, Cameras, camera_file, read_cameras, write_cameras
from cips3d.cameras.camera import NARROWEST_FOV, WIDEST_FOV
from cips3d.errors import UserError

SAME = {"atol": 1e-6, "rtol": 0.0}  # float32


def read(folder: Path, content: object, **front: float) -> Cameras:
    path = folder / "way.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_cameras(str(path), **front)


def one(folder: Path, **entry: object) -> Cameras:
    return read(folder, [entry])


def matrix_of(camera: Cameras) -> list[list[float]]:
    return torch.cat([camera.rotation[0], camera.position[0, :, None]], dim=1).tolist()


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


class TestAngles:
    def test_nothing_said_is_the_front(self, tmp_path: Path) -> None:
        camera = one(tmp_path)
        torch.testing.assert_close(camera.position[0], tensor(0, 0, 1), **SAME)
        torch.testing.assert_close(camera.rotation[0], torch.eye(3), **SAME)
        assert camera.fov_degrees.tolist() == [12.0]

    def test_angles_from_the_front(self, tmp_path: Path) -> None:
        cameras = read(
            tmp_path,
            [{"yaw": 0.3, "pitch": -0.2, "radius": 1.5, "fov_degrees": 20}, {"yaw": -0.4}],
            fov_degrees=30.0,
            front_pitch=1.2,
            front_yaw=0.7,
        )
        expected = Cameras.from_angles(tensor(1.0, 1.2), tensor(1.0, 0.3), tensor(20, 30), tensor(1.5, 1.0))
        torch.testing.assert_close(cameras.position, expected.position, **SAME)
        torch.testing.assert_close(cameras.rotation, expected.rotation, **SAME)
        assert cameras.fov_degrees.tolist() == [20, 30]
        assert cameras.position.dtype == cameras.rotation.dtype == cameras.fov_degrees.dtype == torch.float32

    def test_sides_are_those_of_the_commands(self, tmp_path: Path) -> None:
        left, low = read(tmp_path, {"cameras": [{"yaw": 0.3}, {"pitch": 0.3}]}).position
        assert left[0] < 0  # the camera stands where a viewer's left is
        assert low[1] < 0

    def test_look_at(self, tmp_path: Path) -> None:
        camera = one(tmp_path, yaw=0.4, look_at=[0.05, -0.02, 0.01])
        forward = tensor(0.05, -0.02, 0.01) - camera.position[0]
        torch.testing.assert_close(-camera.rotation[0, :, 2], forward / forward.norm(), **SAME)

    def test_translation_goes_along_its_own_axes_after_the_roll(self, tmp_path: Path) -> None:
        plain = one(tmp_path, yaw=0.4)
        right, up, back = plain.rotation[0].T
        moved = one(tmp_path, yaw=0.4, translation=[0.1, 0.2, 0.3])
        torch.testing.assert_close(moved.position[0], plain.position[0] + 0.1 * right + 0.2 * up + 0.3 * back, **SAME)
        torch.testing.assert_close(moved.rotation, plain.rotation, **SAME)
        rolled = one(tmp_path, yaw=0.4, roll=math.pi / 2, translation=[0.1, 0, 0])
        torch.testing.assert_close(rolled.rotation[0, :, 0], up, **SAME)  # a quarter turn to the left
        torch.testing.assert_close(rolled.position[0], plain.position[0] + 0.1 * up, **SAME)


class TestMatrices:
    def test_is_read_back(self, tmp_path: Path) -> None:
        angles = {"yaw": 0.4, "pitch": 0.2, "radius": 1.3, "roll": 0.3, "translation": [0.01, 0.02, 0.03]}
        camera = one(tmp_path, **angles)
        rows = matrix_of(camera)
        for matrix in (rows, [*rows, [0, 0, 0, 1]]):
            same = one(tmp_path, camera_to_world=matrix, fov_degrees=9)
            torch.testing.assert_close(same.rotation, camera.rotation, **SAME)
            torch.testing.assert_close(same.position, camera.position, **SAME)
            assert same.fov_degrees.tolist() == [9]

    def test_rounded_numbers_become_a_rotation(self, tmp_path: Path) -> None:
        camera = one(tmp_path, yaw=0.4, pitch=0.2)
        rounded = [[round(x, 4) for x in row] for row in matrix_of(camera)]
        read_back = one(tmp_path, camera_to_world=rounded).rotation[0]
        torch.testing.assert_close(read_back, camera.rotation[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(read_back @ read_back.T, torch.eye(3), **SAME)


def test_narrowest_and_widest_have_rays(tmp_path: Path) -> None:
    cameras = read(tmp_path, [{"fov_degrees": NARROWEST_FOV}, {"fov_degrees": WIDEST_FOV}])
    lengths = cameras.rays(3).directions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(2, 9), **SAME)
    assert (cameras.fov_degrees < 180).all()


class TestMistakes:
    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"yaww": 0.1}, "unknown key 'yaww'"),
            ({"yaw": "0.1"}, "yaw"),
            ({"yaw": True}, "yaw"),
            ({"yaw": None}, "yaw"),
            ({"yaw": 10**400}, "yaw"),
            ({"pitch": math.nan}, "pitch"),
            ({"pitch": 1.6}, "over a pole"),
            ({"radius": 0}, "radius"),
            ({"radius": -1}, "radius -1; give a positive distance"),
            ({"radius": 1e-30}, "larger radius"),
            ({"fov_degrees": 180}, "fov_degrees"),
            ({"fov_degrees": 1e-50}, "fov_degrees 1e-50; give degrees from 1e-15 to 179.99999"),
            ({"fov_degrees": 1e-18}, "give degrees from 1e-15"),
            ({"camera_to_world": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]], "fov_degrees": 1e-50}, "give degrees"),
            ({"look_at": [0, 0]}, "look_at"),
            ({"look_at": [0, 0, 1]}, "looks at itself; move look_at"),
            ({"translation": ["a", 0, 0]}, "translation"),
            ({"translation": [[0], 0, 0]}, "translation"),
            ({"camera_to_world": [[1, 0, 0, 0]] * 3}, "rotation"),
            ({"camera_to_world": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 1]]}, "right-handed"),
            ({"camera_to_world": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 1]]}, "unit axes"),
            ({"camera_to_world": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "shape"),
            ({"camera_to_world": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]}, "last row"),
            ({"camera_to_world": [[1, 0, 0, math.inf], [0, 1, 0, 0], [0, 0, 1, 0]]}, "numbers"),
            ({"camera_to_world": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]], "yaw": 0.1}, "one or the other"),
            ({"translation": [1e300, 0, 0]}, "too far away for a picture; give one within 10000 of the origin"),
            ({"radius": 1e7}, "too far away"),
            ({"fov_degrees": 179.9999999}, "fov_degrees 180; give degrees from"),
            ({"camera_to_world": [[1, 0, 0, 1e300], [0, 1, 0, 0], [0, 0, 1, 0]]}, "too far away"),
            (0.3, "no object"),
        ],
    )
    def test_the_camera_is_named(self, tmp_path: Path, entry: object, message: str) -> None:
        with pytest.raises(UserError, match=message) as raised:
            read(tmp_path, [{"yaw": 0.1}, entry])
        assert "camera 1 " in str(raised.value)
        assert "way.json" in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("content", ["", "[", "[]", "{}", "3", '{"cameras": 3}', '{"cameras": []}', "[" * 10**5])
    def test_file_holds_no_cameras(self, tmp_path: Path, content: str) -> None:
        with pytest.raises(UserError, match=r"way\.json"):
            read(tmp_path, content)

    def test_more_cameras_than_there_may_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(camera_file, "MAX_CAMERAS", 3)
        assert len(read(tmp_path, [{}] * 3)) == 3
        with pytest.raises(UserError, match=r"way\.json holds 4 cameras; give 3 at most"):
            read(tmp_path, [{}] * 4)

    def test_nothing_beside_the_list_is_passed_over(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"has the key 'fov_degrees' beside the list .*; give each camera its own"):
            read(tmp_path, {"fov_degrees": 30, "cameras": [{"yaw": 0.3}]})

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            read_cameras(tmp_path / "none.json")

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "way.json").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(UserError, match="is not JSON"):
            read_cameras(tmp_path / "way.json")


def test_a_file_of_an_editor_of_windows(tmp_path: Path) -> None:
    assert float(read(tmp_path, '\ufeff[{"yaw": 0.3}]').yaw) == pytest.approx(FRONT + 0.3)


def test_front_is_the_default(tmp_path: Path) -> None:
    assert float(one(tmp_path).yaw) == pytest.approx(FRONT)


def test_written_cameras_are_read_again(tmp_path: Path) -> None:
    """Wherever they stand and lean, to float32."""
    angles = torch.linspace(0.4, 2.7, 5)
    cameras = Cameras.from_angles(angles, 3 * angles, torch.linspace(5, 90, 5), angles).rolled(angles).moved(angles[:3])
    write_cameras(tmp_path / "cameras.json", cameras)
    found = read_cameras(tmp_path / "cameras.json")
    for part in ("rotation", "position", "fov_degrees"):
        torch.testing.assert_close(getattr(found, part), getattr(cameras, part), rtol=0, atol=1e-6)
