"""Stage configs from the command line, a file and a preset, and back to JSON.

A flag beats the ``--config`` file, the file beats the ``--preset``, the preset beats the defaults of the classes.
Where a key holds one of several configs, ``--key ClassName`` or ``"is": "ClassName"`` chooses.
"""

import argparse
import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import docstring_parser
import jsonargparse
import yaml

from rebus.tokenizers.saved_config import config_to_json

Config = TypeVar("Config")


def parse(
    presets: Mapping[str, Callable[[], Config]],
    argv: list[str] | None = None,
    description: str | None = None,
    dry_run: Callable[[Config, int | None], None] | None = None,
) -> Config:
    """Returns the config that a command line asks for; the first preset is the default.

    A wrong command line ends the program with one line and exit code 2; ``--help``, ``--print_config`` and
    ``--dry_run`` end it too.

    Args:
        presets: by name.
        argv: the flags; those of this process by default.
        description: what ``--help`` begins with.
        dry_run: shows what would be done with a config in a number of processes; without it there is no such flag.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_sources(first, presets, dry_run is not None)
    try:
        sources, flags = first.parse_known_args(argv)
        config = presets[sources.preset]()
        if sources.config is not None:
            config = load(config, sources.config)
        parser = _parser(config, _choices_of_flags(flags, config), description)
        _add_sources(parser, presets, dry_run is not None)
        config = _built(type(config), parser.instantiate(parser.parse_args(flags)), "")
        if sources.print_config:
            print(dumps(config))
            sys.exit(0)
        if dry_run is not None and sources.dry_run is not None:
            dry_run(config, sources.dry_run or None)
            sys.exit(0)
    except (ValueError, argparse.ArgumentError) as error:
        _leave(first.prog, _one_line(str(error)))
    return config


def dumps(config: Any) -> str:
    """Returns a config as JSON that ``load`` and ``--config`` read."""
    return json.dumps(config_to_json(config), indent=2, default=str)


def load(default: Config, path: Path) -> Config:
    """Returns the config of a saved ``config.json`` (or YAML) file; keys that it lacks are those of ``default``.

    Raises:
        ValueError: if the file cannot be read, or a key or value does not fit the class of ``default``.
    """
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    choices: dict[str, str] = {}
    try:
        tagged = _tagged(type(default), values, "", choices)
        parser = _parser(default, choices, None)
        return _built(type(default), parser.instantiate(parser.parse_object(tagged)), "")
    except (ValueError, argparse.ArgumentError) as error:
        raise ValueError(f"{path}: {_one_line(str(error))}") from error


def _add_sources(parser: argparse.ArgumentParser, presets: Mapping[str, Any], can_run_dry: bool) -> None:
    names = list(presets)
    listing = "; ".join(f"{name}: {_summary(presets[name])}" for name in names)
    parser.add_argument("--preset", choices=names, default=names[0], help=f"{listing} (default: {names[0]})")
    parser.add_argument("--config", type=Path, help="JSON or YAML file with some or all of the keys below")
    parser.add_argument("--print_config", action="store_true", help="print the resulting config as JSON and leave")
    if can_run_dry:
        text = "show config, memory and launch command for so many processes (default: as launched), and leave"
        parser.add_argument("--dry_run", type=int, nargs="?", const=0, metavar="PROCESSES", help=text)
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS
    )  # DeepSpeed's launcher says it


def _parser(config: Any, choices: Mapping[str, str], description: str | None) -> jsonargparse.ArgumentParser:
    """Returns a parser with one flag for each leaf of a config; the config's values are the defaults.

    A default that is another choice than the one in ``choices`` is left out, lest its values pass to the chosen class.
    """
    # Members of a union are told apart by name; else two with equal keys would be taken for each other.
    members = sorted({one for _, hint in _paths(type(config), "") for one in _classes(hint)}, key=str)
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True, subclasses_enabled=[*members])
    parser = jsonargparse.ArgumentParser(
        description=description,
        exit_on_error=False,
        print_config=None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_leaves(parser, config, choices, "")
    return parser


def _add_leaves(parser: Any, config: Any, choices: Mapping[str, str], prefix: str) -> None:
    group = parser.add_argument_group(prefix.rstrip(".") or "this stage", _summary(type(config)))
    help_of = {one.arg_name: one.description for one in docstring_parser.parse_from_object(type(config)).params}
    for name, hint in get_type_hints(type(config)).items():
        path, value = prefix + name, getattr(config, name)
        if dataclasses.is_dataclass(hint):
            _add_leaves(parser, value, choices, f"{path}.")
            continue
        shown = type(value).__name__ if dataclasses.is_dataclass(value) else value
        text = f"{help_of.get(name) or ''} (default: {shown})".replace("%", "%%")
        other = choices.get(path, type(value).__name__) != type(value).__name__
        group.add_argument(f"--{path}", type=hint, default=None if other else value, help=text)


def _built(kind: Any, values: Any, prefix: str) -> Any:
    """Returns the config of a class from the parsed leaves."""
    hints = get_type_hints(kind)
    return kind(
        **{
            name: _built(hint, values, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else values[prefix + name]
            for name, hint in hints.items()
        }
    )


def _choices_of_flags(flags: list[str], config: Any) -> dict[str, str]:
    """Returns the class names that flags give, and checks all keys on the way."""
    hints = dict(_paths(type(config), ""))
    choices = {}
    for flag, following in zip(flags, [*flags[1:], ""], strict=False):
        if not flag.startswith("--"):
            continue
        key, _, value = flag[2:].partition("=")
        if key not in hints and key != "help" and not key.endswith(".help"):
            raise ValueError(_unknown(f"--{key}", [f"--{one}" for one in ("preset", "config", "print_config", *hints)]))
        if names := [one.__name__ for one in _classes(hints.get(key))]:
            names += ["null"] if type(None) in get_args(hints[key]) else []
            choices[key] = value or following
            if choices[key] not in names:
                raise ValueError(f"{key} must be one of {', '.join(names)}, got {choices[key]}")
    return choices


def _tagged(hint: Any, value: Any, path: str, choices: dict[str, str]) -> Any:
    """Returns values with checked keys, and the ``is`` of a choice as jsonargparse writes it."""
    classes = {one.__name__: one for one in _classes(hint)}
    if classes and isinstance(value, list):  # each item has a choice of its own, of which no default is known
        return [_tagged(next(iter(classes.values())), item, f"{path}.{index}", {}) for index, item in enumerate(value)]
    if not classes or not isinstance(value, dict):
        return value
    name = value.get("is", next(iter(classes)))
    if name not in classes:
        raise ValueError(f"{path or 'the config'} must be one of {', '.join(classes)}, got {name}")
    hints = get_type_hints(classes[name])
    start = f"{path}." if path else ""
    inner = {}
    for key, one in value.items():
        if key != "is":
            if key not in hints:
                raise ValueError(_unknown(start + key, [start + known for known in hints]))
            inner[key] = _tagged(hints[key], one, start + key, choices)
    if dataclasses.is_dataclass(hint) or "is" not in value:
        return inner
    choices[path] = name
    return {"class_path": f"{classes[name].__module__}.{classes[name].__qualname__}", "init_args": inner}


def _paths(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and type of every leaf, and those of all choices inside it."""
    for name, hint in get_type_hints(kind).items():
        if not dataclasses.is_dataclass(hint):
            yield prefix + name, hint
        for one in _classes(hint):
            yield from _paths(one, f"{prefix}{name}.")


def _classes(hint: Any) -> list[Any]:
    """Returns the config classes that a type admits: itself, or the members of a union."""
    return [one for one in (hint, *get_args(hint)) if isinstance(one, type) and dataclasses.is_dataclass(one)]


def _summary(documented: Any) -> str:
    return (documented.__doc__ or "").strip().split("\n")[0]


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key}; " + (f"did you mean {close[0]}?" if close else "--help lists them all")


def _one_line(message: str) -> str:
    """Returns a message of jsonargparse without what only its authors can read."""
    lines = [line.strip(" -") for line in message.splitlines()]
    if any(line.startswith("Given value type") for line in lines):  # a union lists what each member says
        ours = [line for line in lines if " must be " in line]  # what a config of ours refuses
        told = ("Option", "Expected", "the following arguments are required")
        lines = ours or [lines[0], *(line for line in lines[1:] if line.startswith(told))]
    text = re.sub(r'Parser key "([\w.]+)"', r"\1", " ".join(lines))
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "")
    return re.sub(r"Expected an? (.*)\. Got value: ", r"expected \1, got ", text)


def _leave(program: str, message: str) -> NoReturn:
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(2)
