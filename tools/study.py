"""The studies of this checkout, which no installation has; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from studies.cli import main

if __name__ == "__main__":
    sys.exit(main())
