"""Optimizers and schedules as plain data, for JSON: written exactly, and read without running any code of the file."""

import dataclasses
import functools
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .labels import Roles
from .optimizers.dog import InitStep
from .pytrees import Frozen, Value
from .transforms.monitor import Measure

VERSION = 1


def to_dict(opt: Value) -> dict[str, Any]:
    """`opt`, an optimizer, any transform or a schedule, as dicts, lists, strings and numbers that `json` can write.

    Numbers are exact: `from_dict(json.loads(json.dumps(to_dict(opt)))) == opt`. Functions are written by name, and only
    those of gdfx can be; keys are written as their words, for all who can read the file.

    Raises:
        TypeError: something cannot be written, such as a lambda or a class of the user's; the path is named.
    """
    if not isinstance(opt, Value):
        _refuse(opt, "", "an optimizer, a transform or a schedule")
    return {"gdfx": VERSION, **_write(opt, "")}


def from_dict(data: dict[str, Any]) -> Any:
    """The optimizer, transform or schedule that `to_dict` wrote.

    Only public names of gdfx are constructed, by constructors that check their values: data from elsewhere can do no
    more than that. Arrays are those of NumPy.

    Raises:
        ValueError: the data are of a newer version of gdfx, or not as `to_dict` writes them; the path is named.
        TypeError: a value is of a type that its constructor does not take; the path is named.
    """
    version = data.get("gdfx") if isinstance(data, dict) else None
    if type(version) is not int:
        raise ValueError(
            f"from_dict: expected a dict that to_dict wrote, with the version at 'gdfx'; found {data!r:.200}"
        )
    if not 1 <= version <= VERSION:
        raise ValueError(
            f"from_dict: the data are of version {version}, but this gdfx reads up to {VERSION}: update gdfx"
        )
    return _read_value({name: part for name, part in data.items() if name != "gdfx"}, "")


@functools.cache
def _types() -> dict[str, type]:
    """The classes that can be written and read, by their public names."""
    found = {}
    for name, held in _public().items():
        is_value = isinstance(held, type) and issubclass(held, Value) and dataclasses.is_dataclass(held)
        is_tuple = isinstance(held, type) and issubclass(held, tuple) and hasattr(held, "_fields")
        if is_value or is_tuple or held is Roles:
            found[name] = held
    return found


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """The functions that can be written and read, by their public names; defaults as `adopt.clip_value_fn`."""
    found = {name: held for name, held in _public().items() if inspect.isfunction(held)}
    for name, cls in _types().items():
        for f in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
            if inspect.isfunction(f.default):
                found.setdefault(f"{name}.{f.name}", f.default)
    return found


def _public() -> dict[str, Any]:
    # Not at the top: the package imports this module.
    root = importlib.import_module(__package__ or "gdfx")
    found, modules = {}, {"": root, "schedules.": root.schedules, "tree.": root.tree}
    for prefix, module in modules.items():
        for name in dir(module):
            held = getattr(module, name)
            if not name.startswith("_") and (getattr(held, "__module__", None) or "").split(".")[0] == root.__name__:
                found[prefix + name] = held
    return found


@functools.cache
def _names() -> dict[Any, str]:
    return {held: name for name, held in reversed([*_types().items(), *_functions().items()])}


def _fields(cls: type) -> list[str]:
    if cls is Roles:
        return ["rows"]
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else list(cls._fields)  # pyright: ignore[reportAttributeAccessIssue]: else a NamedTuple


def _write(value: Any, path: str) -> Any:
    if isinstance(value, InitStep):  # which users write as a pair, and measurements as functions
        value = value.kind, value.size
    elif isinstance(value, Measure):
        value = value.fn
    elif isinstance(value, Frozen):
        value = value.value
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _write_array(value, path)
    if type(value) in _names():
        fields = {name: _write(getattr(value, name), f"{path}.{name}") for name in _fields(type(value))}
        return {"type": _names()[type(value)], "fields": fields}
    if type(value) is tuple:
        return {"tuple": [_write(part, f"{path}[{i}]") for i, part in enumerate(value)]}
    if type(value) is list:
        return [_write(part, f"{path}[{i}]") for i, part in enumerate(value)]
    if type(value) is dict:
        for key in value:
            if not isinstance(key, str):
                _refuse(key, path, "keys that are strings")
        return {"dict": {key: _write(part, f"{path}[{key!r}]") for key, part in value.items()}}
    if inspect.isfunction(value):
        if value not in _names():
            _refuse(value, path, "a public function of gdfx, such as gdfx.matrices, which is written by its name")
        return {"function": _names()[value]}
    return _refuse(value, path, "numbers, strings, arrays, tuples, lists, dicts, and types of gdfx")


def _write_array(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, Tracer):
        _refuse(value, path, "known numbers: under jit there are none")
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        words = np.asarray(jax.random.key_data(value))
        return {"key": {"impl": str(jax.random.key_impl(value)), "words": _write_array(words, path)}}
    array: Any = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype.kind == "b"):
        _refuse(value, path, "an array of numbers")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        parts = [_write_numbers(array.real), _write_numbers(array.imag)]
        values = [list(pair) for pair in zip(*parts, strict=True)]
    else:
        values = _write_numbers(array)
    return {"array": {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}}


def _write_numbers(array: np.ndarray) -> list[Any]:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array.reshape(-1).tolist()
    # Every float of at most 64 bits is one of Python; JSON has no infinities.
    return [x if math.isfinite(x) else str(x) for x in map(float, array.reshape(-1))]


def _refuse(value: Any, path: str, expected: str) -> NoReturn:
    raise TypeError(f"to_dict: {_at(path)} is {value!r:.200}, which cannot be written; expected {expected}")


def _at(path: str) -> str:
    return path.removeprefix(".") or "the root"


def _read(data: Any, path: str) -> Any:
    if data is None or isinstance(data, bool | str | int | float):
        return data
    if isinstance(data, list):
        return [_read(part, f"{path}[{i}]") for i, part in enumerate(data)]
    if not isinstance(data, dict):
        _reject(path, f"is a {type(data).__name__}, expected what json reads")
    if "type" in data:
        return _read_value(data, path)
    if len(data) != 1 or (kind := next(iter(data))) not in _READERS:
        expected = ", ".join(("type", *_READERS))
        _reject(path, f"has the entries {', '.join(map(repr, data)) or 'none'}, expected one of {expected}")
    return _READERS[kind](data[kind], path)


def _read_value(data: dict[str, Any], path: str) -> Any:
    if {*data} != {"type", "fields"} or not isinstance(data["type"], str) or not isinstance(data["fields"], dict):
        _reject(path, f"has the entries {', '.join(map(repr, data))}, expected a name at 'type' and a dict at 'fields'")
    name, fields = data["type"], data["fields"]
    if name not in _types():
        _reject(path, f"has the type {name!r}, which is none of gdfx. Is it of a newer version?")
    expected = _fields(_types()[name])
    if unknown := [field for field in fields if field not in expected]:
        _reject(f"{path}.{unknown[0]}", f"is no field of {name}, which has {', '.join(expected) or 'none'}")
    if missing := [field for field in expected if field not in fields]:
        _reject(f"{path}.{missing[0]}", f"is missing: {name} has the fields {', '.join(expected)}")
    read = {field: _read(part, f"{path}.{field}") for field, part in fields.items()}
    try:
        return _types()[name](**read)
    except (TypeError, ValueError) as error:
        raise type(error)(f"from_dict: at {_at(path)}: {error}") from error


def _read_tuple(data: Any, path: str) -> tuple[Any, ...]:
    _expect(data, list, path)
    return tuple(_read(data, path))


def _read_dict(data: Any, path: str) -> dict[str, Any]:
    _expect(data, dict, path)
    return {key: _read(part, f"{path}[{key!r}]") for key, part in data.items()}


def _read_float(data: Any, path: str) -> float:
    if data not in ("inf", "-inf", "nan"):
        _reject(path, f"is the float {data!r}, expected 'inf', '-inf' or 'nan'")
    return float(data)


def _read_dtype(data: Any, path: str) -> np.dtype:
    _expect(data, str, path)
    try:
        dtype = jnp.dtype(data)
    except TypeError as error:
        raise ValueError(f"from_dict: {_at(path)} is the dtype {data!r}, which does not exist here") from error
    if not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"):
        _reject(path, f"is the dtype {data!r}, expected one of numbers")
    return dtype


def _read_function(data: Any, path: str) -> Callable[..., Any]:
    if not isinstance(data, str) or data not in _functions():
        _reject(path, f"is the function {data!r}, which is none of gdfx")
    return _functions()[data]


def _read_array(data: Any, path: str) -> np.ndarray:
    _expect(data, dict, path, "dtype", "shape", "values")
    dtype, shape, values = _read_dtype(data["dtype"], path), data["shape"], data["values"]
    _expect(shape, list, path)
    _expect(values, list, path)
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) != len(values):
        _reject(path, f"has {len(values)} values, which do not go with the shape {shape!r}")
    is_float, is_complex = (jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.complexfloating))
    read = _read_complex if is_complex else _read_real if is_float else _read_whole
    try:
        return np.asarray([read(x, path) for x in values], dtype).reshape(shape)
    except OverflowError as error:
        raise ValueError(f"from_dict: {_at(path)}, an array of {dtype.name}: {error}") from error


def _read_whole(data: Any, path: str) -> int:
    _expect(data, int, path)
    return data


def _read_real(data: Any, path: str) -> float:
    if isinstance(data, str):
        return _read_float(data, path)
    _expect(data, int | float, path)
    return data


def _read_complex(data: Any, path: str) -> complex:
    if not isinstance(data, list) or len(data) != 2:
        _reject(path, f"has the complex number {data!r}, expected its two parts")
    return complex(_read_real(data[0], path), _read_real(data[1], path))


def _read_key(data: Any, path: str) -> jax.Array:
    _expect(data, dict, path, "impl", "words")
    words = _read(data["words"], path)
    _expect(words, np.ndarray, path)
    try:
        return jax.random.wrap_key_data(words, impl=data["impl"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"from_dict: {_at(path)}, a key: {error}") from error


def _expect(data: Any, kind: Any, path: str, *entries: str) -> None:
    if not isinstance(data, kind) or (entries and {*data} != {*entries}):
        wanted = f"the entries {', '.join(entries)}" if entries else getattr(kind, "__name__", str(kind))
        _reject(path, f"has {data!r:.200}, expected {wanted}")


def _reject(path: str, message: str) -> NoReturn:
    raise ValueError(f"from_dict: {_at(path)} {message}")


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "tuple": _read_tuple,
    "dict": _read_dict,
    "float": _read_float,
    "dtype": _read_dtype,
    "function": _read_function,
    "array": _read_array,
    "key": _read_key,
}
