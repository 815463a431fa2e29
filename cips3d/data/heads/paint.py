"""The colours of a head: eyes, brows, lips, beard and strands, painted by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cips3d.data.heads.anatomy import EYE_Y, Landmarks, Material
from cips3d.data.heads.parameters import HeadParameters
from cips3d.data.heads.shapes import Points, select, smooth_step

EYE_WHITE = (0.80, 0.78, 0.75)
DARK = (0.012, 0.009, 0.009)
TEETH = (0.72, 0.70, 0.66)


def paint(parameters: HeadParameters, made_of: Sequence[Tensor], points: Points) -> Tensor:
    """The colour of surface points before lighting.

    Args:
        parameters: of N heads.
        made_of: for each `Material`, which points [N, R] are made of it.
        points: [N, R] in head units.

    Returns:
        [N, 3, R] linear RGB.
    """
    p = parameters.columns()
    painters = {
        Material.SKIN: _skin,
        Material.SHIRT: _shirt,
        Material.HAIR: _hair,
        Material.HAT: _hat,
        Material.GLASSES: _glasses,
    }
    colors = [painters[kind](p, points) for kind in Material]
    return select([mask[:, None] for mask in made_of], colors)


def _over(below: Tensor, color: Tensor | tuple[float, float, float], cover: Tensor) -> Tensor:
    """Lay a colour [N, 3, 1 or R] over another where `cover` [N, R] is 1."""
    if isinstance(color, tuple):
        color = below.new_tensor(color)[:, None]
    return torch.lerp(below, color.expand_as(below), cover[:, None])


def _inside(distance: Tensor, softness: float = 0.012) -> Tensor:
    """1 where a distance is negative, 0 where positive, with a soft edge."""
    return (0.5 - distance / softness).clamp(0, 1)


def _skin(p: HeadParameters, points: Points) -> Tensor:
    at = Landmarks.of(p)
    skin = p.skin_color.expand(-1, -1, points.x.shape[1])
    skin = _blush(p, points, at, skin)
    skin = _beard(p, points, at, skin)
    skin = _mouth(p, points, at, skin)
    skin = _eyes(p, points, skin)
    return _brows(p, points, skin)


def _blush(p: HeadParameters, points: Points, at: Landmarks, skin: Tensor) -> Tensor:
    side = points.x.abs()
    front = smooth_step(0.05, 0.25, points.z)
    cheek = torch.exp(-((side - 0.22).square() + (points.y + 0.12).square()) / 0.012)
    nose = torch.exp(-(points.x.square() + (points.y - at.nose_y).square()) / 0.006)
    ear = smooth_step(0.42, 0.46, side) * (1 - front)
    flush = (0.3 * cheek + 0.25 * nose).mul(front) + 0.3 * ear
    nostril = ((side - 0.03 * p.nose_width) / 0.02).square() + ((points.y - at.nose_y + 0.045) / 0.014).square()
    skin = _over(skin, skin * skin.new_tensor([0.95, 0.62, 0.58])[:, None], flush)
    return _over(skin, skin * 0.25, 0.8 * _inside(nostril.sqrt() - 1, 0.6) * front)


def _beard(p: HeadParameters, points: Points, at: Landmarks, skin: Tensor) -> Tensor:
    """Stubble to a full beard over jaw and upper lip, in a darker shade of the hair."""
    edge = at.mouth_y - 0.02 + 4.5 * (points.x.abs() - 0.08).clamp_min(0).square()
    jaw = smooth_step(0.04, -0.04, points.y - edge) * smooth_step(-0.06, 0.04, points.z)
    above_neck = smooth_step(-0.62, -0.5, points.y + 0.25 * (0.3 - points.z))
    moustache = _inside((points.x / 0.14).square() + ((points.y - at.mouth_y - 0.065) / 0.035).square() - 1, 0.8)
    cover = torch.maximum(jaw * above_neck, moustache) * smooth_step(0.0, 0.1, points.z)
    shade = torch.minimum(0.7 * p.hair_color, 0.6 * p.skin_color)  # never paler than the skin around it
    return _over(skin, shade, p.beard * 0.85 * cover)


def _mouth(p: HeadParameters, points: Points, at: Landmarks, skin: Tensor) -> Tensor:
    front = smooth_step(0.2, 0.28, points.z)
    across = points.x / p.mouth_width
    full = (1 - across.square()).clamp_min(0)
    line = at.mouth_y - 0.006 + p.smile * across.square()
    above = points.y - line
    bow = 1 - 0.25 * torch.exp(-(across / 0.18).square())
    upper = 0.04 * p.lip_size * full * bow + 0.5 * p.mouth_open * full
    lower = 0.052 * p.lip_size * full + 0.5 * p.mouth_open * full
    lips = _inside(above - upper) * _inside(-above - lower) * smooth_step(0.0, 0.2, full)
    gap = _inside(above.abs() - 0.5 * p.mouth_open * full - 0.005 * full.sqrt(), 0.01) * smooth_step(0.0, 0.1, full)
    teeth = _inside(-(above - 0.1 * p.mouth_open), 0.01) * (p.mouth_open > 0)
    skin = _over(skin, p.lip_color, 0.9 * lips * front)
    skin = _over(skin, 0.12 * p.lip_color, gap * front)
    return _over(skin, TEETH, 0.9 * gap * teeth * front)


def _eyes(p: HeadParameters, points: Points, skin: Tensor) -> Tensor:
    """Almond-shaped openings on the bulge of the eyeball, with iris, pupil, lash line and a glint."""
    front = smooth_step(0.2, 0.26, points.z)
    half = 0.092 * p.eye_size
    across = (points.x.abs() - p.eye_distance) / half
    above = points.y - EYE_Y - p.eye_slant * across * 0.1
    full = (1 - across.square()).clamp_min(0)
    upper = 0.058 * p.eye_size * p.eye_openness * full.sqrt() * (0.4 + 0.6 * full)
    lower = 0.04 * p.eye_size * p.eye_openness * full
    opening = _inside(above - upper, 0.01) * _inside(-above - lower, 0.01) * (across.abs() < 1) * front
    gaze_x, gaze_y = p.gaze[:, 0], p.gaze[:, 1]
    iris_x = points.x - points.x.sign() * p.eye_distance - gaze_x
    iris_y = points.y - EYE_Y - 0.008 - gaze_y
    iris = (iris_x.square() + iris_y.square()).sqrt() / p.eye_size
    glint = ((iris_x - 0.015).square() + (iris_y - 0.016).square()).sqrt()
    eye = _over(skin, EYE_WHITE, opening)
    eye = _over(eye, p.iris_color, opening * _inside(iris - 0.05))
    eye = _over(eye, 0.3 * p.iris_color, opening * _inside((iris - 0.047).abs() - 0.005))
    eye = _over(eye, DARK, opening * _inside(iris - 0.023))
    eye = _over(eye, (1.0, 1.0, 1.0), opening * _inside(glint - 0.011))
    eye = _over(eye, 0.45 * eye, opening * smooth_step(0.03, 0.0, upper - above))  # the lid's shadow
    lash = _inside((above - upper - 0.004).abs() - 0.009, 0.01) * (across.abs() < 1.05) * front
    return _over(eye, 0.12 * p.skin_color, 0.85 * lash)


def _brows(p: HeadParameters, points: Points, skin: Tensor) -> Tensor:
    side = points.x.abs()
    across = (side - p.eye_distance - 0.005) / 0.12
    arch = EYE_Y + p.brow_height + p.brow_slant * 0.12 * across - 0.035 * across.square()
    thickness = p.brow_thickness * (1 - 0.45 * across).clamp_min(0) * (across.abs() < 1)
    cover = _inside((points.y - arch).abs() - thickness, 0.014) * _inside(across.abs() - 0.95, 0.2)
    return _over(skin, 0.55 * p.hair_color, 0.85 * cover * smooth_step(0.15, 0.22, points.z))


def _shirt(p: HeadParameters, points: Points) -> Tensor:
    shirt = p.shirt_color.expand(-1, -1, points.x.shape[1])
    bands = _inside(torch.sin(34 * (points.y + 0.12 * points.x.square())), 0.8)
    return _over(shirt, p.stripe_color, p.stripes * bands)


def _hair(p: HeadParameters, points: Points) -> Tensor:
    """Strands that run from the parting down to either side, and hang further below."""
    from_parting = points.x - p.parting
    combed = points.y + 0.5 * from_parting.abs() - 0.8 * points.z
    hanging = 0.5 * torch.atan2(points.x, 0.1 - points.z)  # cut open at the face
    strands = torch.lerp(_strands(hanging), _strands(combed), smooth_step(-0.15, 0.25, points.y))
    hair = p.hair_color * (1 + 0.28 * strands)[:, None]
    line = (
        _inside(from_parting.abs() - 0.01, 0.02) * smooth_step(0.4, 0.5, points.y) * smooth_step(-0.35, -0.2, points.z)
    )
    return _over(hair, 0.7 * p.skin_color, 0.5 * line)


def _strands(across: Tensor) -> Tensor:
    """Irregular stripes between -1 and 1 along a coordinate."""
    broad = torch.sin(29 * across + 0.8 * torch.sin(11 * across))
    return 0.5 * broad + 0.3 * torch.sin(73 * across + 1.3) + 0.2 * torch.sin(131 * across)


def _hat(p: HeadParameters, points: Points) -> Tensor:
    """A knitted or sewn cap: faint vertical ribs."""
    ribs = 1 + 0.08 * torch.sin(60 * torch.atan2(points.x, points.z + 0.06) / 3)
    return p.hat_color * ribs[:, None]


def _glasses(p: HeadParameters, points: Points) -> Tensor:
    return p.glasses_color.expand(-1, -1, points.x.shape[1])
