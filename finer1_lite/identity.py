"""What a function of the reader's does, in a form that two runs can compare: a changed reward is another run."""

import hashlib
import inspect
import pickle
from collections.abc import Callable
from functools import partial

PLAIN = (str, int, float, tuple, list, dict)


def told(function: Callable) -> list:
    """Name, source and bound values of a function, a `partial`, or an object that can be called, as JSON values.

    Bound are arguments of a `partial`, variables of the functions around, plain global ones, and an object's
    attributes. An attribute `identity`, a string, says it instead. ValueError where a value cannot be told.
    """
    if isinstance(own := getattr(function, "identity", None), str):
        return [own]
    if isinstance(function, partial):
        return [*told(function.func), _digest(function, (function.args, function.keywords))]
    plain = hasattr(function, "__code__")
    code, bound = (function, {}) if plain else (type(function), vars(function))
    if plain:
        used = inspect.getclosurevars(function)
        bound = used.nonlocals | {name: value for name, value in used.globals.items() if isinstance(value, PLAIN)}
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):  # it was typed into a prompt
        source = repr((function.__code__.co_code, function.__code__.co_consts)) if plain else ""
    inner = {name: told(value) if callable(value) else _digest(function, value) for name, value in bound.items()}
    return [code.__qualname__, hashlib.sha256(source.encode()).hexdigest()[:16], inner]


def _digest(function: Callable, values) -> str:
    try:
        return hashlib.sha256(pickle.dumps(values)).hexdigest()[:16]
    except Exception as error:  # pickling calls the values' own code
        advice = "give it an attribute `identity`, a string that changes when what it does changes"
        raise ValueError(f"{function} cannot be told from another one ({error}): {advice}") from None
