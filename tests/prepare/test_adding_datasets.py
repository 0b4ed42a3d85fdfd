"""Tests of docs/adding_datasets.md: its code prepares annotations, and evaluates a model under its protocol."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import ViTConfig

import simple_multimodal as smm
from simple_multimodal.evaluation.protocols import PROTOCOLS, get_protocol, known_benchmarks
from simple_multimodal.prepare.benchmarks import _OWN_FORMATS, SOURCES, register_benchmark
from simple_multimodal.prepare.manifests import prepare_benchmark
from tests.media.media_files import write_media
from tests.processes import Ended, launch, run_script
from tests.training.tiny_run import CONFIGS, SIZES

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/adding_datasets.md").read_text(encoding="utf-8")
CAPTIONS = {"train": {"a": ["a dog", "a cat"], "b": ["rain"], "c": ["snow"]}, "test": {"d": ["a bell"], "e": ["sun"]}}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The page's files, with the sizes of a small data set, and the data set itself."""
    code, training = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "street_train.py").write_text(training, encoding="utf-8")
    for size in ("clips=3, texts=4", "clips=2, texts=2"):
        code = re.sub(r"clips=\d000, texts=[\d_]*000", size, code, count=1)
    (tmp_path / "street.py").write_text(code, encoding="utf-8")
    for name in ("annotations/street", "videos/street"):
        (tmp_path / name).mkdir(parents=True)
    for split, clips in CAPTIONS.items():
        lines = [f"{clip},{caption}" for clip, captions in clips.items() for caption in captions]
        (tmp_path / f"annotations/street/{split}.csv").write_text("\n".join(["clip,sentence", *lines]) + "\n")
        for clip in clips:
            write_media(tmp_path / f"videos/street/{clip}.mp4", num_frames=6)
    return tmp_path


def run(folder: Path, *words: str, script: str = "street.py") -> Ended:
    return launch(1, run_script, folder / script, [*words], folder)


def command_of(verb: str) -> list[str]:
    """Return the arguments of the page's `street.py` command with that verb."""
    return re.search(rf"^python street\.py ({verb} .*)$", PAGE, flags=re.MULTILINE)[1].split()


def test_the_code_of_the_page_prepares_and_evaluates(folder):
    prepared = run(folder, *command_of("prepare"), "--num_validation_clips", "1")
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr  # nothing deviates
    protocol = json.loads((folder / "datasets/street/protocol.json").read_text())
    assert protocol["protocol"] == "street-1k" and protocol["deviations"] == []
    assert {name: split["num_clips"] for name, split in protocol["splits"].items()} == {
        "train": 2,
        "validation": 1,
        "test": 2,
    }

    for name in ("text", "video"):
        (folder / f"{name}.json").write_text(json.dumps(CONFIGS[name]))
    model, processor = smm.from_towers(
        text=str(folder / "text.json"),
        video=str(folder / "video.json"),
        fusion=ViTConfig(**SIZES),
        task="retrieval",
        captions=["a bell", "sun"],
    )
    model.save_pretrained(folder / "outputs/street")
    processor.save_pretrained(folder / "outputs/street")
    measured = run(folder, *command_of("infer"))
    assert measured.returncode == 0, measured.stderr
    metrics = json.loads((folder / "outputs/street_test/metrics.json").read_text())
    assert metrics["protocol"] == "street-1k" and metrics["counts"]["captions"] == 2

    def evaluate(script: str | Path) -> str:
        words = "--task retrieval --do_eval --use_cpu --modalities text video --dataloader_num_workers 0".split()
        words += ["--validation_file", "datasets/street/validation.jsonl", "--video_root", "videos/street"]
        words += ["--model_name_or_path", "outputs/street", "--output_dir", f"outputs/{Path(script).stem}"]
        done = run(folder, *words, script=str(script))
        assert done.returncode == 0, done.stderr
        return done.stderr

    warning = "the protocol 'street-1k' is not registered"
    assert warning not in evaluate("street_train.py") and warning in evaluate(REPOSITORY / "train.py")


def test_a_registered_data_set_may_have_labels(tmp_path):
    protocol = smm.Protocol(
        name="own-labels",
        benchmark="own_labels",
        task="video_classification",
        primary_metric="mAP",
        training_list="train.csv",
        test_list="test.csv",
        sizes={"train": smm.SplitSize(2, 0), "test": smm.SplitSize(2, 1)},
        num_labels=2,
    )

    def read(files, name, splits):
        files.by_path = True
        files.labels = ["dog", "cat"]
        files.deviations.append("test: one label is a guess")
        rows = [{"labels": ["cat"]}, {"labels": [], "caption": "nothing"}]
        return {
            split: [{"id": str(n), "clip": f"{split}/{n}"} | row for n, row in enumerate(rows)] for split in splits
        }

    for split in ("train", "test"):
        (tmp_path / "videos" / split).mkdir(parents=True)
        for number in range(2):
            (tmp_path / f"videos/{split}/{number}.mp4").write_text("x")
    register_benchmark(protocol, read=read, source="")
    try:
        made = prepare_benchmark("own_labels", tmp_path / "videos", tmp_path / "out", splits=["train", "test"])
    finally:
        for table, key in ((PROTOCOLS, "own-labels"), (SOURCES, "own_labels"), (_OWN_FORMATS, "own_labels")):
            del table[key]
    assert made.deviations == [
        "test: one label is a guess",
        "train: the annotations list 2 clips and 1 scripts, own-labels has 2 and 0",
    ]
    assert (tmp_path / "out/labels.txt").read_text() == "dog\ncat\n"
    row = json.loads((tmp_path / "out/test.jsonl").read_text().splitlines()[1])
    assert row == {"id": "1", "video": "test/1.mp4", "labels": [], "caption": "nothing"}


def test_names_can_only_be_registered_once():
    protocol = get_protocol("msvd")
    with pytest.raises(ValueError, match="'msvd' is already registered"):
        register_benchmark(protocol, read=lambda files, name, splits: {}, source="")
    for name in ("msvd", "msvd+dsl"):
        with pytest.raises(ValueError, match="cannot name a protocol"):
            register_benchmark(
                replace(protocol, name=name, benchmark="own"), read=lambda files, name, splits: {}, source=""
            )
    assert "own" not in known_benchmarks() and "own" not in SOURCES
