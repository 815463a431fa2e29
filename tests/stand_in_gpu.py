"""A pytest plugin: the tests for a GPU on a machine without one, to find mistakes about devices.

    PYTHONPATH=tests python -m pytest -p stand_in_gpu

"cuda" is then a device whose tensors are CPU tensors in memory of its own, and whose kernels are the emulated ones.
Below autograd, every operator is looked at: tensors or random generators of different devices are an error, as on a
GPU, and so is whatever would make the host wait while a CUDA graph is captured; graphs replay what they have recorded.
It is no model of a GPU otherwise: no streams, no speed, no second device. Operators that PyTorch itself composes may
ask for "cpu" where they mean "the same device"; inside a backward that is put right, elsewhere a test can fail for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import emulated_kernels
import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

torch._dynamo.trace_rules.get_torch_obj_rule_map()  # before functions are replaced that it knows by their identity

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# These take tensors of several devices.
MIXING = {"aten::copy_", "aten::_to_copy", "aten::set_", "aten::index", "aten::index_put", "aten::index_put_"}
NO_SCALARS = {"aten::cat", "aten::stack", "aten::mm", "aten::bmm", "aten::addmm"}  # of the CPU beside a GPU's tensors
TRAINING = "test_every_preset_trains_and_resumes"  # on whatever device there is
LONG = "test_whole_run"  # 200 steps, of which the first show what devices do
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}

_true_device: Callable[[Tensor], torch.device] = torch._C.TensorBase.device.__get__


class DeviceMemory:
    """Addresses that belong to the device. Blocks of powers of two, used again when nothing refers to them."""

    BYTES, SMALLEST = 1 << 38, 512  # reserved, not used

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        start = libc.mmap(None, self.BYTES, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if start in (None, ctypes.c_void_p(-1).value):
            raise MemoryError("no addresses for the device")
        self.start, self.next = start, start
        self.free: dict[int, list[int]] = {}
        self.lock = threading.RLock()  # a block may come back in the middle of a request

    def holds(self, tensor: Tensor) -> bool:
        try:
            return self.start <= tensor.untyped_storage().data_ptr() < self.start + self.BYTES
        except (RuntimeError, NotImplementedError):  # it has no storage
            return False

    def bytes(self, count: int) -> Tensor:
        size = max(self.SMALLEST, 1 << (count - 1).bit_length())
        with self.lock:
            if self.free.get(size):
                address = self.free[size].pop()
            else:
                address, self.next = self.next, self.next + size
        assert address + size <= self.start + self.BYTES, "the device's memory is full"
        block = (ctypes.c_char * size).from_address(address)
        weakref.finalize(block, self._give_back, address, size)
        return torch.frombuffer(block, dtype=torch.uint8)

    def _give_back(self, address: int, size: int) -> None:
        with self.lock:
            self.free.setdefault(size, []).append(address)

    def copy_of(self, tensor: Tensor) -> Tensor:
        """With the same strides."""
        spans = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        elements = 1 + sum(spans) if tensor.numel() else 0
        storage = self.bytes(max(1, elements * tensor.element_size())).untyped_storage()
        return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride()).copy_(tensor)


MEMORY = DeviceMemory()


def device_of(tensor: Tensor) -> torch.device:
    device = _true_device(tensor)
    return GPU if device.type == "cpu" and MEMORY.holds(tensor) else device


def named(device: Any) -> torch.device:
    device = torch.device(device)
    return GPU if device.type == "cuda" else device


class _State(threading.local):
    graph: Graph | None = None  # that is captured
    differentiates_gpu = False  # inside a backward of tensors on the device


STATE = _State()
GENERATORS: dict[int, torch.device] = {}  # those that were made with a device


class Device(TorchDispatchMode):
    """Computes operators on the CPU, moves results to the device, and has rules for what may be mixed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, dict(kwargs or {})
        flat, _ = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        on_gpu = any(MEMORY.holds(x) for x in tensors)
        asked = kwargs.get("device")
        if asked is not None:
            to_gpu = named(asked).type == "cuda"
            # Formulas of derivatives make tensors "like" others, on what they take for their device.
            if STATE.differentiates_gpu and torch._C._current_autograd_node() is not None:
                to_gpu = True
            kwargs["device"] = CPU if named(asked).type == "cuda" else asked
        else:
            to_gpu = on_gpu
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        self._check(name, func, tensors, [x for x in flat if isinstance(x, torch._C.Generator)], to_gpu)
        graph, STATE.graph = STATE.graph, None
        try:
            if graph is not None:
                moves = len({*map(device_of, tensors), *([] if asked is None else [GPU if to_gpu else CPU])}) > 1
                if name in WAITING or (moves and name in ("aten::_to_copy", "aten::copy_")):
                    raise RuntimeError(f"{func} waits for the device while a graph is captured")
            made = func(*args, **kwargs)
            if to_gpu and name not in ("aten::copy_", "aten::set_"):
                given = {id(x) for x in tensors}
                made = tree_map(lambda x: self._moved(x) if id(x) not in given else x, made)
            if graph is not None and to_gpu:
                graph.steps.append((func, args, kwargs, made))
            return made
        finally:
            STATE.graph = graph

    def _check(self, name: str, func: Any, tensors: list[Tensor], generators: list[Any], to_gpu: bool) -> None:
        mine = [x for x in tensors if MEMORY.holds(x)]
        others = [x for x in tensors if device_of(x).type == "cpu" and (x.dim() > 0 or name in NO_SCALARS)]
        if mine and others and name not in MIXING and not name.startswith("cips3d::"):  # which say it themselves
            shown = ", ".join(f"{list(x.shape)} on {device_of(x)}" for x in tensors)
            raise RuntimeError(f"expected all tensors to be on the same device in {func}: {shown}")
        for generator in generators:
            device = GENERATORS.get(generator._cdata, CPU)
            if (device.type == "cuda") != to_gpu:
                raise RuntimeError(f"a generator on {device} for {func} on {'cuda' if to_gpu else 'cpu'}")

    def _moved(self, value: Any) -> Any:
        is_new = isinstance(value, Tensor) and _true_device(value).type == "cpu" and not MEMORY.holds(value)
        return MEMORY.copy_of(value) if is_new else value


DEVICE = Device()


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self.steps:
            for new, old in zip(tree_flatten(func(*args, **kwargs))[0], tree_flatten(recorded)[0], strict=True):
                if isinstance(new, Tensor) and old.numel() and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


@contextlib.contextmanager
def capture(graph: Graph, *_: Any, **__: Any) -> Any:
    """torch.cuda.graph."""
    STATE.graph = graph
    try:
        yield
    finally:
        STATE.graph = None


class Generator(torch._C.Generator):
    """torch.Generator, which knows its device."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        GENERATORS[made._cdata] = named(device)
        weakref.finalize(made, GENERATORS.pop, made._cdata, None)
        return made

    @property
    def device(self) -> torch.device:
        return GENERATORS[self._cdata]


def to(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """Tensor.to."""
    device, dtype, others = kwargs.pop("device", None), kwargs.pop("dtype", None), []
    for argument in (*args, *([kwargs.pop("other")] if "other" in kwargs else [])):
        if isinstance(argument, Tensor):
            device, dtype = argument.device, argument.dtype
        elif isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, (str, torch.device)):
            device = argument
        elif argument is not None:
            others.append(argument)  # non_blocking
    kwargs.pop("non_blocking", None)
    target = device_of(self) if device is None else named(device)
    if target == device_of(self):
        return _tensor_to(self, dtype or self.dtype, copy=copy, **kwargs)
    moved: Tensor = torch.ops.aten._to_copy(self, dtype=dtype or self.dtype, device=target, **kwargs)
    return moved


def on_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and torch.as_tensor, which go around the dispatcher."""

    def made(data: Any, *args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        if device is None and isinstance(data, Tensor):
            device = device_of(data)
        tensor = make(data, *args, **kwargs)
        tensor = tensor if device is None else tensor.to(device)
        return tensor.requires_grad_() if requires_grad else tensor

    return made


def on_the_host(convert: Callable[..., Any]) -> Callable[..., Any]:
    """Tensor.numpy and Tensor.__array__."""

    def converted(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if MEMORY.holds(self):
            raise TypeError("can't convert a tensor on cuda:0 to numpy; copy it to the host first")
        return convert(self, *args, **kwargs)

    return converted


def deep_copy(self: Tensor, memo: dict[int, Any]) -> Any:
    """Tensor.__deepcopy__, which copies storages."""
    if type(self) is not Tensor or not MEMORY.holds(self):
        return _deep_copy(self, memo)
    memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
    return copied


def differentiating(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.autograd.grad, torch.autograd.backward, Tensor.backward."""

    def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        before = STATE.differentiates_gpu
        STATE.differentiates_gpu = any(isinstance(x, Tensor) and MEMORY.holds(x) for x in tree_flatten(outputs)[0])
        try:
            return function(outputs, *args, **kwargs)
        finally:
            STATE.differentiates_gpu = before

    return run


class Nothing(contextlib.AbstractContextManager[None]):
    """A stream, an event, a guard: everything happens at once."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __exit__(self, *_: Any) -> None: ...
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


_tensor_to, _deep_copy = Tensor.to, Tensor.__deepcopy__
_library_impl, _thread_run = torch.library.Library.impl, threading.Thread.run
_autocast, _is_autocast, _autocast_dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
_GradScaler, _quantile = torch.amp.GradScaler, torch.quantile


def _host(device_type: str) -> str:
    return "cpu" if device_type == "cuda" else device_type


class autocast(_autocast):  # type: ignore[misc, valid-type]
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(_host(device_type), *args, **kwargs)


class GradScaler(_GradScaler):
    def __init__(self, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
        super().__init__(_host(device), *args, **kwargs)


def implement(self: Any, name: str, function: Any, key: str = "", **kwargs: Any) -> Any:
    """Library.impl: what a registered op does is looked at too."""

    def run(*args: Any, **given: Any) -> Any:
        with DEVICE:
            return function(*args, **given)

    return _library_impl(self, name, run if self.ns == "cips3d" else function, key, **kwargs)


def run_thread(self: threading.Thread) -> None:
    with DEVICE:
        _thread_run(self)


def quantile(x: Tensor, q: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Composed by PyTorch, with a tensor on what it takes for the device of x."""
    return _quantile(x.cpu(), q.cpu() if isinstance(q, Tensor) else q, *args, **kwargs).to(device_of(x))


def install() -> None:
    for name, value in {
        "device": property(device_of),
        "is_cuda": property(lambda x: device_of(x).type == "cuda"),
        "to": to,
        "cpu": lambda x: x.to(CPU),
        "cuda": lambda x: x.to(GPU),
        "numpy": on_the_host(Tensor.numpy),
        "__array__": on_the_host(Tensor.__array__),
        "__deepcopy__": deep_copy,
        "pin_memory": lambda x: x,
        "new_tensor": lambda x, data, **k: torch.tensor(data, **{"dtype": x.dtype, "device": x.device, **k}),
        "backward": differentiating(Tensor.backward),
    }.items():
        setattr(Tensor, name, value)
    torch.tensor, torch.as_tensor = on_device(torch.tensor), on_device(torch.as_tensor)
    torch.Generator, torch.quantile = Generator, quantile
    torch.autograd.grad = differentiating(torch.autograd.grad)
    torch.autograd.backward = differentiating(torch.autograd.backward)
    torch.autocast = torch.amp.autocast = autocast
    torch.is_autocast_enabled = lambda device="cpu": _is_autocast(_host(device))
    torch.get_autocast_dtype = lambda device: _autocast_dtype(_host(device))
    torch.amp.GradScaler = GradScaler
    properties = types.SimpleNamespace(name="stand-in", multi_processor_count=2, total_memory=1 << 34)
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda _=None: emulated_kernels.capability(),
        "get_device_name": lambda _=None: properties.name,
        "get_device_properties": lambda _=None: properties,
        "mem_get_info": lambda _=None: (1 << 33, 1 << 34),
        "get_rng_state": lambda _=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _=None: torch.set_rng_state(state),
        "current_stream": Nothing,
        "stream": Nothing,
        "device": Nothing,
        "Stream": Nothing,
        "Event": Nothing,
        "CUDAGraph": Graph,
        "graph": capture,
        **{name: lambda *_, **__: None for name in ("_lazy_init", "init", "set_device", "synchronize", "_sleep")},
        **{name: lambda *_, **__: None for name in ("manual_seed", "manual_seed_all", "empty_cache")},
    }.items():
        setattr(torch.cuda, name, value)
    torch.library.Library.impl, threading.Thread.run = implement, run_thread


def pytest_configure(config: pytest.Config) -> None:
    from cips3d.ops import kernels

    kernels._compiled, kernels._why_not_compiled = emulated_kernels.load(), None
    kernels._compiled.architectures = "{}{}".format(*emulated_kernels.capability())
    DEVICE.__enter__()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of a GPU, by their own or their file's name, but for those that compile, or look at how ops are
    registered: PyTorch would look inside. And but for a long one.
    """
    kept, left = [], []
    for item in items:
        file, _, test = item.nodeid.partition("::")
        looks_inside = "torch_compile" in file or any(word in test for word in ("compile", "inductor", "registration"))
        is_for_gpu = ("cuda" in item.nodeid and not looks_inside) or item.name.startswith(TRAINING)
        is_for_gpu = is_for_gpu and not item.name.startswith(LONG)
        (kept if is_for_gpu else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


install()  # before cips3d registers its ops
