"""Opening the rows of a task from inputs of every kind."""

import json

import datasets
import pandas
import pytest

from simple_multimodal.tasks.registry import get_task
from tests.media.media_files import write_media

NAMES = ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("kind", ["manifest", "dictionaries", "table", "data set", "folder", "rows"])
def test_open_rows_accepts_every_kind_of_input(tmp_path, kind):
    (tmp_path / "clips").mkdir()
    for name in NAMES:
        write_media(tmp_path / "clips" / name, num_frames=2)
    records = [{"video": str(tmp_path / "clips" / name), "caption": name} for name in NAMES]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = {
        "manifest": manifest,
        "dictionaries": records,
        "table": pandas.DataFrame(records),
        "data set": datasets.Dataset.from_list(records),
        "folder": tmp_path / "clips",
    }
    open_rows = get_task("retrieval").open_rows
    settings = {"modalities": ("audio", "video"), "cache_dir": str(tmp_path / "cache"), "max_samples": 2}
    rows["rows"] = opened = open_rows(manifest, roots={"video": tmp_path}, **settings)
    found = open_rows(rows[kind], roots={"video": tmp_path}, **settings)
    assert [row["video"] for row in found] == [record["video"] for record in records[:2]]
    assert (found is opened) == (kind == "rows")


def test_a_folder_is_refused_if_the_model_needs_captions(tmp_path):
    with pytest.raises(ValueError, match="is a folder, whose files have no captions. Pass a manifest"):
        get_task("retrieval").open_rows(tmp_path)
