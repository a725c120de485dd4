"""Another revision of diffcrop beside this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def revision(name: str) -> Iterator[tuple[str, Path]]:
    """Another revision, built from a worktree into a folder that is gone afterwards: its commit and that folder."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--verify", f"{name}^{{commit}}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="diffcrop-base-") as folder:
        tree, site = Path(folder) / "tree", Path(folder) / "site"
        subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(tree), commit], check=True)
        try:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run(
                [*pip, "--no-build-isolation", "--no-deps", "--target", str(site), str(tree)],
                check=True,
                env=os.environ | {"DIFFCROP_REQUIRE_CPU": "1"},
            )
            yield commit, site
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
