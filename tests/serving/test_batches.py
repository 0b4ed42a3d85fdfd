"""Clips that are read one by one and run together give the results of clips that are read together."""

from collections import defaultdict

import pytest
import torch
from transformers import BertConfig, VideoMAEConfig, ViTMAEConfig

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.inference.encoded import encode_batch
from simple_multimodal.inference.requests import clips_alone
from simple_multimodal.serving.batches import batch_key, concatenate, num_bytes
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from simple_multimodal.tasks.retrieval.retriever import Retriever
from tests.data.conftest import assert_equal
from tests.models.tiny import DECODER_SIZES, SIZES, randomize, tiny_config
from tests.serving.clips import NAMES

TEXTS = ["a cat purrs", "two dogs", "", "a", "two dogs bark", "cat"]


@pytest.fixture(scope="module")
def collator(processor) -> MultimodalCollator:
    return MultimodalCollator(processor, parallel=False)


@pytest.fixture(scope="module")
def rows(clips):
    return list(RowDataset.from_files([clips / name for name in NAMES]))


@pytest.fixture(scope="module")
def retriever(processor) -> Retriever:
    towers = {
        "text_config": BertConfig(**SIZES, vocab_size=len(processor.tokenizer), max_position_embeddings=32),
        "audio_config": ViTMAEConfig(**SIZES, **DECODER_SIZES, image_size=[16, 80], patch_size=8, num_channels=1),
        "video_config": VideoMAEConfig(
            **SIZES, **DECODER_SIZES, image_size=16, num_frames=4, tubelet_size=2, patch_size=8
        ),
    }
    torch.manual_seed(0)
    return Retriever(randomize(MultimodalForRetrieval(tiny_config(**towers))), processor)


def by_key(batches):
    """Return the numbers of the batches of each key."""
    numbers = defaultdict(list)
    for number, batch in enumerate(batches):
        numbers[batch_key(batch)].append(number)
    return list(numbers.values())


def test_clips_of_one_key_are_those_with_as_many_windows_of_audio(collator, rows):
    assert by_key([collator([row]) for row in rows]) == [[0, 3, 5, 6], [1, 2, 4]]


@pytest.mark.parametrize("numbers", [[0, 3, 5, 6], [1, 2, 4], [5, 0], [5], [5, 5]])
def test_concatenated_clips_are_the_batch_of_the_collator(collator, rows, numbers):
    """Clip 5 has no audio, clip 6 no video."""
    some = [rows[number] for number in numbers]
    assert_equal(concatenate([collator([row]) for row in some]), collator(some))


def test_texts_are_tokenized_together(collator, rows, processor):
    some = [{**rows[number], "captions": [text]} for number, text in zip((0, 3, 5), TEXTS, strict=False)]
    whole = concatenate([collator([row]) for row in clips_alone(some)])
    assert_equal({**whole, **processor.tokenize(TEXTS[:3])}, collator(some))


def test_batches_of_different_keys_are_refused(collator, rows):
    with pytest.raises(ValueError, match="same names, dtypes and shapes"):
        concatenate([collator([rows[0]]), collator([rows[1]])])


def test_the_memory_of_a_batch_is_that_of_its_tensors(collator, rows):
    batch = collator([rows[0]])
    assert num_bytes(batch) > 4 * 3 * 16 * 16 + 4 * 16 * 80
    assert num_bytes(concatenate([batch, batch])) == 2 * num_bytes(batch)


def test_the_model_gives_the_results_of_the_pipeline(retriever, collator, rows):
    expected = retriever.encode_rows(rows).clips  # together, so that audio of fewer windows is padded
    batches = [collator([row]) for row in clips_alone(rows)]
    for numbers in by_key(batches):
        found = encode_batch(retriever.model, concatenate([batches[number] for number in numbers])).clips
        for number, clip in zip(numbers, found, strict=True):
            torch.testing.assert_close(clip.embed, expected[number].embed, rtol=0, atol=1e-5)
            assert clip.tokens.keys() == expected[number].tokens.keys()
            for modality, tokens in clip.tokens.items():
                torch.testing.assert_close(tokens, expected[number].tokens[modality], rtol=0, atol=1e-5)
