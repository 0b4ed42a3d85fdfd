"""Tests of `--decode_device cuda` where it cannot be had: each command ends with one line that says why."""

import sys

import pytest
import torch

from simple_multimodal.cli import main
from tests.training import tiny_run
from tests.training.tiny_run import flags

GPU = ("--video_backend", "torchcodec", "--decode_device", "cuda")


def test_commands_say_why_they_cannot_decode_on_a_gpu(retrieval_model, clips, tmp_path, capfd, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = ["encode", retrieval_model, str(clips / "video/0.mp4"), "--out", str(tmp_path / "out")]
    assert main([*command, *GPU[2:]]) == 2
    assert "decode_device='cuda' needs video_backend='torchcodec'" in capfd.readouterr().err.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert main([*command, *GPU]) == 2
    assert "pip install torchcodec" in capfd.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, OSError, RuntimeError))
    assert main([*command, *GPU]) == 2
    assert "torch finds no CUDA device on this machine" in capfd.readouterr().err.splitlines()[-1]


def test_training_says_so_before_it_starts(clips, start, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = [*tiny_run.data_flags(clips), *start, *flags(output_dir=tmp_path / "out", decode_device="cuda")]
    with pytest.raises(ValueError, match="decode_device='cuda' needs video_backend='torchcodec'; pyav only decodes"):
        tiny_run.run(*run)
    assert not (tmp_path / "out").exists()
