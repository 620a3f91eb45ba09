#!/usr/bin/env python
"""Make a table of the documentation again: ``python tools/reproduce.py --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from studies.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
