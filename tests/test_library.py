"""Code blocks of docs/library.md, on small stand-ins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import simple_multimodal as smm
from arguments import ModelArguments
from simple_multimodal.defaults import DEFAULT_TASK
from simple_multimodal.tasks.models import build
from simple_multimodal.tasks.registry import get_task
from tests.media.media_files import write_media
from tests.training.tiny_run import CAPTIONS, write_hub_folders

REPOSITORY = Path(__file__).resolve().parents[1]
SECTIONS = dict(re.findall(r"## (.*?)\n.*?```python\n(.*?)```", (REPOSITORY / "docs/library.md").read_text(), re.S))
NAMES = {
    "text": "microsoft/deberta-v3-base",
    "audio": "facebook/vit-mae-base",
    "video": "MCG-NJU/videomae-base",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder that the code blocks run in, with the clips, manifests and checkpoints that they name."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "my_clips").mkdir()
    for row in range(len(CAPTIONS)):
        write_media(
            folder / f"my_clips/{row:04}.mp4",
            num_frames=6 + row,
            waveform=np.sin,
            audio_codec="aac",
            audio_seconds=1.0,
        )
    lines = ["video,caption", *(f"my_clips/{row:04}.mp4,{caption}" for row, caption in enumerate(CAPTIONS))]
    for name in ("train", "validation", "test"):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "hub").mkdir()
    write_hub_folders(folder / "hub")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    return folder


def run(folder: Path, section: str) -> dict:
    code = SECTIONS[section]
    for tower, name in NAMES.items():
        code = code.replace(f'"{name}"', repr(str(folder / f"hub/{tower}-base")))
    code = re.sub(r'TrainingArguments\("([^"]+)"\)', r'TrainingArguments("\1", use_cpu=True, max_steps=1)', code)
    values: dict = {"__name__": "library"}
    previous = os.getcwd()
    os.chdir(folder)
    try:
        exec(compile(code, section, "exec"), values)
    finally:
        os.chdir(previous)
    return values


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    run(folder, "Train")
    assert (folder / "outputs/mine/model.safetensors").exists()
    return folder


def test_evaluate(trained):
    assert run(trained, "Evaluate")["evaluation"].counts["clips"] == len(CAPTIONS)


def test_search(trained, capsys):
    run(trained, "Search")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_embeddings(trained):
    values = run(trained, "Embeddings")
    assert values["cosines"].shape == (2, len(CAPTIONS)) and values["cosines"].abs().max() <= 1 + 1e-6
    index, retriever = values["index"], values["retriever"]
    (found,) = retriever.search("rain falls", index, top_k=1)
    assert found.score == pytest.approx(values["cosines"][1].max().item(), abs=1e-6)
    assert torch.equal(retriever.load_index(trained / "my_embeddings").embeds, index.embeds)


def test_an_evaluation_is_shown_in_one_line(trained):
    shown = repr(run(trained, "Evaluate")["evaluation"])
    assert re.fullmatch(r"Evaluation\(text_to_video_R@1=[\d.]+, \d+ metrics, {'captions': 7, 'clips': 7.*}\)", shown)


def test_a_small_random_model_is_that_of_train_py_without_flags(folder):
    model = run(folder, "A small random model")["model"]
    settings = ModelArguments().building_settings
    same, _ = build(get_task(DEFAULT_TASK)(), **settings, captions=lambda: CAPTIONS)
    assert model.config.to_dict() == same.config.to_dict()


def test_a_model_without_towers_is_an_error_that_names_both_remedies():
    with pytest.raises(ValueError, match=r"Pass `text`, `audio`, `video` or `pose`: .* or the path of a JSON config"):
        smm.from_towers(task="retrieval")


def test_own_data(trained):
    assert run(trained, "Your own data")["evaluation"].counts["captions"] == 3


def test_own_loss(trained):
    trainer = run(trained, "Your own loss")["trainer"]
    assert trainer.state.global_step == 1


def test_answers(trained):
    rows = [
        {"video": f"my_clips/{row:04}.mp4", "question": "a cat?", "answer": "yes" if row else "no"} for row in range(3)
    ]
    previous = os.getcwd()
    os.chdir(trained)
    try:
        questions = smm.Dataset(rows, text_column="question", typed_columns={"answer": "name"})
        model, processor = smm.load("outputs/mine", task="question_answering", train_dataset=questions)
        args = smm.TrainingArguments("outputs/questions", use_cpu=True, max_steps=1, save_strategy="no")
        trainer = smm.Trainer(model, args, processor=processor, train_dataset=rows)
        trainer.train()
        trainer.save_model()
    finally:
        os.chdir(previous)
    assert run(trained, "Answer questions")["answerer"].model.config.id2label == {0: "yes", 1: "no"}
    served = run(trained, "Serve requests")
    assert [{answer["answer"] for answer in answers} for answers in served["answers"]] == [{"yes", "no"}] * 2
    assert [set(match) for match in served["matches"][0]] == [{"clip", "score"}] * 3


def test_a_manifest_of_links_is_followed_on_request(trained, tmp_path):
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text('{"video": "0.mp4", "caption": "a cat"}\n{"video": "1.mp4", "caption": "a dog"}\n')
    (tmp_path / "links").mkdir()
    for row in range(2):
        (tmp_path / f"links/{row}.mp4").symlink_to(trained / f"my_clips/{row:04}.mp4")
    found = {"roots": {"video": tmp_path / "links"}, "follow_links": True}
    model, processor = smm.load(trained / "outputs/mine")
    args = smm.TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    towers = {name: str(trained / f"hub/{name}-base") for name in ("text", "video")}
    for opens in (
        lambda **settings: smm.Trainer(
            model, args, processor=processor, train_dataset=manifest, eval_dataset=manifest, **settings
        ),
        lambda **settings: smm.evaluate(model, manifest, processor=processor, **settings),
        lambda **settings: smm.from_towers(**towers, train_dataset=str(manifest), **settings),
    ):
        with pytest.raises(ValueError, match="goes through a link that leaves"):
            opens(roots=found["roots"])
        assert opens(**found) is not None


def test_errors_for_invalid_rows_name_the_function_that_opens_them(tmp_path):
    for path in ("train.csv", tmp_path):
        with pytest.raises(
            ValueError, match=r"is the path .*smm\.Dataset\.from_manifest\(path\), and media files or a"
        ):
            smm.Dataset(path)
    with pytest.raises(ValueError, match="Row 1 is of type str; give a dictionary for each row"):
        smm.Dataset([{"video": "a.mp4"}, "b.mp4"])


def test_frames_and_audio(folder):
    values = run(folder, "Frames and audio")
    assert values["frames"].shape[0] == 3 and len(values["waveform"]) > 0


def test_every_public_name_exists_and_is_imported_lazily():
    assert all(getattr(smm, name) is not None for name in smm.__all__)
    code = (
        "import sys, simple_multimodal; assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = smm.nothing
