"""Flags of a verb, from the signature of its function."""

import argparse
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from simple_multimodal.missing import Named

METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}


def add_flags(parser: argparse.ArgumentParser, function: Callable) -> None:
    """
    Add the parameters of a function to a parser: keyword-only ones as flags, the others as positional arguments.

    A parameter is annotated with `Annotated[type, help, ...]`, where the type is `str`, `int`, `float`, `bool` (a
    switch that is off by default), a `Literal` of choices, a `Sequence` of these, or one of these or `None`. The
    help may be followed by a placeholder (`str`), choices (`tuple`), a function that parses the value, or [`Named`] if
    the value names a file, see [`check_named`]. A parameter whose type is a dataclass stands for the fields of that
    dataclass, which several verbs can share; `Annotated[Any, function]` is for a dataclass that the function returns.

    Args:
        parser (`argparse.ArgumentParser`): Parser to add them to.
        function (`Callable`): Function, or a dataclass.
    """
    for parameter, hint in _parameters(function):
        if is_dataclass(hint):
            add_flags(parser, hint)  # type: ignore[arg-type]
        else:
            _add_flag(parser, parameter, *get_args(hint))


def call(function: Callable, values: Mapping[str, Any]) -> Any:
    """Call a function with its parameters from the parsed values."""
    return function(
        **{
            parameter.name: call(hint, values) if is_dataclass(hint) else values[parameter.name]  # type: ignore[arg-type]
            for parameter, hint in _parameters(function)
        }
    )


def flag_names(function: Callable) -> set[str]:
    """Return the names of the flags of a function, see [`add_flags`]."""
    names: set[str] = set()
    for parameter, hint in _parameters(function):
        if is_dataclass(hint):
            names |= flag_names(hint)  # type: ignore[arg-type]
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            names.add(parameter.name)
    return names


def check_named(function: Callable, values: Mapping[str, Any]) -> None:
    """
    Check that the files and folders that arguments of a function name exist.

    Raises:
        ValueError: If one does not exist.
    """
    for parameter, hint in _parameters(function):
        if is_dataclass(hint):
            check_named(hint, values)  # type: ignore[arg-type]
            continue
        value = values[parameter.name]
        for kind in (extra for extra in get_args(hint)[1:] if isinstance(extra, Named)):
            names = [value] if isinstance(value, str) else value or ()
            flag = f"--{parameter.name}" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else ""
            for name in names:
                kind.check(name, flag)


def _parameters(function: Callable) -> Iterator[tuple[inspect.Parameter, Any]]:
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        made_of = get_args(hint)[1] if get_origin(hint) is Annotated else None
        yield parameter, made_of() if callable(made_of) else hint


def _add_flag(
    parser: argparse.ArgumentParser, parameter: inspect.Parameter, kind: Any, description: str, *extras: Any
) -> None:
    is_flag = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    name = f"--{parameter.name}" if is_flag else parameter.name
    if kind is bool:
        parser.add_argument(name, action="store_true", help=description)
        return
    options: dict[str, Any] = {"help": description}
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(item for item in get_args(kind) if item is not types.NoneType)
    if get_origin(kind) in (Sequence, list):
        (kind,) = get_args(kind)
        options["nargs"] = "+"
    if get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options["type"] = kind
    for extra in extras:
        if isinstance(extra, Named):
            continue
        options["metavar" if isinstance(extra, str) else "choices" if isinstance(extra, tuple) else "type"] = extra
    if "choices" not in options:
        options.setdefault("metavar", METAVARS[kind] if is_flag else parameter.name.upper())
    if is_flag:
        options |= {"required": True} if parameter.default is parameter.empty else {"default": parameter.default}
        options["help"] += _default_in_words(parameter.default)
    parser.add_argument(name, **options)


def _default_in_words(default: Any) -> str:
    if default in (inspect.Parameter.empty, None, ()):
        return ""
    if isinstance(default, tuple):
        return f"; default: {' '.join(default)}"
    return f"; default: {default:g}" if isinstance(default, float) else f"; default: {default}"
