"""`train.py` with published kinds of towers: without training, with two steps, and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import PeAudioModel, ViTConfig

from simple_multimodal.assembly import load_towers
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.lora import find_targets
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from simple_multimodal.tasks.retrieval.retriever import Retriever
from tests.closeness import assert_close
from tests.models.tiny_towers import STOCK_MODELS, stock_pe_av, write_checkpoint
from tests.training.tiny_run import CAPTIONS, CONFIGS, data_flags, flags, run

CLIP_MODALITY = {"clip": "video", "siglip": "video", "siglip2": "video", "clap": "audio"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Checkpoint of each kind, and a fusion config."""
    kinds = (*STOCK_MODELS, "pe_audio", "pe_audio_video", "ast", "whisper", "timesformer")
    folders = {kind: write_checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in kinds}
    fusion = tmp_path_factory.mktemp("fusion") / "fusion.json"
    fusion.write_text(json.dumps(CONFIGS["fusion"]))
    return {**folders, "fusion": str(fusion)}


@pytest.fixture
def start(clips, folders, tmp_path) -> list[str]:
    """Flags that all runs of these tests share."""
    common = flags(
        "--use_cpu",
        "--disable_tqdm",
        fusion_config_name=folders["fusion"],
        dataloader_num_workers=0,
        output_dir=tmp_path / "out",
        cache_dir=tmp_path / "cache",
        task="retrieval",
    )
    return [*data_flags(clips), *common]


def towers(folders: dict[str, str], kind: str) -> list[str]:
    """Return the flags that name a checkpoint for both of its towers."""
    clip = CLIP_MODALITY[kind]
    names = {"text_model_name_or_path": folders[kind], f"{clip}_model_name_or_path": folders[kind]}
    return flags(modalities=["text", clip], **names)


@torch.no_grad()
def stock_similarities(kind: str, folder: str, retriever: Retriever, rows: list) -> torch.Tensor:
    """Return the cosines `(texts, clips)` of the stock model for the inputs that the processor makes."""
    stock = STOCK_MODELS[kind].from_pretrained(folder).eval()
    processor = retriever.processor
    batch = retriever.collator(rows)
    texts = processor.tokenizer(
        CAPTIONS, padding="max_length", truncation=True, max_length=processor.max_seq_length(), return_tensors="pt"
    )
    inputs = {"input_ids": texts["input_ids"]}
    if not kind.startswith("siglip"):
        inputs["attention_mask"] = texts["attention_mask"]
    text = F.normalize(stock.get_text_features(**inputs).pooler_output, dim=-1)
    if kind == "clap":
        windows = batch["audio_values"].unflatten(3, (-1, 101)).permute(0, 3, 1, 4, 2)  # (rows, windows, 1, time, mel)
        embeds = stock.get_audio_features(windows.flatten(0, 1)).pooler_output.unflatten(0, (len(rows), -1))
        weights = batch["audio_attention_mask"].view(len(rows), -1, 101).sum(dim=2, keepdim=True)
        clip = (F.normalize(embeds, dim=-1) * weights).sum(dim=1)
    else:
        video = processor.video_processor
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (video.image_mean, video.image_std))
        pixels = ((batch["pixel_values_videos"] / 255 - mean) / std).flatten(0, 1)
        if kind == "siglip2":
            patches = pixels.unflatten(3, (2, 8)).unflatten(2, (2, 8)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 192)
            embeds = stock.get_image_features(patches, torch.ones(len(patches), 4), torch.full((len(patches), 2), 2))
        else:
            embeds = stock.get_image_features(pixels)
        clip = F.normalize(embeds.pooler_output, dim=-1).unflatten(0, (len(rows), -1)).mean(dim=1)
    return text @ F.normalize(clip, dim=-1).T


@pytest.mark.parametrize("kind", STOCK_MODELS)
def test_retrieval_without_training_equals_the_stock_model(start, folders, clips, tmp_path, kind):
    metrics = run(*start, *towers(folders, kind), "--do_train", "False")
    retriever = Retriever.from_pretrained(tmp_path / "out", batch_size=3)
    config = retriever.model.config
    assert config.clip_embedding == "mean" and config.contrastive_dim == (24 if kind.startswith("siglip") else 12)
    assert config.contrastive_form == ("sigmoid" if kind.startswith("siglip") else "softmax")
    assert "matching" not in retriever.model.loss_weights and not any("matching" in name for name in metrics)

    folder = clips / ("audio" if kind == "clap" else "video")
    with pytest.raises(ValueError, match="There are no features of a .* tower: .* not its embedding"):
        retriever.model.tower_hash(CLIP_MODALITY[kind])
    # Pooling heads of SigLIP have a projection that they do not call.
    assert not any("head" in name for name in find_targets(retriever.model, [CLIP_MODALITY[kind]], []))
    rows = retriever.rows(folder)
    index = retriever.index(folder)
    expected = stock_similarities(kind, folders[kind], retriever, rows)
    own = torch.stack([text.embed for text in retriever.encode_texts(CAPTIONS)]) @ index.embeds.T
    assert_close(own, expected)
    found = retriever.search(CAPTIONS[0], index, top_k=7)
    assert [match.id for match in found] == [index.ids[n] for n in expected[0].argsort(descending=True)]

    with pytest.raises(ValueError, match="no matching head.*rerank_top_k=0"):
        retriever.search(CAPTIONS[0], index, rerank=2)

    # The clip of row 3 has no audio, that of row 4 no video: they are neither queries nor candidates.
    kept = [n for n in range(7) if n != (3 if kind == "clap" else 4)]
    ids = [int(Path(name).stem) for name in index.ids]
    square = expected[kept][:, [ids.index(n) for n in kept]].numpy()
    ranks = (square >= np.diag(square)[:, None]).sum(axis=1)
    assert metrics["eval_text_to_video_R@1"] == pytest.approx((ranks == 1).mean())
    assert metrics["eval_text_to_video_mean_rank"] == pytest.approx(ranks.mean())


@pytest.mark.parametrize("kind", STOCK_MODELS)
def test_two_steps_of_training(start, folders, tmp_path, kind):
    clip = CLIP_MODALITY[kind]
    metrics = run(
        *start,
        *towers(folders, kind),
        *flags(task="pretraining", max_steps=2, per_device_train_batch_size=4, logging_steps=1, learning_rate=1e-3),
        *flags("--activation_checkpointing", "True", save_strategy="no"),
    )
    assert np.isfinite(metrics["train_loss"]) and np.isfinite(metrics["eval_loss"])
    report = json.loads((tmp_path / "out/all_results.json").read_text())
    losses = {key.removeprefix("eval_") for key in report if key.startswith("eval_") and key.endswith("_loss")}
    assert losses == {"loss", "contrastive_tav_loss", "matching_loss"}  # a clip has a single tower
    trained = MultimodalForRetrieval.from_pretrained(tmp_path / "out")
    stock = STOCK_MODELS[kind].from_pretrained(folders[kind])
    name = "audio_projection.linear2.weight" if kind == "clap" else "encoder.layers.0.self_attn.v_proj.weight"
    before = stock.state_dict()[name if kind == "clap" else f"vision_model.{name}"]
    assert not torch.equal(trained.multimodal.encoder(clip).state_dict()[name], before)


def test_batch_normalisation_keeps_its_statistics_in_a_run_and_its_resume(start, folders, tmp_path):
    steps = flags(task="retrieval", max_steps=2, save_steps=1, per_device_train_batch_size=4, learning_rate=0.01)
    steps += ["--do_train", *flags(contrastive_chunk_size=2)]
    run(*start, *towers(folders, "clap"), *steps)
    resumed = flags(output_dir=tmp_path / "resumed", resume_from_checkpoint=tmp_path / "out/checkpoint-1")
    run(*start, *towers(folders, "clap"), *steps, *resumed)
    straight, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "resumed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in straight.items())
    stock = load_file(Path(folders["clap"], "model.safetensors"))
    norm = "audio_encoder.batch_norm"
    for name in ("running_mean", "running_var", "num_batches_tracked", "weight"):
        is_same = torch.equal(straight[f"multimodal.audio_encoder.{norm}.{name}"], stock[f"audio_model.{norm}.{name}"])
        assert is_same == (name != "weight")


def test_towers_without_a_shared_space_are_trained_together(start, folders, tmp_path):
    """BERT, AST and TimeSformer, each with its own settings; and CLIP for video with CLAP for audio."""
    bert = tmp_path / "bert.json"
    bert.write_text(json.dumps(CONFIGS["text"]))
    steps = flags(max_steps=2, per_device_train_batch_size=3, save_strategy="no", text_config_name=bert)
    names = flags(audio_model_name_or_path=folders["ast"], video_model_name_or_path=folders["timesformer"])
    metrics = run(*start, *names, *steps)
    assert np.isfinite(metrics["eval_loss"])
    retriever = Retriever.from_pretrained(tmp_path / "out")
    audio, video = retriever.processor.feature_extractor, retriever.processor.video_processor
    assert (audio.num_mel_bins, audio.num_frames, audio.mean, audio.padding) == (16, 64, -4.0, "zero")
    assert (video.num_frames, video.height, video.image_mean) == (4, 16, [0.4, 0.45, 0.5])
    assert retriever.model.config.clip_embedding == "fusion" and retriever.model.config.contrastive_dim == 768

    names = flags(video_model_name_or_path=folders["clip"], audio_model_name_or_path=folders["clap"])
    metrics = run(*start, *names, *steps, *flags(output_dir=tmp_path / "mixed", fusion_pool="time", num_frames=2))
    assert np.isfinite(metrics["eval_loss"])
    config = MultimodalForRetrieval.from_pretrained(tmp_path / "mixed").config
    assert (config.clip_embedding, config.contrastive_dim, config.contrastive_form) == ("fusion", 12, "softmax")


@pytest.mark.parametrize("kind", ["pe_audio", "pe_audio_video"])
@torch.no_grad()
def test_pe_av_without_training_compares_its_own_embeddings(start, folders, clips, tmp_path, kind):
    folder = folders[kind]
    names = flags(text_model_name_or_path=folder, audio_model_name_or_path=folder)
    names += flags(modalities=["text", "audio"], num_audio_frames=200)
    metrics = run(*start, *names, "--do_train", "False")
    assert np.isfinite(metrics["eval_loss"])
    retriever = Retriever.from_pretrained(tmp_path / "out", batch_size=3)
    config = retriever.model.config
    assert (config.clip_embedding, config.contrastive_dim, config.contrastive_form) == ("mean", 16, "sigmoid")
    assert retriever.processor.feature_extractor.sampling_rate == 8000
    with pytest.raises(ValueError, match="There are no features of a 'pe_audio_encoder' tower"):
        retriever.model.tower_hash("audio")

    stock = stock_pe_av(folder, "audio")
    batch = retriever.collator(retriever.rows(clips / "audio")[:1])  # one window
    waveform = batch["audio_values"].transpose(2, 3).flatten(2)
    texts = retriever.processor.tokenizer(CAPTIONS, padding=True, return_tensors="pt", return_token_type_ids=False)
    padding_mask = batch["audio_attention_mask"].repeat_interleave(40, dim=1)
    outputs = stock(**texts, input_values=waveform, padding_mask=padding_mask)
    expected = F.normalize(outputs.text_audio_embeds, dim=-1) @ F.normalize(outputs.audio_embeds, dim=-1).T
    index = retriever.index(clips / "audio")
    own = torch.stack([text.embed for text in retriever.encode_texts(CAPTIONS)]) @ index.embeds[:1].T
    assert_close(own, expected)


@torch.no_grad()
def test_pe_av_without_training_compares_video_like_the_stock_model(start, folders, clips, tmp_path):
    folder = folders["pe_audio_video"]
    names = flags(text_model_name_or_path=folder, video_model_name_or_path=folder)
    run(*start, *names, *flags("--do_train", "False", modalities=["text", "video"], num_frames=3))
    retriever = Retriever.from_pretrained(tmp_path / "out", batch_size=3)
    config, video = retriever.model.config, retriever.processor.video_processor
    assert (config.clip_embedding, config.contrastive_dim, config.contrastive_form) == ("mean", 16, "sigmoid")
    assert (video.height, video.resize_mode, video.resize_kernel, video.image_mean) == (
        16,
        "squash",
        "antialias",
        [0.5] * 3,
    )
    with pytest.raises(ValueError, match="There are no features of a 'pe_video_encoder' tower"):
        retriever.model.tower_hash("video")

    stock = stock_pe_av(folder, "video")
    rows = retriever.rows(clips / "video")
    pixels = retriever.collator(rows)["pixel_values_videos"] / 127.5 - 1
    texts = retriever.processor.tokenizer(CAPTIONS, padding=True, return_tensors="pt", return_token_type_ids=False)
    outputs = stock(**texts, pixel_values_videos=pixels)
    expected = F.normalize(outputs.text_video_embeds, dim=-1) @ F.normalize(outputs.video_embeds, dim=-1).T
    index = retriever.index(clips / "video")
    assert index.ids == [row["id"] for row in rows]
    own = torch.stack([text.embed for text in retriever.encode_texts(CAPTIONS)]) @ index.embeds.T
    assert_close(own, expected)

    names += flags(audio_model_name_or_path=folder, num_audio_frames=200, output_dir=tmp_path / "all")
    with pytest.raises(
        ValueError, match="(?s)Without training.*shared space.*PE-AV compares text with audio or with video"
    ):
        run(*start, *names, "--do_train", "False")


def test_pe_av_is_trained_on_audio_and_video(start, folders, tmp_path):
    names = {f"{modality}_model_name_or_path": folders["pe_audio_video"] for modality in ("text", "audio", "video")}
    sizes = flags(num_audio_frames=200, num_frames=2, task="pretraining", learning_rate=1e-3)
    steps = flags("--activation_checkpointing", "True", max_steps=2, per_device_train_batch_size=4, save_strategy="no")
    metrics = run(*start, *flags(**names), *sizes, *steps)
    assert np.isfinite(metrics["train_loss"]) and np.isfinite(metrics["eval_loss"])
    before = stock_pe_av(folders["pe_audio_video"], "video").video_encoder.state_dict()
    after = MultimodalForRetrieval.from_pretrained(tmp_path / "out").multimodal.encoder("video").state_dict()
    for name in ("layers.0.self_attn.v_proj.weight", "embedder.vision_model.timm_model.blocks.0.attn.qkv.weight"):
        assert not torch.equal(before[name], after[name])


def test_pe_av_is_trained_except_its_codec(start, folders, tmp_path):
    names = flags(text_model_name_or_path=folders["pe_audio"], audio_model_name_or_path=folders["pe_audio"])
    names += flags(modalities=["text", "audio"], num_audio_frames=200, task="pretraining")
    steps = flags("--activation_checkpointing", "True", max_steps=2, per_device_train_batch_size=4, save_strategy="no")
    assert np.isfinite(run(*start, *names, *steps, *flags(learning_rate=1e-3))["train_loss"])
    before = PeAudioModel.from_pretrained(folders["pe_audio"]).audio_encoder.state_dict()
    after = MultimodalForRetrieval.from_pretrained(tmp_path / "out").multimodal.encoder("audio").state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert {name for name in before if "dac_encoder" in name or "bottleneck" in name} <= same
    assert "layers.0.self_attn.v_proj.weight" not in same and "patch_embedder.class_embedding" not in same


def test_pe_av_resumes_from_a_checkpoint(start, folders, tmp_path):
    """The codec is not trained, so the optimizer has no state for it."""
    names = {f"{modality}_model_name_or_path": folders["pe_audio_video"] for modality in ("text", "audio", "video")}
    sizes = flags(num_audio_frames=200, num_frames=2, max_steps=2, save_steps=1, save_strategy="steps", **names)
    metrics = run(*start, *sizes)
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    shutil.rmtree(tmp_path / "out/checkpoint-2")
    assert run(*start, *sizes)["eval_loss"] == metrics["eval_loss"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


def test_default_targets_of_lora_are_the_attention_of_pe_av(folders):
    towers = load_towers({modality: folders["pe_audio_video"] for modality in ("text", "audio", "video")})
    configs = {f"{modality}_config": config for modality, config in towers.items()}
    model = MultimodalForRetrieval(MultimodalConfig(**configs, crossformer_config=ViTConfig(**CONFIGS["fusion"])))
    found = {modality: {name.split(".", 1)[1] for name in find_targets(model, [modality])} for modality in towers}
    attention = {f"layers.{n}.self_attn.{name}_proj" for n in range(2) for name in "qkvo"}
    image_attention = {
        f"embedder.vision_model.timm_model.blocks.{n}.attn.{name}" for n in range(2) for name in ("qkv", "proj")
    }
    assert found["text"] == {f"layers.{n}.attn.{name}" for n in range(2) for name in ("Wqkv", "Wo")}
    assert found["audio"] == attention and found["video"] == attention | image_attention


def test_whisper_with_another_text_tower(start, folders, tmp_path):
    """Windows have the length of the checkpoint's extractor or less; features can replace the frozen tower."""
    bert = tmp_path / "bert.json"
    bert.write_text(json.dumps(CONFIGS["text"]))
    common = flags(max_steps=1, per_device_train_batch_size=3, save_strategy="no", text_config_name=bert)
    names = flags(audio_model_name_or_path=folders["whisper"], modalities=["text", "audio"])
    metrics = run(*start, *names, *common)
    assert np.isfinite(metrics["eval_loss"])
    retriever = Retriever.from_pretrained(tmp_path / "out")
    audio = retriever.processor.feature_extractor
    assert (audio.front_end, audio.num_mel_bins, audio.num_frames) == ("whisper", 8, 100)
    assert retriever.model.config.audio_config.max_source_positions == 50
    retriever.model.tower_hash("audio")  # features can replace it

    metrics = run(*start, *names, *common, *flags(num_audio_frames=50, output_dir=tmp_path / "shorter"))
    assert np.isfinite(metrics["eval_loss"])
    shorter = MultimodalForRetrieval.from_pretrained(tmp_path / "shorter")
    assert shorter.config.audio_config.max_source_positions == 25
    with pytest.raises(ValueError, match="8 mel bins by 51 frames.*even number, at most 100.*num_audio_frames"):
        run(*start, *names, *common, *flags(num_audio_frames=51, output_dir=tmp_path / "odd"))


def test_a_transformer_over_frames_is_trained_and_saved(start, folders, tmp_path):
    steps = flags(max_steps=2, per_device_train_batch_size=4, save_strategy="no", learning_rate=1e-2)
    metrics = run(*start, *towers(folders, "clip"), *steps, *flags(frame_pooling_layers=1))
    assert np.isfinite(metrics["eval_loss"])
    trained = MultimodalForRetrieval.from_pretrained(tmp_path / "out")
    assert trained.multimodal.encoder("video").frame_transformer.gate.any()
    saved = flags(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "other")
    assert np.isfinite(run(*start, *saved, *flags("--do_train", "False", frame_pooling_layers=1))["eval_loss"])
    with pytest.raises(ValueError, match="--frame_pooling_layers is 2, but the saved model has 1"):
        run(*start, *saved, *flags("--do_train", "False", frame_pooling_layers=2))


def test_a_transformer_over_frames_without_training_equals_the_mean(start, folders, tmp_path):
    found = [
        run(*start, *towers(folders, "siglip"), *flags("--do_train", "False", frame_pooling_layers=layers))
        for layers in (0, 1)
    ]
    assert {name: value for name, value in found[0].items() if "R@" in name} == {
        name: value for name, value in found[1].items() if "R@" in name
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--do_train", "False", "--clip_embedding", "fusion"], "clip_embedding=fusion, but .* has no weights"),
        (["--do_train", "False", "--contrastive_dim", "8"], "contrastive_dim=8, but .* has no weights"),
        (["--do_train", "False", "--matching_loss_weight", "1"], "no trained matching head"),
        (["--do_train", "False", "--modalities", "video"], "all towers come from one checkpoint"),
        (["--do_train", "False", "--modalities", "text", "audio", "video"], "audio: 'vit_mae' with random weights"),
        (
            ["--mvm_loss_weight", "1"],
            "mvm_loss_weight=1.0, but the video tower 'clip_vision_model' has no decoder",
        ),
        (["--video_size", "20"], "20 by 20 pixels.*patches of 8"),
        (["--max_seq_length", "13"], "`max_seq_length` is 13.*positions for 12"),
        (["--video_processor_name", "{clap}/nothing"], "--video_processor_name .*nothing: no such folder"),
    ],
)
def test_errors_of_invalid_settings(start, folders, changes, message):
    changes = [word.format(**folders) for word in changes]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run(*start, *towers(folders, "clip"), *flags(max_steps=1), *changes)


def test_texts_and_clips_of_two_spaces_are_not_compared_without_training(start, folders):
    names = flags(text_model_name_or_path=folders["siglip"], video_model_name_or_path=folders["clip"])
    with pytest.raises(ValueError, match="(?s)one checkpoint.*text: 'siglip_text_model' from .*Train the model"):
        run(*start, *names, *flags("--do_train", "False", modalities=["text", "video"]))


def test_siglip_only_takes_texts_of_one_length(start, folders):
    with pytest.raises(ValueError, match="`max_seq_length` is 8.*padded to 12 tokens"):
        run(*start, *towers(folders, "siglip"), *flags(max_steps=1, max_seq_length=8))
