"""`python -m diffcrop` is the command `diffcrop`."""

from __future__ import annotations

from diffcrop.cli import main

if __name__ == "__main__":
    main()
