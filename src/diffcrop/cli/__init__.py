"""The command line: `diffcrop crop`, `diffcrop locate`, `diffcrop info` and `diffcrop demo`."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec

# Module name -> what one installs. The library itself needs none of them.
_NEEDS = {"typer": "typer", "rich": "rich", "PIL": "Pillow", "matplotlib": "matplotlib"}


def main() -> None:
    """Run the command line, or say what to install for it."""
    # All four are looked for at once: a demo that stops at its first picture for want of matplotlib helps nobody.
    missing = [package for module, package in _NEEDS.items() if find_spec(module) is None]
    if missing and sys.argv[1:] in (["info"], ["info", "--json"]):
        # Who asks why there are no kernels may have nothing but the library.
        from diffcrop.cli import facts

        facts.show(as_json="--json" in sys.argv)
        return
    if missing:
        print(
            f"diffcrop: the command line also needs {', '.join(missing)}, not installed here; "
            '`pip install "diffcrop[cli]"` brings all it needs',
            file=sys.stderr,
        )
        sys.exit(2)

    from diffcrop.cli.app import app

    # The line of our source that a warning comes from says nothing to somebody at a shell.
    warnings.showwarning = lambda message, *_, **__: print(f"diffcrop: {message}", file=sys.stderr)
    app(prog_name="diffcrop")
