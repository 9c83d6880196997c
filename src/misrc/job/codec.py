"""Strict JSON and frozen dataclasses: bytes become typed values once, at the boundary, or are refused.

Refused: anything but UTF-8, a byte-order mark, duplicate keys, NaN and infinities (also as `1e999`), integers of more
than 18 digits, nesting deeper than 32, unknown or missing keys, wrong types (a bool is not an int).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from typing import Any, Dict, List, Mapping, Tuple, Type, TypeVar, Union

T = TypeVar("T")

# `X | None` has an origin of its own from Python 3.10 on.
_UNIONS = (Union, getattr(types, "UnionType", Union))

_PLAIN = (str, int, float, bool, type(None))

MAX_DEPTH = 32
MAX_DIGITS = 18
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class CodecError(ValueError):
    """The bytes or values are not what the type declares; the message names the place."""


class FieldError(ValueError):
    """One field of a dataclass has a value that cannot be; `decode` puts the place before the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


def _refuse_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CodecError("duplicate key")
    return result


def _refuse_constant(text: str) -> Any:
    raise CodecError(f"{text} is not a JSON number")


def _parse_integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise CodecError("integer too long")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise CodecError("number too large")
    return value


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before the recursive parser meets it; brackets inside strings only make this stricter."""
    depth = 0
    for byte in data.translate(None, _NO_BRACKETS):
        if byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise CodecError("nested too deeply")
        elif byte in b"]}":
            depth -= 1


def parse_json(data: bytes) -> Any:
    """Parse one strict JSON document; raises CodecError for anything else."""
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(data)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_parse_integer,
            parse_float=_parse_float,
        )
    except CodecError:
        raise
    except json.JSONDecodeError as error:
        raise CodecError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not JSON: {type(error).__name__}") from None


def dump_json(value: Any) -> bytes:
    """One canonical line: sorted keys, no spaces, UTF-8, no line end; a lone surrogate (from a file name) as \\u….

    Python's `backslashreplace` writes it exactly as JSON does, so that every line that is written can be read.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def encode(value: Any) -> Any:
    """A dataclass tree as plain JSON values."""
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


_HINTS: Dict[type, Dict[str, Any]] = {}


def _hints(cls: type) -> Dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def decode(cls: Type[T], value: Any, where: str = "") -> T:
    """Build the frozen dataclass `cls` from parsed JSON; unknown and missing keys and wrong types are refused."""
    if not isinstance(value, dict):
        raise CodecError(f"{where or cls.__name__}: an object is needed")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise CodecError(f"{where or cls.__name__}: unknown key {unknown[0]!r}")
    given: Dict[str, Any] = {}
    for name, field in fields.items():
        place = f"{where}.{name}" if where else name
        if name in value:
            given[name] = _convert(hints[name], value[name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CodecError(f"{place}: missing")
    try:
        return cls(**given)
    except CodecError:
        raise
    except FieldError as error:
        raise CodecError(f"{where}.{error}" if where else str(error)) from None
    except ValueError as error:
        raise CodecError(f"{where or cls.__name__}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return _convert_union(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise CodecError(f"{where}: a list is needed")
        if arguments[0] in _PLAIN and set(map(type, value)) <= {arguments[0]}:
            return tuple(value)
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise CodecError(f"{where}: an object is needed")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return value if hint is Any else _convert_plain(hint, value, where)


def _convert_union(members: Tuple[Any, ...], value: Any, where: str) -> Any:
    """`None`, or the member whose type the value has; the first one says what is needed otherwise."""
    if value is None and type(None) in members:
        return None
    named = [member for member in members if member is not type(None)]
    return _convert(next((member for member in named if type(value) is member), named[0]), value, where)


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value, where)
    if issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise CodecError(f"{where}: one of {', '.join(str(m.value) for m in hint)} is needed") from None
    if type(value) is int and hint is float:
        return float(value)
    if type(value) is not hint:
        raise CodecError(f"{where}: {hint.__name__} is needed")
    return value
