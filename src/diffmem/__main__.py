"""`python -m diffmem`, as launchers of several processes (torchrun) start it."""

from __future__ import annotations

import sys

if not sys.flags.safe_path and sys.path:
    # Python puts the current folder first, and a file torch.py in a downloaded model's folder would run instead of torch.
    del sys.path[0]

from diffmem.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
