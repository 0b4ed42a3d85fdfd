"""Where progress bars are shown."""

import sys


def can_show_bars() -> bool:
    """Return whether standard error is a terminal, or shown in a notebook; in a log file, bars are noise."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
