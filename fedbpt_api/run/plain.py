"""Dataclasses to plain JSON types and back, driven by their annotations.

Understands what the run's records are made of: str, bool, int, float, None, unions of these,
``tuple[X, ...]``, ``dict[str, X]`` and dataclasses of the same. No class name is ever written.
JSON has no NaN and no infinity: both are written as null, and null reads back as NaN where a float
is expected.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedbpt_api.errors import RunFolderError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_HINT = "The file was edited, cut off or written by another version of fedbpt_api; use an intact copy."
_NAMES: dict[object, str] = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def encode(value: object) -> Any:
    """Plain JSON types (dict, list, str, int, float, bool, None) for a record or a part of one.

    Raises:
        TypeError: The value has no plain form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no plain form")


def decode(kind: type[T], data: object, where: str = "") -> T:
    """The record of type `kind` that `data` describes.

    Args:
        kind: A dataclass.
        data: What `encode` gave, after any trip through JSON.
        where: The key under which `data` was found, for messages.

    Raises:
        RunFolderError: A key is missing, unknown or has a value of the wrong type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise _wrong(where, "an object", data)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in data if key not in fields)
    if unknown:
        raise RunFolderError(f"key {_under(where, unknown[0])}: unknown key", _HINT)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], _under(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RunFolderError(f"key {_under(where, name)}: missing", _HINT)
    return kind(**values)


def _decode(kind: Any, data: object, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        return _decode_union(typing.get_args(kind), data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise _wrong(where, "a list", data)
        item_kind = typing.get_args(kind)[0]
        return tuple(_decode(item_kind, item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict:
        if not isinstance(data, Mapping):
            raise _wrong(where, "an object", data)
        item_kind = typing.get_args(kind)[1]
        return {str(key): _decode(item_kind, item, _under(where, str(key))) for key, item in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return decode(kind, data, where)
    return _decode_scalar(kind, data, where)


def _decode_union(kinds: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        if kind is type(data):
            return data
    rest = [kind for kind in kinds if kind is not types.NoneType]
    return _decode(float if float in rest else rest[0], data, where)


def _decode_scalar(kind: Any, data: object, where: str) -> Any:
    if kind is float:
        if data is None:
            return math.nan
        if isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
    elif type(data) is kind:
        return data
    raise _wrong(where, _NAMES[kind], data)


def _under(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, expected: str, found: object) -> RunFolderError:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return RunFolderError(f"key {where or '(top level)'}: expected {expected}, found {shown}", _HINT)
