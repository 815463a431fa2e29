"""FID, KID, inception score, precision and recall where the answer is known."""

from __future__ import annotations

import math
import pickle
import sys
import urllib.error
from pathlib import Path
from types import ModuleType

import pytest
import torch
from evaluation.fidelity_library import CLASSES, TINY, open_torch_fidelity, tiny_features
from torch import Tensor

from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.errors import UserError
from cips3d.evaluation.fidelity import FeatureNetworks, check_weights, fidelity
from cips3d.evaluation.frechet import frechet_distance
from cips3d.evaluation.image_sets import SourceImages

COUNT = 48
BY_TINY = FeatureNetworks(extractor=TINY)


@pytest.fixture(scope="module", autouse=True)
def library() -> ModuleType:
    return open_torch_fidelity()


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> SyntheticHeads:
    return load_heads(8, COUNT, cache=tmp_path_factory.mktemp("cache"), progress=False)


class Images(torch.utils.data.Dataset):
    """Pictures given as a tensor."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def noise(count: int = COUNT, low: int = 0, high: int = 256, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return Images(torch.randint(low, high, (count, 3, 8, 8), generator=generator).to(torch.uint8))


def pixels(heads: SyntheticHeads) -> Tensor:
    return torch.stack([heads[i] for i in range(len(heads))])


def test_fid_is_the_frechet_distance_of_the_features(heads: SyntheticHeads, tmp_path: Path) -> None:
    made = noise()
    found = fidelity(made, ["fid"], real=heads, networks=BY_TINY, cache=tmp_path)
    expected = frechet_distance(tiny_features(made.images), tiny_features(pixels(heads)))
    assert list(found) == ["fid"]
    assert found["fid"] == pytest.approx(expected, rel=1e-4)  # float32 features; both compute in float64
    same = fidelity(SourceImages(heads), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path)
    assert same["fid"] == pytest.approx(0, abs=1e-6)


def test_kid(heads: SyntheticHeads, tmp_path: Path) -> None:
    """Subsets as large as the sets: the unbiased estimate itself, whatever is drawn."""
    made = noise()
    x, y = tiny_features(made.images).double(), tiny_features(pixels(heads)).double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 6 + 1) ** 3

    def off_diagonal(k: Tensor) -> float:
        return float((k.sum() - k.diagonal().sum()) / (COUNT * (COUNT - 1)))

    expected = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * float(kernel(x, y).mean())
    found = fidelity(made, ["kid"], real=heads, networks=BY_TINY, cache=tmp_path)
    assert found["kid"] == pytest.approx(expected, rel=1e-4)
    assert found["kid_std"] == pytest.approx(0, abs=1e-6)


def test_kid_of_fewer_real_pictures(heads: SyntheticHeads, tmp_path: Path) -> None:
    """Subsets are as large as the smaller set."""
    for made in (noise(COUNT + 8), noise(COUNT - 8)):
        found = fidelity(made, ["kid"], real=heads, networks=BY_TINY, cache=tmp_path)
        assert math.isfinite(found["kid"]) and found["kid_std"] > 0


def test_inception_score_counts_classes(tmp_path: Path) -> None:
    """Sure answers, evenly spread over k classes, score k; all of one class score 1."""
    classes = torch.arange(4).repeat(100)
    spread = Images((classes * 64)[:, None, None, None].expand(-1, 3, 4, 4).to(torch.uint8))
    one = Images(torch.zeros(40, 3, 4, 4, dtype=torch.uint8))
    networks = FeatureNetworks(extractor=CLASSES)
    found = fidelity(spread, ["is"], networks=networks, cache=tmp_path)
    # Splits of 40 random pictures are not quite even: exp of an entropy that is too low by (4 - 1) / (2 · 40).
    assert found["inception_score"] == pytest.approx(4, rel=0.08)
    assert set(found) == {"inception_score", "inception_score_std"}
    assert fidelity(one, ["is"], networks=networks)["inception_score"] == pytest.approx(1)


def test_precision_and_recall(heads: SyntheticHeads, tmp_path: Path) -> None:
    def of(images: Images | SourceImages) -> tuple[float, float]:
        found = fidelity(images, ["pr"], real=heads, networks=BY_TINY, cache=tmp_path)
        return found["precision"], found["recall"]

    assert of(SourceImages(heads)) == (1, 1)
    assert of(noise(low=250)) == (0, 0)
    # A single head, over and over: always possible, hardly anything else is.
    precision, recall = of(Images(heads[5].expand(COUNT, -1, -1, -1)))
    assert precision == 1
    assert recall < 0.1


def test_several_at_once_and_cached(heads: SyntheticHeads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fidelity(noise(), ["fid", "kid", "pr"], real=heads, networks=BY_TINY, cache=tmp_path)
    assert set(first) == {"fid", "kid", "kid_std", "precision", "recall"}
    assert any(heads.folder.name in file.name for file in (tmp_path / "features").iterdir())

    def fail(self: SyntheticHeads, index: int, /) -> Tensor:
        raise AssertionError("the real pictures are read again")

    monkeypatch.setattr(SyntheticHeads, "__getitem__", fail)
    assert fidelity(noise(), ["fid", "kid", "pr"], real=heads, networks=BY_TINY, cache=tmp_path) == first
    with pytest.raises(AssertionError, match="read again"):
        fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path / "elsewhere")


def test_cached_features_that_are_not_sound_are_made_anew(heads: SyntheticHeads, tmp_path: Path) -> None:
    """Cut short, of other pictures, or with code in them, which is not run."""
    canary = tmp_path / "run"
    first = fidelity(noise(), ["fid", "kid"], real=heads, networks=BY_TINY, cache=tmp_path)
    files = sorted((tmp_path / "features").iterdir())
    assert len(files) == 2  # features and their statistics
    whole = {file: file.read_bytes() for file in files}
    for file in files:
        for damage in ("cut", "other", "code"):
            if damage == "cut":
                file.write_bytes(whole[file][: len(whole[file]) // 2])
            else:
                torch.save(torch.zeros(COUNT - 1, 6) if damage == "other" else {"a": _Evil(canary)}, file)
            assert fidelity(noise(), ["fid", "kid"], real=heads, networks=BY_TINY, cache=tmp_path) == first
            assert len(file.read_bytes()) == len(whole[file])
    assert not canary.exists()


def test_features_are_kept_where_they_are_sound(heads: SyntheticHeads, tmp_path: Path) -> None:
    """But not what is made of them: NumPy's arrays would have to be taken from the file too."""
    times = []
    for _ in range(2):
        fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path)
        times.append({file.name: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()})
    kept = {name for name, time in times[0].items() if times[1][name] == time}
    assert times[0].keys() == times[1].keys() and {"stat" in name for name in kept} == {False}


def test_a_cache_that_cannot_be_written(heads: SyntheticHeads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/features cannot be written \(Not a directory\); set CIPS3D_CACHE"):
        fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path / "file")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", refuse)  # a full disk in torch's words
    with pytest.raises(UserError, match="features cannot be written"):
        fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path)


def test_batch_size_and_progress(heads: SyntheticHeads, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_one, by_many = (
        fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path / str(size), batch_size=size)
        for size in (5, 64)
    )
    assert by_one["fid"] == pytest.approx(by_many["fid"], rel=1e-5)
    assert capsys.readouterr() == ("", "")
    fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path / "5", progress=True)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of Inception's weights, at random."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_inception_by_path(heads: SyntheticHeads, inception: Path, tmp_path: Path) -> None:
    """The real network, its own layers, nothing downloaded."""
    few, networks = Images(pixels(heads)[4:8]), FeatureNetworks(inception)
    found = fidelity(few, ["kid"], real=heads_of(heads, 4), networks=networks, cache=tmp_path)
    assert math.isfinite(found["kid"])
    (stored,) = (tmp_path / "features").iterdir()
    assert check_weights(inception) in stored.name  # other weights have a cache of their own
    assert torch.load(stored, weights_only=True).shape == (4, 2048)


def heads_of(heads: SyntheticHeads, count: int) -> SyntheticHeads:
    return load_heads(8, count, cache=heads.folder.parent, progress=False)


def test_weights_that_cannot_be_downloaded(
    heads: SyntheticHeads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", offline)
    for metric, flag in (("fid", "--inception FILE"), ("is", "--inception FILE"), ("pr", "--vgg FILE")):
        with pytest.raises(UserError, match=f"cannot be downloaded.*no route to host.*{flag}"):
            fidelity(noise(), [metric], real=heads, cache=tmp_path)


def test_what_the_second_network_lacks_is_known_before_pictures_are_made(
    heads: SyntheticHeads, inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    class Unmade(Images):
        def __getitem__(self, index: int) -> Tensor:
            raise AssertionError("a picture was made")

    monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded.*no route to host.*--vgg FILE"):
        made = Unmade(noise().images)
        fidelity(made, ["fid", "pr"], real=heads, networks=FeatureNetworks(inception), cache=tmp_path)


def test_another_process_removes_a_file_first(
    heads: SyntheticHeads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that measure the same set at once both find what is not sound."""
    fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path)

    def removed_by_another(file: Path, count: int) -> bool:
        file.unlink()
        return False

    monkeypatch.setattr("cips3d.evaluation.feature_cache._is_sound", removed_by_another)
    assert "fid" in fidelity(noise(), ["fid"], real=heads, networks=BY_TINY, cache=tmp_path)


class TestWeightFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"none\.pth does not exist"):
            fidelity(noise(), ["is"], networks=FeatureNetworks(tmp_path / "none.pth"))

    def test_code_is_not_executed(self, tmp_path: Path) -> None:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil(tmp_path / "run"), protocol=2))
        torch.save({"a": _Evil(tmp_path / "run")}, tmp_path / "evil2.pth")
        for name in ("evil.pth", "evil2.pth"):
            with pytest.raises(UserError, match=rf"{name} was not read: it asks for builtins\.getattr"):
                fidelity(noise(), ["is"], networks=FeatureNetworks(tmp_path / name))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("content", [{"a": 1}, torch.zeros(3)])
    def test_no_weights(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match="named tensors"):
            check_weights(tmp_path / "a.pth")

    def test_of_another_network(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"a\.pth does not hold the weights of inception-v3-compat"):
            fidelity(noise(), ["is"], networks=FeatureNetworks(tmp_path / "a.pth"))


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


class TestMistakes:
    def test_library_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        with pytest.raises(UserError, match=r"pip install 'cips3d\[eval\]'"):
            fidelity(noise(), ["is"])

    def test_too_few(self, heads: SyntheticHeads) -> None:
        with pytest.raises(UserError, match="9 pictures are too few for is; it takes 10"):
            fidelity(noise(9), ["is"])
        with pytest.raises(UserError, match="3 pictures are too few for pr"):
            fidelity(noise(), ["pr"], real=heads_of(heads, 3))

    def test_unknown_or_without_real_pictures(self) -> None:
        with pytest.raises(ValueError, match="metrics must be out of fid, kid, is, pr"):
            fidelity(noise(), ["ppl"])
        with pytest.raises(ValueError, match="real must be given for kid"):
            fidelity(noise(), ["kid"])
