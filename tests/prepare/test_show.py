"""Tests of the image of a sample: its text, and the positions of times and frequencies."""

import numpy as np
import pytest
from PIL import Image

from simple_multimodal import cli
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.prepare import show
from simple_multimodal.prepare.show import draw_sample
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from tests.media.media_files import write_media

MANIFEST = """{"video": "a.mp4", "audio": "a.mp4", "captions": ["a cat purrs", "purring"]}
{"video": "a.mp4", "audio": "tone.wav", "caption": "one", "start_seconds": 0.5, "end_seconds": 1.5}
{"caption": "nothing to see"}
{"audio": "tone.wav", "caption": "a tone"}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seconds of video at 25 frames per second, and a tone of 1 kHz that starts after one second."""
    folder = tmp_path_factory.mktemp("show")
    write_media(folder / "a.mp4", num_frames=50, waveform=np.sin, audio_seconds=2.0, audio_codec="aac")
    tone = lambda times: np.where(times < 1, 0.0, 0.5) * np.sin(2000 * np.pi * times)  # noqa: E731
    write_media(folder / "tone.wav", waveform=tone, audio_seconds=2.0)
    (folder / "rows.jsonl").write_text(MANIFEST)
    return folder


@pytest.fixture
def dataset(folder):
    return RowDataset.from_manifest(folder / "rows.jsonl", modalities=())


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The text that is drawn in images."""
    texts = []
    plain = show._text
    monkeypatch.setattr(show, "_text", lambda text, **settings: texts.append(text) or plain(text, **settings))
    return texts


def processor(**parts) -> MultimodalProcessor:
    defaults = {"feature_extractor": AudioFeatureExtractor(), "video_processor": VideoClipProcessor(size=48)}
    return MultimodalProcessor(**(defaults | parts))


def test_the_title_has_file_frame_rate_resolution_segment_and_captions(dataset, said):
    draw_sample(dataset[0], processor())
    assert said == [
        "a.mp4  ·  64x48, 25 frames/s  ·  2.00 s",
        "row 0, id 0  ·  evaluation  ·  16 frames of 48x48, uniform",
        "“a cat purrs”",
        "“purring”",
    ]
    said.clear()
    draw_sample(dataset[(3, 1)], processor(), is_training=True)
    assert said[0].endswith("segment 0.5 s to 1.5 s")
    assert said[1].split("  ·  ")[1:] == ["training, epoch 3", "16 frames of 48x48, jittered", "audio from tone.wav"]


def test_missing_modalities_and_the_tokens_of_the_caption_are_shown(dataset, said):
    tokenizer = train_tokenizer(["nothing to see", "a tone"] * 3, vocab_size=300)
    draw_sample(dataset[2], processor(tokenizer=tokenizer))
    assert said[0] == "row 2, id 2" and "This row has no audio and no video." in said
    draw_sample(dataset[3], processor(tokenizer=tokenizer))
    assert said[-2] == "This row has no video."
    assert "tokens: " in said[-1] and "tone" in said[-1].replace(" | ", "") and "Ġ" not in said[-1]


def test_number_and_size_of_frames_can_be_chosen_without_changing_the_processor(dataset, said):
    own = processor()
    draw_sample(dataset[0], own, num_frames=3, video_size=[32, 64])
    draw_sample(dataset[0], own, video_size=[32])
    assert [line.split("  ·  ")[2] for line in said if "evaluation" in line] == [
        "3 frames of 64x32, uniform",
        "16 frames of 32x32, uniform",
    ]
    assert own.video_processor.num_frames == 16 and own.video_processor.height == 48
    with pytest.raises(ValueError, match="`num_frames` must be 1 or more|`num_frames` and `frame_stride` must be 1"):
        draw_sample(dataset[0], own, num_frames=0)
    with pytest.raises(ValueError, match=r"`video_size` is \[1, 2, 3\]; give height and width"):
        draw_sample(dataset[0], own, video_size=[1, 2, 3])
    with pytest.raises(ValueError, match="`num_frames` and `video_size` need a model that reads video"):
        draw_sample(dataset[0], processor(video_processor=None), num_frames=2)


def brightness(image: np.ndarray) -> np.ndarray:
    return image.astype(float).sum(axis=-1)


def test_a_tone_is_drawn_at_its_time_and_frequency(dataset, monkeypatch):
    drawn = {}
    plain = show._audio

    def audio(batch, extractor, end, width):
        drawn["image"], drawn["end"] = plain(batch, extractor, end, width), end
        return drawn["image"]

    monkeypatch.setattr(show, "_audio", audio)
    draw_sample(dataset[3], processor())
    image = np.asarray(drawn["image"])
    assert drawn["end"] == pytest.approx(2.0, abs=0.03)
    labels = {label: height for height, label in show._frequency_labels(AudioFeatureExtractor())}
    assert list(labels) == ["100", "250", "500", "1,000", "2,000", "4,000", "8,000"]
    row = brightness(image)[labels["1,000"]]
    begin = int(np.argmax(row > row.max() / 2))
    assert begin / len(row) * drawn["end"] == pytest.approx(1.0, abs=0.03)
    column = brightness(image)[:, 3 * len(row) // 4]
    loud = np.flatnonzero(column > 0.9 * column.max())
    assert loud.min() - 4 <= labels["1,000"] <= loud.max() + 4 and len(loud) < 40


def test_frames_are_drawn_at_their_times_on_the_audio_axis(dataset, monkeypatch):
    places = {}
    plain = show._paste_strip
    monkeypatch.setattr(
        show, "_paste_strip",
        lambda part, batch, place: places.update({s: place(s) for s in (0.0, 1.0, 2.0)}) or plain(part, batch, place),
    )  # fmt: skip
    pasted = []
    original = Image.Image.paste
    monkeypatch.setattr(
        Image.Image, "paste",
        lambda self, image, box, *rest: pasted.append((image.size, box)) or original(self, image, box, *rest),
    )  # fmt: skip
    draw_sample(dataset[0], processor(), num_frames=2)  # the frames at 0.5 s and 1.5 s of 2 seconds
    strip = [(box[0], size[0]) for size, box in pasted if size[1] == show.STRIP_HEIGHT]
    centres = [left + width // 2 for left, width in strip]
    assert places[0.0] == show.LEFT
    second = places[1.0] - places[0.0]
    assert places[2.0] - places[1.0] == pytest.approx(second, abs=1)
    assert centres == [pytest.approx(places[0.0] + times * second, abs=second * 0.03) for times in (0.5, 1.5)]


def test_times_without_audio_are_left_empty(dataset):
    batch_image = show._audio(
        {
            "audio_attention_mask": show.torch.tensor([[True, True, False]]),
            "audio_values": show.torch.rand(1, 1, 128, 3),
            "audio_seconds": show.torch.tensor([[0.005, 0.015, 0.025]]),
        },
        AudioFeatureExtractor(),
        0.04,
        400,
    )
    is_empty = (np.asarray(batch_image) == show.PANEL).all(axis=(0, 2))
    assert not is_empty[:200].any() and is_empty[290:].all()


def test_a_waveform_has_no_frequency_labels(dataset):
    extractor = AudioFeatureExtractor(
        front_end="waveform", num_mel_bins=320, hop_seconds=0.02, num_frames=100, padding="pad"
    )
    assert show._frequency_labels(extractor) == []
    assert draw_sample(dataset[3], processor(feature_extractor=extractor)).size[0] == 1280


def test_the_command_draws_rows_as_in_evaluation_and_in_training(folder, tmp_path, capsys):
    out, manifest = tmp_path / "sample.png", str(folder / "rows.jsonl")
    assert cli.main(["show", manifest, "--row", "1", "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.size[0] == 1280 and image.size[1] > 500
        evaluation = np.asarray(image)
    assert cli.main(["show", manifest, "--row", "1", "--epoch", "3", "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert not np.array_equal(np.asarray(image), evaluation)  # other frames
    assert cli.main(["show", manifest, "--row", "9"]) == 2
    assert "rows 0 to 3" in capsys.readouterr().err


def test_the_command_tells_which_settings_it_shows_without_a_model(folder, tmp_path, capsys, said):
    show_row = ["show", str(folder / "rows.jsonl"), "--row", "0", "--out", str(tmp_path / "sample.png")]
    assert cli.main(show_row) == 0
    assert "16 frames of 224x224. For other towers, such as small random ones, set" in capsys.readouterr().err
    assert said[1].endswith("16 frames of 224x224, uniform")
    assert cli.main([*show_row, "--num_frames", "8"]) == 0
    assert "Without --model" not in capsys.readouterr().err


def test_help_tells_that_rows_are_counted_from_0(capsys):
    with pytest.raises(SystemExit):
        cli.main(["show", "--help"])
    assert "number of the row to draw, counted from 0" in " ".join(capsys.readouterr().out.split())


def test_the_command_draws_media_files_and_the_first_of_a_folder(folder, tmp_path, said):
    out = tmp_path / "sample.png"
    video, audio = str(folder / "a.mp4"), str(folder / "tone.wav")

    def drawn(*argv: str) -> tuple[list[str], np.ndarray]:
        said.clear()
        assert cli.main(["show", *argv, "--out", str(out)]) == 0
        with Image.open(out) as image:
            return [line for line in said if line.startswith(("a.mp4", "tone.wav"))], np.asarray(image)

    titles, both = drawn(video, audio)
    assert titles == ["a.mp4  ·  64x48, 25 frames/s  ·  2.00 s", "tone.wav"]
    (_, first), (_, second) = drawn(video), drawn(audio)
    assert both.shape == (len(first) + len(second), 1280, 3) and np.array_equal(both[: len(first)], first)
    titles, one = drawn(video, audio, "--row", "1")
    assert titles == ["tone.wav"] and one.shape == second.shape
    titles, _ = drawn(str(folder))
    assert titles == ["a.mp4  ·  64x48, 25 frames/s  ·  2.00 s"]
