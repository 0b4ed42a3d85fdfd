"""Make manifests from a `clips.jsonl`, which annotates a folder of clips with captions, questions and splits."""

import json
from pathlib import Path

from simple_multimodal.data.tables import read_jsonl
from simple_multimodal.errors import InputError

SPLITS = {"train": "train", "test": "validation"}


def clips_jsonl_to_manifests(clips_jsonl: str | Path, output_dir: str | Path) -> dict[str, Path]:
    """Write `train.jsonl`, and `validation.jsonl` with the test clips.

    Args:
        clips_jsonl (`str` or `Path`):
            File with one JSON object per line: `id`, `file`, `split` (`train` or `test`), `captions`, `label`,
            `question` and `answer`.
        output_dir (`str` or `Path`):
            Folder of the manifests; created if it does not exist. The videos are not copied: pass the folder of
            `clips_jsonl` as `--video_root`.

    Returns:
        `dict[str, Path]`: The manifests, under `"train"` and `"validation"`.

    Raises:
        ValueError: If a line is not a JSON object, lacks one of the entries **or** names another split.
    """
    rows: dict[str, list[str]] = {name: [] for name in SPLITS.values()}
    for line_number, clip in read_jsonl(Path(clips_jsonl)):
        try:
            split = SPLITS[clip["split"]]
            row = {"id": clip["id"], "video": clip["file"]}
            row |= {key: clip[key] for key in ("captions", "label", "question", "answer")}
        except KeyError as error:
            raise InputError(
                f"{clips_jsonl}, line {line_number}: {error} is missing, or is not one of the splits train and test."
            ) from error
        rows[split].append(json.dumps(row, ensure_ascii=False))
    paths = {name: Path(output_dir) / f"{name}.jsonl" for name in rows}
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        path.write_text("".join(f"{row}\n" for row in rows[name]), encoding="utf-8")
    return paths
