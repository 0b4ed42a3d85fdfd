"""Tests of the tokenizer that is trained on captions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from simple_multimodal.data.tokenization import train_tokenizer

CAPTIONS = [
    f"a {colour} {shape} moves {way}"
    for colour in ("red", "blue")
    for shape in ("circle", "square")
    for way in ("left", "up")
]


def test_special_tokens_are_those_of_bert():
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = tokenizer("a red circle")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert list(tokenizer("a")) == ["input_ids", "attention_mask"]


def test_lower_case_and_round_trip():
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=400)
    assert tokenizer("A RED circle")["input_ids"] == tokenizer("a red circle")["input_ids"]
    assert tokenizer.decode(tokenizer("a red circle")["input_ids"], skip_special_tokens=True).strip() == "a red circle"
    assert len(tokenizer.tokenize("a red circle")) == 3  # words of the captions are whole tokens


def test_no_text_needs_the_unknown_token():
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300)
    for text in ("日本語", "🐈", "žluťoučký"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_the_tokenizer_does_not_depend_on_the_order_of_captions_or_the_process(tmp_path):
    code = f"""
import sys
from simple_multimodal.data.tokenization import train_tokenizer
print(train_tokenizer({CAPTIONS[::-1]!r}, vocab_size=300).backend_tokenizer.to_str())
"""
    expected = json.loads(train_tokenizer(CAPTIONS, vocab_size=300).backend_tokenizer.to_str())
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    ).stdout
    assert json.loads(output) == expected


def test_save_and_load(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("a red circle")["input_ids"] == tokenizer("a red circle")["input_ids"]
    assert loaded.model_max_length == 77 and loaded.mask_token_id == 4


def test_training_without_captions_is_refused():
    with pytest.raises(ValueError, match="`tokenizer_name`"):
        train_tokenizer([])
