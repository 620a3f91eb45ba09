"""`dynavit plan` without an installation; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynavit.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
