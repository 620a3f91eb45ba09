"""Whether this machine does anything else while speed is measured."""

import os

from dynavit.errors import InputError

_BUSY = 0.5  # cores; this process had to start, too


def require_quiet() -> None:
    """Look at the machine before anything of one's own runs.

    Raises:
        InputError: other processes keep it busy.
    """
    if (busy := os.getloadavg()[0]) > _BUSY:
        raise InputError(f"other processes keep {busy:.1f} cores busy: measure speed when nothing else runs.")
