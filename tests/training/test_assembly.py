"""Processor and config of new and saved models, and checks before a run."""

import json
import logging

import pytest
import torch
from transformers import DebertaV2Config, VideoMAEConfig, ViTConfig, ViTMAEConfig, set_seed

import simple_multimodal as smm
from simple_multimodal.assembly import build_config, build_processor, load_processor
from simple_multimodal.models.modeling import MultimodalPreTrainedModel
from simple_multimodal.models.patches import interpolate_grid
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.training.tiny_run import CAPTIONS, flags, run, write_configs, write_hub_folders

TOWERS = {
    "text": DebertaV2Config(max_position_embeddings=24),
    "audio": ViTMAEConfig(image_size=[64, 368], num_channels=1),
    "video": VideoMAEConfig(num_frames=4, image_size=64),
}
PREPROCESSORS = {
    "vit_mae": {"feature_extractor_type": "ViTFeatureExtractor", "image_mean": [0.5] * 3, "size": 224},
    "ast": {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 80, "max_length": 160, "mean": -4.0},
    "videomae": {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": 96, "width": 96},
        "size": {"shortest_edge": 96},
        "image_mean": [0.1, 0.2, 0.3],
    },
}


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    """Folders with a preprocessor config as on the hub."""
    for name, values in PREPROCESSORS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(values))
    return {name: str(tmp_path / name) for name in PREPROCESSORS}


def build(towers=TOWERS, **settings) -> MultimodalProcessor:
    return build_processor(towers, captions=lambda: CAPTIONS, **settings)


def test_a_processor_fits_the_towers_by_default():
    processor = build()
    audio, video = processor.feature_extractor, processor.video_processor
    assert (audio.num_mel_bins, audio.num_frames, audio.sampling_rate) == (64, 368, 16000)
    assert (video.num_frames, video.height, video.width) == (4, 64, 64)
    assert processor.max_seq_length() == 24  # the number of positions of the text tower


def test_an_image_config_does_not_determine_audio_settings():
    audio = build({"audio": ViTMAEConfig()}).feature_extractor  # RGB, 224 x 224
    assert (audio.num_mel_bins, audio.num_frames) == (128, 1024)


def test_a_new_model_takes_a_minute_of_audio_and_skips_windows_shorter_than_a_patch(folders, tmp_path):
    for names in ({}, {"audio_processor_name": folders["vit_mae"]}, {"audio_processor_name": folders["ast"]}):
        audio = build(**names).feature_extractor
        assert (audio.max_windows, audio.crop, audio.min_window_frames) == (6, "random", 16)
    audio = build(audio_settings={"max_windows": None}).feature_extractor
    assert (audio.max_windows, audio.crop) == (None, "random")
    AudioFeatureExtractor(num_mel_bins=64, num_frames=368).save_pretrained(tmp_path)
    audio = build(audio_processor_name=str(tmp_path)).feature_extractor
    assert (audio.max_windows, audio.crop, audio.min_window_frames) == (None, "start", 1)


def test_a_saved_processor_keeps_its_windows(tmp_path):
    """Also a processor from before `min_window_frames` and `crop` were saved."""
    build().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    for name in ("min_window_frames", "crop"):
        del saved["feature_extractor"][name]
    saved["feature_extractor"] |= {"max_windows": 2, "num_frames": 992}
    path.write_text(json.dumps(saved))
    audio = load_processor(tmp_path).feature_extractor
    assert (audio.num_frames, audio.max_windows, audio.crop, audio.min_window_frames) == (992, 2, "start", 1)
    asked_for = {"max_windows": 6, "crop": "random"}  # by --max_audio_windows 6
    audio = load_processor(tmp_path, audio_settings=asked_for).feature_extractor
    assert (audio.num_frames, audio.max_windows, audio.crop, audio.min_window_frames) == (992, 6, "random", 1)


def test_settings_override_the_named_processor_and_that_overrides_the_tower(folders):
    processor = build(audio_processor_name=folders["vit_mae"], video_processor_name=folders["videomae"])
    audio, video = processor.feature_extractor, processor.video_processor
    assert (audio.num_mel_bins, audio.num_frames) == (64, 368)  # an image processor has no audio settings
    assert (video.num_frames, video.height, video.image_mean) == (4, 96, [0.1, 0.2, 0.3])
    audio = build(audio_processor_name=folders["ast"], audio_settings={"num_frames": 32}).feature_extractor
    assert (audio.num_mel_bins, audio.num_frames, audio.mean) == (80, 32, -4.0)
    audio = build(audio_settings={"max_windows": 2, "sampling_rate": 8000}).feature_extractor
    assert (audio.max_windows, audio.sampling_rate, audio.num_frames) == (2, 8000, 368)
    size = {"height": 32, "width": 48}
    video = build(
        video_processor_name=folders["videomae"], video_settings={"size": size, "num_frames": 6}
    ).video_processor
    assert (video.num_frames, video.size, video.image_mean) == (6, size, [0.1, 0.2, 0.3])


def test_a_config_fits_its_towers_to_the_processor():
    processor = build(video_settings={"num_frames": 2, "image_mean": [0.1, 0.2, 0.3]})
    config = build_config(
        TOWERS, ViTConfig(), processor, attn_implementation={"video_config": "eager"}, fusion_form="merge"
    )
    assert config.video_config.num_frames == 2 and config.image_mean == [0.1, 0.2, 0.3]
    assert config.video_config._attn_implementation == "eager"
    assert config.text_config.vocab_size == len(processor.tokenizer)
    assert config.fusion_form == "merge" and TOWERS["video"].num_frames == 4  # a copy was changed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"video_settings": {"num_frames": 3}}, "num_frames"),
        ({"video_settings": {"size": {"height": 60, "width": 64}}}, "60"),
        ({"audio_settings": {"num_frames": 100}}, "100"),
        ({"audio_settings": {"num_mel_bins": 70}}, "70"),
    ],
)
def test_input_sizes_must_be_multiples_of_the_patch_size(settings, message):
    with pytest.raises(ValueError, match=message):
        build_config(TOWERS, ViTConfig(), build(**settings))


def test_the_maximum_text_length_is_saved_with_the_model(tmp_path):
    build(max_seq_length=9).save_pretrained(tmp_path)
    assert load_processor(tmp_path).max_seq_length() == 9
    load_processor(tmp_path, max_seq_length=7).save_pretrained(tmp_path)
    batch = load_processor(tmp_path).tokenize(["a cat and a dog and a bird and a fish"])
    assert batch["input_ids"].shape == (1, 7)


def test_a_saved_processor_takes_settings_that_do_not_affect_the_model(tmp_path):
    build().save_pretrained(tmp_path)
    processor = load_processor(tmp_path, video_settings={"random_flip": True}, audio_settings={"max_windows": 2})
    assert processor.video_processor.random_flip is True and processor.video_processor.num_frames == 4
    assert processor.feature_extractor.max_windows == 2 and processor.feature_extractor.num_mel_bins == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 3}, "3 frames"),
        ({"video_size": 40}, "40"),
        ({"num_mel_bins": 24}, "24"),
        ({"max_seq_length": 33}, "`max_seq_length` is 33, but the text tower 'bert' has positions for 32 tokens"),
        ({"fusion_form": "merge"}, "--fusion_form is 'merge', but the saved model has 'cross_attention'"),
    ],
)
def test_flags_that_do_not_fit_a_saved_model_are_errors(start, tmp_path, saved, changes, message):
    with pytest.raises(ValueError, match=message):
        run(*start, "--do_eval", *flags(model_name_or_path=saved, output_dir=tmp_path, **changes))


@pytest.fixture(scope="module")
def saved(start, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("saved")
    run(*start, "--do_train", *flags(output_dir=folder, max_steps=1, save_strategy="no"))
    return str(folder)


def test_a_saved_model_is_fitted_to_another_number_and_size_of_frames(start, tmp_path, saved):
    """Its position embeddings are converted like those of a pretrained tower; all other weights are unchanged."""
    sizes = flags(num_frames=4, video_size=[48, 32], num_audio_frames=128)
    run(*start, "--do_train", *sizes, *flags(model_name_or_path=saved, output_dir=tmp_path, max_steps=1))
    assert json.loads((tmp_path / "config.json").read_text())["video_config"]["num_frames"] == 4
    settings = {
        "video_settings": {"num_frames": 4, "size": {"height": 48, "width": 32}},
        "audio_settings": {"num_frames": 128},
    }
    before, after = smm.load(saved)[0], smm.load(saved, processor_settings=settings)[0]
    tables = {
        "multimodal.video_encoder.embeddings.position_embeddings": ((1, 2, 2), (2, 3, 2)),
        "video_decoder.position_embeddings": ((1, 2, 2), (2, 3, 2)),
        "multimodal.audio_encoder.embeddings.position_embeddings": ((1, 1, 4), (1, 1, 8)),
        "audio_decoder.decoder_pos_embed": ((1, 1, 4), (1, 1, 8)),
    }
    old, new = before.state_dict(), after.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == set(tables) and list(old) == list(new)
    for name, (grid, fitted) in tables.items():
        first = 0 if "video" in name else 1  # a class token
        assert torch.equal(new[name][:, :first], old[name][:, :first])
        assert torch.equal(new[name][0, first:], interpolate_grid(old[name][0, first:], grid, fitted))
    assert after.config.video_config.image_size == [48, 32] and before.config.video_config.image_size == 32
    for modality, size in {"video": (4, 48, 32), "audio": (16, 128)}.items():
        after.multimodal.check_inputs(modality, *size)


def test_a_saved_model_is_fitted_like_its_pretrained_tower(tmp_path):
    """Fitting twice, when the model is built and when it is loaded, gives the same weights as fitting once."""
    hub = write_hub_folders(tmp_path)
    changed = {"video_settings": {"num_frames": 8, "size": {"height": 48, "width": 64}}}

    def build(**settings):
        set_seed(0)
        return smm.from_towers(
            text=hub["text"], video=hub["video"], fusion=hub["fusion"], contrastive_dim=8, **settings
        )

    model, processor = build()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    loaded, fitting = smm.load(tmp_path / "saved", processor_settings=changed)
    assert fitting.video_processor.input_size == (8, 48, 64)
    pretrained = build(processor_settings=changed)[0].state_dict()
    for name, tensor in loaded.state_dict().items():
        if name.startswith(("multimodal.video_encoder.", "video_decoder.")):
            assert torch.equal(tensor, pretrained[name]), name
        else:
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_unchanged_sizes_do_not_change_a_saved_model(saved, monkeypatch):
    plain = smm.load(saved)[0]
    monkeypatch.setattr(MultimodalPreTrainedModel, "fit_inputs", None)  # it is not called
    settings = {"video_settings": {"num_frames": 2, "size": {"height": 32, "width": 32}, "random_flip": True}}
    again = smm.load(saved, processor_settings=settings)[0]
    assert again.config.to_dict() == plain.config.to_dict()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_a_tower_that_cannot_convert_its_weights_is_an_error(saved, monkeypatch):
    model = smm.load(saved)[0]
    monkeypatch.setattr(type(model.multimodal.video_encoder), "convert_pretrained", lambda *args: None)
    with pytest.raises(
        ValueError, match=r"video tower 'videomae' cannot be fitted .* \(4, 32, 32\): .* no rule for enc"
    ):
        model.fit_inputs({"video": (4, 32, 32)})


def test_one_summary_names_new_and_unused_tensors_of_a_saved_model(saved, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rows = [{"video": f"{answer}.mp4", "question": "what?", "answer": answer} for answer in ("a cat", "a dog")]
    questions = smm.Dataset(rows, text_column="question", typed_columns={"answer": "name"})
    answering, processor = smm.load(saved, task="question_answering", train_dataset=questions)
    new = [name for name in answering.state_dict() if name.startswith("classifier.")]
    assert {f"  new: {name}" for name in new} == set(caplog.text.splitlines()[1:])
    assert f"Weights from {saved}: " in caplog.text and f"{len(new)} new, 0 unused." in caplog.text

    answering.save_pretrained(tmp_path, state_dict={**answering.state_dict(), "extra": torch.zeros(2)})
    processor.save_pretrained(tmp_path)
    caplog.clear()
    smm.load(tmp_path, task="pretraining")
    said = caplog.text
    assert "  unused: extra (no such tensor in this model)" in said
    assert "  new: matching_head.weight" in said and "  new: fusion_to_text.weight" in said
    assert "LOAD REPORT" not in said  # the table of transformers would repeat this

    caplog.clear()
    smm.load(saved)
    assert caplog.text == ""  # every tensor was loaded


def test_the_table_of_transformers_is_shown_if_loading_fails(saved, caplog, monkeypatch):
    """The error refers to it: the shapes are only in the table."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with pytest.raises(ValueError, match="its weights cannot be loaded"):
        smm.load(saved, contrastive_dim=5)
    assert "LOAD REPORT" in caplog.text and "MISMATCH" in caplog.text
    assert logging.getLogger("transformers.modeling_utils").filters == []


def test_flags_of_parts_are_ignored_with_a_warning_if_a_complete_model_is_loaded(start, tmp_path, saved, monkeypatch):
    said = []
    monkeypatch.setattr("arguments.model_arguments.logger.warning", said.append)
    run(*start, "--do_eval", *flags(model_name_or_path=saved, output_dir=tmp_path, num_frames=2, random_flip=True))
    (line,) = said
    assert "ignored: --text_config_name, --audio_config_name, --video_config_name, --fusion_config_name." in line


def test_attention_of_each_tower_is_set_in_new_and_saved_models(start, tmp_path, saved, monkeypatch):
    made = []

    class Kept(MultimodalTrainer):
        def __init__(self, model, *args, **kwargs):
            made.append({m: model.multimodal.encoder(m).config._attn_implementation for m in model.config.modalities})
            super().__init__(model, *args, **kwargs)

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", Kept)
    eager = flags(video_attn_implementation="eager")
    run(*start, "--do_train", *eager, *flags(output_dir=tmp_path / "new", max_steps=1))
    run(*start, "--do_eval", *eager, *flags(output_dir=tmp_path / "saved", model_name_or_path=saved))
    assert made == [{"text": "sdpa", "audio": "sdpa", "video": "eager"}] * 2
    with pytest.raises(ValueError, match="magic"):
        run(*start, *flags(output_dir=tmp_path / "other", video_attn_implementation="magic"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, []),
        (
            {"task": "retrieval", "mvm_loss_weight": 3.0, "mam_loss_weight": 0.0},
            ["Ignored with --task retrieval: --mvm_loss_weight. The objectives of this run: contrastive_tv, "],
        ),
        (
            {"task": "retrieval", "modalities": ["text", "video"], "mvm_loss_weight": 3.0}
            | {"mam_loss_weight": 2.0, "contrastive_av_loss_weight": 1.0},
            [
                "Ignored with --modalities text video: --audio_config_name.",
                "Ignored with --task retrieval: --mvm_loss_weight. The objectives of this run: contrastive_tv, ",
                "Ignored in a model of text and video: --mam_loss_weight, --contrastive_av_loss_weight. The",
            ],
        ),
        ({"frame_stride": 2}, ["frame_stride is ignored: it only applies to frame_sampling='dense'."]),
        ({"frame_stride": 2, "frame_sampling": "dense"}, []),
        (
            {"modalities": ["text", "video"], "audio_model_name_or_path": "nowhere", "num_mel_bins": 16},
            [
                "Ignored with --modalities text video: --audio_model_name_or_path, --audio_config_name.",
                "Ignored in a model of text and video: audio settings (num_mel_bins).",
            ],
        ),
    ],
)
def test_flags_without_effect_give_warnings(start, tmp_path, monkeypatch, values, told):
    said: list[str] = []
    for module in ("arguments.model_arguments", "simple_multimodal.assembly"):
        monkeypatch.setattr(f"{module}.logger.warning", said.append)
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=1, save_strategy="no", **values))
    assert len(said) == len(told) and all(map(str.startswith, said, told)), said


def test_frame_pooling_layers_need_a_task_that_uses_embeddings(start, tmp_path):
    questions = tmp_path / "questions.csv"
    questions.write_text("video,question,answer\n0.mp4,what is it?,a cat\n1.mp4,what is it?,a dog\n")
    with pytest.raises(ValueError, match="but question_answering does not use the embedding"):
        run(
            *start,
            "--do_train",
            *flags(output_dir=tmp_path / "out", task="question_answering", frame_pooling_layers=1),
            *flags(train_file=questions),
        )


def test_towers_are_built_from_rows_of_every_kind(tmp_path):
    """A tokenizer is trained on the captions of a manifest or of dictionaries."""
    configs = write_configs(tmp_path)
    records = [{"video": "a.mp4", "caption": caption} for caption in CAPTIONS]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = [
        smm.from_towers(text=configs["text"], video=configs["video"], task="retrieval", train_dataset=rows)[1]
        for rows in (tmp_path / "train.jsonl", records)
    ]
    given = {"text": configs["text"], "video": configs["video"], "task": "retrieval"}
    made += [smm.from_towers(**given, captions=CAPTIONS)[1], smm.from_towers(**given, captions=iter(CAPTIONS))[1]]
    vocabularies = [processor.tokenizer.get_vocab() for processor in made]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies) and "Ġcat" in vocabularies[0]
    chosen = smm.from_towers(**given, captions=["a parrot"], train_dataset=records)[1].tokenizer.get_vocab()
    assert "Ġparrot" in chosen and "Ġcat" not in chosen
    for captions in (None, "a cat purrs"):
        with pytest.raises(ValueError, match="a config without a tokenizer. To train one, pass `train_dataset`, or a"):
            smm.from_towers(**given, captions=captions)
