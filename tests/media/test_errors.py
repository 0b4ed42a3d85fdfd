"""Tests of the error that media files raise."""

import multiprocessing

import pytest

from simple_multimodal.media import MediaError, index_video


def test_a_media_error_keeps_its_type_across_processes():
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(MediaError, match="absent.mp4.*No such"):
        pool.apply(index_video, ("absent.mp4",))


def test_a_media_error_takes_a_single_message():
    # A DataLoader re-creates the error in the main process: type(error)("Caught MediaError in worker ...").
    error = MediaError("'clip.mp4': the file is empty (0 bytes)")
    assert isinstance(error, ValueError)
    assert str(type(error)(f"Caught {error}")) == "Caught 'clip.mp4': the file is empty (0 bytes)"
