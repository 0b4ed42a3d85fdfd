"""Convert an original checkpoint into a folder of this library, with the processor that it was trained with."""

import json
import os
from pathlib import Path

from transformers import PreTrainedConfig

from simple_multimodal.alpro.configuration import AlproConfig
from simple_multimodal.alpro.conversion import load_alpro
from simple_multimodal.assembly import build_processor, check_inputs
from simple_multimodal.errors import InputError
from simple_multimodal.modalities import Modality
from simple_multimodal.models.loading import LoadingReport
from simple_multimodal.output_folder import give_umask


def convert_alpro(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tokenizer_name: str,
    num_frames: int | None = None,
    max_seq_length: int | None = None,
    answers_file: str | os.PathLike | None = None,
    config: AlproConfig | None = None,
) -> LoadingReport:
    """
    Turn an original ALPRO checkpoint into a folder from which `from_pretrained` loads the model and its processor.

    Args:
        checkpoint (`str` or `os.PathLike`): ALPRO's `model_step_best.pt`, see [`load_alpro`].
        out (`str` or `os.PathLike`): Output folder, created if it does not exist.
        tokenizer_name (`str`): Hub name or local folder; ALPRO's is `google-bert/bert-base-uncased`.
        num_frames, config: See [`load_alpro`].
        max_seq_length (`int`, *optional*): Tokens after which texts are truncated; ALPRO's are 40, for DiDeMo 50.
        answers_file (`str` or `os.PathLike`, *optional*): ALPRO's `train_ans2label.json`, `{answer: number}`.

    Returns:
        [`LoadingReport`]: What happened to every tensor.

    Raises:
        ValueError: If the checkpoint, the answers or the tokenizer are not ALPRO's, or texts may be too long.
    """
    answers = None
    if answers_file is not None:
        try:
            answers = json.loads(Path(answers_file).read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            pass
        if not isinstance(answers, dict) or not all(type(number) is int for number in answers.values()):
            raise InputError(f"{os.fspath(answers_file)!r} is not a JSON object of answers and their numbers.")
    model, report = load_alpro(checkpoint, num_frames=num_frames, answers=answers, config=config)
    towers: dict[Modality, PreTrainedConfig] = {
        "text": model.config.text_config,
        "video": model.config.video_config,
    }
    processor = build_processor(
        towers,
        captions=tuple,
        tokenizer_name=tokenizer_name,
        max_seq_length=max_seq_length,
        video_settings={
            "resize_mode": "squash",
            "resize_kernel": "decord",
            "frame_sampling": "alpro",
            "image_mean": model.config.image_mean,
            "image_std": model.config.image_std,
        },
    )
    if len(processor.tokenizer) != model.config.text_config.vocab_size:
        raise InputError(
            f"The tokenizer {tokenizer_name!r} has {len(processor.tokenizer)} tokens, but the checkpoint has "
            f"{model.config.text_config.vocab_size}. Give the one that the checkpoint was trained with."
        )
    check_inputs(model, processor)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    for path in Path(out).glob("*.safetensors"):
        give_umask(path)
    return report
