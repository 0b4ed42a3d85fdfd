"""Tests of the error that media files raise."""

import pickle

import pytest

from simple_multimodal.media import MediaError, index_video


def test_a_media_error_keeps_its_type_across_processes():
    with pytest.raises(MediaError, match="absent.mp4.*No such") as error:
        index_video("absent.mp4")
    again = pickle.loads(pickle.dumps(error.value))  # as processes send it
    assert type(again) is MediaError and str(again) == str(error.value)


def test_a_media_error_takes_a_single_message():
    # A DataLoader re-creates the error in the main process: type(error)("Caught MediaError in worker ...").
    error = MediaError("'clip.mp4': the file is empty (0 bytes)")
    assert isinstance(error, ValueError)
    assert str(type(error)(f"Caught {error}")) == "Caught 'clip.mp4': the file is empty (0 bytes)"
