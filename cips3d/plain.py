"""Typed configurations to plain JSON values and back."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_plain(value: object) -> Any:
    """Dataclasses become dictionaries, tuples lists, paths strings: what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def finite(value: float) -> float | None:
    """The value, or None where it is no number or infinite, which JSON does not have."""
    return value if math.isfinite(value) else None


def from_plain(kind: type[T], value: Any) -> T:
    """The inverse of `to_plain` for an annotated type.

    Raises:
        ValueError: a field is unknown or a value is not of its type; missing fields take their defaults.
    """
    try:
        return cast(T, _from_plain(kind, value))
    except (AttributeError, TypeError, OverflowError, RecursionError) as error:  # a list for a mapping, and the like
        raise ValueError(str(error)) from error


def _from_plain(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"expected the fields of {kind}, got {value!r}")
        hints = get_type_hints(kind)
        unknown = set(value) - {f.name for f in dataclasses.fields(kind)}
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}")
        return cast(Any, kind)(**{name: _from_plain(hints[name], item) for name, item in value.items()})
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _from_plain(_member(arguments, value), value)
    if origin is tuple:
        items = arguments[:1] * len(value) if len(arguments) == 2 and arguments[1] is Ellipsis else arguments
        return tuple(_from_plain(item_kind, item) for item_kind, item in zip(items, value, strict=True))
    if origin is dict:
        return {_from_plain(arguments[0], key): _from_plain(arguments[1], item) for key, item in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"expected one of {arguments}, got {value!r}")
        return value
    if kind is float and isinstance(value, int):
        return float(value)
    if kind in (int, Path) and isinstance(value, str):
        return kind(value)
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, got {value!r}")
    return value


def _member(union: tuple[Any, ...], value: Any) -> Any:
    """The type of a union that `value` describes.

    Configurations of a union tell themselves apart by their first field, a literal; without it, the first is meant.
    """
    kinds = [kind for kind in union if kind is not type(None)]
    if len(kinds) == 1:
        return kinds[0]
    if not isinstance(value, Mapping):
        raise ValueError(f"expected the fields of one of {kinds}, got {value!r}")
    for kind in kinds:
        name = dataclasses.fields(kind)[0].name
        if name not in value or value[name] in get_args(get_type_hints(kind)[name]):
            return kind
    raise ValueError(f"none of {kinds} is called {value!r}")
