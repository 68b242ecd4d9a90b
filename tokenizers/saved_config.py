"""Config dataclasses to JSON and back: what a saved model's ``config.json`` holds.

A config becomes an object of its fields; where a field may hold one of several configs, the key ``is`` names which.
"""

import dataclasses
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


def _value(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if not isinstance(value, dict):
            return value
        choices = {choice.__name__: choice for choice in get_args(hint) if _is_config(choice)}
        if value.get("is") not in choices:
            raise ValueError(f"'is' must be one of {sorted(choices)}, got {value.get('is')!r}")
        return config_from_json(choices[value["is"]], value)
    if _is_config(hint):
        return config_from_json(hint, value)
    if get_origin(hint) is tuple:
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return value


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)
