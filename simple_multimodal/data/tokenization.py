"""Train a small tokenizer on captions, for runs that do not name one."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from simple_multimodal.errors import InputError

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_tokenizer(
    captions: Iterable[str], *, vocab_size: int = 8192, model_max_length: int = 512, lowercase: bool = True
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with BERT's special tokens.

    The result depends only on the captions, not on their order: the trainer counts words, and ties are broken by
    token ids. (The WordPiece trainer of the same library numbers its letters in hash order: three runs gave three
    vocabularies.) With bytes, no language needs an unknown token.

    Args:
        captions (`Iterable[str]`):
            All training captions.
        vocab_size (`int`, *optional*, defaults to 8192):
            Maximum size of the vocabulary; a few captions give a smaller one. Bytes and special tokens make up 261.
        model_max_length (`int`, *optional*, defaults to 512):
            Maximum length of a text in tokens.
        lowercase (`bool`, *optional*, defaults to `True`):
            Whether to make texts lower case.

    Returns:
        [`PreTrainedTokenizerFast`]: Encodes a text as `[CLS] … [SEP]`.

    Raises:
        ValueError: If there are no captions.
    """
    texts = list(captions)
    if not texts:
        raise InputError("There are no captions to train a tokenizer on. Name a tokenizer with `tokenizer_name`.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )
