"""Config dataclasses to JSON and back: what a saved model's ``config.json`` holds.

A config becomes an object of its fields; where a field may hold one of several configs, the key ``is`` names which.
Tuples become lists, and may hold configs as fields do; so may dictionaries.
"""

import dataclasses
import json
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def config_to_json(config: Any) -> Any:
    """Returns a config as objects, lists and plain values that JSON can hold."""
    if dataclasses.is_dataclass(config):
        fields = {field.name: config_to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"is": type(config).__name__, **fields}
    if isinstance(config, tuple | list):
        return [config_to_json(value) for value in config]
    if isinstance(config, dict):
        return {key: config_to_json(value) for key, value in config.items()}
    return config


def config_from_json(kind: type[Config], values: dict[str, Any]) -> Config:
    """Returns the config of a class that ``values`` describe.

    Raises:
        ValueError: if the values are of another class, or hold an unknown or lack a needed key.
    """
    if values.get("is", kind.__name__) != kind.__name__:
        raise ValueError(f"config must be a {kind.__name__}, got {values['is']}")
    hints = get_type_hints(kind)
    given = {key: value for key, value in values.items() if key != "is"}
    if unknown := sorted(set(given) - set(hints)):
        raise ValueError(f"{kind.__name__} must have keys among {sorted(hints)}, got {unknown}")
    try:
        return kind(**{key: _value(hints[key], value) for key, value in given.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__} cannot be read: {error}") from error


def check_plain(name: str, values: dict[str, Any]) -> None:
    """Refuses values that would not come back from JSON as they were.

    Raises:
        ValueError: if there are such values.
    """
    try:
        returned = json.loads(json.dumps(values))
    except TypeError:
        returned = None
    if returned != values:
        raise ValueError(f"{name} must hold plain values as JSON has them (lists, no tuples), got {values}")


def _value(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return _chosen(get_args(hint), value)
    if _is_config(hint):
        return config_from_json(hint, value)
    if get_origin(hint) is tuple:
        hints = get_args(hint)
        hints = hints[:1] * len(value) if hints[-1] is ... else hints
        if len(hints) != len(value):
            raise ValueError(f"a list must have {len(hints)} values, got {value}")
        return tuple(_value(*item) for item in zip(hints, value, strict=True))
    if get_origin(hint) is dict:
        return {key: _value(get_args(hint)[1], item) for key, item in value.items()}
    return value


def _chosen(hints: tuple[Any, ...], value: Any) -> Any:
    """Returns the value of whichever member of a union it is."""
    if isinstance(value, dict):
        choices = {hint.__name__: hint for hint in hints if _is_config(hint)}
        if value.get("is") not in choices:
            raise ValueError(f"'is' must be one of {sorted(choices)}, got {value.get('is')!r}")
        return config_from_json(choices[value["is"]], value)
    tuples = [hint for hint in hints if get_origin(hint) is tuple]
    return _value(tuples[0], value) if tuples and isinstance(value, list) else value


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)
