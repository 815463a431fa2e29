"""The compiled kernels: whether they are there, which tensors they take, and how they are called."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from cips3d.ops.compiling import constant_while_compiling
from cips3d.ops.kernel_sources import digest

OLDEST, TEGRA = (8, 0), 87  # compute capabilities
# The values are the contract with `DType` in csrc/numeric.h.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

AGAIN = "install again (pip install --force-reinstall --no-deps)"  # pip leaves alone what has the same version
PACKAGE = Path(__file__).parents[1]
_NONE = f"this copy of cips3d ({PACKAGE}) has no compiled kernels; install it where nvcc is found"


def _misplaced(module: ModuleType) -> str | None:
    """Why a module of compiled kernels is not this package's, in a sentence; None if it is."""
    folder = Path(module.__file__ or "").parent
    if folder != PACKAGE and folder.resolve() != PACKAGE.resolve():
        return _NONE  # an editable installation of another copy lends its own
    sources = PACKAGE.parent / "csrc"
    if sources.is_dir() and digest(sources) != getattr(module, "sources", ""):
        return f"the compiled kernels were made of other sources than those in {sources}; {AGAIN}"
    return None


_compiled: ModuleType | None = None
_why_not_compiled: str | None = None
try:
    from cips3d import _cuda as _compiled  # type: ignore[attr-defined, no-redef, unused-ignore]

    _why_not_compiled = _misplaced(_compiled)  # type: ignore[arg-type, unused-ignore]
except ImportError as error:
    _why_not_compiled = (
        _NONE
        if "_cuda" in str(error) and "cannot import name" in str(error)
        else f"the compiled kernels cannot be loaded: {error}"
    )
if _why_not_compiled is not None:
    _compiled = None

# What the contexts below have set, for the whole process: gradients are computed in threads of their own. They may be
# left in another order than they were entered.
_emulations: list[ModuleType] = []
_emulated: ModuleType | None = None  # the newest of them, which stands in for the compiled module on CPU tensors
_disabled = 0
_counting = threading.Lock()


def compiled() -> ModuleType | None:
    """The module that nvcc compiled, or None (see `why_not_compiled`)."""
    return _compiled


def why_not_compiled() -> str | None:
    """Why `compiled` is None, in a sentence; None if it is there."""
    return _why_not_compiled


def why_not_on(device: torch.device) -> str | None:
    """Why the kernels do not run on a device, in a sentence; None if they do."""
    if device.type == "cpu" and _emulated is not None:
        return None
    if device.type != "cuda":
        return f"the kernels are for CUDA devices, not for {device.type!r}"
    if _compiled is None:
        return _why_not_compiled
    index = torch.cuda.current_device() if device.index is None else device.index
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) < OLDEST:
        return (
            f"the kernels need compute capability {OLDEST[0]}.{OLDEST[1]} or newer, and the device has {major}.{minor}"
        )
    if not runs_on_capability(_compiled.architectures, major, minor):
        return (
            f"the kernels were compiled for {_compiled.architectures}, which a device of compute capability "
            f"{major}.{minor} cannot run; {AGAIN} with CIPS3D_CUDA_ARCHS={major}{minor}"
        )
    try:
        _compiled.multiprocessors(index)
    except RuntimeError as error:  # such as a driver older than the nvcc that compiled them
        return (
            f"the kernels do not start there: {error}; update the driver, or {AGAIN} with the nvcc of a CUDA version "
            "that it knows"
        )
    return None


def runs_on_capability(architectures: str, major: int, minor: int) -> bool:
    """Whether code for `architectures` ("80;90+PTX") runs on a compute capability.

    Machine code runs on its own major version from its minor version on, but for that of Tegra (8.7), which is for
    itself; PTX on everything from its version on. Source: CUDA C++ programming guide, "Binary compatibility".
    """
    for architecture in filter(None, architectures.split(";")):
        number = int(architecture.removesuffix("+PTX").rstrip("af"))
        tegra = TEGRA in (number, 10 * major + minor)
        if number // 10 == major and (number % 10 == minor if tegra else number % 10 <= minor):
            return True
        if architecture.endswith("+PTX") and (major, minor) >= (number // 10, number % 10):
            return True
    return False


_ready: dict[int, bool] = {}  # CUDA device -> whether the kernels run there


@constant_while_compiling
def _runs_on_cuda(index: int) -> bool:
    if index not in _ready:
        reason = why_not_on(torch.device("cuda", index))
        _ready[index] = reason is None
        if reason is not None:
            warnings.warn(f"cips3d computes with plain PyTorch on cuda:{index}: {reason}", RuntimeWarning, stacklevel=4)
    return _ready[index]


_warned: set[str] = set()  # the reasons that `warn_composed` has given


@constant_while_compiling
def warn_composed(reason: str, instead: str) -> None:
    """Warn, once for each reason, that no fused kernel computes this, and say what happens instead."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"cips3d {instead}: {reason}", RuntimeWarning, stacklevel=4)


def take(x: Tensor) -> bool:
    """Whether the kernels compute on a tensor's device and dtype; else the plain PyTorch reference does.

    The kernels know float32, float16 and bfloat16 on CUDA devices; float64 is always the reference's, and so is
    everything inside `disabled`. Where compiled kernels are missing on a CUDA device, a warning says so once.
    """
    if x.dtype not in DTYPE_CODES or _disabled > 0:
        return False
    if x.device.type == "cuda":
        return _runs_on_cuda(x.device.index)
    return _emulated is not None and x.device.type == "cpu"


@contextmanager
def emulation(module: ModuleType) -> Iterator[None]:
    """Inside, `module`, the kernels compiled for a CPU, takes CPU tensors as the compiled kernels take CUDA tensors."""
    global _emulated
    _emulations.append(module)
    _emulated = module
    try:
        yield
    finally:
        _emulations.remove(module)
        _emulated = _emulations[-1] if _emulations else None


@contextmanager
def disabled() -> Iterator[None]:
    """Inside, every op is computed by its plain PyTorch reference: to compare, or to look for a mistake.

    In all threads of the process.
    """
    global _disabled
    with _counting:
        _disabled += 1
    try:
        yield
    finally:
        with _counting:
            _disabled -= 1


def module_for(device: torch.device) -> ModuleType:
    """The module whose launchers run on a device."""
    module = _compiled if device.type == "cuda" else _emulated
    if module is None:
        raise RuntimeError(f"no kernels on {device}: {why_not_on(device)}")
    return module


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a device; few in the emulation, so that in tests one of them gets several blocks."""
    return int(module_for(device).multiprocessors(device.index or 0))


def launch(launcher: str, *arguments: Tensor | float | bool | torch.dtype | None) -> None:
    """Call a launcher of the compiled module on the current stream of the tensors' device.

    Tensors go in as addresses (None as 0), dtypes as codes. The tensors have to be contiguous and on one device; they
    stay alive until the launcher has returned, and the stream's order does the rest.

    Raises:
        RuntimeError: the launch was refused; the message names the launcher and the tensors.
    """
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device or not tensor.is_contiguous():
            raise RuntimeError(f"{launcher}: tensors must be contiguous and on one device: {_described(tensors)}")
    index, stream = 0, 0
    if device.type == "cuda":
        index, stream = device.index, torch.cuda.current_stream(device).cuda_stream
    try:
        getattr(module_for(device), launcher)(index, stream, *map(_argument, arguments))
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(f"{launcher}: {error} ({_described(tensors)})") from error


def _argument(value: Tensor | float | bool | torch.dtype | None) -> float:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, torch.dtype):
        return DTYPE_CODES[value]
    return 0 if value is None else value


def _described(tensors: list[Tensor]) -> str:
    return ", ".join(f"{list(t.shape)} strides {list(t.stride())} {t.dtype} {t.device}" for t in tensors)
