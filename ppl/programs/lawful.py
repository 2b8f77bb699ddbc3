"""A distribution over choices as the image of a program that knows the laws of what it draws.

A ``@ppl.gen`` program is its own. A guide draws unconstrained numbers by a program, and its choices
are their images: its log densities are those of the numbers, less log Jacobians.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from transforms.errors import Address
from transforms.runs.execute import Execution
from transforms.runs.parts import Group, Part

from .given import Choices

Parts = dict[Group, Part]


@dataclasses.dataclass(frozen=True)
class Lawful:
    """What closed forms need to know of a distribution.

    Attributes:
        program: the ``@ppl.gen`` program that draws.
        choices: the choices of a run of it.
        parts: their log densities, from those of what the program draws.
        is_drawn: whether the choice at an address is what the program draws there, and not an
            image of it.
    """

    program: Any
    choices: Callable[[Execution], Choices] = lambda run: run.choices
    parts: Callable[[Execution, Parts], Parts] = lambda run, parts: parts
    is_drawn: Callable[[Address], bool] = lambda address: True
