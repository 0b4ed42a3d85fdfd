"""Commands that write are refused where another process writes, and go on where one was killed."""

import os
import signal

import pytest

from simple_multimodal.cli import main
from tests.inference.conftest import unseen
from tests.test_output_folder import writer


@pytest.fixture
def commands(request, retrieval_model, clips, data, tmp_path):
    """The command lines of the verbs that write, each with the folder that it writes into."""
    manifest, out = str(clips / "train.csv"), tmp_path / "out"
    roots = [word for n in ("audio", "text", "video") for word in (f"--{n}_root", str(clips / n))]
    infer = ["infer", unseen(retrieval_model, tmp_path), str(data / "msrvtt_ret"), "--output_dir", str(out)]
    encode = ["encode", retrieval_model, str(clips / "video"), "--out", str(out / "embeddings")]
    features = ["features", retrieval_model, manifest, "--tower", "video", "--output", str(out), *roots]
    toy = ["toy", str(out), *"--num_train_clips 1 --num_pairs 1 --num_question_clips 9 --num_processes 1".split()]
    prepare = ["prepare", "msrvtt", "--annotations", str(data / "msrvtt_ret/txt"), "--output", str(out)]
    return {
        "infer": (infer, out),
        "encode": (encode, out / "embeddings.partial"),
        "features": (features, out / "video"),
        "pack": (["pack", manifest, str(out), *roots], out),
        "prepare": ([*prepare, "--splits", "test"], out),
        "toy": ([*toy, "--num_validation_videos", "2", "--num_validation_audio", "2"], out),
    }


@pytest.mark.parametrize("verb", ["infer", "encode", "features", "pack", "prepare", "toy"])
def test_a_folder_has_one_writer(commands, capfd, verb):
    argv, folder = commands[verb]
    with writer(folder) as other:
        assert main(argv) == 2
        error = capfd.readouterr().err
        assert error.startswith(
            f"simple-multimodal: error: {folder} is being written by first (process {other.pid} on"
        )
        assert error.count("\n") == 1
        os.kill(other.pid, signal.SIGKILL)
        other.join()
        assert main(argv) in (0, 1)  # 1: fewer clips than the protocol has
    assert not list(folder.parent.rglob(".lock"))


def test_convert_has_one_writer_too(tmp_path, capfd):
    (tmp_path / "alpro.pt").touch()
    with writer(tmp_path / "model"):
        assert main(["convert", "alpro", str(tmp_path / "alpro.pt"), str(tmp_path / "model")]) == 2
    assert "is being written by first" in capfd.readouterr().err
