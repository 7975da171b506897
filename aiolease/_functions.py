"""What a function of the user's takes, and whether a call of it gives something to await."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from aiolease.errors import ConfigurationError, InvalidJob

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_async(function: Callable[..., object]) -> bool:
    """Whether a call gives something to await: a coroutine function, a partial of one, an object with an async call."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def check_eligible(eligible: Any) -> None:
    """Checks what is to say whether a process is fit to lead.

    Raises:
        ConfigurationError: It is no coroutine function; its answer could not be awaited, nor limited in time.
    """
    if eligible is not None and not (callable(eligible) and (is_async(eligible) or is_async(inspect.unwrap(eligible)))):
        raise ConfigurationError("eligible", eligible, "use an `async def` function that takes nothing")


def argument(name: str, function: Callable[..., object], kind: type) -> str | None:
    """How a job's function takes the one argument that it may take.

    That is a parameter without a default, or one that is annotated as `kind`.

    Args:
        name: The job's name.
        function: Its function.
        kind: What it may be given.

    Returns:
        The parameter's name if it is to be given by its name, empty if by its position, ``None`` if it takes nothing.

    Raises:
        InvalidJob: It cannot be a job.
    """
    if not callable(function):
        raise InvalidJob(name, "register a function")
    if _is_generator(function):
        raise InvalidJob(name, "a generator cannot be a job, use a function that does not yield")
    try:
        signature = inspect.signature(function, follow_wrapped=False)
        # What is called is the wrapper; what it hands on, only the wrapped function knows.
        if any(each.kind in _VARIABLE for each in signature.parameters.values()):
            signature = inspect.signature(function)
    except ValueError:
        raise InvalidJob(name, "what it takes cannot be seen, wrap it in a function of your own") from None
    parameters = list(signature.parameters.values())
    names = getattr(inspect.unwrap(function), "__globals__", {})
    annotated = [each for each in parameters if _is_annotated(each.annotation, kind, names)]
    needed = [each for each in parameters if each.default is each.empty and each not in annotated]
    if not annotated and len(needed) == 1 and needed[0].kind is not inspect.Parameter.KEYWORD_ONLY:
        annotated, needed = needed, []
    if needed or len(annotated) > 1 or any(each.kind in _VARIABLE for each in parameters):
        raise InvalidJob(name, f"it must take nothing or one {kind.__name__}, not {signature}")
    if not annotated:
        return None
    if annotated[0] is parameters[0] and annotated[0].kind is not inspect.Parameter.KEYWORD_ONLY:
        return ""
    if annotated[0].kind is inspect.Parameter.POSITIONAL_ONLY:
        raise InvalidJob(name, f"its {kind.__name__} must come first, not {signature}")
    return annotated[0].name


def _is_generator(function: object) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = getattr(function, "__call__", function)  # noqa: B004
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _is_annotated(annotation: object, kind: type, names: dict[str, Any]) -> bool:
    """Whether an annotation is a type, or that or something else, such as ``None``."""
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        text = annotation
        try:
            annotation = eval(text, dict(names))  # as typing.get_type_hints does
        except Exception:  # noqa: BLE001 - it may name what is imported for type checkers only
            named = rf"(None \| )?([\w.]*Optional\[)?([\w.]*\.)?{kind.__name__}\]?( \| None)?"
            return re.fullmatch(named, text) is not None
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return any(_is_annotated(each, kind, names) for each in typing.get_args(annotation))
    return annotation is kind
