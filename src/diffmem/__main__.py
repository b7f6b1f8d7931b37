"""`python -m diffmem`, as launchers of several processes (torchrun) start it."""

from __future__ import annotations

import sys

from diffmem.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
