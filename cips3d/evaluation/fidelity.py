"""FID, KID, inception score, precision and recall, by torch-fidelity."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cips3d.checkpoints.torch_file import read_torch_file
from cips3d.data.heads import SyntheticHeads
from cips3d.data.heads.dataset import cache_folder
from cips3d.data.images import ImageFiles
from cips3d.errors import UserError
from cips3d.evaluation.catalogue import METRICS, check_counts
from cips3d.evaluation.downloads import weights_of
from cips3d.evaluation.feature_cache import feature_cache
from cips3d.evaluation.image_sets import SourceImages, WithProgress, identity, size_of
from cips3d.files import sha256_of

FIDELITY_METRICS = ("fid", "kid", "is", "pr")
COMPARING = tuple(name for name in FIDELITY_METRICS if METRICS[name].needs_data)

KID_SUBSET = 1000  # pictures of each set that a KID estimate compares; fewer where a set is smaller
BATCH_SIZE = 32

FLAGS = {"fid": "fid", "kid": "kid", "is": "isc", "pr": "prc"}  # torch-fidelity's names
KEYS = {  # its names of values, and ours
    "frechet_inception_distance": "fid",
    "kernel_inception_distance_mean": "kid",
    "kernel_inception_distance_std": "kid_std",
    "inception_score_mean": "inception_score",
    "inception_score_std": "inception_score_std",
    "precision": "precision",
    "recall": "recall",
}

INCEPTION, VGG = "inception-v3-compat", "vgg16"  # torch-fidelity's names
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
VGG_FILE = "vgg16-397923af.pth"


@dataclass(frozen=True)
class FeatureNetworks:
    """Where the networks whose features are compared come from."""

    inception: Path | None = None
    """file of Inception's weights as torch-fidelity publishes them; None: downloaded"""
    vgg: Path | None = None
    """file of VGG16's weights as torchvision publishes them; None: downloaded"""
    extractor: str | None = None
    """name of another extractor registered in torch-fidelity, taken for every metric; None: the metrics' own"""

    flags: ClassVar[str] = "--"
    """what the flags for these files begin with, for messages"""


def fidelity(
    generated: Dataset,
    metrics: Iterable[str],
    *,
    real: ImageFiles | SyntheticHeads | None = None,
    networks: FeatureNetworks = FeatureNetworks(),
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Compare generated pictures with real ones by the features of networks trained on ImageNet.

    - fid: ‖μ_r - μ_g‖² + tr(C_r + C_g - 2 (C_r C_g)^½) of Inception's features (arXiv 1706.08500).
    - kid: unbiased squared MMD of Inception's features with the kernel (xᵀy/d + 1)³, mean over 100 subsets of 1000
      pictures, or as many as the smaller set has (arXiv 1801.01401).
    - is: exp of the mean of KL(p(y|x) ‖ p(y)), mean over 10 splits (arXiv 1606.03498).
    - pr: precision, the share of generated pictures within reach of the real ones (the distance of a real picture's
      third neighbour), and recall, the other way round, of VGG16's features (arXiv 1904.06991).

    The features of the real pictures are kept in the cache, under the set's identity and the weights'.

    Args:
        generated: uint8 [3, R, R] each.
        metrics: out of `FIDELITY_METRICS`.
        real: what fid, kid and pr compare with.
        networks: whose features.
        device: where these run.
        batch_size: pictures that these look at together.
        seed: of KID's subsets and the score's splits.
        cache: folder in whose `features` these lie; default: `cache_folder()`.
        progress: show bars on stderr.

    Returns:
        fid, kid and kid_std, inception_score and inception_score_std, precision and recall: what was asked for.

    Raises:
        UserError: torch-fidelity or weights are missing, there are too few pictures, or the cache cannot be written.
        ValueError: an argument does not fit.
    """
    chosen = check_metrics(metrics)
    compared = [name for name in chosen if name in COMPARING]
    if compared and real is None:
        raise ValueError(f"real must be given for {', '.join(compared)}")
    sizes = [size_of(generated)] + ([] if real is None else [len(real)])
    check_counts(chosen, *sizes)
    library = torch_fidelity()
    extractors = by_extractor(chosen, networks)
    if len(extractors) > 1:
        fetch_networks(chosen, networks)  # what the second one lacks is known before pictures are made for the first
    device = torch.device(device)
    settings: dict[str, Any] = {
        "cuda": device.type == "cuda",
        "batch_size": batch_size,
        "save_cpu_ram": True,  # one process: several would each render for themselves
        "rng_seed": seed % 2**32,
        "kid_subset_size": min(KID_SUBSET, *sizes),
        "cache_root": str((cache or cache_folder()) / "features"),
        "verbose": False,
    }
    values: dict[str, float] = {}
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    for extractor, names in extractors.items():
        with on_device, _with_progress(generated, "generating", progress) as made:
            settings |= {"input1": made, "feature_extractor": extractor}
            found = _calculate(library, settings, names, real, networks, progress)
        values |= {ours: float(found[theirs]) for theirs, ours in KEYS.items() if theirs in found}
    return values


def _calculate(
    library: ModuleType,
    settings: dict[str, Any],
    names: list[str],
    real: ImageFiles | SyntheticHeads | None,
    networks: FeatureNetworks,
    progress: bool,
) -> dict[str, float]:
    """torch-fidelity's values of metrics that share an extractor, by its names."""
    extractor: str = settings["feature_extractor"]
    weights, _ = weights_for(extractor, networks)
    settings = settings | {FLAGS[name]: True for name in names}
    fingerprint = "published"
    if weights is not None:
        fingerprint = check_weights(weights)
        settings["feature_extractor_weights_path"] = str(weights)
    with contextlib.ExitStack() as stack:
        if real is not None and any(name in COMPARING for name in names):
            settings["input2"] = stack.enter_context(_with_progress(SourceImages(real), "real pictures", progress))
            settings["input2_cache_name"] = name = f"{identity(real)}-{fingerprint}"
            stack.enter_context(feature_cache(Path(settings["cache_root"]), name, len(real)))
        stack.enter_context(_loaded_weights(extractor, networks))
        return library.calculate_metrics(**settings)


@contextlib.contextmanager
def _loaded_weights(extractor: str, networks: FeatureNetworks) -> Iterator[None]:
    """Raise `UserError` where weights cannot be downloaded or are those of another network."""
    weights, remedy = weights_for(extractor, networks)
    with weights_of(f"the weights of {extractor}", remedy):
        try:
            yield
        except RuntimeError as error:
            if weights is None or "loading state_dict" not in str(error):
                raise
            raise UserError(f"{weights} does not hold the weights of {extractor}; {remedy}") from error


@contextlib.contextmanager
def _with_progress(images: Dataset, title: str, progress: bool) -> Iterator[Dataset]:
    """The set with a bar that appears when its first picture is taken: cached features take none."""
    bar = tqdm(total=size_of(images), desc=title, unit="picture", disable=not progress, leave=False, delay=1e-3)
    with bar:
        yield WithProgress(images, bar)


def check_metrics(metrics: Iterable[str]) -> list[str]:
    """The metrics, each once; raises ValueError for one that is not there."""
    chosen = list(dict.fromkeys(metrics))
    unknown = [name for name in chosen if name not in FIDELITY_METRICS]
    if unknown or not chosen:
        raise ValueError(f"metrics must be out of {', '.join(FIDELITY_METRICS)}, got {', '.join(unknown) or 'none'}")
    return chosen


def check_networks(metrics: Iterable[str], networks: FeatureNetworks) -> None:
    """Raise `UserError` where the library or a file of weights for these metrics is missing, before the work begins."""
    extractors = by_extractor([name for name in metrics if name in FIDELITY_METRICS], networks)
    if extractors:
        torch_fidelity()
    for extractor in extractors:
        weights, _ = weights_for(extractor, networks)
        if weights is not None:
            check_weights(weights)


def fetch_networks(metrics: Iterable[str], networks: FeatureNetworks) -> None:
    """Load every network for these metrics once: weights that are to be downloaded are, and are there from then on.

    Raises:
        UserError: the library or weights are missing, or are those of another network.
    """
    chosen = [name for name in metrics if name in FIDELITY_METRICS]
    check_networks(chosen, networks)
    for extractor, names in by_extractor(chosen, networks).items():
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        kind = FEATURE_EXTRACTORS_REGISTRY[extractor]
        layer = kind.get_default_feature_layer_for_metric(FLAGS[names[0]])
        weights, _ = weights_for(extractor, networks)
        path = None if weights is None else str(weights)
        with _loaded_weights(extractor, networks):
            kind(extractor, [layer], feature_extractor_weights_path=path, verbose=False)


def by_extractor(metrics: Iterable[str], networks: FeatureNetworks) -> dict[str, list[str]]:
    """The metrics by the name of the extractor whose features they take."""
    groups: dict[str, list[str]] = {}
    for name in metrics:
        groups.setdefault(networks.extractor or (VGG if name == "pr" else INCEPTION), []).append(name)
    return groups


def weights_for(extractor: str, networks: FeatureNetworks) -> tuple[Path | None, str]:
    """The file of an extractor's weights, None where they are to be downloaded, and what to do where they cannot."""
    if extractor == INCEPTION:
        file, library, flag, weights = INCEPTION_FILE, "torch-fidelity", "inception", networks.inception
    elif extractor == VGG:
        file, library, flag, weights = VGG_FILE, "torchvision", "vgg", networks.vgg
    else:
        return None, "choose another extractor"
    return weights, f"fetch {file} of {library} elsewhere and give it by {networks.flags}{flag} FILE"


def check_weights(path: Path) -> str:
    """Read a file of weights without executing anything, and return a fingerprint of its content.

    torch-fidelity itself reads such files in a way that could run code of theirs.

    Raises:
        UserError: there is no such file, or it holds anything but tensors.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a file of weights: it holds more than named tensors")
    return sha256_of(path)[:12]


def torch_fidelity() -> ModuleType:
    """The library.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    try:
        import torch_fidelity as library
    except ImportError as error:
        raise UserError("fid, kid, is and pr need torch-fidelity; install it: pip install 'cips3d[eval]'") from error
    except RuntimeError as error:  # what torchvision says to a torch that it was not built for
        raise UserError(
            f"torch-fidelity cannot be imported ({error}); install the torchvision that belongs to torch "
            f"{torch.__version__}"
        ) from error
    return library
