"""Check that the packages that stand beside ``ppl`` are ours.

``transforms`` and ``estimators`` are top-level names: a ``transforms.py`` beside a notebook would
shadow ours. Importing this module raises where that is so.
"""

import importlib.util
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parent.parent

for _name in ("transforms", "estimators"):
    _spec = importlib.util.find_spec(_name)
    _found = None if _spec is None or _spec.origin is None else pathlib.Path(_spec.origin).resolve()
    if _found is None or _found.parent != _ROOT / _name:
        raise ImportError(
            f"ppl needs its own package {_name!r}, at {_ROOT / _name}, and Python finds "
            f"{_found or 'none'} instead. Rename that file, or start Python with -P, which leaves "
            "the current directory out of the module path."
        )
