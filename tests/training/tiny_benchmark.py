"""Benchmark of eight clips in ALPRO's layout, prepared like a user would."""

import json
from pathlib import Path

from simple_multimodal.prepare.manifests import prepare_benchmark
from tests.media.media_files import write_media

PROTOCOLS = {
    "msrvtt_ret": "msrvtt-1ka-7k",
    "didemo_ret": "didemo-paragraph-1000",
    "msrvtt_qa": "msrvtt-qa",
    "msvd_qa": "msvd-qa",
}
NAMES = ["cat", "dog", "bird", "fish", "cow", "horse", "cat", "dog"]
SPLITS = {"train": range(5), "val": [5], "test": [6, 7]}
TEXTS = [f"a {name} is there" for name in NAMES] + ["what is it?", "who is there?"]


def write_benchmark(folder: Path, task: str, *, is_prepared: bool = True) -> Path:
    """
    Write `data/{task}/txt` and `data/{task}/videos`, and prepare `datasets/{task}` from them. Every clip has different
    frames; the name of what is "there" is in its caption, or answers one of its two questions.

    Args:
        folder (`Path`): Folder for `data` and `datasets`.
        task (`str`): Key of `PROTOCOLS`.
        is_prepared (`bool`): Whether to write `datasets/{task}`.

    Returns:
        `Path`: `datasets/{task}` in `folder`.
    """
    data = folder / "data" / task
    (data / "videos").mkdir(parents=True)
    (data / "txt").mkdir()
    for number in range(len(NAMES)):
        write_media(data / f"videos/video{number}.mp4", num_frames=8, first_number=150 + 501 * number)
    for split, numbers in SPLITS.items():
        if task.endswith("_qa"):
            rows = [
                {
                    "question": question,
                    "answer": answer,
                    "video_id": f"video{number}",
                    "answer_type": question.partition(" ")[0],
                }
                for number in numbers
                for question, answer in (("what is it?", NAMES[number]), ("who is there?", "man"))
            ]
        else:
            rows = [{"caption": TEXTS[number], "clip_name": f"video{number}"} for number in numbers]
        (data / f"txt/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if task.endswith("_qa"):
        answers = {name: number for number, name in enumerate([*NAMES[:5], "man"])}
        (data / "txt/train_ans2label.json").write_text(json.dumps(answers))
    prepared = folder / "datasets" / task
    if is_prepared:
        prepare_benchmark(task.removesuffix("_ret"), data / "txt", prepared, protocol=PROTOCOLS[task])
    return prepared
