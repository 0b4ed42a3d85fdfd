"""Links in the paths of a manifest and of a benchmark: every command follows them on request, and names the flag."""

import json

import pytest

from simple_multimodal.cli import main
from tests.inference.conftest import unseen


@pytest.fixture
def linked(clips, tmp_path):
    """A manifest with links to the clips beside it."""
    folder = tmp_path / "linked"
    folder.mkdir()
    rows = []
    for n in range(2):
        (folder / f"{n}.mp4").symlink_to(clips / f"video/{n}.mp4")
        rows.append({"video": f"{n}.mp4", "caption": "a cat"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("verb", ["index", "pack", "show", "encode", "features", "search", "answer"])
def test_commands_follow_links_on_request(verb, linked, retrieval_model, question_model, tmp_path, capfd):
    out = str(tmp_path / "out")
    argv = {
        "index": [linked],
        "pack": [linked, out],
        "show": [linked, "--out", f"{out}.png"],
        "encode": [retrieval_model, linked, "--out", out],
        "features": [retrieval_model, linked, "--tower", "video", "--output", out],
        "search": [retrieval_model, "a cat", linked],
        "answer": [question_model, "who is there?", linked],
    }[verb]
    assert main([verb, *argv]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert (
        "rows.jsonl, row 0 (line 1, id '0'), column 'video': '0.mp4' goes through a link that leaves its folder"
        in error
    )
    assert "Set --follow_links to follow it" in error and ("1 other rows" in error or verb == "show")
    assert main([verb, *argv, "--follow_links"]) == 0
    if verb in ("search", "answer"):
        assert {json.loads(line)["clip"] for line in capfd.readouterr().out.splitlines()} == {"0", "1"}


@pytest.mark.parametrize("verb", ["show", "encode", "search", "answer"])
def test_help_tells_that_links_in_a_folder_are_followed(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "a folder (links to files are followed)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", ["encode", "search", "answer"])
def test_pipelines_accept_a_manifest_of_absolute_paths(verb, clips, retrieval_model, question_model, tmp_path, capfd):
    manifest = tmp_path / "rows.csv"
    manifest.write_text(f"id,video\na,{clips}/video/0.mp4\nb,{clips}/video/1.mp4\n")
    argv = {
        "encode": [retrieval_model, str(manifest), "--out", str(tmp_path / "out")],
        "search": [retrieval_model, "a cat", str(manifest)],
        "answer": [question_model, "who is there?", str(manifest)],
    }[verb]
    assert main([verb, *argv]) == 2
    error = capfd.readouterr().err.strip()
    assert "rows.csv: 2 rows are wrong. Line 2: the path" in error and "is absolute and not below" in error
    assert "(--video_root)" in error and "\n" not in error
    assert main([verb, *argv, "--video_root", str(clips)]) == 0
    capfd.readouterr()
    argv = [str(clips / "video/0.mp4") if word == str(manifest) else word for word in argv]
    assert main([verb, *argv, "--video_root", str(clips)]) == 2
    assert "--video_root only applies to manifests" in capfd.readouterr().err


def test_a_benchmark_follows_links_on_request(question_model, data, tmp_path, capfd):
    folder = tmp_path / "msvd_qa"
    (folder / "videos").mkdir(parents=True)
    (folder / "txt").symlink_to(data / "msvd_qa/txt")
    for video in (data / "msvd_qa/videos").iterdir():
        (folder / "videos" / video.name).symlink_to(video)
    model = unseen(question_model, tmp_path)
    prepare = ["prepare", "msvd_qa", "--annotations", str(folder), "--output", str(tmp_path / "prepared")]
    prepare += ["--splits", "test"]
    prepared = [str(tmp_path / "prepared"), "--video_root", str(folder / "videos")]
    for argv, message in (
        (["infer", model, str(folder)], "8 links that lead out of"),
        (prepare, "8 links that lead out of"),
        (
            ["infer", model, *prepared],
            "test.jsonl, row 0 (line 1, id '0'), column 'video': '0.mp4' goes through a link",
        ),
    ):
        argv += ["--output_dir", str(tmp_path / message)] * (argv[0] == "infer")
        assert main(argv) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert message in error and "follow_links" in error
        assert main([*argv, "--follow_links"]) in (0, 1)  # 1: the sizes differ from the protocol's
