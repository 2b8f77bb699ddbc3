"""What a notebook shows of an object: what it prints, and its parts as a tree."""

from __future__ import annotations

import html
import importlib
import warnings
from typing import Any


class Shown:
    """Shows its attributes ``parts`` below what it prints (``pip install treescope``)."""

    parts: tuple[str, ...]

    def _repr_html_(self) -> str:
        text = f"<pre>{html.escape(repr(self))}</pre>"
        try:
            treescope = importlib.import_module("treescope")
        except ModuleNotFoundError:
            return text
        values: dict[str, Any] = {name: getattr(self, name) for name in self.parts}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of means of arrays of NaN
            return text + treescope.render_to_html(
                {k: x for k, x in values.items() if x is not None}
            )
