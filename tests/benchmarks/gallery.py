"""The programs of docs/gallery, at full size: python tests/benchmarks/gallery.py [names] [--write];
with --flops, what a gradient of an estimate costs beside what is written by hand.

A page holds one program, which ends with ``figure``, numbers by their names, and a comment that
says what the program must reach, as expressions of the program's own names:

    <!-- gallery
    accept: figure["gap"] < 0.01
    small: steps = 200
    small: figure["gap"] < 0.1
    -->

Its tests set the names of the ``small`` lines and check their expressions instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import tempfile
import time
from typing import Any

import gallery_by_hand
import jax
import numpy as np
from measure import cost_of

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
SEED = "jax.random.key(0)"


@dataclasses.dataclass(frozen=True)
class Page:
    """A program, and what is said about it."""

    path: pathlib.Path

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def program(self) -> str:
        (program,) = re.findall(r"^```python\n(.*?)^```", self.text, re.M | re.S)
        return program

    @property
    def lines(self) -> int:
        """Lines of code: neither empty nor a comment."""
        return sum(bool(re.match(r"\s*[^\s#]", line)) for line in self.program.splitlines())

    @property
    def stochastic(self) -> bool:
        return SEED in self.program

    def said(self, what: str) -> list[str]:
        (comment,) = re.findall(r"^<!-- gallery\n(.*?)-->", self.text, re.M | re.S)
        return re.findall(rf"^{what}: (.*)$", comment, re.M)

    def run(self, seed: int = 0, small: bool = False) -> dict[str, Any]:
        """The names of the program after it ran.

        Raises:
            AssertionError: the program does not reach what it must at the small size.
        """
        program = self.program.replace(SEED, f"jax.random.key({seed})")
        checks = []
        for line in self.said("small") * small:
            name, is_size, value = re.match(r"(\w*)( = )?(.*)", line).groups()
            if not is_size:
                checks.append(line)
                continue
            program, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", program, flags=re.M)
            assert found == 1, f"{self.path.name} has {found} lines that set {name}"
        scope: dict[str, Any] = {"__name__": "gallery"}
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, f"{self.path.stem}.py")
            file.write_text(program)
            exec(compile(program, str(file), "exec"), scope)
        for check in checks:
            assert eval(check, scope), f"{check}, but figure = {scope['figure']}"
        return scope


def pages(names: list[str] | tuple[str, ...] = ()) -> list[Page]:
    """Those of these names, or all."""
    paths = sorted(p for p in (DOCS / "gallery").glob("*.md") if p.stem != "index")
    return [Page(p) for p in paths if not names or p.stem in names]


def measure(page: Page, seeds: int) -> list[dict[str, float]]:
    """The figures of each seed; prints them."""
    found = []
    for seed in range(seeds if page.stochastic else 1):
        start = time.perf_counter()
        scope = page.run(seed)
        seconds = time.perf_counter() - start
        found.append({name: float(value) for name, value in scope["figure"].items()})
        missed = [check for check in page.said("accept") if not eval(check, scope)]
        what = ", ".join(f"{name} {value:.4g}" for name, value in found[-1].items())
        verdict = f"MISSED {missed}" if missed else "reached"
        print(f"{page.path.stem} [{seed}] {what}; {verdict}; {seconds:.1f} s, {page.lines} lines")
    return found


def write(page: Page, found: list[dict[str, float]]) -> None:
    """Put the figures into the page's table, | figure | seed 0 | ... | to reach |."""
    text = page.text
    columns = len(re.search(r"^\|.*to reach \|$", text, re.M)[0].split("|")) - 4
    for name in found[0]:
        numbers = [_number(f[name]) for f in found]
        cells = " | ".join(numbers + ["–"] * (columns - len(numbers)))
        row = re.compile(rf"^\| {re.escape(name)} \|.*\|([^|\n]*)\|$", re.M)
        text, n = row.subn(lambda m, c=cells, name=name: f"| {name} | {c} | {m[1].strip()} |", text)
        assert n == 1, f"{page.path.name} has {n} rows for {name}"
    text = re.sub(r"^\*\d+ lines\*", f"*{page.lines} lines*", text, flags=re.M)
    page.path.write_text(text)


def flops(page: Page) -> dict[str, float]:
    """What a gradient in all arguments costs, as a ratio to one by hand, of which it is the mean.

    Raises:
        AssertionError: the two estimates have different means.
    """
    ours, by_hand, arguments = gallery_by_hand.PAIRS[page.path.stem](page.run(small=True))
    cost, means = [], []
    for f in (ours, by_hand):
        floats = [i for i, a in enumerate(arguments, 1) if _is_float(a)]
        gradient = jax.jit(jax.grad(f, argnums=floats))
        cost.append(cost_of(gradient.lower(jax.random.key(0), *arguments).compile()))
        one = lambda key, f=f: f(key, *arguments)
        draws = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 400))
        means.append((float(draws.mean()), float(draws.std()) / 20))
    (a, error_a), (b, error_b) = means
    assert abs(a - b) < 5 * np.hypot(error_a, error_b) + 1e-4 * abs(b), f"{a} and {b} by hand"
    return {what: cost[0][what] / cost[1][what] for what in ("flops", "bytes accessed")}


def _is_float(argument: Any) -> bool:
    return all(
        jax.numpy.issubdtype(jax.numpy.result_type(a), jax.numpy.floating)
        for a in jax.tree.leaves(argument)
    )


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    digits = max(0, 3 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.{min(digits, 4)}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of pages; all if there is none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the figures into the pages")
    parser.add_argument("--flops", action="store_true", help="compare with programs by hand")
    options = parser.parse_args()
    for page in pages(options.names):
        if options.flops:
            if page.path.stem in gallery_by_hand.PAIRS:
                ratios = ", ".join(f"{what} {ratio:.3f}" for what, ratio in flops(page).items())
                print(f"{page.path.stem}: {ratios} of those by hand")
            continue
        found = measure(page, options.seeds)
        if options.write:
            write(page, found)


if __name__ == "__main__":
    main()
