"""Pictures of heads: the tracer against closed forms, ground truth against the cameras, and the look of the heads."""

import math
from dataclasses import fields, replace

import pytest
import torch

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.data.heads import HeadParameters, render_heads, sample_heads
from cips3d.data.heads.anatomy import HeadShape, Landmarks
from cips3d.data.heads.parameters import Glasses, HairStyle, Hat, to_display
from cips3d.data.heads.render import FAR, HEAD_UNITS, NEAR, supersampled_rays, trace
from cips3d.data.heads.shapes import Points

FRONT = math.pi / 2
HEAD_BOUND = 0.12  # scene units: the sphere around the origin that holds everything above the chin ...
BOUND = 0.17  # ... and one that holds what is seen of the shoulders in the picture's lower corners


def draw(count: int, seed: int = 0) -> HeadParameters:
    return sample_heads(count, torch.Generator().manual_seed(seed))


def training_cameras(count: int, seed: int = 0) -> Cameras:
    pitch, yaw = PoseDistribution().sample(count, generator=torch.Generator().manual_seed(seed))
    return Cameras.from_angles(pitch, yaw)


def frontal_cameras(count: int, yaw: float = FRONT) -> Cameras:
    return Cameras.from_angles(torch.full((count,), FRONT), torch.full((count,), yaw))


def painted(parameters: HeadParameters, names: tuple[str, ...], level: float) -> HeadParameters:
    """The heads with these colours all the same grey."""
    return replace(parameters, **{n: torch.full_like(getattr(parameters, n), level) for n in names})


def dark_hair_on_white(count: int, seed: int = 0) -> torch.Tensor:
    """Darkness [N, 32, 32] of frontal pictures in which hair alone is dark."""
    colors = tuple(f.name for f in fields(HeadParameters) if f.name.endswith("color") or "background" in f.name)
    heads = painted(painted(draw(count, seed), colors, 1.0), ("hair_color",), 0.0)
    pictures = render_heads(heads, frontal_cameras(count), 32).images
    return 1 - pictures.float().mean(1) / 255


@pytest.mark.parametrize(("side", "centre", "radius"), [(48, (0.0, 0.0, 0.0), 0.7), (33, (0.25, -0.1, 0.3), 0.4)])
def test_tracing_an_analytic_sphere(side, centre, radius):
    rays = training_cameras(3).rays(side)

    def sphere(points: Points) -> torch.Tensor:
        x, y, z = (axis - c for axis, c in zip(points, centre, strict=True))
        return (x * x + y * y + z * z).sqrt() - radius

    t = trace(sphere, rays, side) / HEAD_UNITS
    middle = torch.tensor(centre) / HEAD_UNITS
    along = ((middle - rays.origins) * rays.directions).sum(-1)
    miss = (rays.origins + along[..., None] * rays.directions - middle).norm(dim=-1)  # distance of ray and centre
    exact = along - ((radius / HEAD_UNITS) ** 2 - miss**2).clamp_min(0).sqrt()
    clear = (miss * HEAD_UNITS - radius).abs() > 0.04  # but for grazing rays, within the tracer's tolerance for hits
    hit = miss * HEAD_UNITS < radius
    assert 0.05 < hit.float().mean() < 0.9
    assert torch.equal(torch.isfinite(t)[clear], hit[clear])
    error = (t - exact)[hit & clear].abs()
    assert error.max() < 1e-3  # a hundredth of a head's width
    assert error.mean() < 1e-4


@pytest.mark.parametrize("fov_degrees", [12.0, 60.0, 120.0, 150.0])
def test_no_lens_is_too_wide_for_a_sphere_in_the_middle(fov_degrees):
    """There a wide lens spreads its rays most: a tile's cone that is too narrow passes what the tile's rays meet."""
    side, radius = 128, 0.7
    rays = Cameras.from_angles(torch.tensor([FRONT, 1.3]), torch.tensor([FRONT, 1.8]), fov_degrees).rays(side)
    t = trace(lambda points: (points.x**2 + points.y**2 + points.z**2).sqrt() - radius, rays, side)
    miss = HEAD_UNITS * torch.linalg.cross(rays.origins, rays.directions).norm(dim=-1)
    clear = (miss - radius).abs() > 0.04
    assert (miss < radius).any()
    assert torch.equal(torch.isfinite(t)[clear], (miss < radius)[clear])


def test_the_nearer_of_two_bodies_hides_the_other():
    rays = frontal_cameras(1).rays(31)

    def bodies(points: Points) -> torch.Tensor:
        small = (points.x**2 + points.y**2 + (points.z - 0.6) ** 2).sqrt() - 0.1
        return torch.minimum(small, points.z + 0.5)  # a wall behind

    t = trace(bodies, rays, 31).view(31, 31)
    assert math.isclose(float(t[15, 15]), HEAD_UNITS - 0.7, abs_tol=1e-2)
    assert math.isclose(float(t[0, 15]), (HEAD_UNITS + 0.5) / float(rays.directions[0, 15, 2].abs()), abs_tol=1e-2)


def test_nothing_met_is_infinitely_far():
    t = trace(lambda points: torch.full_like(points.x, 5.0), frontal_cameras(2).rays(16), 16)
    assert t.isinf().all()


@pytest.mark.parametrize("supersampling", [1, 2, 3])
def test_the_rays_of_a_pixel_surround_its_ray(supersampling):
    cameras = training_cameras(2)
    fine = supersampled_rays(cameras, 8, supersampling).directions.view(2, 8, supersampling, 8, supersampling, 3)
    mean = torch.nn.functional.normalize(fine.mean((2, 4)), dim=-1)
    torch.testing.assert_close(mean.flatten(1, 2), cameras.rays(8).directions, atol=1e-5, rtol=0)


def test_pictures_depths_and_masks_belong_together():
    heads, cameras = draw(12), training_cameras(12)
    images, depth, mask = render_heads(heads, cameras, 24)
    assert images.shape == (12, 3, 24, 24) and images.dtype == torch.uint8
    assert depth.shape == mask.shape == (12, 24, 24) and depth.dtype == mask.dtype == torch.float32
    assert (depth[mask == 0] == 0).all()
    assert (depth[mask > 0] > NEAR / HEAD_UNITS - 1e-6).all() and (depth[mask > 0] < FAR / HEAD_UNITS + 1e-6).all()
    assert torch.equal(mask, (mask * 4).round() / 4)  # shares of four rays
    covered = mask.mean((1, 2))
    assert (covered > 0.2).all() and (covered < 0.75).all()
    assert (mask[:, 10:14, 10:14] == 1).all()  # the middle of the picture is face


def test_background_pixels_show_the_gradient_alone():
    heads = draw(8)
    images, _, mask = render_heads(heads, training_cameras(8), 16)
    rows = torch.linspace(0, 1, 32)[None, :, None]
    linear = torch.lerp(heads.background_top[:, None], heads.background_bottom[:, None], rows)  # [N, 32, 3]
    expected = to_display(linear.unflatten(1, (16, 2)).mean(2)) * 255
    shown = images.permute(0, 2, 3, 1).float()
    difference = (shown - expected[:, :, None]).abs().amax(-1)
    assert difference[mask == 0].max() <= 0.51  # rounding to 8 bits
    assert (difference[mask == 1] > 2).float().mean() > 0.9


def test_depths_lead_back_to_the_surface():
    heads, cameras = draw(12, seed=1), training_cameras(12, seed=1)
    _, depth, mask = render_heads(heads, cameras, 24, supersampling=1)
    rays = cameras.rays(24)
    points = rays.origins + depth.flatten(1)[..., None] * rays.directions
    seen = mask.flatten(1) > 0
    reach = points.norm(dim=2)
    assert reach[seen].max() < BOUND
    assert reach[seen & (points[..., 1] > -0.055)].max() < HEAD_BOUND
    distance = HeadShape(heads).distance(Points(*(HEAD_UNITS * points).unbind(2)))[seen]
    assert distance.abs().median() < 0.003  # head units; a tracer stops at 0.004 and takes one more step
    assert (distance.abs() < 0.03).float().mean() > 0.999


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.3, 0.6])
def test_the_nose_moves_the_right_way(turn):
    heads = replace(draw(6), glasses=torch.zeros(6, dtype=torch.long))
    cameras = frontal_cameras(6, FRONT + turn)
    _, depth, mask = render_heads(heads, cameras, 96, supersampling=1)
    at = Landmarks.of(heads)
    tip = torch.stack([torch.zeros(6), at.nose_y, at.nose_z + 0.06], dim=1) / HEAD_UNITS
    local = ((tip - cameras.position)[:, None] @ cameras.rotation)[:, 0]  # right, up, backward
    place = local[:, :2] / -local[:, 2:] / math.tan(math.radians(6))  # in half heights of the picture
    # A camera at a smaller yaw stands on the head's +x side, from which the face looks to the picture's left.
    assert torch.equal(place[:, 0].sign(), torch.full((6,), math.copysign(1.0, turn)))
    column, row = ((1 + place[:, 0]) * 47.5).round().long(), ((1 - place[:, 1]) * 47.5).round().long()
    index = torch.arange(6)
    assert (mask[index, row, column] == 1).all()
    assert ((depth[index, row, column] - local.norm(dim=1)).abs() < 0.006).all()


def test_turning_the_head_moves_the_face_in_the_picture():
    """Bright skin under black hair: its centre of brightness goes to the side to which the face turns."""
    heads = painted(painted(draw(8, seed=3), ("skin_color", "lip_color"), 1.0), ("background_top",), 0.0)
    heads = painted(heads, ("background_bottom", "hair_color", "shirt_color", "stripe_color", "hat_color"), 0.0)
    columns = torch.linspace(-1, 1, 32)
    centres = []
    for yaw in (FRONT - 0.6, FRONT, FRONT + 0.6):
        brightness = render_heads(heads, frontal_cameras(8, yaw), 32).images[:, :, 6:24].float().sum((1, 2))
        centres.append((brightness * columns).sum(1) / brightness.sum(1))
    left, middle, right = centres
    assert (left < middle - 0.02).all() and (middle < right - 0.02).all()


def test_every_head_has_its_fringe_on_the_same_side():
    forehead = dark_hair_on_white(160)[:, 8:16, 8:24]  # below the parting and above the eyes
    left, right = forehead[:, :, :8].sum((1, 2)), forehead[:, :, 8:].sum((1, 2))
    assert (left > right + 1).float().mean() > 0.95  # by more than a whole dark pixel
    assert (left > right).all()


def test_a_mirrored_head_looks_different():
    heads = draw(24, seed=5)
    images, _, mask = render_heads(heads, frontal_cameras(24), 32)
    pictures = images.float() / 255
    difference = (pictures - pictures.flip(3)).abs().mean(1)
    hair = dark_hair_on_white(24, seed=5) > 0.5
    assert difference[hair].mean() > 0.05  # 13 levels of 255
    assert difference[mask == 0].mean() < difference[hair].mean() / 2


def test_the_hair_hugs_the_head():
    """No lock stands out at the side: seen from the front, hair is never far outside of the skull's outline."""
    heads = draw(64, seed=6)
    _, _, mask = render_heads(heads, frontal_cameras(64), 48)
    y = torch.linspace(1, -1, 48) * math.tan(math.radians(6)) * HEAD_UNITS
    rows = (y > -0.25) & (y < 0.75)
    x = torch.linspace(-1, 1, 48) * math.tan(math.radians(6)) * HEAD_UNITS
    reach = (mask[:, rows] > 0).any(1) * x.abs()  # [N, columns]
    assert reach.amax(1).max() < 0.68  # the widest skull, 0.45, its thickest hair, 0.14, and curls or a brim


def test_dark_heads_have_no_black_holes():
    heads = painted(draw(16, seed=7), ("skin_color",), 0.05)
    heads = replace(heads, hair_color=torch.full((16, 3), 0.2), glasses=torch.zeros(16, dtype=torch.long))
    images, _, mask = render_heads(heads, training_cameras(16, seed=7), 48)
    black = images.amax(1)[mask == 1] < 12
    assert black.float().mean() < 0.01  # pupils, nostrils and the line of the mouth remain


def test_pictures_differ_from_head_to_head():
    images = render_heads(draw(32), frontal_cameras(32), 16).images.float().flatten(1)
    distance = torch.cdist(images, images) + 1e9 * torch.eye(32)
    assert distance.min() > 300  # 768 values: more than 10 levels each


def test_a_head_looks_the_same_in_any_company():
    heads, cameras = draw(20), training_cameras(20)
    together = render_heads(heads, cameras, 16)
    alone = render_heads(heads[7], cameras[7:8], 16)
    assert (together.images[7:8].float() - alone.images.float()).abs().mean() < 0.05  # levels: rounding, rare edges
    both = (together.mask[7:8] == 1) & (alone.mask == 1)
    torch.testing.assert_close(together.depth[7:8][both], alone.depth[both], atol=1e-3, rtol=0)


def test_every_kind_of_thing_is_worn_and_makes_a_difference():
    heads = draw(400)
    for name, kinds in (("style", HairStyle), ("hat", Hat), ("glasses", Glasses)):
        assert {int(kind) for kind in kinds} == set(getattr(heads, name).tolist())
    one, cameras = heads[0], frontal_cameras(1)
    for name, kinds in (("hat", Hat), ("glasses", Glasses), ("style", HairStyle)):
        pictures = [
            render_heads(replace(one, **{name: torch.tensor([int(kind)])}), cameras, 24).images.float()
            for kind in kinds
        ]
        for i, first in enumerate(pictures):
            assert all((first - second).abs().mean() > 0.1 for second in pictures[i + 1 :])


def test_drawing_is_a_function_of_the_generator():
    first, second, other = draw(5, seed=1), draw(5, seed=1), draw(5, seed=2)
    for field in fields(HeadParameters):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))
    assert not torch.equal(first.width, other.width)


def test_heads_are_indexed_like_tensors():
    heads = draw(6)
    assert len(heads) == 6 and len(heads[1:4]) == 3 and len(heads[2]) == len(heads[-1]) == 1
    assert torch.equal(heads[torch.tensor([4, 0])].skin_color, heads.skin_color[[4, 0]])
    assert torch.equal(heads[-1].width, heads.width[5:])
    with pytest.raises(IndexError):
        heads[6]


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="2 heads but cameras has 3"):
        render_heads(draw(2), frontal_cameras(3), 8)
    with pytest.raises(ValueError, match="resolution"):
        render_heads(draw(1), frontal_cameras(1), 1)
    with pytest.raises(ValueError, match="supersampling"):
        render_heads(draw(1), frontal_cameras(1), 8, supersampling=0)
