"""Readers of modalities: a new one is an entry in a few tables, and is read like the others."""

import threading

import numpy as np
import pytest
import torch

from simple_multimodal import modalities
from simple_multimodal.data import readers, records
from simple_multimodal.data.batch_reader import BatchReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.media.errors import MediaError
from simple_multimodal.processing import MultimodalProcessor, VideoClipProcessor, processing_multimodal

ROWS = [
    {"id": "a", "video": "audio0.mp4", "caption": "one", "gazes": [1.0, 2.0]},
    {"id": "b", "video": "silent.mp4", "caption": "two"},
    {"id": "c", "video": "audio1.mp4", "caption": "three", "gazes": [3, 4]},
    {"id": "d", "video": "audio1.mp4", "caption": "four", "gazes": ["x"]},
]


class GazeProcessor:
    """Processor that scales two numbers per row."""

    def __init__(self, scale: float):
        self.scale = scale

    def to_dict(self) -> dict:
        return {"scale": self.scale}

    @classmethod
    def load(cls, folder, **settings) -> "GazeProcessor":
        return cls(MultimodalProcessor.get_processor_dict(folder)[0]["gaze_processor"]["scale"])

    def __call__(self, gazes) -> dict[str, torch.Tensor]:
        values = torch.tensor([[0.0, 0.0] if gaze is None else gaze for gaze in gazes]) * self.scale
        return {"gaze_values": values, "gaze_mask": torch.tensor([gaze is not None for gaze in gazes])}


class GazeReader(readers.Reader):
    column = "gazes"

    def __init__(self, settings: readers.ReadSettings):
        self.processor = settings.processor.part("gaze")
        self.threads: set[str] = set()

    def read(self, row, out):
        self.threads.add(threading.current_thread().name)
        return np.array(row["gazes"], dtype=np.float64).reshape(2).tolist()

    def collate(self, parts, batch):
        return self.processor(parts)


@pytest.fixture
def processor(monkeypatch) -> MultimodalProcessor:
    part = processing_multimodal.Part("gaze_processor", "gazes", GazeProcessor, GazeProcessor.load)
    monkeypatch.setitem(modalities.INPUT_KEYS, "gaze", ("gaze_values",))
    monkeypatch.setitem(modalities.PRESENCE_KEYS, "gaze", "gaze_mask")
    monkeypatch.setitem(records.MODALITY_COLUMNS, "gaze", ("gazes",))
    monkeypatch.setitem(processing_multimodal.PARTS, "gaze", part)
    monkeypatch.setitem(readers.READERS, "gaze", GazeReader)
    return MultimodalProcessor(
        video_processor=VideoClipProcessor(num_frames=4, size=16),
        tokenizer=train_tokenizer(["one two"], vocab_size=270),
        gaze_processor=GazeProcessor(0.5),
    )


@pytest.fixture
def dataset(media_dir) -> RowDataset:
    return RowDataset(ROWS, roots=media_dir, modalities=())


@pytest.mark.parametrize("parallel", [True, False])
def test_a_new_modality_is_read_with_the_others(processor, dataset, parallel):
    collator = MultimodalCollator(processor, parallel=parallel)
    batch = collator([dataset[0], dataset[1], dataset[2]])
    assert processor.modalities == ("text", "video", "gaze")
    assert batch["gaze_values"].tolist() == [[0.5, 1.0], [0.0, 0.0], [1.5, 2.0]]
    assert batch["gaze_mask"].tolist() == [True, False, True] and bool(batch["video_mask"].all())
    assert all(name.startswith("collator") == parallel for name in collator._readers["gaze"].threads)
    assert not MultimodalCollator(processor, drop_modalities=("gaze",))([dataset[0]])["gaze_mask"].any()
    assert not collator.empty_batch(2)["gaze_mask"].any()


def test_a_new_modality_that_cannot_be_read_makes_the_row_bad(processor, dataset):
    collator = MultimodalCollator(processor)
    with pytest.raises(MediaError, match=r"row 3 \(id 'd'\): could not convert"):
        collator([dataset[3]])
    batch = BatchReader(dataset, collator, on_bad_sample="skip")([(0, 2), (0, 3)])
    assert [(sample.row, sample.file) for sample in batch["bad_samples"]] == [(3, None)]
    for name in ("text_mask", "video_mask", "gaze_mask"):
        assert batch[name].tolist() == [True, False]


def test_a_new_part_is_saved_and_called(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    assert loaded.modalities == processor.modalities and loaded.to_dict() == processor.to_dict()
    batch = loaded(text=["a", None], gazes=[None, [2.0, 4.0]])
    assert list(batch) == ["input_ids", "attention_mask", "text_mask", "gaze_values", "gaze_mask"]
    assert batch["gaze_values"].tolist() == [[0.0, 0.0], [1.0, 2.0]]


def test_a_new_modality_needs_a_column(processor):
    with pytest.raises(ValueError, match="no column for gaze: gazes is needed"):
        RowDataset([{"video": "a.mp4", "caption": "a"}], modalities=("video", "gaze"))


def test_unknown_parts_and_inputs_are_refused():
    with pytest.raises(TypeError, match="Got gaze_processor; the parts of a processor are tokenizer"):
        MultimodalProcessor(gaze_processor=GazeProcessor(1.0))
    with pytest.raises(TypeError, match="Got gazes; the inputs of a processor are text, audio, videos"):
        MultimodalProcessor(video_processor=VideoClipProcessor())(gazes=[[1.0]])


def test_the_largest_clips_are_read_first(media_dir, monkeypatch):
    """Rows keep their places; rows that lack the modality are not read."""
    video = MultimodalProcessor(video_processor=VideoClipProcessor(num_frames=4, size=16))
    names = ["audio0.mp4", None, "audio2.mp4", "audio1.mp4"]
    rows = [{"video": name, "caption": "x"} for name in names]
    dataset, order = RowDataset(rows, roots=media_dir), []
    collator = MultimodalCollator(video, num_threads=1)
    reader = collator._readers["video"]
    read = reader.read
    monkeypatch.setattr(reader, "read", lambda row, out: (order.append(row["index"]), read(row, out)))
    batch = collator(list(dataset))
    assert order == [2, 3, 0] and batch["video_mask"].tolist() == [True, False, True, True]
