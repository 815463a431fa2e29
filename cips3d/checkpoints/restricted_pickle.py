"""Pickles read without executing anything of theirs.

A pickle is a program: it names classes and functions of any module and has them called. This reader runs the program
on a stack of its own. No name is ever imported or looked up: a name either stands in a fixed table of harmless values
and functions, or belongs to a published network, whose objects become containers of what the pickle says of them, or
the reading ends.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

CLASS_NAME = re.compile(r"_?[A-Z]\w*", re.ASCII)
SHOWN_NAME = re.compile(r"[\w.]{1,80}", re.ASCII)  # longer ones, or those that would play with a terminal, are quoted
MAX_COPIED = 1 << 26  # of what calls and objects are given, all together; four times the largest pickle that is read
MAX_BITS = 128  # of integers; the largest that torch writes has 80
MAX_KEY_BITS = 60  # hashes are remainders of 2^61 - 1: many with the same one would take hours
NUMPY_NUMBERS = {"b1": "?", "f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q"}  # numpy's codes, and struct's
PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocol 2 writes the old names

# Classes of these modules, and of those below them, become inert objects: layers of torch and the networks that pi-GAN
# saves whole, with its averages.
INERT_MODULES = ("torch.nn.modules", "siren", "generators", "discriminators", "torch_ema")
INERT_CLASSES = {("argparse", "Namespace")}


class RefusedPickle(Exception):
    """The pickle asks for what this reader does not give; the message goes on after the file's name."""


@dataclass(frozen=True)
class Call:
    """A function that pickles may call."""

    name: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class InertClass:
    """A class that is only known by its name."""

    module: str
    name: str


@dataclass(eq=False)
class InertObject:
    """What a pickle says of an object: its class and its attributes."""

    kind: InertClass
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class NumpyType:
    """The type of a numpy scalar."""

    code: str
    byte_order: str = "<"


Key = str | int | float | bool | None  # other keys could be nested so deeply that hashing them overflows the stack


def put(mapping: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an entry whose key is a plain value, of integers one whose hash no other has."""
    if not isinstance(key, Key):
        raise RefusedPickle("was not read: it holds a dictionary or set with keys other than text and numbers")
    if isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
        raise RefusedPickle("was not read: it holds a dictionary or set with an absurdly large number as a key")
    mapping[key] = value


def ordered_dict(items: list[Any] | None = None) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key, value in items or []:
        put(mapping, key, value)
    return mapping


def plain_set(items: list[Any]) -> set[Any]:
    return set(ordered_dict([(item, None) for item in items]))


def encoded(text: str, encoding: str) -> bytes:
    """Bytes, which protocol 2 writes as text."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def numpy_type(code: str, *_: Any) -> NumpyType:
    if not isinstance(code, str):
        raise ValueError("a type without a name")
    if code not in NUMPY_NUMBERS:
        raise RefusedPickle(f"was not read: it holds a numpy value of type {_shown(code)}, which is no number")
    return NumpyType(code)


def numpy_scalar(kind: NumpyType, value: bytes) -> float | int | bool:
    """A number that was computed with numpy, such as a FID."""
    (number,) = struct.unpack(f"{'>' if kind.byte_order == '>' else '<'}{NUMPY_NUMBERS[kind.code]}", value)
    return number


PLAIN_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Call("collections.OrderedDict", ordered_dict),
    ("builtins", "set"): Call("builtins.set", plain_set),
    ("_codecs", "encode"): Call("_codecs.encode", encoded),
    ("numpy", "dtype"): Call("numpy.dtype", numpy_type),
    ("numpy.core.multiarray", "scalar"): Call("numpy.core.multiarray.scalar", numpy_scalar),
    ("numpy._core.multiarray", "scalar"): Call("numpy._core.multiarray.scalar", numpy_scalar),
}


def load_restricted(
    stream: BinaryIO, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read one pickle from a stream and leave the stream behind it.

    Args:
        stream: where the pickle begins.
        names: what stands for (module, name), besides `PLAIN_NAMES`: values, or `Call`s.
        persistent: gives the value of a persistent id; without it there must be none.

    Raises:
        RefusedPickle: the pickle names, calls or builds something that is not allowed.
        Exception: of many types, where it is truncated or malformed.
    """
    return _Machine({**PLAIN_NAMES, **names}, persistent).run(stream)


def _shown(name: str) -> str:
    return name if SHOWN_NAME.fullmatch(name) else f"{name[:80]!r}"


class _Machine:
    """The stack machine of pickle's instructions, as `pickletools` documents them."""

    def __init__(self, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None) -> None:
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}
        self.copied = 0  # characters and items that calls and objects were given

    def run(self, stream: BinaryIO) -> Any:
        for instruction, argument, _ in pickletools.genops(stream):
            name = instruction.name
            if name == "STOP":
                return self.stack.pop()
            if name in ARGUMENTS:
                if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                    raise ValueError("an absurdly large number")
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name]())
            elif name in STEPS:
                STEPS[name](self, argument)
            elif name not in IGNORED:
                named = "" if name != "INST" else f" {_shown(str(argument).replace(' ', '.', 1))}"
                raise RefusedPickle(f"was not read: its pickle says {name}{named}, which torch.save never does")
        raise ValueError("the pickle does not end")

    def named(self, module: str, name: str) -> Any:
        """What stands for a name."""
        module = PYTHON2_MODULES.get(module, module)
        if (module, name) in self.names:
            return self.names[module, name]
        inert_module = any(module == known or module.startswith(f"{known}.") for known in INERT_MODULES)
        if (inert_module and CLASS_NAME.fullmatch(name)) or (module, name) in INERT_CLASSES:
            return InertClass(module, name)
        raise RefusedPickle(
            f"was not read: it asks for {_shown(f'{module}.{name}')}, which no published checkpoint needs"
        )

    def popped_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.popped_to_mark()  # an empty stack ends at its mark

    def pop_mark(self, _: Any) -> None:
        self.popped_to_mark()

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def global_name(self, argument: str) -> None:
        self.stack.append(self.named(*argument.split(" ", 1)))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is not text")
        self.stack.append(self.named(module, name))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("too few items for a tuple")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def marked_tuple(self, _: Any) -> None:
        items = tuple(self.popped_to_mark())
        self.stack.append(items)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("items for something that is not a list")
        target.extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise ValueError("items for something that is not a set")
        target.update(plain_set(items))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("entries for something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            put(target, key, value)

    def call(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if isinstance(called, InertClass):
            raise RefusedPickle(f"was not read: it calls {_shown(f'{called.module}.{called.name}')}")
        if not (isinstance(called, Call) and isinstance(arguments, tuple)):
            raise ValueError("a call of something that cannot be called")
        for given in arguments:
            self.count_copy(given)
        self.stack.append(called.function(*arguments))

    def count_copy(self, given: Any) -> None:
        """Of the same thing again and again, which a few bytes ask for."""
        self.copied += len(given) if isinstance(given, (str, bytes, list, tuple, dict, set)) else 0
        if self.copied > MAX_COPIED:
            raise RefusedPickle("was not read: its pickle asks for far more memory than torch.save does")

    def new_object(self, _: Any) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, InertClass):
            raise ValueError("an object of something that is not a class")
        if arguments != ():
            raise RefusedPickle(f"was not read: it calls {_shown(f'{kind.module}.{kind.name}')} with arguments")
        self.stack.append(InertObject(kind))

    def build(self, _: Any) -> None:
        """Attributes of an object: noted down, never set; those of a dictionary (`_metadata`) are let go."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, InertObject) and isinstance(state, dict):
            self.count_copy(state)
            target.attributes.update(state)
        elif isinstance(target, NumpyType):
            target.byte_order = state[1]  # (version, byte order, ...)
        elif not isinstance(target, dict):
            raise RefusedPickle("was not read: its pickle gives attributes to something that has none")

    def persistent_id(self, _: Any) -> None:
        if self.persistent is None:
            raise ValueError("a persistent id where there is none")
        self.stack.append(self.persistent(self.stack.pop()))


# Instructions that put a new value on the stack: a constant, or their argument; all others but the ignored are steps.
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}

ARGUMENTS = {
    "INT",
    "LONG",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}

STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.marked_tuple,
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.popped_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.popped_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.popped_to_mark()),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}

IGNORED = ("PROTO", "FRAME")
