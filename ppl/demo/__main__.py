"""``python -m ppl.demo [--out DIR]``: the cone under six objectives, then a VAE of digits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from . import cone, digits
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("matplotlib", "sklearn"):
        raise
    sys.exit(f"the demo needs {error.name}: pip install 'programmable-vi[demo]'")


def say(line: str) -> None:
    """Write a line, and show it at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run both, and leave a picture of each in a folder."""
    parser = argparse.ArgumentParser(prog="python -m ppl.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    cone.main(out, say)
    say("")
    digits.main(out, say)


if __name__ == "__main__":
    main()
