"""Stand-ins for standard error."""

import io


class Stream(io.StringIO):
    """A stream that is a terminal or not."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal
