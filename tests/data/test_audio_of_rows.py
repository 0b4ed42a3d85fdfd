"""Audio of rows: the part that is used, and tracks that are short, empty, damaged or missing."""

import av
import numpy as np
import pytest
import torch

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.media.audio import read_audio
from simple_multimodal.media.errors import MediaError
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor
from tests.media.media_files import write_media


def test_training_takes_a_random_part_of_long_audio(processor, dataset):
    """The part depends on seed, epoch and row, and times count from the start of the segment. Evaluation uses the
    middle.
    """
    extractor = AudioFeatureExtractor(num_mel_bins=16, num_frames=60, max_windows=2, crop="random")
    cropping = MultimodalProcessor(extractor, processor.video_processor)
    row = dataset[2]  # from second 1 to the end, a little more than two seconds
    whole = AudioFeatureExtractor(num_mel_bins=16, num_frames=300).extract(
        read_audio(row["video"], 16000, start_seconds=1.0)
    )
    spare = int(whole.attention_mask.sum()) - 120

    def part(training: bool, seed: int = 0, epoch: int = 0) -> int:
        batch = MultimodalCollator(cropping, training=training, seed=seed)([dataset[(epoch, 2)]])
        assert batch["audio_values"].shape == (1, 1, 16, 120)
        first = round(float(batch["audio_seconds"][0, 0] - whole.seconds[0]) * 100)
        assert torch.equal(batch["audio_values"][0], whole.values[..., first : first + 120])
        torch.testing.assert_close(batch["audio_seconds"][0], whole.seconds[first : first + 120])
        return first

    firsts = [part(True, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(firsts)) > 5 and 0 <= min(firsts) and max(firsts) <= spare
    assert firsts == [part(True, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert [part(False, seed, seed) for seed in range(3)] == [spare // 2] * 3


def test_an_audio_column_requires_audio(processor, dataset, media_dir):
    row = {**dataset[1], "audio": str(media_dir / "silent.mp4"), "audio_from_video": False}
    with pytest.raises(MediaError, match="row 1"):
        MultimodalCollator(processor)([row])


@pytest.mark.parametrize(
    ("name", "audio_codec", "audio_seconds"),
    [
        ("early.mp4", "aac", 1.0),
        ("early.mkv", "libopus", 0.8),
        ("early.ts", "aac", 1.0),
        ("early.mov", "pcm_s16le", 0.5),
    ],
)
@pytest.mark.parametrize("start", [1.5, 130.0])  # from the start of the file, and by seeking
def test_a_row_is_kept_if_its_audio_track_ends_before_the_segment(
    processor, dataset, tmp_path, name, audio_codec, audio_seconds, start
):
    rate = 48000 if audio_codec == "libopus" else 16000
    path = write_media(
        tmp_path / name,
        num_frames=round(start + 1),
        rate=1,
        waveform=np.sin,
        audio_codec=audio_codec,
        audio_rate=rate,
        audio_seconds=audio_seconds,
    )
    row = {**dataset[1], "video": str(path), "audio": str(path), "start_seconds": start, "end_seconds": start + 1}
    batch = MultimodalCollator(processor)([row, {**row, "start_seconds": 0.0}])
    assert batch["video_mask"].tolist() == [True, True] and batch["audio_mask"].tolist() == [False, True]
    with pytest.raises(MediaError, match="no audio after"):  # with an `audio` column, audio is required
        MultimodalCollator(processor)([{**row, "audio_from_video": False}])


@pytest.mark.parametrize("name", ["empty.mkv", "empty.mov", "empty.avi"])
def test_a_row_is_kept_if_its_audio_track_is_empty(processor, dataset, tmp_path, name):
    path = write_media(tmp_path / name, num_frames=20, waveform=np.sin, audio_seconds=0.0)
    row = {**dataset[1], "video": str(path), "audio": str(path)}
    assert MultimodalCollator(processor)([row])["audio_mask"].tolist() == [False]
    with pytest.raises(MediaError, match="has no samples|no audio track"):
        MultimodalCollator(processor)([{**row, "audio_from_video": False}])


def test_a_row_with_a_damaged_audio_track_is_bad(processor, dataset, tmp_path):
    path = write_media(tmp_path / "noise.mkv", num_frames=20, waveform=np.sin, audio_codec="flac", audio_seconds=1.0)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for place, size in places:
        content[place + 8 : place + size - 8] = bytes(size - 16)
    path.write_bytes(content)
    row = {**dataset[1], "video": str(path), "audio": str(path)}
    with pytest.raises(MediaError, match="audio packets can be decoded"):
        MultimodalCollator(processor)([row])
