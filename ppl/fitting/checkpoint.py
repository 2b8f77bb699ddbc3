"""Checkpoints of a fit: files that survive a kill at any moment, and say what they are of.

A file is an ``npz`` with the arrays of the fit, what identifies it, and a checksum of both. It is
written beside the old one and put in its place when it is on the disk; the old one is kept as
``<file>.previous``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax
from transforms.program.warned import warn

from .devices import is_first, put_like, whole

VERSIONS = "the versions of jax, numpyro and optax"
COMPUTED = ("objective", "optimizer")
"""What is told apart by digests, which other versions of the libraries would change."""


class Saved(NamedTuple):
    """What is in a file: arrays, the estimates so far, and what identifies the fit."""

    leaves: list[np.ndarray]
    history: np.ndarray
    identity: dict[str, str]


@final
class Checkpoint:
    """A file of a fit whose ``identity`` says, by name, what must be the same to resume it."""

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, str]):
        self.path = os.fspath(path)
        self.previous = f"{self.path}.previous"
        self.identity = dict(identity)
        self._whole = False  # whether the file is one that a fit can resume from

    def save(self, leaves: Sequence[Any], history: np.ndarray) -> None:
        """Write the file, atomically; the one that was there becomes the previous one.

        Of several processes the first one writes; all take part.
        """
        arrays = [_plain(a) for a in leaves]
        if not is_first():
            return
        partial = f"{self.path}.partial"
        with open(partial, "wb") as f:
            f.write(_pack(Saved(arrays, history, self.identity)))
            f.flush()
            os.fsync(f.fileno())
        if self._whole:
            _keep(self.path, self.previous)
        os.replace(partial, self.path)
        self._whole = True
        _flush_folder(self.path)

    def restore(self, like: Sequence[Any]) -> tuple[list[Any], np.ndarray] | None:
        """The arrays, with the types of ``like``, and the history; None if there is no file.

        Raises:
            ValueError: the file and the previous one are damaged, or of another fit.
        """
        if not os.path.exists(self.path):
            return None
        saved = _read(self.path)
        self._whole = not isinstance(saved, str)
        if isinstance(saved, str):
            before = _read(self.previous) if os.path.exists(self.previous) else "missing"
            if isinstance(before, str):
                raise ValueError(
                    f"the file {self.path} ({_jax.user_line()}) is {saved}, so it is no checkpoint "
                    f"of a fit, and the one before it, {self.previous}, is {before}. Remove "
                    f"{self.path} to start anew, or give another file."
                )
            warn(
                f"the checkpoint {self.path} ({_jax.user_line()}) is {saved}; the fit resumes from "
                f"the one before it, {self.previous}.",
            )
            saved = before
        self._check(saved.identity)
        if len(saved.leaves) != len(like):  # of the same structure by its text alone
            self._refuse(["the numbers of arrays"])
        arrays = [_like(a, b) for a, b in zip(saved.leaves, like, strict=True)]
        return arrays, saved.history

    def _check(self, found: Mapping[str, str]) -> None:
        differing = [k for k in self.identity if found.get(k) != self.identity[k]]
        if VERSIONS in differing:
            differing = [k for k in differing if k not in (VERSIONS, *COMPUTED)]
            if not differing:
                warn(
                    f"the checkpoint {self.path} ({_jax.user_line()}) was written with other "
                    f"versions ({found.get(VERSIONS)}), so that it is of the same objective and "
                    "optimizer cannot be told, and the result may differ in the last digits.",
                )
        if differing:
            short = lambda text: text if len(text) <= 160 else text[:160] + " ..."
            was = lambda k: short(found.get(k, "unknown"))
            self._refuse(
                [
                    f"{k} (other code, or another number in it)"
                    if k in COMPUTED
                    else f"{k} (here {short(self.identity[k])}, in the file {was(k)})"
                    for k in differing
                ]
            )

    def _refuse(self, differing: list[str]) -> None:
        raise ValueError(
            f"the checkpoint {self.path} ({_jax.user_line()}) is of another fit. What differs: "
            f"{', '.join(differing)}. Give another file, or remove this one to start anew."
        )


# --- files ----------------------------------------------------------------------------------------


def _pack(saved: Saved) -> bytes:
    text = json.dumps(saved.identity, sort_keys=True)
    arrays: dict[str, Any] = {f"arr_{i}": a for i, a in enumerate(saved.leaves)}
    file = io.BytesIO()
    np.savez(
        file,
        history=saved.history,
        identity=np.asarray(text),
        checksum=np.frombuffer(_checksum(saved.leaves, saved.history, text), np.uint8),
        **arrays,
    )
    return file.getvalue()


def _read(path: str) -> Saved | str:
    """What is in a file, or what is wrong with it."""
    with open(path, "rb") as f:
        data = f.read()
    if not data:
        return "empty"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        n = sum(name.startswith("arr_") for name in found)
        leaves = [found[f"arr_{i}"] for i in range(n)]
        history, text = found["history"], str(found["identity"])
        if found["checksum"].tobytes() != _checksum(leaves, history, text):
            return "damaged (its checksum is wrong)"
        return Saved(leaves, history, json.loads(text))
    except Exception:  # a damaged file can look like anything
        return "damaged, or of another kind"


def _checksum(leaves: Sequence[np.ndarray], history: np.ndarray, text: str) -> bytes:
    total = hashlib.sha256(text.encode())
    for a in (*leaves, history):
        total.update(f"{a.dtype.str}{a.shape}".encode())
        total.update(a.tobytes())
    return total.digest()


def _keep(path: str, previous: str) -> None:
    """Let ``previous`` be the file ``path``, which stays."""
    partial = f"{previous}.partial"
    with contextlib.suppress(FileNotFoundError):
        os.remove(partial)
    try:
        os.link(path, partial)
    except OSError:  # a file system without links
        shutil.copyfile(path, partial)
    os.replace(partial, previous)


def _flush_folder(path: str) -> None:
    with contextlib.suppress(OSError):  # where folders cannot be opened
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)


def _plain(a: Any) -> np.ndarray:
    return whole(jax.random.key_data(a) if _is_key(a) else a)


def _like(saved: np.ndarray, like: Any) -> Any:
    """An array with the type of ``like``: files hold neither keys nor bfloat16."""
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(like))
    dtype = jnp.result_type(like)
    array = jnp.asarray(saved.view(dtype) if saved.dtype.kind == "V" else saved, dtype)
    return put_like(array, like)
