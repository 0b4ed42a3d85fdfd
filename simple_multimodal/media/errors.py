"""The errors that media files raise when they cannot be read."""

from simple_multimodal.errors import InputError


class MediaError(InputError):
    """
    A media file cannot be read; the message names the file and the reason.

    The message is its only argument, so that a `DataLoader` worker can pass it to the main process unchanged.
    """


class UnsoundIndexError(MediaError):
    """A file does not decode to the frames of the index that was built from its packets."""


class NoAudioError(MediaError):
    """A file has no audio where it is requested: no track, an empty one, or one that ends before the segment."""
