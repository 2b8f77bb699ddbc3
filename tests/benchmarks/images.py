"""Images: MNIST from a folder of the user's, the digits of scikit-learn without one, and canvases.

A canvas holds up to a few digits, scaled and placed at random, which do not overlap: the
stand-in for multi-MNIST.
"""

from __future__ import annotations

import gzip
import pathlib

import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits


def digits(mnist: pathlib.Path | None) -> np.ndarray:
    """``f32[n, 28, 28]`` in 0 .. 1: every IDX file of images in a folder, or 1,797 small digits."""
    if mnist is not None:
        files = sorted(mnist.glob("*images-idx3-ubyte*"))
        if not files:
            raise FileNotFoundError(f"no *images-idx3-ubyte(.gz) in {mnist}")
        return np.concatenate([idx(file) for file in files]).astype(np.float32) / 255
    small = load_digits().images.astype(np.float32) / 16
    return np.pad(zoom(small, (1, 2.5, 2.5), order=1), ((0, 0), (4, 4), (4, 4))).clip(0, 1)


def idx(file: pathlib.Path) -> np.ndarray:
    """An array in the IDX format of MNIST, unsigned bytes, compressed or not."""
    data = file.read_bytes()
    data = gzip.decompress(data) if file.suffix == ".gz" else data
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file} is no IDX file of unsigned bytes: it begins with {data[:4]!r}")
    dims = data[3]
    shape = np.frombuffer(data, ">u4", dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def canvases(
    digits: np.ndarray, n: int, size: int = 50, most: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """``f32[n, size, size]`` in 0 .. 1, and how many digits are on each: 0 .. ``most`` in turn.

    A digit is 28 pixels divided by a scale of 1.3 ± 0.1, at any place where it fits and no ink
    meets another's.
    """
    rng = np.random.default_rng(seed)
    counts = rng.permutation(np.arange(n) % (most + 1))
    images = np.zeros((n, size, size), np.float32)
    for image, count in zip(images, counts, strict=True):
        while True:
            image[:] = 0
            if all(_place(image, digits[rng.integers(len(digits))], rng) for _ in range(count)):
                break
    return images, counts


def _place(image: np.ndarray, digit: np.ndarray, rng: np.random.Generator) -> bool:
    """Draw a digit where there is room; False if a random place has none."""
    small = zoom(digit, 1 / max(1.3 + 0.1 * rng.normal(), 1.0), order=1).clip(0, 1)
    height, width = small.shape
    y = rng.integers(image.shape[0] - height + 1)
    x = rng.integers(image.shape[1] - width + 1)
    there = image[y : y + height, x : x + width]
    if ((there > 0) & (small > 0)).any():
        return False
    there += small
    return True
