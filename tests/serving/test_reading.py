"""Which untrusted clips are refused, and what the reasons say."""

import re

import numpy as np
import pytest

from simple_multimodal.data.bad_samples import BadSampleError
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.serving.reading import ClipReader, ReadingLimits, public_reason, row_of
from tests.faults import corpus
from tests.media.media_files import write_media


def reason(collator, path, limits=None, audio=None) -> str:
    """Read a clip in this process; return the public reason why it cannot be read, or nothing."""
    row = row_of(str(path), audio)
    try:
        ClipReader(collator, limits or ReadingLimits())([row])
    except BadSampleError as error:
        return public_reason(error.sample.reason, [row["video"], row["audio"]])
    return ""


@pytest.fixture(scope="module")
def collator(processor):
    return MultimodalCollator(processor, parallel=False)


@pytest.mark.parametrize(
    ("limit", "value", "name", "expected"),
    [
        ("pixels", 64 * 48 - 1, "0.mp4", "has frames of 3072 pixels; at most 3071 are allowed"),
        ("frames", 7, "0.mp4", "has 8 frames; at most 7 are allowed"),
        ("clip_seconds", 0.51, "5.mp4", "lasts 0.52 seconds; at most 0.51 are allowed"),
        ("clip_seconds", 0.69, "audio.wav", "lasts 0.7 seconds; at most 0.69 are allowed"),
    ],
)
def test_a_clip_beyond_a_limit_is_refused(collator, clips, limit, value, name, expected):
    assert reason(collator, clips / name, ReadingLimits(**{limit: value})) == expected
    assert reason(collator, clips / name, ReadingLimits(**{limit: value + 1})) == ""


def test_the_audio_of_a_clip_is_limited_too(collator, clips):
    limits = ReadingLimits(clip_seconds=0.6)
    assert reason(collator, clips / "5.mp4", limits) == ""
    assert reason(collator, clips / "5.mp4", limits, str(clips / "audio.wav")).startswith("lasts 0.7 seconds")


def test_a_model_without_video_reads_the_audio_of_a_clip_alone(processor, clips):
    collator = MultimodalCollator(processor, parallel=False, drop_modalities=("video",))
    assert reason(collator, clips / "0.mp4", ReadingLimits(pixels=1, frames=1)) == ""
    assert "pixels" in reason(MultimodalCollator(processor), clips / "0.mp4", ReadingLimits(pixels=1))


def test_a_clip_without_anything_that_the_model_takes_is_refused(clips):
    of_audio = MultimodalCollator(MultimodalProcessor(feature_extractor=AudioFeatureExtractor()), parallel=False)
    of_video = MultimodalCollator(
        MultimodalProcessor(video_processor=VideoClipProcessor(num_frames=2)), parallel=False
    )
    assert reason(of_audio, clips / "5.mp4") == "has no audio, which the model needs"
    assert reason(of_video, clips / "audio.wav") == "has no video, which the model needs"
    assert reason(of_audio, clips / "audio.wav") == reason(of_video, clips / "5.mp4") == ""


def test_limits_are_positive():
    with pytest.raises(ValueError, match="`frames` must be positive, got 0"):
        ReadingLimits(frames=0)


def test_a_header_that_states_a_long_time_is_enough(collator, tmp_path, monkeypatch):
    """The audio is neither decoded nor indexed."""
    path = write_media(tmp_path / "long.m4a", waveform=np.sin, audio_seconds=3.0, audio_codec="aac")
    monkeypatch.setattr("simple_multimodal.data.readers.read_audio", lambda *args, **kwargs: pytest.fail("was read"))
    assert reason(collator, path, ReadingLimits(clip_seconds=2.0)).startswith("lasts 3")


def test_reasons_hold_no_path_of_the_server(processor, tmp_path):
    """For all media of the corpus that are quick to read."""
    collator = MultimodalCollator(processor, parallel=False)
    folder = tmp_path / "uploads (of clients)" / "it's"
    folder.parent.mkdir()
    cases = [case for case in corpus._media(folder, "127.0.0.1:9", quick=True) if case.is_quick]
    cases = [case for case in cases if case.kind == "media"]
    reasons = {case.name: reason(collator, case.path) for case in cases}
    refused = [case for case in cases if reasons[case.name]]
    assert len(refused) > 60
    for case in refused:
        assert not re.search(r"/tmp|uploads|clients|it.s/|`|\\n", reasons[case.name]), (
            case.name,
            reasons[case.name],
        )
        assert str(tmp_path) not in reasons[case.name] and case.path.name not in reasons[case.name]
    for case in cases:
        assert case.expected in ("either", "refused" if reasons[case.name] else "reads"), case.name


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("'/a b/c': is a folder; a regular file is needed", "is a folder; a regular file is needed"),
        ("[Errno 2] No such file or directory: '/a b/c'", "[Errno 2] No such file or directory: the file"),
        ("'/a b/c': not read within 3 seconds (`sample_timeout_seconds`)", "not read within 3 seconds"),
        ("cannot open /usr/lib/libx.so.1: wrong (/etc/x)", "cannot open …: wrong (…)"),
        ("frames 3/4 of video/mp4 and\n  audio", "frames 3/4 of video/mp4 and audio"),
        ("rows, row 0: /a b/c does not exist", "rows, row 0: the file does not exist"),
    ],
)
def test_paths_and_settings_are_left_out_of_reasons(message, expected):
    assert public_reason(message, ["/a b/c", None]) == expected
