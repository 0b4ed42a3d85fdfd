"""Manifests with wrong columns: every command refuses them with the same message."""

import pytest

from simple_multimodal.cli import main

MESSAGES = {
    "video/0.mp4,a cat\nvideo/1.mp4,a dog\n": "the first line seems to be a row instead of a header: video/0.mp4, ",
    "path,caption\nvideo/0.mp4,a cat\n": "no column for media: one of audio, video, pose is needed. The columns are "
    "path, caption. Did you mean 'video' instead of 'path'?",
}


@pytest.mark.parametrize("content", MESSAGES)
@pytest.mark.parametrize("verb", ["index", "pack", "show", "encode", "features", "search", "answer"])
def test_commands_refuse_wrong_columns(verb, content, retrieval_model, question_model, tmp_path, capfd):
    manifest, out = tmp_path / "rows.csv", str(tmp_path / "out")
    manifest.write_text(content)
    argv = {
        "index": [str(manifest)],
        "pack": [str(manifest), out],
        "show": [str(manifest), "--out", f"{out}.png"],
        "encode": [retrieval_model, str(manifest), "--out", out],
        "features": [retrieval_model, str(manifest), "--tower", "video", "--output", out],
        "search": [retrieval_model, "a cat", str(manifest)],
        "answer": [question_model, "who is there?", str(manifest)],
    }[verb]
    assert main([verb, *argv]) == 2
    assert f"error: {manifest}: {MESSAGES[content]}" in capfd.readouterr().err.splitlines()[-1]
