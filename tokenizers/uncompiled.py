"""Functions that ``torch.compile`` shall leave as they are."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns the function, which runs uncompiled when what calls it is compiled.

    Differs: ``torch.compiler.disable`` imports the compiler where it decorates, almost a third of what importing this
    project would take; here only what compiles imports it.
    """

    @functools.wraps(function)
    def left_alone(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            disabled = cast(Callable[Arguments, Result], torch.compiler.disable(function))
            return disabled(*arguments, **named)
        return function(*arguments, **named)

    return left_alone
