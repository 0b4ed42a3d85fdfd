"""The project's prose uses the field's terms and plain English."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".sh", ".sbatch", ".jinja", ".ipynb"}
NOT_READ = ("CHANGELOG.md", "tests/test_wording.py")  # what old versions did, and the words themselves

WORDS = {
    r"\bpictures?\b(?<!groups of pictures)(?<!group of pictures)(?<!\"picture)": "write image, or frame of a video",
    # but for the verb, the events of data sets of sounds, and the name of a random stream
    r"\bsounds?\b(?! (?:like|similar|events?)\b)(?<!beep sounds)(?<!beep sound)(?<!\"sound)": "write audio",
    r"\banew\b": "write again",
    r"\bwhoever\b": "name who it is",
    r"\bbesides\b": "write also, or in addition to",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more than\b)": "write is not a",
    r"\b(?:is|are) to be (?:seen|heard)\b": "write what is seen, or heard",
}


def tracked_files() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return [REPOSITORY / name for name in names if Path(name).suffix in SUFFIXES and name not in NOT_READ]


@pytest.mark.parametrize("pattern", WORDS)
def test_words_that_have_a_better_one(pattern):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs the git repository, which lists the files")
    found = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(pattern, line, re.IGNORECASE):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert not found, f"{WORDS[pattern]}:\n" + "\n".join(found)
