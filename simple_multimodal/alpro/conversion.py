"""Load an original ALPRO checkpoint into our models, with a report on every tensor."""

import os
import re
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from typing import BinaryIO

import torch
import torch.nn.functional as F

from simple_multimodal.alpro.configuration import AlproConfig
from simple_multimodal.alpro.modeling import AlproForQuestionAnswering, AlproForRetrieval
from simple_multimodal.errors import InputError
from simple_multimodal.models.loading import LoadingReport, fold_names

MIN_ANSWERS = 1500
"""Smallest size of the original answer head: it pads shorter lists of answers."""

TIME_TABLE = "alpro.video_encoder.embeddings.time_embeddings"

VIDEO_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "time_embed": "embeddings.time_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
"""Names in `transformers` of the parts of the original TimeSformer outside its blocks."""

BLOCK_NAMES = {
    "temporal_norm1": "temporal_layernorm",
    "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
    "norm1": "layernorm_before",
    "attn.qkv": "attention.attention.qkv",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Names in `transformers` of the parts of a block of the original TimeSformer."""

HEAD_NAMES = {
    "temp": "temperature",
    "vision_proj": "video_projection",
    "text_proj": "text_projection",
    "itm_head": "matching_head",
    "classifier.0": "classifier.0",
    "classifier.2": "classifier.2",
}
"""Our names of the heads of retrieval and of question answering."""

UNUSED_NAMES = {
    r"visual_encoder\.model\.head\..+": "action classes of the video tower",
    r"text_encoder\.(bert\.)?embeddings\.position_ids": "position ids, which are computed here",
    r"text_encoder\.cls\..+": "head of masked language modelling",
    r"(prompter|mpm_head)\..+": "entity prompts, which only pre-training uses",
}
"""Tensors that a checkpoint may hold but no task uses, and the reason."""


def our_name(name: str) -> str | None:
    """Return our name of an original tensor, with the `bert.` of ALPRO's retrieval or without it as in LAVIS and
    question answering; `None` for tensors that belong neither to a tower nor to a head.
    """
    if match := re.fullmatch(r"text_encoder\.(?:bert\.)?((?:embeddings|encoder)\..+)", name):
        return f"alpro.text_encoder.{match[1]}"
    if match := re.fullmatch(r"visual_encoder\.model\.blocks\.(\d+)\.(.+)\.(weight|bias)", name):
        part = BLOCK_NAMES.get(match[2])
        return part and f"alpro.video_encoder.encoder.layer.{match[1]}.{part}.{match[3]}"
    match = re.fullmatch(r"(visual_encoder\.model\.)?(.+?)(\.weight|\.bias)?", name)
    assert match is not None  # any name matches
    part = (VIDEO_NAMES if match[1] else HEAD_NAMES).get(match[2])
    return part and ("alpro.video_encoder." if match[1] else "") + part + (match[3] or "")


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the tensors of a `torch.save` file by name; no code in it is run.

    Args:
        path (`str` or `os.PathLike`): ALPRO's `model_step_best.pt`, or a file that LAVIS wrote, which holds the same
            under `model`.

    Raises:
        ValueError: If the file holds anything but tensors, or is not a regular file.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{os.fspath(path)!r} is a folder, a device or a pipe; a regular file is needed.")
    with open(path, "rb") as file:
        try:
            check_archive(file)
            payload = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file may raise anything
            first_line, _, _ = str(error).partition("\n")
            raise InputError(
                f"{os.fspath(path)!r} is not a file of tensors that torch.load reads without running code from it, so "
                f"it was not loaded ({type(error).__name__}: {first_line})."
            ) from error
    if isinstance(payload, dict) and isinstance(payload.get("model"), dict):
        payload = payload["model"]
    if not isinstance(payload, dict) or not payload:
        raise InputError(f"{os.fspath(path)!r} does not hold tensors by name, as an ALPRO checkpoint does.")
    others = [str(name) for name, value in payload.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(f"{os.fspath(path)!r} is not an ALPRO checkpoint; these are not tensors: {', '.join(others)}")
    return payload


def check_archive(file: BinaryIO) -> None:
    """Refuse an archive that unpacks to more than its own size: `torch.save` does not compress."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError("its archive is compressed, which torch.save never does")
    file.seek(0)


def answer_names(answers: Mapping[str, int] | None, num_labels: int) -> dict[int, str]:
    """Return the names of the answers by number; the others are Hugging Face's `LABEL_<number>`, not an answer.

    Args:
        answers (`Mapping[str, int]`, *optional*): ALPRO's `train_ans2label.json`.
        num_labels (`int`): Size of the answer head.

    Raises:
        ValueError: If these cannot be the answers of the head.
    """
    answers = {} if answers is None else answers
    named = {number: answer for answer, number in answers.items()}
    names = {number: f"LABEL_{number}" for number in range(num_labels)}
    if answers and num_labels not in (len(answers), max(len(answers), MIN_ANSWERS)):
        raise InputError(
            f"The checkpoint chooses among {num_labels} answers, but the answers file has {len(answers)}. Give the "
            "file that the checkpoint was trained with."
        )
    if len(named) < len(answers) or not named.keys() <= names.keys() or set(answers) & set(names.values()):
        raise InputError(
            f"The answers file must give each answer its own number from 0 to {num_labels - 1}, as ALPRO's "
            "train_ans2label.json does, and no answer may be called LABEL_<number>."
        )
    return names | named


def load_alpro(
    path: str | os.PathLike,
    *,
    num_frames: int | None = None,
    answers: Mapping[str, int] | None = None,
    config: AlproConfig | None = None,
) -> tuple[AlproForRetrieval | AlproForQuestionAnswering, LoadingReport]:
    """
    Load an original checkpoint: of retrieval or pre-training into [`AlproForRetrieval`], of question answering into
    [`AlproForQuestionAnswering`].

    Args:
        path (`str` or `os.PathLike`): The checkpoint, see [`read_tensors`].
        num_frames (`int`, *optional*): Frames per clip; the table of times is resized by taking the nearest entry, as
            the original does. By default the checkpoint's own.
        answers (`Mapping[str, int]`, *optional*): Numbers of the answers, for question answering.
        config ([`AlproConfig`], *optional*): Sizes, if they are not the published ones.

    Returns:
        The model, in evaluation mode and float32, and a [`LoadingReport`] that names every tensor that was not loaded
        unchanged.

    Raises:
        ValueError: If the file is not an ALPRO checkpoint: tensors are missing, unknown or of other shapes.
    """
    where = os.fspath(path)
    source = read_tensors(path)
    is_qa = "classifier.2.weight" in source
    if num_frames is not None and num_frames < 1:
        raise InputError(f"num_frames is {num_frames}, but a clip has at least 1 frame.")
    if answers is not None and not is_qa:
        raise InputError(f"{where!r} has no answer head, so it cannot use an answers file. Leave it out.")
    config = deepcopy(config) or AlproConfig()
    if is_qa:
        config.id2label = answer_names(answers, source["classifier.2.weight"].shape[0])
        config.label2id = {name: number for number, name in config.id2label.items()}
    model_class = AlproForQuestionAnswering if is_qa else AlproForRetrieval
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}

    report = LoadingReport(where)
    tensors: dict[str, torch.Tensor] = {}
    original_names: dict[str, str] = {}
    unknown = []
    for name, tensor in source.items():
        own_name = our_name(name)
        reason = next((why for pattern, why in UNUSED_NAMES.items() if re.fullmatch(pattern, name)), None)
        if is_qa and own_name is not None and not own_name.startswith(("alpro.", "classifier.")):
            reason = "head of retrieval"
        if reason is not None:
            report.unused[name] = reason
        elif own_name in expected and own_name not in tensors:
            tensors[own_name] = tensor
            original_names[own_name] = name
        else:
            unknown.append(name)
    missing = [name for name in expected if name not in tensors]
    if unknown or missing:
        problems = [f"no place for: {name}" for name in fold_names(unknown)]
        problems += [f"nothing for: {name}" for name in fold_names(missing)]
        raise InputError(
            f"{where!r} is not a checkpoint of {model_class.__name__}. What does not fit:\n  " + "\n  ".join(problems)
        )

    times = tensors[TIME_TABLE]
    if times.ndim == 3 and times.shape[::2] == expected[TIME_TABLE][::2]:
        expected[TIME_TABLE] = times.shape  # of any number of frames
    wrong = [
        f"{original_names[name]} has shape {tuple(tensor.shape)}, not {tuple(expected[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != expected[name]
    ]
    if wrong:
        raise InputError(f"{where!r} is not an ALPRO of the expected sizes:\n  " + "\n  ".join(wrong))
    config.video_config.num_frames = num_frames or times.shape[1]
    if config.video_config.num_frames != times.shape[1]:
        resized = F.interpolate(times.mT.float(), size=config.video_config.num_frames, mode="nearest")
        tensors[TIME_TABLE] = resized.mT
        report.converted[TIME_TABLE] = f"nearest of {times.shape[1]} times for {config.video_config.num_frames}"
    report.loaded = [name for name in tensors if name not in report.converted]
    return model_class.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32).eval(), report
