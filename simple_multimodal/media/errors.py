"""The errors that media files raise when they cannot be read."""

from simple_multimodal.errors import InputError


class MediaError(InputError):
    """
    A media file cannot be read; the message names the file and the reason.

    It is built from that one message, so that a `DataLoader` worker can hand it to the main process unchanged.
    """


class UnsoundIndexError(MediaError):
    """A file does not decode to what the index that was made from its packets says."""


class NoAudioError(MediaError):
    """A file has no audio where it is asked for: no track, an empty one, or one that ends before the segment."""
