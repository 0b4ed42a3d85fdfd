"""Tests of the processor for text, audio and video."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor


@pytest.fixture
def processor() -> MultimodalProcessor:
    return MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=16, num_frames=20, max_windows=3),
        video_processor=VideoClipProcessor(num_frames=4, size=16, resize_mode="squash"),
        tokenizer=train_tokenizer(["a cat purrs", "two dogs bark"], vocab_size=280, model_max_length=32),
    )


def waveform(num_samples: int = 3000) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)


def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)


def test_a_call_returns_the_entries_of_all_modalities(processor):
    batch = processor(
        text=["a cat purrs", None],
        audio=[waveform(), None],
        videos=[frames(), None],
        sampling_rate=16000,
        video_fps=25.0,
        return_tensors="pt",
    )
    assert list(batch) == processor.model_input_names
    assert batch["text_mask"].tolist() == batch["audio_mask"].tolist() == batch["video_mask"].tolist() == [True, False]
    assert batch["audio_values"].shape == (2, 1, 16, 20)
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 16, 16)
    cls, sep = processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id
    assert batch["input_ids"][1, :2].tolist() == [cls, sep]
    assert batch["attention_mask"][1].tolist() == [1, 1] + [0] * (batch["input_ids"].shape[1] - 2)


def test_single_inputs_do_not_need_lists(processor):
    batch = processor(text="a cat", audio=waveform(), videos=frames(), sampling_rate=16000, video_fps=25.0)
    assert {len(value) for value in batch.values()} == {1}
    numpy_batch = processor(text="a cat", return_tensors="np")
    assert isinstance(numpy_batch["input_ids"], np.ndarray)


def test_padding_and_truncation_of_text(processor):
    batch = processor(text=["a cat", "two dogs bark two dogs bark"], padding="max_length", max_length=5)
    assert batch["input_ids"].shape == (2, 5)
    assert batch["input_ids"][0, -1] == processor.tokenizer.pad_token_id
    assert batch["input_ids"][1, -1] == processor.tokenizer.sep_token_id
    assert processor.max_seq_length() == 32 and processor.max_seq_length(limit=8) == 8


def test_bad_calls_are_refused(processor):
    with pytest.raises(ValueError, match="Nothing to process"):
        processor()
    with pytest.raises(ValueError, match="different numbers of rows: {'text': 2, 'audio': 1}"):
        processor(text=["a", "b"], audio=[waveform()], sampling_rate=16000)
    text_only = MultimodalProcessor(tokenizer=processor.tokenizer)
    with pytest.raises(ValueError, match="Got `audio`, but this processor reads only text"):
        text_only(text="a", audio=waveform(), sampling_rate=16000)
    with pytest.raises(ValueError, match="at least one of"):
        MultimodalProcessor()
    with pytest.raises(TypeError, match="video_processor"):
        MultimodalProcessor(video_processor=processor.feature_extractor)


@pytest.mark.parametrize("missing", [None, "feature_extractor", "video_processor", "tokenizer"])
def test_save_and_load_with_and_without_every_component(processor, tmp_path, missing):
    parts = {name: getattr(processor, name) for name in ("feature_extractor", "video_processor", "tokenizer")}
    if missing:
        parts[missing] = None
    saved = MultimodalProcessor(**parts)
    saved.save_pretrained(tmp_path)
    for loaded in (MultimodalProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, MultimodalProcessor)
        assert loaded.modalities == saved.modalities and len(saved.modalities) == (2 if missing else 3)
        assert loaded.to_dict() == saved.to_dict()
    if missing != "tokenizer":
        assert loaded.tokenizer.get_vocab() == saved.tokenizer.get_vocab()
        assert loaded.tokenizer("two cats")["input_ids"] == saved.tokenizer("two cats")["input_ids"]
        assert loaded.tokenizer.model_max_length == 32


def test_a_saved_processor_gives_the_same_result_in_a_new_process_offline(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    np.savez(tmp_path / "inputs.npz", waveform=waveform(), frames=frames())
    code = """
import sys, numpy as np, torch
import simple_multimodal.processing
from transformers import AutoProcessor
inputs = np.load(f"{sys.argv[1]}/inputs.npz")
processor = AutoProcessor.from_pretrained(sys.argv[1])
clip = {"audio": inputs["waveform"], "videos": inputs["frames"], "sampling_rate": 16000, "video_fps": 5.0}
batch = processor(text="two cats", **clip)
torch.save(dict(batch), f"{sys.argv[1]}/batch.pt")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    expected = processor(text="two cats", audio=waveform(), videos=frames(), sampling_rate=16000, video_fps=5.0)
    loaded = torch.load(tmp_path / "batch.pt")
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


def test_another_processor_is_named_in_the_error(processor, tmp_path):
    from transformers import ClapFeatureExtractor, ClapProcessor

    ClapProcessor(ClapFeatureExtractor(), processor.tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'ClapProcessor'.*Build one from parts"):
        MultimodalProcessor.from_pretrained(tmp_path)


def test_can_be_pickled(processor):
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(
        copy(text="a cat", audio=waveform(), sampling_rate=16000)["audio_values"],
        processor(text="a cat", audio=waveform(), sampling_rate=16000)["audio_values"],
    )


def test_code_named_by_a_tokenizer_is_not_run(processor, tmp_path, monkeypatch):
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": ["code.Foreign", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'run')!r})\n")
    monkeypatch.setattr("builtins.input", lambda question: "y")  # what transformers would ask
    try:
        MultimodalProcessor.from_pretrained(tmp_path)
    except ValueError:
        pass  # refusing is as good as reading only tokenizer.json
    assert not (tmp_path / "run").exists()


def test_loading_does_not_warn_about_the_model_in_the_same_folder(processor, tmp_path, caplog):
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "not_imported"}))
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    assert type(loaded.tokenizer) is type(processor.tokenizer)
    assert loaded.tokenizer("a cat").input_ids == processor.tokenizer("a cat").input_ids
    assert not caplog.records
