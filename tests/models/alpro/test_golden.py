"""Full-size checkpoints in ALPRO's own format reproduce the numbers of the original implementation."""

import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from simple_multimodal.alpro import AlproForQuestionAnswering, AlproForRetrieval
from simple_multimodal.cli import main
from simple_multimodal.models.fusion.crossformer import Stream
from simple_multimodal.models.patches import normalize_pixels

SALT = 20261120
TOKENS, EMBEDDINGS = 1e-4, 2e-5  # largest differences: of tokens, logits and scores; of embeddings and probabilities
VIDEOS = {"retrieval": [0, 2], "qa": [2]}  # the tower, which takes most of the time, only runs on these of the four


def load_script(path: Path):
    """Load a Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def two_threads():
    """Use two threads, because these tests are mostly large matrix products."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def convert(shared_dir, tmp_path, capsys) -> Callable[[str], tuple[dict, dict, Path]]:
    """Return a function that makes and converts a task's checkpoint and returns inputs, golden arrays and folder."""
    folder = shared_dir / "data/alpro"

    def run(task: str) -> tuple[dict, dict, Path]:
        golden = dict(np.load(folder / f"alpro_golden_{task}.npz"))
        keys = folder / f"alpro_state_dict_{task}.json"
        tensors = load_script(folder / "make_alpro_state_dict.py").build(keys, SALT)
        checksums = [zlib.crc32(tensor.numpy().tobytes()) for tensor in tensors.values()]
        assert checksums == golden["state_crc32"].tolist(), "the recipe gives other weights on this machine"
        torch.save(tensors, tmp_path / "model_step_best.pt")
        words = [f"w{number}" for number in range(len(tensors[f"{text_prefix(task)}word_embeddings.weight"]))]
        words[:5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
        argv = ["convert", "alpro", str(tmp_path / "model_step_best.pt"), str(tmp_path / "out")]
        assert main([*argv, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
        (tmp_path / "model_step_best.pt").unlink()
        summary = capsys.readouterr().out
        assert "0 converted, 0 new" in summary and "visual_encoder.model.head.weight" in summary

        frames, ids, mask = load_script(folder / "make_alpro_inputs.py").make_inputs(task, SALT)
        assert zlib.crc32(frames.numpy().tobytes()) == golden["frames_crc32"]
        assert np.array_equal(ids, golden["input_ids"]) and np.array_equal(mask, golden["attention_mask"])
        return {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": frames}, golden, tmp_path / "out"

    return run


def text_prefix(task: str) -> str:
    return "text_encoder.bert.embeddings." if task == "retrieval" else "text_encoder.embeddings."


def check(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.double().numpy() - expected).max() < tolerance


def check_towers(model, batch: dict, golden: dict, text: Stream, video: Stream, videos: list[int]) -> None:
    """Check what both tasks have: normalised pixels, tokens of all texts, and tokens of some videos."""
    config = model.config
    pixels = normalize_pixels(batch["pixel_values_videos"][videos], config.image_mean, config.image_std)
    check(pixels[:, :, :, 100, 96:112], golden["pixel_values_sample"][videos], 1e-6)
    check(text.states[:, 0], golden["text_cls"], TOKENS)
    real = batch["attention_mask"].bool()
    check(text.states[:, :, ::32][real], golden["text_tokens_cols"][real], TOKENS)
    check(video.states[:, golden["video_rows"]], golden["video_tokens_rows"][videos], TOKENS)
    check(video.states[:, :, ::96], golden["video_tokens_cols"][videos], TOKENS)
    spread = [video.states.mean((1, 2)), video.states.std((1, 2), correction=0), video.states.abs().sum((1, 2)) / 1e5]
    expected = golden["video_tokens_stats"][videos] / [1, 1, 1e5]
    check(torch.stack(spread, dim=1), expected, TOKENS)


@torch.no_grad()
@pytest.mark.usefixtures("two_threads")
def test_retrieval_equals_the_original(convert):
    batch, golden, out = convert("retrieval")
    chosen = VIDEOS["retrieval"]
    model = AlproForRetrieval.from_pretrained(out).eval()
    assert model.config.video_config.num_frames == golden["num_frames"]
    assert model.temperature.item() == golden["temp"]
    text_embeds, text = model.encode_text(batch)
    clips = {"pixel_values_videos": batch["pixel_values_videos"][chosen]}
    clip_embeds, clip = model.encode_clip(clips)
    check_towers(model, batch, golden, text, clip["video"], chosen)
    check(text_embeds, golden["text_feat"], EMBEDDINGS)
    check(clip_embeds, golden["vision_feat"][chosen], EMBEDDINGS)
    check(text_embeds @ clip_embeds.T * model.logit_scale, golden["itc_sim"][:, chosen], TOKENS)

    texts, videos = torch.cartesian_prod(torch.arange(4), torch.arange(len(chosen))).T
    pairs = text.select(texts), {"video": clip["video"].select(videos)}
    logits = model.matching_logits(*pairs).view(4, len(chosen), 2)
    check(logits, golden["itm_logits"][:, chosen], TOKENS)
    check(logits.softmax(dim=-1)[..., 1], golden["itm_prob"][:, chosen], EMBEDDINGS)
    fused = model.alpro.fuse(*pairs).view(4, len(chosen), -1)
    check(fused, golden["fused_cls"][:, chosen], TOKENS)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.usefixtures("two_threads")
def test_question_answering_equals_the_original(convert):
    batch, golden, out = convert("qa")
    chosen = VIDEOS["qa"]
    model = AlproForQuestionAnswering.from_pretrained(out).eval()
    assert model.config.video_config.num_frames == golden["num_frames"]
    assert model.config.num_labels == golden["logits"].shape[1]
    _, text = model.encode_text(batch)
    _, clip = model.encode_clip({"pixel_values_videos": batch["pixel_values_videos"][chosen]})
    check_towers(model, batch, golden, text, clip["video"], chosen)
    questions = text.select(torch.tensor(chosen))
    logits = model.answer_logits(questions, clip)
    check(logits, golden["logits"][chosen], TOKENS)
    assert logits.argmax(dim=1).tolist() == golden["pred_labels"][chosen].tolist()
    check(model.alpro.fuse(questions, clip), golden["fused_cls"][chosen], TOKENS)
