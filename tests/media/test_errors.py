"""Tests of the error that media files raise."""

import multiprocessing

import pytest

from simple_multimodal.media import MediaError, index_video


def test_a_media_error_leaves_a_worker_process_as_itself():
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(MediaError, match="absent.mp4.*No such"):
        pool.apply(index_video, ("absent.mp4",))


def test_a_media_error_is_made_of_one_message():
    # A DataLoader makes the error anew in the main process: type(error)("Caught MediaError in worker ...").
    error = MediaError("'clip.mp4': the file is empty (0 bytes)")
    assert isinstance(error, ValueError)
    assert str(type(error)(f"Caught {error}")) == "Caught 'clip.mp4': the file is empty (0 bytes)"
