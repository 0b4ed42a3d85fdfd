"""Entries that the pre-training targets add to a batch."""

import torch

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.retrieval.targets import PretrainingTargets


def test_equal_texts_have_equal_ids_in_every_batch(processor, dataset):
    """Texts are equal if their tokens are; padding does not change their id."""
    collator = MultimodalCollator(
        processor, targets=PretrainingTargets(processor, vt_match_ratio=0.5), max_seq_length=8
    )
    rows = [dict(dataset[index]) for index in (1, 2, 2, 3, 3)]
    rows[0]["captions"] = ["a cat purrs"]
    rows[2]["captions"] = ["a long sentence about many dogs, of which the end is cut off"]
    together = collator([*rows, dataset[0]])["text_ids"].tolist()
    assert together[0] == together[5] and together[3] == together[4] and together[1] == together[2]
    assert len(set(together)) == 3
    alone = [collator([row])["text_ids"].item() for row in (*rows, dataset[0])]
    assert alone == together and min(alone) >= 0


def test_special_and_padding_tokens_are_never_masked(processor, dataset):
    batch = MultimodalCollator(processor, targets=PretrainingTargets(processor, mlm_probability=0.9))(list(dataset))
    specials = torch.isin(batch["input_ids"], torch.tensor(processor.tokenizer.all_special_ids))
    assert bool((batch["mlm_labels"][specials] == -100).all())
    assert torch.equal(batch["mlm_input_ids"][specials], batch["input_ids"][specials])
    maskable = (~specials).sum(1)
    assert (batch["mlm_labels"] != -100).sum(1).tolist() == [round(0.9 * int(count)) for count in maskable]
    assert int(maskable[3]) == 0  # no caption, nothing to predict


def test_aligned_rows_have_the_requested_share(processor, dataset):
    collator = MultimodalCollator(
        MultimodalProcessor(tokenizer=processor.tokenizer), targets=PretrainingTargets(processor, vt_match_ratio=0.25)
    )
    rows = [{**dataset[1], "id": str(number)} for number in range(2000)]
    batch = collator(rows)
    assert abs(batch["match_aligned"].float().mean() - 0.25) < 0.03
    assert abs(batch["match_uniform"].mean() - 0.5) < 0.03
    assert float(batch["match_uniform"].max()) < 1
