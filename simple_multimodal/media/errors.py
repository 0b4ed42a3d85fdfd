"""The error that a media file raises when it cannot be read."""


class MediaError(ValueError):
    """
    A media file cannot be read; the message names the file and the reason.

    It is built from that one message, so that a `DataLoader` worker can hand it to the main process unchanged.
    """
