"""The container image: it starts the server with flags that exist, and asks a route that needs no token."""

import json
import re
from pathlib import Path

import pytest

from simple_multimodal.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_starts_the_server_with_known_flags(capsys):
    program, verb, *arguments = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0])
    assert program == "simple-multimodal"
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    known = capsys.readouterr().out
    assert all(flag in known for flag in arguments if flag.startswith("--"))


def test_the_image_copies_files_that_exist_and_are_not_ignored():
    sources = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sources and all((ROOT / source).exists() and f"!{source}" in kept for source in sources)


def test_the_health_check_needs_no_token_and_the_server_is_not_root():
    gate = pytest.importorskip("simple_multimodal.serving.gate", reason="needs the extra `serve`")
    assert any(f"127.0.0.1:8000{route}'" in DOCKERFILE for route in gate.OPEN_ROUTES)
    assert re.search(r"^USER [1-9]\d+$", DOCKERFILE, re.MULTILINE)
