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
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Type, TypeVar, Union

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


# Made once: to make one costs as much as to parse a record.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates,
    parse_constant=_refuse_constant,
    parse_int=_parse_integer,
    parse_float=_parse_float,
)


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
        return _DECODER.decode(data.decode("utf-8"))
    except CodecError:
        raise
    except json.JSONDecodeError as error:
        raise CodecError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not JSON: {type(error).__name__}") from None


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dump_json(value: Any) -> bytes:
    """One canonical line: sorted keys, no spaces, UTF-8, no line end; a lone surrogate (from a file name) as \\u….

    Python's `backslashreplace` writes it exactly as JSON does, so that every line that is written can be read.
    """
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace")


def encode(value: Any) -> Any:
    """A dataclass tree as plain JSON values."""
    if type(value) in _PLAIN:
        return value
    names = _names(type(value))
    if names is not None:
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


_NAMES: Dict[type, Optional[Tuple[str, ...]]] = {}


def _names(cls: type) -> Optional[Tuple[str, ...]]:
    if cls not in _NAMES:
        _NAMES[cls] = tuple(f.name for f in dataclasses.fields(cls)) if dataclasses.is_dataclass(cls) else None
    return _NAMES[cls]


_MISSING = dataclasses.MISSING
_Convert = Callable[[Any, str], Any]


class _Plan:
    """How a dataclass is read; made once, because looking at types costs more than reading a record."""

    def __init__(self, cls: type) -> None:
        hints = typing.get_type_hints(cls)
        self.fields = tuple(
            (f.name, _converter(hints[f.name]), f.default is _MISSING and f.default_factory is _MISSING)
            for f in dataclasses.fields(typing.cast(Any, cls))
        )
        self.names = frozenset(name for name, _, _ in self.fields)


_PLANS: Dict[type, _Plan] = {}


def _plan(cls: type) -> _Plan:
    if cls not in _PLANS:
        _PLANS[cls] = _Plan(cls)
    return _PLANS[cls]


def decode(cls: Type[T], value: Any, where: str = "") -> T:
    """Build the frozen dataclass `cls` from parsed JSON; unknown and missing keys and wrong types are refused."""
    if not isinstance(value, dict):
        raise CodecError(f"{where or cls.__name__}: an object is needed")
    plan = _plan(cls)
    if not value.keys() <= plan.names:
        raise CodecError(f"{where or cls.__name__}: unknown key {min(value.keys() - plan.names)!r}")
    given: Dict[str, Any] = {}
    for name, convert, needed in plan.fields:
        if name in value:
            given[name] = convert(value[name], f"{where}.{name}" if where else name)
        elif needed:
            raise CodecError(f"{where}.{name}: missing" if where else f"{name}: missing")
    try:
        return cls(**given)
    except CodecError:
        raise
    except FieldError as error:
        raise CodecError(f"{where}.{error}" if where else str(error)) from None
    except ValueError as error:
        raise CodecError(f"{where or cls.__name__}: {error}") from None


def _converter(hint: Any) -> _Convert:
    """What makes a value of this type out of a JSON value; it is told the place too, for its errors."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return _convert_union(arguments)
    if origin is tuple:
        return _convert_list(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _convert_mapping(arguments[1])
    if hint is Any:
        return lambda value, where: value
    if dataclasses.is_dataclass(hint):
        return lambda value, where: decode(typing.cast(type, hint), value, where)
    return _convert_enum(hint) if issubclass(hint, enum.Enum) else _convert_plain(hint)


def _convert_union(members: Tuple[Any, ...]) -> _Convert:
    """`None`, or the member whose type the value has; the first one says what is needed otherwise."""
    named = {member: _converter(member) for member in members if member is not type(None)}
    first, nullable = next(iter(named.values())), type(None) in members

    def convert(value: Any, where: str) -> Any:
        return None if value is None and nullable else named.get(type(value), first)(value, where)

    return convert


def _convert_list(member: Any) -> _Convert:
    each = _converter(member)

    def convert(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise CodecError(f"{where}: a list is needed")
        if member in _PLAIN and set(map(type, value)) <= {member}:
            return tuple(value)
        return tuple(each(item, f"{where}[{i}]") for i, item in enumerate(value))

    return convert


def _convert_mapping(member: Any) -> _Convert:
    each = _converter(member)

    def convert(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise CodecError(f"{where}: an object is needed")
        return {key: each(item, f"{where}.{key}") for key, item in value.items()}

    return convert


def _convert_enum(hint: Type[enum.Enum]) -> _Convert:
    def convert(value: Any, where: str) -> Any:
        try:
            return hint(value)
        except ValueError:
            raise CodecError(f"{where}: one of {', '.join(str(m.value) for m in hint)} is needed") from None

    return convert


def _convert_plain(hint: type) -> _Convert:
    def convert(value: Any, where: str) -> Any:
        if type(value) is int and hint is float:
            return float(value)
        if type(value) is not hint:
            raise CodecError(f"{where}: {hint.__name__} is needed")
        return value

    return convert
