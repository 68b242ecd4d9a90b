"""What the commands that use a saved model share: its flags, a spinner, and refusals in one line with exit code 2."""

import argparse
import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

SHIPPED_MODEL = Path(__file__).parent.parent / "assets" / "mini"


class CommandParser(argparse.ArgumentParser):
    """A parser that takes flags only as they are spelled, and refuses others in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def add_model_flags(self) -> None:
        """Adds the flags that say which model to use, and on what."""
        group = self.add_argument_group("with what")
        group.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="saved model (default: the shipped one)")
        group.add_argument("--device", default="cpu", help="a torch device (default: cpu)")
        formats = ("float32", "bfloat16", "int8")
        group.add_argument("--dtype", choices=formats, default="float32", help="of the language model")

    def parse(self, argv: list[str] | None) -> argparse.Namespace:
        """Returns the options; an unknown one ends the program."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            advice = f"did you mean {close[0]}?" if close else "--help lists them all"
            self.error(f"unknown flag {unknown[0]}; {advice}")
        return options

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        refuse(self.prog, message)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Ends the program if what it was given cannot be used."""
        with refusing(self.prog):
            yield


@contextmanager
def refusing(program: str) -> Iterator[None]:
    """Ends a program if what it was given cannot be used."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(program, str(error))


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Shows what is under way, if somebody watches."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def refuse(program: str, message: str) -> NoReturn:
    """Ends a program with one line and exit code 2."""
    line = " ".join(message.split()).encode("utf-8", "replace").decode()  # a flag may hold what is no text
    print(f"{program}: {line}", file=sys.stderr)
    sys.exit(2)
