"""Original checkpoints become models and folders: every tensor is accounted for, and no code in a file is run."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simple_multimodal import assembly
from simple_multimodal.alpro import AlproForQuestionAnswering, AlproForRetrieval, load_alpro
from simple_multimodal.alpro import folder as alpro_folder
from simple_multimodal.alpro.conversion import TIME_TABLE
from simple_multimodal.cli import main
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.retrieval.targets import PretrainingTargets
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.media.media_files import write_media
from tests.models.alpro.tiny import FRAMES, SIDE, make_batch, original_tensors, tiny_config

ANSWERS = {"couch": 0, "two": 2, "a dog": 1}


def save(tensors: object, path: Path) -> Path:
    torch.save(tensors, path)
    return path


def words(model: torch.nn.Module) -> torch.Tensor:
    return model.alpro.text_encoder.embeddings.word_embeddings.weight


@pytest.fixture
def tokenizer_dir(tmp_path) -> str:
    """Save a tokenizer to a folder; tests that use it give the model as many words."""
    tokenizer = train_tokenizer(["a dog runs", "a cat sleeps"], vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize("kind", ["retrieval", "qa", "pretraining"])
def test_every_tensor_is_loaded_or_named(tmp_path, kind):
    tensors = original_tensors(kind)
    model, report = load_alpro(save(tensors, tmp_path / "best.pt"), config=tiny_config())
    assert type(model) is (AlproForQuestionAnswering if kind == "qa" else AlproForRetrieval) and not model.training
    assert len(report.loaded) + len(report.unused) == len(tensors)
    assert sorted(report.loaded) == sorted(model.state_dict()) and not report.converted and not report.new
    starts = {"visual_encoder.model.head.", "text_encoder.bert.embeddings.position_ids"}
    starts |= {"text_encoder.cls."} if kind != "qa" else {"temp", "vision_proj.", "text_proj.", "itm_head."}
    starts |= {"prompter.", "mpm_head."} if kind == "pretraining" else set()
    assert set(report.unused) == {name for name in tensors if name.startswith(tuple(starts))}
    summary = report.summary()
    assert "unused: visual_encoder.model.head.weight (action classes of the video tower)" in summary
    if kind == "pretraining":
        assert "unused: prompter.visual_encoder.model.blocks.{0-1}.attn.qkv.weight (entity prompts" in summary

    assert torch.equal(words(model), tensors["text_encoder.bert.embeddings.word_embeddings.weight"])
    block = model.alpro.video_encoder.encoder.layer[1]
    for own, name in (
        (block.layernorm_before, "norm1"),
        (block.temporal_layernorm, "temporal_norm1"),
        (block.layernorm_after, "norm2"),
        (block.attention.attention.qkv, "attn.qkv"),
        (block.temporal_attention.output.dense, "temporal_attn.proj"),
        (block.temporal_dense, "temporal_fc"),
        (block.output.dense, "mlp.fc2"),
    ):
        assert torch.equal(own.weight, tensors[f"visual_encoder.model.blocks.1.{name}.weight"]), name
    if kind == "qa":
        assert torch.equal(model.classifier[2].weight, tensors["classifier.2.weight"])
    else:
        assert torch.equal(model.video_projection.bias, tensors["vision_proj.bias"])
        assert model.temperature.item() == pytest.approx(0.06)


def test_other_layouts_of_a_checkpoint_load_to_the_same_weights(tmp_path):
    original = save(original_tensors("retrieval"), tmp_path / "alpro.pt")
    expected = load_alpro(original, config=tiny_config())[0].state_dict()
    renamed = {name.replace("bert.", ""): tensor for name, tensor in original_tensors("retrieval").items()}
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in renamed.items()}
    variants = {"lavis": renamed, "wrapped": {"model": renamed, "epoch": 3}, "half": half}
    for name, payload in variants.items():
        model, _ = load_alpro(save(payload, tmp_path / f"{name}.pt"), config=tiny_config())
        for key, tensor in model.state_dict().items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3 if name == "half" else 0, atol=1e-3)


def test_the_time_table_is_resized_to_the_nearest_entries(tmp_path):
    path = save(original_tensors("retrieval", num_frames=4), tmp_path / "best.pt")
    times = original_tensors("retrieval", num_frames=4)["visual_encoder.model.time_embed"]
    config = tiny_config()
    own, report = load_alpro(path, config=config)
    assert config.video_config.num_frames == FRAMES  # the caller's config is unchanged
    assert own.config.video_config.num_frames == 4 and not report.converted
    for num_frames in (8, 6, 2):
        model, report = load_alpro(path, num_frames=num_frames, config=tiny_config())
        found = model.alpro.video_encoder.embeddings.time_embeddings
        nearest = [position * 4 // num_frames for position in range(num_frames)]
        assert torch.equal(found, times[:, nearest]) and model.config.video_config.num_frames == num_frames
        assert report.converted == {TIME_TABLE: f"nearest of 4 times for {num_frames}"}
        batch = make_batch()
        clips = batch["pixel_values_videos"][:, [0] * num_frames]
        with torch.no_grad():
            assert torch.isfinite(model(**{**batch, "pixel_values_videos": clips}).loss)


def test_answers_get_their_names_and_other_labels_a_placeholder(tmp_path):
    path = save(original_tensors("qa", prefix=""), tmp_path / "best.pt")
    model, _ = load_alpro(path, answers=ANSWERS, config=tiny_config())
    names = model.config.id2label
    assert (names[0], names[1], names[2], names[3], len(names)) == ("couch", "a dog", "two", "LABEL_3", 1500)
    assert model.config.label2id["two"] == 2 and model.config.num_labels == 1500
    plain, _ = load_alpro(path, config=tiny_config())
    assert plain.config.id2label[0] == "LABEL_0"
    many = {f"answer {number}": number for number in range(1510)}
    longer = save(original_tensors("qa", prefix="", num_answers=1510), tmp_path / "longer.pt")
    assert load_alpro(longer, answers=many, config=tiny_config())[0].config.id2label[1509] == "answer 1509"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"a": 0, "b": 0}, "each answer its own number from 0 to 1499"),
        ({"a": 1500}, "each answer its own number from 0 to 1499"),
        ({"LABEL_7": 0}, "no answer may be called LABEL_"),
        ({f"answer {number}": number for number in range(1600)}, "among 1500 answers, but the answers file has 1600"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, answers, message):
    path = save(original_tensors("qa", prefix=""), tmp_path / "best.pt")
    with pytest.raises(ValueError, match=message):
        load_alpro(path, answers=answers, config=tiny_config())


def test_tensors_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "best.pt"

    def message(changes: dict, **arguments) -> str:
        tensors = original_tensors("retrieval") | changes
        save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
        with pytest.raises(ValueError) as info:
            load_alpro(path, config=tiny_config(), **arguments)
        return str(info.value)

    changed = {"itm_head.bias": None, "text_encoder.pooler.dense.weight": torch.zeros(2), "extra": torch.zeros(2)}
    changed |= {f"visual_encoder.model.blocks.{block}.temporal_fc.bias": None for block in range(2)}
    assert message(changed).splitlines()[1:] == [
        "  no place for: text_encoder.pooler.dense.weight",
        "  no place for: extra",
        "  nothing for: alpro.video_encoder.encoder.layer.{0-1}.temporal_dense.bias",
        "  nothing for: matching_head.bias",
    ]
    twice = {"text_encoder.embeddings.LayerNorm.bias": torch.zeros(16)}
    assert "no place for: text_encoder.embeddings.LayerNorm.bias" in message(twice)
    block = {"visual_encoder.model.blocks.0.cross_attn.qkv.weight": torch.zeros(2)}
    assert "no place for: visual_encoder.model.blocks.0.cross_attn.qkv.weight" in message(block)
    shape = {"visual_encoder.model.pos_embed": torch.zeros(1, 5, 16)}
    assert "visual_encoder.model.pos_embed has shape (1, 5, 16), not (1, 10, 16)" in message(shape)
    times = {"visual_encoder.model.time_embed": torch.zeros(3, 16)}
    assert "visual_encoder.model.time_embed has shape (3, 16), not (1, 3, 16)" in message(times)
    assert "has no answer head" in message({}, answers=ANSWERS)
    assert "num_frames is 0" in message({}, num_frames=0)
    for payload, expected in (
        ({"step": 3, "temp": torch.ones(())}, "these are not tensors: step"),
        ([torch.zeros(2)], "does not hold tensors by name"),
        ({}, "does not hold tensors by name"),
    ):
        save(payload, path)
        with pytest.raises(ValueError, match=expected):
            load_alpro(path)


class Malicious:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, capsys, kind):
    path, trace = tmp_path / "best.pt", tmp_path / "trace"
    payload = {"temp": torch.ones(()), "more": Malicious(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(payload["more"], protocol=2))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=kind == "zip")
    assert main(["convert", "alpro", str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and "without running code from it, so it was not loaded" in error
    assert error.count("\n") == 1
    assert not trace.exists() and not (tmp_path / "out").exists()
    if kind != "legacy":  # the payload does work where it is loaded
        torch.load(path, weights_only=False) if kind == "zip" else pickle.loads(path.read_bytes())
        assert trace.exists()


def test_a_damaged_or_missing_file_gives_a_one_line_error(tmp_path, capsys):
    whole = save(original_tensors("retrieval"), tmp_path / "best.pt").read_bytes()
    damaged = {
        "cut": whole[:-2000],
        "empty": b"",
        "opcode": b"0",
        "text": b"X\x01\x00\x00\x00\xff.",
        "zip": whole[:99],
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    for name in (*damaged, "missing"):
        assert main(["convert", "alpro", str(tmp_path / name), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / name) in error and error.count("\n") == 1


# ---- The folder ----
@pytest.fixture
def checkpoint(tmp_path, tokenizer_dir, monkeypatch):
    """Return a function that writes a tiny checkpoint; the command expects its sizes."""
    tokenizer = assembly.AutoTokenizer.from_pretrained(tokenizer_dir)
    config = tiny_config()
    config.text_config.vocab_size = len(tokenizer)
    monkeypatch.setattr("simple_multimodal.alpro.conversion.AlproConfig", lambda: config)

    def write(kind: str) -> Path:
        return save(original_tensors(kind, vocab_size=len(tokenizer)), tmp_path / "best.pt")

    return write


LOAD = """
import sys
import torch
from simple_multimodal.alpro import AlproForRetrieval
from simple_multimodal.processing import MultimodalProcessor
model, processor = (c.from_pretrained(sys.argv[1]) for c in (AlproForRetrieval, MultimodalProcessor))
print(sum(p.double().sum().item() for p in model.parameters()), processor.video_processor.resize_kernel)
"""


def test_the_command_writes_a_folder_that_loads(tmp_path, tokenizer_dir, checkpoint, capsys):
    out = tmp_path / "out"
    argv = ["convert", "alpro", str(checkpoint("retrieval")), str(out), "--tokenizer", tokenizer_dir]
    assert main([*argv, "--max_seq_length", "17"]) == 2  # of 16 positions
    assert "17 tokens, but this ALPRO takes 16" in capsys.readouterr().err and not out.exists()
    assert main([*argv, "--num_frames", "5", "--max_seq_length", "12"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Weights from {tmp_path / 'best.pt'}: 122 tensors loaded, 1 converted, 0 new, ")
    assert "converted: alpro.video_encoder.embeddings.time_embeddings (nearest of 3 times for 5)" in printed
    assert "unused: text_encoder.bert.embeddings.position_ids" in printed and printed.endswith(f"\n{out}\n")

    assert MultimodalProcessor.from_pretrained(out).max_seq_length() == 12
    video = MultimodalProcessor.from_pretrained(out).video_processor
    assert (video.num_frames, video.height, video.width) == (5, SIDE, SIDE)
    assert (video.resize_mode, video.resize_kernel, video.frame_sampling) == ("squash", "decord", "alpro")
    model = AlproForRetrieval.from_pretrained(out)
    assert (video.image_mean, video.image_std) == (list(model.config.image_mean), list(model.config.image_std))
    total = sum(p.double().sum().item() for p in model.parameters())
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(out)], check=True, cwd=root, capture_output=True, text=True
    )
    assert result.stdout.split() == [str(total), "decord"]


def test_the_command_names_answers_and_refuses_another_tokenizer(tmp_path, tokenizer_dir, checkpoint, capsys):
    path, out, answers = checkpoint("qa"), tmp_path / "out", tmp_path / "train_ans2label.json"
    argv = ["convert", "alpro", str(path), str(out), "--answers", str(answers)]
    for content in ("[1]", "{", '{"couch": "0"}'):
        answers.write_text(content)
        assert main([*argv, "--tokenizer", tokenizer_dir]) == 2
        assert f"'{answers}' is not a JSON object of answers" in capsys.readouterr().err
    answers.write_text(json.dumps(ANSWERS))
    other = train_tokenizer(["another"], vocab_size=270)
    other.save_pretrained(tmp_path / "other")
    assert main([*argv, "--tokenizer", str(tmp_path / "other")]) == 2
    assert "Give the one that the checkpoint was trained with" in capsys.readouterr().err
    assert not out.exists()
    assert main([*argv, "--tokenizer", tokenizer_dir]) == 0
    model = AlproForQuestionAnswering.from_pretrained(out)
    assert [model.config.id2label[number] for number in (0, 1, 2, 1499)] == ["couch", "a dog", "two", "LABEL_1499"]


def test_a_converted_model_reads_clips_and_can_be_trained(tmp_path, tokenizer_dir, checkpoint):
    out = tmp_path / "out"
    alpro_folder.convert_alpro(checkpoint("retrieval"), out, tokenizer_name=tokenizer_dir)
    captions = ["a dog runs", "a cat sleeps", "a dog sleeps", "a cat runs"]
    for row in range(4):
        write_media(tmp_path / f"{row}.mp4", num_frames=6 + row)
    rows = [{"video": f"{row}.mp4", "caption": caption} for row, caption in enumerate(captions)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = RowDataset.from_manifest(tmp_path / "train.jsonl", cache_dir=tmp_path)
    processor, model = MultimodalProcessor.from_pretrained(out), AlproForRetrieval.from_pretrained(out)
    collator = MultimodalCollator(processor, training=True, targets=PretrainingTargets(processor, vt_match_ratio=0.5))
    batch = collator(list(dataset))
    assert batch["pixel_values_videos"].shape == (4, FRAMES, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = model.eval()(**batch)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = MultimodalTrainingArguments(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        dataloader_num_workers=0,
    )
    trainer = MultimodalTrainer(model, args, processor=processor, train_dataset=dataset)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3 and all(log["contrastive_tv_loss"] > 0 and log["matching_loss"] > 0 for log in logs)
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name]) and "key.bias" not in name]
    assert still == []
    with torch.no_grad():
        assert model.eval()(**batch).losses["contrastive_tv"] < expected.losses["contrastive_tv"]
