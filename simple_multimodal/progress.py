"""Where progress bars are shown."""

import sys


def can_show_bars() -> bool:
    """Return whether standard error is a terminal or belongs to a notebook; in a log file, bars are noise."""
    is_terminal = getattr(sys.stderr, "isatty", None)  # a replacement may not have it
    return bool(is_terminal and is_terminal()) or type(sys.stderr).__module__.startswith("ipykernel.")
