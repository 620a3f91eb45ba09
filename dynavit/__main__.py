"""``python -m dynavit``."""

import sys

from dynavit.cli import main

if __name__ == "__main__":
    sys.exit(main())
