"""Numbers of the global generators of numpy and of Python, which tracing freezes into a program."""

from __future__ import annotations

import inspect
import pickle
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from transforms import _jax, authors
from transforms.errors import RandomnessWarning
from transforms.program.warned import warn


def generators() -> tuple[Any, bytes]:
    """The states of the global generators."""
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))


def warn_of_frozen(functions: Sequence[Callable[..., Any]]) -> None:
    """Tell that a generator moved while ``functions`` were traced, inside of each other."""
    users = [f for f in functions if authors.is_users(_code(f).co_filename)]
    lines = dict.fromkeys(line for f in users for line in _lines(f))
    where = f"at {', '.join(lines)}"
    if not lines:
        where = f"in what {', or '.join(map(_jax.definition, users)) or 'a program'} calls"
    warn(
        f"a global random number generator, np.random or random, is used {where}, while a program "
        "is traced. That happens once, so its numbers are constants of the program: the same in "
        'every run, and no random choices. Use ppl.sample("x", d) for a choice; draw a constant '
        "outside of the program, and close over it.",
        RandomnessWarning,
    )


def _code(f: Callable[..., Any]) -> Any:
    return getattr(inspect.unwrap(getattr(f, "__func__", f)), "__code__", warn_of_frozen.__code__)


def _lines(f: Callable[..., Any]) -> Iterator[str]:
    """The lines of a function in which names of the generators are read."""
    f = inspect.unwrap(getattr(f, "__func__", f))
    try:
        source, first = inspect.getsourcelines(f)
    except (OSError, TypeError):
        return
    names = getattr(f, "__globals__", {}).items()
    calls = [call for name, value in names for call in _calls(name, value)]
    pattern = rf"(?<![\w.])({'|'.join(calls)})"
    for n, line in enumerate(source):
        if calls and re.search(pattern, line.partition("#")[0]):
            yield f"{_code(f).co_filename}:{first + n}"


def _calls(name: str, value: Any) -> Iterator[str]:
    """How the global generators are called by a global name."""
    if value is np:
        yield rf"{name}\.random\."
    elif value is np.random or value is random:
        yield rf"{name}\."
    elif isinstance(getattr(value, "__self__", None), random.Random | np.random.RandomState):
        yield rf"{name}\("
