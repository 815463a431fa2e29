"""Inversion of pictures whose face and camera are known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from host_waits import reads_of_single_values
from inversion.small_models import own_picture, painted_ball, small

from cips3d.checkpoints.converted import write_converted
from cips3d.checkpoints.networks import load_networks
from cips3d.errors import UserError
from cips3d.inversion import InversionSettings, invert, psnr
from cips3d.inversion.objective import seen_by
from cips3d.inversion.stages import rounds, search_resolution
from cips3d.inversion.tuning import as_converted
from cips3d.rendering import load_generator, styles_of_seeds

FRONT = math.pi / 2
QUICK = InversionSettings(steps=12, starts=2)


def test_finds_face_and_camera() -> None:
    """A picture that the model made itself: the camera to within 1 degree, the picture to better than 30 dB.

    The search's cameras are 8 degrees apart and the nearest is 3 from the true one; the start is a random face.
    """
    loaded = painted_ball()
    pitch, yaw = FRONT + 0.2, FRONT + 0.5
    photo = own_picture(loaded, 5, pitch, yaw)
    found = invert(loaded, photo, InversionSettings(steps=240, starts=3))
    assert found.camera is not None
    error = math.hypot(found.camera.pitch - pitch, found.camera.yaw - yaw)
    assert math.degrees(error) < 1
    assert found.psnr > 30
    assert found.psnr == pytest.approx(psnr(found.picture, photo))
    assert found.complete
    assert len(found.records) == 240


@pytest.mark.parametrize("system", ["cips3d", "pigan", "cips", "stylegan2"])
class TestEveryModel:
    def test_comes_nearer_and_is_reproducible(self, system: str) -> None:
        loaded = small(system)
        photo = own_picture(loaded, 3, FRONT - 0.1, FRONT + 0.2)
        found, again = (invert(loaded, photo, replace(QUICK, steps=30)) for _ in range(2))
        first = found.records[0]
        assert found.records[-1].total < first.total
        assert (found.camera is not None) == loaded.generator.is_3d
        angles = [torch.tensor([FRONT if found.camera is None else getattr(found.camera, a)]) for a in ("pitch", "yaw")]
        with torch.no_grad():
            shown = seen_by(loaded, found.styles, *angles, loaded.resolution)
        torch.testing.assert_close(found.picture, shown)
        assert all(torch.equal(a, b) for a, b in zip(found.styles, again.styles, strict=True))
        assert found.camera == again.camera
        other = invert(loaded, photo, replace(QUICK, seed=1))
        assert not torch.equal(found.styles[0], other.styles[0])

    def test_tuned_weights_come_nearer(self, system: str, tmp_path: Path) -> None:
        """And are a checkpoint of their own; the model that was inverted, and all mappings, stay as they were."""
        loaded = small(system)
        before = {name: value.clone() for name, value in loaded.generator.state_dict().items()}
        photo = own_picture(loaded, 3, FRONT, FRONT).flip(1)  # none of the model's
        found = invert(loaded, photo, replace(QUICK, tune_steps=30))
        assert found.tuned is not None
        assert found.tuned_psnr is not None
        assert found.tuned_psnr > found.psnr + 0.1
        assert all(torch.equal(value, before[name]) for name, value in loaded.generator.state_dict().items())
        changed = found.tuned.generator.state_dict()
        names = {name for name, value in changed.items() if not torch.equal(value, before[name])}
        assert names
        assert not any("mapping" in name for name in names)
        write_converted(tmp_path / "tuned.safetensors", as_converted(found.tuned))
        read = load_generator(tmp_path / "tuned.safetensors")
        assert (read.settings, read.poses, read.fov_degrees) == (loaded.settings, loaded.poses, loaded.fov_degrees)
        assert (read.resolution, read.step) == (loaded.resolution, loaded.step)
        assert all(torch.equal(value, changed[name]) for name, value in read.generator.state_dict().items())
        assert not any(weight.requires_grad for weight in found.tuned.generator.parameters())


def test_tuning_is_reproducible() -> None:
    loaded = small("cips3d")
    photo = own_picture(loaded, 3, FRONT, FRONT).flip(2)
    tuned = [invert(loaded, photo, replace(QUICK, steps=3, tune_steps=3)).tuned for _ in range(2)]
    first, again = (model.generator.state_dict() for model in tuned if model is not None)
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_tuned_checkpoint_keeps_how_it_was_trained(tmp_path: Path) -> None:
    """Pictures of pi-GAN close the back of a volume that training leaves open; tuned again, it is still open."""
    loaded = small("pigan")
    trained = replace(loaded.settings, last_back=False)
    path = tmp_path / "model.safetensors"
    write_converted(path, as_converted(replace(loaded, settings=trained)))
    for _ in range(2):
        read = load_generator(path)
        assert read.settings == replace(trained, last_back=True)
        write_converted(path, as_converted(read))
        assert load_networks(path).rendering.volume == trained


@pytest.mark.parametrize(("rate", "steps"), [(0.1, 4), (1e30, 4)])
def test_tuning_never_leads_away(monkeypatch: pytest.MonkeyPatch, rate: float, steps: int) -> None:
    """First steps do, and rates that are too large all the way into numbers that are none."""
    loaded = small("cips3d")
    monkeypatch.setattr("cips3d.inversion.tuning.RATE", rate)
    found = invert(loaded, own_picture(loaded, 3, FRONT, FRONT), replace(QUICK, tune_steps=steps))
    losses = [record.pixel + record.perceptual for record in found.records[-steps:]]
    assert not losses[-1] <= losses[0]
    assert found.tuned is not None and found.tuned_psnr is not None
    assert found.tuned_psnr >= found.psnr
    assert all(weight.isfinite().all() for weight in found.tuned.generator.parameters())


def test_other_faces_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the term for them: without it, tuning changes them more."""
    loaded = small("cips3d")
    photo = own_picture(loaded, 3, FRONT, FRONT).flip(2)
    front, likeness = torch.tensor([FRONT] * 8), []
    for weight in (0.0, 0.3):
        monkeypatch.setattr("cips3d.inversion.tuning.LOCALITY", weight)
        found = invert(loaded, photo, replace(QUICK, tune_steps=40))
        assert found.tuned is not None
        with torch.no_grad():
            styles = styles_of_seeds(loaded, range(8))
            likeness.append(psnr(*(seen_by(model, styles, front, front, 8) for model in (found.tuned, loaded))))
        assert [record.locality > 0 for record in found.records[-2:]] == [weight > 0] * 2
    assert likeness[1] > likeness[0] + 0.5


def test_a_known_camera_stays() -> None:
    loaded = small("cips3d")
    photo = own_picture(loaded, 3, FRONT, FRONT)
    found = invert(loaded, photo, replace(QUICK, pose=(FRONT + 0.1, FRONT - 0.3)))
    assert found.camera is not None
    # The angles are kept in float32.
    assert (found.camera.pitch, found.camera.yaw) == pytest.approx((FRONT + 0.1, FRONT - 0.3), abs=1e-6)


def test_prior_pulls_to_the_mean() -> None:
    loaded = small("cips3d")
    photo = own_picture(loaded, 3, FRONT, FRONT)
    free, held = (invert(loaded, photo, replace(QUICK, steps=60, prior=prior)) for prior in (0.0, 10.0))

    def distance(styles: tuple[torch.Tensor, ...]) -> float:
        return sum(float((s - m).square().sum()) for s, m in zip(styles, loaded.mean_styles, strict=True))

    assert distance(held.styles) < distance(free.styles)


@pytest.mark.parametrize("after", [0, 5, 20])
def test_stops_when_it_is_told_to(after: int) -> None:
    """In the pose round, in the latent's and among the weights: what there is then is the result."""
    loaded = small("cips3d")
    asked = count()
    photo = own_picture(loaded, 3, FRONT, FRONT)
    found = invert(loaded, photo, replace(QUICK, tune_steps=50), stop=lambda: next(asked) >= after)
    assert not found.complete
    assert len(found.records) <= after
    assert torch.isfinite(found.picture).all()
    assert (found.tuned is not None) == (after == 20)


@pytest.mark.parametrize("tunes", [False, True])
def test_steps_ask_for_no_single_numbers(monkeypatch: pytest.MonkeyPatch, tunes: bool) -> None:
    """A step's losses come in one transfer; tuning draws a number on the CPU."""
    monkeypatch.setattr(torch.optim.Adam, "step", lambda _: None)  # which counts its steps on the CPU
    loaded = small("cips3d")
    photo = own_picture(loaded, 3, FRONT, FRONT)

    def reads(steps: int) -> int:
        settings = replace(QUICK, steps=3, tune_steps=steps) if tunes else replace(QUICK, steps=steps)
        with reads_of_single_values() as single:
            invert(loaded, photo, settings)
        return single.count

    assert reads(9) - reads(6) == 3 * tunes


def test_rounds() -> None:
    loaded = small("cips3d")
    assert [(r.resolution, r.steps, r.keep) for r in rounds(loaded, InversionSettings(), 64)] == [
        (32, 100, 3),
        (64, 100, 1),
        (64, 400, 1),
    ]
    assert [search_resolution(loaded, side) for side in (4, 8, 12, 32, 256)] == [4, 8, 8, 16, 32]
    assert search_resolution(small("stylegan2"), 16) == 16
    assert sum(r.steps for r in rounds(loaded, InversionSettings(steps=1), 64)) == 1


def test_mistakes() -> None:
    loaded = small("cips3d")
    photo = own_picture(loaded, 3, FRONT, FRONT)
    with pytest.raises(ValueError, match="photo must have shape"):
        invert(loaded, photo[:, :, 1:], QUICK)
    with pytest.raises(ValueError, match=r"photo must be of a floating-point dtype, got torch\.uint8"):
        invert(loaded, photo.to(torch.uint8), QUICK)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        invert(loaded, photo, replace(QUICK, steps=0))
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        invert(loaded, photo, replace(QUICK, starts=0))
    with pytest.raises(ValueError, match="photo must hold finite numbers"):
        invert(loaded, photo.log(), QUICK)
    for wrong, words in {
        "tune_steps": (-3, "at least 0, got -3"),
        "prior": (math.nan, "a number from 0 on, got nan"),
        "perceptual_weight": (-0.1, "a number from 0 on, got -0.1"),
        "perceptual": ("foo", "one of pyramid, lpips, none, got 'foo'"),
        "pose": ((FRONT, math.nan), "a pitch between 0 and π and a yaw"),
    }.items():
        with pytest.raises(ValueError, match=f"^{wrong} must be {words[1]}"):
            invert(loaded, photo, replace(QUICK, **{wrong: words[0]}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the side 16 that the generator renders, got 8"):
        invert(small("stylegan2"), photo, QUICK)
    with pytest.raises(ValueError, match="2-D model"):
        invert(small("cips"), photo, replace(QUICK, pose=(FRONT, FRONT)))
    with torch.no_grad():
        loaded.generator.aux_to_rgb.weight.fill_(math.nan)  # of no picture that is looked at
    assert math.isfinite(invert(loaded, photo, QUICK).psnr)
    with torch.no_grad():
        loaded.generator.nerf.density.bias.fill_(math.nan)
    with pytest.raises(UserError, match="pictures are not numbers at step 7"):
        invert(loaded, photo, QUICK)
