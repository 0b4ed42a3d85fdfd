"""The errors that media files raise when they cannot be read."""


class MediaError(ValueError):
    """
    A media file cannot be read; the message names the file and the reason.

    It is built from that one message, so that a `DataLoader` worker can hand it to the main process unchanged.
    """


class UnsoundIndexError(MediaError):
    """A file does not decode to what the index that was made from its packets says."""


class NoSoundTrackError(MediaError):
    """A file has no sound track that can be decoded."""
