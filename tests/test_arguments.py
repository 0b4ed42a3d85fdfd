"""Command line of `train.py`: precedence, old flags, one-line errors, and `--help`."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from arguments import DataArguments, ModelArguments, MultimodalTrainingArguments, parse_args
from arguments.model_arguments import PROJECT_FOLDER, find_config
from arguments.parser import SHORT_DESCRIPTIONS, CommandLineParser
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.flags import EVALUATION, GROUPS, OBJECTIVES, flag
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.flags import OPTIONS, flags_of_tasks
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.tasks.retrieval.options import RetrievalOptions
from simple_multimodal.training.arguments import WITHOUT_EFFECT

EVERYTHING = (ModelArguments, DataArguments, flags_of_tasks("train"), MultimodalTrainingArguments)


@pytest.fixture
def write_config(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def error_of(capsys):
    """Function that parses arguments and returns the one-line error."""

    def error_of(*argv: str) -> str:
        with pytest.raises(SystemExit) as exit_info:
            parse_args(argv)
        assert exit_info.value.code == 2
        captured = capsys.readouterr().err
        assert captured.count("\n") == 1 and "Traceback" not in captured
        return captured.strip()

    return error_of


def test_defaults():
    model_args, data_args, task_options, training_args = parse_args([])
    assert model_args.modalities == ["text", "audio", "video"]
    assert task_options == RetrievalOptions()
    assert "contrastive_dim" not in model_args.config_settings and MultimodalConfig().contrastive_dim == 768
    assert model_args.contrastive_loss_before_fusion is True
    assert (data_args.train_file, data_args.validation_file) == ("train.csv", "validation.csv")
    assert data_args.drop_modalities == [] and data_args.num_frames is None
    assert isinstance(training_args, MultimodalTrainingArguments)


def test_short_runs_log_losses_and_every_changed_default_of_transformers_is_documented(write_config):
    assert parse_args([])[-1].logging_steps == 10
    assert parse_args(["--config", write_config("logging_steps: 50\n")])[-1].logging_steps == 50
    stock = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    changed = [
        field.name
        for field in dataclasses.fields(MultimodalTrainingArguments)
        if field.name in stock
        and (field.default, field.default_factory) != (stock[field.name].default, stock[field.name].default_factory)
    ]
    assert "logging_steps" in changed
    assert [name for name in changed if f"`{name}`" not in MultimodalTrainingArguments.__doc__] == []


def test_command_line_overrides_yaml_and_yaml_overrides_the_default(write_config):
    config = write_config("learning_rate: 5e-5\nnum_frames: 4\nmodalities: [video, text]\nseed: 7\n")
    model_args, data_args, _, training_args = parse_args(["--num_frames", "8", "--config", config])
    assert training_args.learning_rate == 5e-5
    assert training_args.seed == 7
    assert model_args.modalities == ["text", "video"]
    assert data_args.num_frames == 8


def test_yaml_values_of_every_kind(write_config):
    config = write_config(
        "# a comment\nfp16: true\npad_to_max_length: false\nmax_steps: -1\nweight_decay: 1.0e-2\nvideo_size: 32\n"
        "data_root: null\nsave_strategy: no\nlr_scheduler_kwargs: '{\"num_cycles\": 2}'\n"
        "drop_modalities:\n- video\n- audio\n"
    )
    _, data_args, _, training_args = parse_args(["--config", config, "--use_cpu"])
    assert training_args.fp16 is True and data_args.pad_to_max_length is False
    assert training_args.max_steps == -1 and training_args.weight_decay == 0.01
    assert data_args.video_size == [32, 32] and data_args.data_root is None
    assert training_args.save_strategy == "no"
    assert training_args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert data_args.drop_modalities == ["audio", "video"]


@pytest.mark.parametrize(
    "text",
    [
        *("0123", "12:30:45", "2024-01-01T10:00:00", "2024-01-01", "1.10", "1e3", "0x1F", "1_000", "+5", ".5", "0o17"),
        *(
            "on",
            "off",
            "yes",
            "no",
            "y",
            "True",
            "FALSE",
            "=",
            "<<",
            ".inf",
            ".nan",
            "~/clips",
            "a: b",
            "null",
            "~",
            "1",
        ),
    ],
)
def test_yaml_strings_are_kept_as_written(write_config, text):
    plain = "a: b" not in text and text not in ("null", "~")  # YAML does not read these as strings
    for written in [f"'{text}'", f'"{text}"', f"|-\n  {text}", *[text] * plain]:
        config = write_config(f"run_name: {written}\nvideo_root: {written}\n")
        _, data_args, _, training_args = parse_args(["--config", config])
        assert (training_args.run_name, data_args.video_root) == (text, text)


def test_yaml_empty_values_are_defaults(write_config):
    config = write_config("run_name: null\nvideo_root: ~\naudio_root:\nseed: NULL\n")
    _, data_args, _, training_args = parse_args(["--config", config])
    assert training_args.run_name is None and data_args.video_root is None and data_args.audio_root is None
    assert training_args.seed == 42


@pytest.mark.parametrize(("text", "seed"), [("010", 10), ("0010", 10), ("1_0", 10), ("+10", 10), ("'10'", 10)])
def test_yaml_numbers_are_read_as_on_the_command_line(write_config, text, seed):
    assert parse_args(["--config", write_config(f"seed: {text}\n")])[-1].seed == seed


@pytest.mark.parametrize("text", ["0x10", "0o10", "0b10", "1:30", "1.0", "2024-01-01", "on"])
def test_yaml_numbers_in_other_forms_are_errors(write_config, error_of, text):
    assert f"--seed: invalid int value: '{text}'" in error_of("--config", write_config(f"seed: {text}\n"))


@pytest.mark.parametrize(
    ("word", "value"),
    [*((w, True) for w in ("on", "Yes", "TRUE", "y", "1"))]
    + [*((w, False) for w in ("off", "NO", "false", "n", "0"))],
)
def test_yaml_booleans(write_config, word, value):
    config = write_config(f"pad_to_max_length: {word}\ndo_eval: {word}\nmodel_name_or_path: m\n")
    _, data_args, _, training_args = parse_args(["--config", config])
    assert data_args.pad_to_max_length is value and training_args.do_eval is value


@pytest.mark.parametrize(
    "text", ["!!python/name:os.system x", "!!binary aGk=", "!mine x", "!!set {a}", "[!!python/object:a.b x]"]
)
def test_yaml_tags_are_errors(write_config, error_of, text):
    assert "'run_name'" in error_of("--config", write_config(f"run_name: {text}\n"))


def test_the_reported_config_keeps_its_strings(shared_dir):
    config = shared_dir / "data/reported/manifests/retyped.yaml"
    _, data_args, _, training_args = parse_args(["--config", str(config)])
    assert (training_args.output_dir, training_args.run_name) == ("2024-01-01T10:00:00", "12:30:45")
    assert (data_args.video_root, training_args.seed) == ("0123", 10)


def test_empty_yaml_changes_nothing(write_config):
    assert parse_args(["--config", write_config("")])[:2] == parse_args([])[:2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("per-device-train-batch-size: 1\n", "did you mean 'per_device_train_batch_size'?"),
        ("xyzzy: 1\n", "unknown key 'xyzzy'; `train.py --help` lists all of them."),
        ("config: other.yaml\n", "unknown key 'config'"),
        ("1: 2\n", "unknown key '1'"),
        ("learning_rate: fast\n", "--learning_rate: invalid float value: 'fast'"),
        ("fusion_form: mrege\n", "--fusion_form: invalid choice: 'mrege'"),
        ("modalities: [text, smell]\n", "--modalities: invalid choice: 'smell'"),
        ("modalities: []\n", "'modalities' is an empty list"),
        ("model:\n  task: retrieval\n", "unknown key 'model'"),
        ("lr_scheduler_kwargs:\n  num_cycles: 2\n", "'lr_scheduler_kwargs' is nested"),
        ("seed: 1\nseed: 2\n", "'seed' occurs more than once"),
        ("- seed\n", "the file must consist of `flag: value` lines"),
        ("seed: [1\n", "is not valid YAML"),
    ],
)
def test_yaml_errors_name_the_file_and_the_key(write_config, error_of, text, message):
    config = write_config(text)
    error = error_of("--config", config)
    assert error.startswith(f"train.py: error: {config}: ")
    assert message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--freez", "video"], "unknown argument '--freez'; did you mean '--freeze'?"),
        (["--learning-rat=1"], "unknown argument '--learning-rat'; did you mean '--learning_rate'?"),
        (["--max_step", "2"], "unknown argument '--max_step'; did you mean '--max_steps'?"),  # no abbreviations
        (["train.csv"], "unexpected value 'train.csv'"),
        (["--seed", "one"], "--seed: invalid int value: 'one'"),
        (["--fp16", "maybe"], "--fp16: Truthy value expected"),
        (["--config"], "--config: expected one argument"),
        (["--config", "missing.yaml"], "missing.yaml: cannot be read: No such file or directory"),
        (["--config", "tests"], "tests: cannot be read: Is a directory"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config is given more than once"),
        (["--mlm_probability", "30"], "--mlm_probability is 30.0; give a number from 0 to 1."),
        (["--hard_negative_ratio", "2"], "--hard_negative_ratio is 2.0; give a number from 0 to 1."),
        (["--matching_loss_weight", "-1"], "--matching_loss_weight is -1.0; give a number from 0 (off) upwards."),
        (["--num_frames", "0"], "--num_frames is 0; give a whole number from 1 upwards."),
        (["--contrastive_chunk_size", "0"], "--contrastive_chunk_size is 0; give 1 or more, or leave it out"),
        (["--contrastive_chunk_size", "-8"], "--contrastive_chunk_size is -8; give 1 or more, or leave it out"),
        (
            [
                *("--contrastive_chunk_size=8", "--activation_checkpointing"),
                '--activation_checkpointing_kwargs={"use_reentrant": true}',
            ],
            "--contrastive_chunk_size needs non-reentrant activation checkpointing",
        ),
        (["--video_size", "1", "2", "3"], "--video_size is [1, 2, 3]"),
        (["--layer_decay", "0"], "--layer_decay is 0.0; give a factor above 0, up to 1 (no decay)."),
        (["--layer_decay", "1.1"], "--layer_decay is 1.1; give a factor above 0, up to 1 (no decay)."),
        (["--lora_rank", "2", "--lora_dropout", "1"], "--lora_dropout is 1.0; give a number from 0 to below 1."),
        (["--sample_timeout_seconds", "nan"], "--sample_timeout_seconds is nan; give a number above 0, or 0 for no"),
        (["--max_bad_fraction", "2"], "--max_bad_fraction is 2.0; give a number from 0 to 1."),
        (["--warmup_ratio", "5"], "--warmup_ratio: 5 is not a fraction of all steps"),
        (
            ["--neftune_noise_alpha=0.1", "--bf16_full_eval", "--average_tokens_across_devices=False"],
            "--average_tokens_across_devices, --bf16_full_eval, --neftune_noise_alpha would have no effect",
        ),
        (["--do_eval"], "a run without --do_train needs a saved model; pass its folder as --model_name_or_path."),
        (["--early_stopping_patience", "2"], "--early_stopping_patience needs --metric_for_best_model"),
        (["--early_stopping_patience", "2", "--metric_for_best_model", "loss"], "and --eval_strategy epoch or steps"),
        (["--frame_pooling_layers=1", "--freeze", "video"], "--frame_pooling_layers is 1, but --freeze freezes"),
        (["--frame_pooling_layers=1", "--lora_rank=2"], "--frame_pooling_layers is 1, but LoRA freezes"),
        (["--frame_pooling_layers", "-1"], "--frame_pooling_layers is -1; give 0 (the mean) or more."),
        (["--video_backend", "opencv"], "--video_backend: invalid choice: 'opencv'"),
        (
            ["--task", "retrieva"],
            "There is no task 'retrieva'; the tasks are pretraining, retrieval, question_answering, "
            "video_classification, translation, captioning, transcription. Did you mean 'retrieval'?",
        ),
        (
            ["--answers_file", "a.json"],
            "--answers_file is an option of --task question_answering, and would be ignored with --task pretraining. "
            "Leave that out.",
        ),
        (
            ["--task", "question_answering", "--mlm_probability=0.2", "--rerank_top_k=all"],
            "--mlm_probability is an option of --task pretraining or retrieval, --rerank_top_k is an option of --task "
            "pretraining or retrieval, and would be ignored with --task question_answering. Leave that out.",
        ),
        (["--rerank_top_k", "few"], "--rerank_top_k: 'few' is neither a number nor 'all'"),
        (["--rerank_top_k", "-1"], "--rerank_top_k is -1; give 0 (no re-ranking) or more."),
        (["--swapped_files", "a.jsonl"], "--swapped_files names 1 manifests for 0 --pair_files; give one for each"),
    ],
)
def test_errors_are_one_line(error_of, argv, message):
    assert message in error_of(*argv)


@dataclasses.dataclass(frozen=True)
class OwnOptions(TaskOptions):
    unit: float = flag(2.5, OBJECTIVES, "Unit of the numbers.", above=0, remedy="give a number above 0")
    kinds: list[str] = flag([], EVALUATION, "Kinds to count.", choices=("a", "b"), commands=("train", "infer"))
    at_least: int | None = flag(None, EVALUATION, "Smallest number.", commands=("infer",))


def test_a_registered_task_adds_its_flags(error_of, write_config, monkeypatch):
    """The flags of `infer` are tested in `tests/test_cli.py`."""
    assert "unknown argument '--unit'" in error_of("--unit", "1")
    monkeypatch.setitem(OPTIONS, "own", OwnOptions)
    config = write_config("task: own\nkinds: [a, b]\nunit: 3\n")
    assert parse_args(["--config", config, "--unit", "4"])[2] == OwnOptions(unit=4.0, kinds=["a", "b"])
    assert "--unit is 0.0; give a number above 0." in error_of("--task", "own", "--unit", "0")
    assert "--unit is an option of --task own, and would be ignored with --task retrieval" in error_of(
        "--task", "retrieval", "--unit", "1"
    )
    foreign = error_of("--task", "own", "--mlm_probability", "0.2")
    assert "--mlm_probability is an option of --task pretraining or retrieval, and would be ignored" in foreign
    assert "--kinds: invalid choice: 'c'" in error_of("--task", "own", "--kinds", "c")
    assert "unknown argument '--at_least'" in error_of("--task", "own", "--at_least", "1")


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--warmup_ratio", "0.1"], "warmup_steps", 0.1),
        (["--warmup-ratio=0.1"], "warmup_steps", 0.1),
        (["--evaluation_strategy", "epoch"], "eval_strategy", "epoch"),
        (["--mae_feature_extractor_name", "a"], "audio_processor_name", "a"),
        (["--videomae_feature_extractor_name", "b"], "video_processor_name", "b"),
        (["--no_cuda"], "use_cpu", True),
        (["--no_cuda", "False"], "use_cpu", False),
        (["--per_gpu_train_batch_size", "3"], "per_device_train_batch_size", 3),
        (["--per_gpu_eval_batch_size", "3"], "per_device_eval_batch_size", 3),
        (["--gradient_checkpointing"], "activation_checkpointing", True),
        (["--gradient_checkpointing", "True"], "activation_checkpointing", True),
        (["--group_by_length"], "train_sampling_strategy", "group_by_length"),
        (["--group_by_length", "False"], "train_sampling_strategy", "random"),
        (["--overwrite_output_dir"], "overwrite_output_dir", True),
        (["--local-rank=0"], "local_rank", 0),
        (["--do_eval", "--model_name_or_path", "saved"], "do_eval", True),
        (["--max-steps", "2"], "max_steps", 2),
    ],
)
def test_old_flags(argv, name, value):
    merged = {name: value for part in parse_args(argv) for name, value in vars(part).items()}
    assert merged[name] == value


def test_old_flags_in_yaml_are_overridden_by_new_ones_on_the_command_line(write_config):
    config = write_config("warmup_ratio: 0.1\nno_cuda: true\ngroup_by_length: true\n")
    training_args = parse_args(["--config", config, "--warmup_steps", "20"])[-1]
    assert training_args.warmup_steps == 20
    assert training_args.use_cpu is True
    assert training_args.train_sampling_strategy == "group_by_length"


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--no_cuda=True", "taken as --use_cpu"),
        ("--per_gpu_train_batch_size=2", "taken as --per_device_train_batch_size"),
        ("--fp16_backend=auto", "has no effect"),
        ("--half_precision_backend=auto", "has no effect"),
    ],
)
def test_removed_flags_print_one_hint(capsys, flag, hint):
    parse_args([flag, flag])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and hint in lines[0]


def test_only_the_first_process_prints_hints(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    CommandLineParser(*EVERYTHING).parse(["--no_cuda"])
    assert capsys.readouterr().err == ""


def test_fp16_on_a_cpu_logs_that_the_run_computes_in_fp32(caplog):
    args = parse_args(["--use_cpu", "--fp16"])[-1]
    assert args.precision == "fp32"
    assert [line for line in caplog.messages if "--fp16 needs a GPU; on the CPU this run computes in fp32" in line]
    caplog.clear()
    parse_args(["--use_cpu", "--bf16"])
    assert "needs a GPU" not in caplog.text


def test_bf16_works_on_a_cpu_and_is_an_error_on_a_gpu_without_it(error_of, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert parse_args(["--bf16"])[-1].precision == "bf16"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert "--bf16 needs a GPU that supports bf16" in error_of("--bf16")


def test_logging_dir_sets_the_environment_variable_of_tensorboard(monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")
    parse_args(["--logging_dir", "logs"])
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "logs"


def test_a_train_args_file_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "train.args").write_text("--seed 99")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    assert parse_args()[-1].seed == 42


def test_configs_are_found_beside_train_py_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/text/debertv2_config_small.json"
    assert find_config(name) == str(PROJECT_FOLDER / name)
    assert ModelArguments(text_config_name=name).text_config_name == str(PROJECT_FOLDER / name)
    (tmp_path / "configs/text").mkdir(parents=True)
    (tmp_path / name).write_text("{}")
    assert find_config(name) == name
    assert find_config("google/vit-base-patch16-224") == "google/vit-base-patch16-224"


def test_a_tower_without_a_name_gets_the_small_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model_args = ModelArguments(text_model_name_or_path="some/model", video_config_name="some/config")
    assert model_args.text_config_name is None
    assert model_args.video_config_name == "some/config"
    assert model_args.audio_config_name == str(PROJECT_FOLDER / "configs/audio/mae_config_small.json")
    assert model_args.fusion_config_name == str(PROJECT_FOLDER / "configs/crossformer/vit_config_small.json")
    assert ModelArguments(model_name_or_path="checkpoint").audio_config_name is None


def test_manifests_and_roots_follow_data_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").touch()
    (tmp_path / "validation.csv").touch()
    alone = DataArguments(video_root="videos")
    assert alone.find_manifest("train.csv") == Path("train.csv")
    assert alone.roots == {"video": Path("videos"), "audio": None, "text": None, "pose": None}
    rooted = DataArguments(data_root="data", video_root="videos", audio_root="/audio")
    assert rooted.find_manifest("train.csv") == Path("data/train.csv")
    assert rooted.find_manifest("validation.csv") == Path(
        "validation.csv"
    )  # not in data_root, but in the working directory
    assert rooted.find_manifest("missing.csv") == Path("data/missing.csv")
    roots = {"video": Path("data/videos"), "audio": Path("/audio"), "text": Path("data"), "pose": Path("data")}
    assert rooted.roots == roots


def test_only_given_preprocessing_values_are_passed_on():
    assert DataArguments().audio_settings == {} and DataArguments().video_settings == {}
    data_args = DataArguments(
        num_audio_frames=64, max_audio_windows=2, video_size=[32, 48], frame_sampling="jittered", random_flip=True
    )
    assert data_args.audio_settings == {"num_frames": 64, "max_windows": 2, "crop": "random"}
    assert DataArguments(max_audio_windows=0).audio_settings == {"max_windows": None, "crop": "random"}
    with pytest.raises(ValueError, match="--max_audio_windows is -1; give a whole number from 1 upwards, or 0 for"):
        DataArguments(max_audio_windows=-1)
    assert data_args.video_settings == {
        "size": {"height": 32, "width": 48},
        "train_frame_sampling": "jittered",
        "frame_sampling": "uniform",
        "random_flip": True,
    }
    dense = DataArguments(frame_sampling="dense", frame_stride=2).video_settings
    assert dense == {"train_frame_sampling": "dense", "frame_sampling": "dense", "frame_stride": 2}
    alpro = DataArguments(frame_sampling="alpro", resize_kernel="decord").video_settings
    assert alpro == {"train_frame_sampling": "alpro", "frame_sampling": "alpro", "resize_kernel": "decord"}
    AudioFeatureExtractor(**data_args.audio_settings)
    VideoClipProcessor(**data_args.video_settings)
    VideoClipProcessor(**alpro)


def test_collator_settings_are_arguments_of_the_collator():
    processor = MultimodalProcessor(feature_extractor=AudioFeatureExtractor())
    assert MultimodalCollator(processor, **DataArguments().collator_settings).parallel is True
    assert MultimodalCollator(processor, **DataArguments(collator_threads=1).collator_settings).parallel is False


def test_model_settings_are_settings_of_the_config():
    model_args = ModelArguments(
        mlm_loss_weight=0.5,
        hard_negative_ratio=0.25,
        fusion_form="merge",
        modalities=["text", "video"],
        text_model_name_or_path="a",
        audio_model_name_or_path="b",
        fusion_model_name_or_path="c",
        text_config_name="d",
    )
    assert model_args.given_objectives == {"mlm_loss_weight": 0.5, "hard_negative_ratio": 0.25}
    settings = model_args.config_settings
    assert settings["fusion_form"] == "merge" and settings["mlm_loss_weight"] == 0.5
    assert settings.keys() <= vars(MultimodalConfig()).keys()
    assert model_args.pretrained_towers == {"text": "a", "fusion": "c"}
    assert model_args.tower_config_name("text") == "d"
    assert model_args.tower_config_name("audio") == "b"
    assert model_args.tower_config_name("video") == find_config("configs/video/videomae_config_small.json")


def test_help_lists_every_flag_once_in_short_lines():
    command = [sys.executable, "-c", "from arguments import parse_args; parse_args(['--help'])"]
    environment = os.environ | {"COLUMNS": "119"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_FOLDER, env=environment)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line[:-1] for line in lines if line and line[0] != " " and line.endswith(":")] == ["options", *GROUPS]
    assert max(map(len, lines)) <= 119
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    hidden = {"gradient_checkpointing", "gradient_checkpointing_kwargs", "local_rank", *WITHOUT_EFFECT}
    names = {field.name for dtype in EVERYTHING for field in dataclasses.fields(dtype) if field.init}
    assert len(flags) == len(set(flags))
    assert set(flags) == {f"--{name}" for name in names - hidden} | {"--config"}
    starts = [index for index, line in enumerate(lines) if line.startswith("  --")]
    assert max(end - start for start, end in zip(starts[:-1], starts[1:], strict=True)) <= 6


def test_short_descriptions_are_of_unchanged_stock_flags():
    stock, ours = (
        {field.name: field.metadata for field in dataclasses.fields(dtype)}
        for dtype in (TrainingArguments, MultimodalTrainingArguments)
    )
    assert [name for name in SHORT_DESCRIPTIONS if stock.get(name) != ours[name]] == []


def test_every_own_field_has_a_heading_and_a_help_text():
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    for dtype in EVERYTHING:
        for field in dataclasses.fields(dtype):
            if field.name not in stock:
                assert field.metadata["group"] in GROUPS, field.name
                assert field.metadata["help"].endswith((".", ")")), field.name


def test_help_and_errors_in_flags_only_import_the_arguments_of_transformers():
    code = """
import runpy, sys
from transformers import HfArgumentParser, TrainingArguments
known = set(sys.modules) | set(sys.stdlib_module_names)
named = ["--train_file", "README.md", "--validation_file", "README.md"]
for argv in (["--help"], ["--no_such_flag"], ["--num_frames", "0"], [], [*named, "--model_name_or_path", "./missing"]):
    sys.argv = ["train.py", *argv]
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        assert end.code == (0 if argv == ["--help"] else 2)
packages = {name.split(".")[0] for name in sys.modules if name not in known and name != "__mp_main__"}
assert packages - known == {"arguments", "simple_multimodal"}, packages - known
parts = {name for name in sys.modules if name.startswith("simple_multimodal.") and name.count(".") == 1}
ours = {"cores", "defaults", "errors", "evaluation", "flags", "missing", "modalities", "tasks", "training"}
assert parts == {f"simple_multimodal.{name}" for name in ours}, parts
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_FOLDER, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_shipped_runs_are_valid():
    for path in sorted(Path(PROJECT_FOLDER, "configs/runs").glob("*.yaml")):
        CommandLineParser(*EVERYTHING).parse(["--config", str(path)])
