"""Rules of docs/architecture.md that the files can be checked for: imports between parts, and the place of files."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Small modules for all parts, which only import the errors of the package.
BASICS = {"errors", "modalities", "defaults", "flags", "missing", "output_folder", "cores", "progress", "__init__"}

# Parts that each part may import, in addition to itself and the basics. `*` allows all.
ALLOWED_IMPORTS = {
    **{name: set() for name in BASICS},
    "flags": {"missing"},
    "media": set(),
    "processing": {"media"},
    "data": {"media", "processing"},
    "models": set(),
    "evaluation": set(),
    "prepare": {"data", "media", "processing", "evaluation"},
    "assembly": {"models", "data", "processing"},
    "alpro": {"assembly", "models", "processing", "evaluation"},
    "inference": {"alpro", "models", "data", "processing", "media", "evaluation"},
    "tasks": {"inference", "alpro", "assembly", "models", "prepare", "data", "processing", "media", "evaluation"},
    "training": {"tasks", "inference", "models", "data", "processing", "evaluation"},
    "serving": {"tasks", "inference", "data", "media", "processing", "evaluation"},
    "doctor": set(),
    "cli": {"*"},
    "__main__": {"cli"},
    "arguments": {"training", "tasks"},  # only the modules of `tasks` that do not import models
    "arguments.inputs": {"training", "tasks", "assembly", "models", "data", "processing"},
}


def _python_files() -> list[Path]:
    return sorted([*REPOSITORY.glob("simple_multimodal/**/*.py"), *REPOSITORY.glob("arguments/**/*.py")])


def _part_of(module: str) -> str:
    """Return the part that a module such as `simple_multimodal.prepare.toy` or `arguments.parser` belongs to."""
    names = module.split(".")
    if names[0] != "simple_multimodal":
        return ".".join(names[:2]) if ".".join(names[:2]) in ALLOWED_IMPORTS else names[0]
    if len(names) == 1:
        return "__init__"
    return ".".join(names[1:3]) if ".".join(names[1:3]) in ALLOWED_IMPORTS else names[1]


def _imported_modules(path: Path) -> set[str]:
    """Return the absolute names of the modules of this repository that a file imports anywhere."""
    package = path.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            is_package = REPOSITORY.joinpath(*base, "__init__.py").exists()
            modules |= {".".join([*base, alias.name] if is_package else base) for alias in node.names}
    return {module for module in modules if module.split(".")[0] in ("simple_multimodal", "arguments", "train")}


@pytest.mark.parametrize("path", _python_files(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_one_way(path):
    module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    part = _part_of(module)
    assert part in ALLOWED_IMPORTS, (
        f"{path}: a new part of the package needs a line in ALLOWED_IMPORTS and in the docs"
    )
    folder = part.split(".")[0]
    allowed = ALLOWED_IMPORTS[part] | {folder} | ({"errors"} if part in BASICS else BASICS)
    if "*" not in allowed:
        forbidden = {name for name in _imported_modules(path) if _part_of(name).split(".")[0] not in allowed}
        assert not forbidden, f"{path.name} belongs to {part!r}, which may not import {sorted(forbidden)}"


def _imports_between_modules() -> dict[str, set[str]]:
    """Return for each module of this repository the ones that it imports anywhere in the file."""
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in _python_files()
    }
    return {
        module: {name if name in modules else name.rpartition(".")[0] for name in _imported_modules(path)} & {*modules}
        for module, path in modules.items()
    }


def test_there_are_no_import_cycles():
    TopologicalSorter(_imports_between_modules()).prepare()  # raises CycleError, which names the modules of a cycle


def test_import_cycles_are_found_at_both_levels(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    folder = tmp_path / "simple_multimodal/media"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from simple_multimodal.media.video import open_video\n")
    (folder / "video.py").write_text("def f():\n    from .pyav_backend import Backend\n")
    for importing, num_modules in (("media.video import REMEDY", 2), ("media import open_video", 3)):
        (folder / "pyav_backend.py").write_text(f"import av\nfrom simple_multimodal.{importing}\n")
        with pytest.raises(CycleError) as found:
            TopologicalSorter(_imports_between_modules()).prepare()
        assert len(set(found.value.args[1])) == num_modules
    (folder / "pyav_backend.py").write_text("from .errors import MediaError\n")
    (folder / "errors.py").touch()
    TopologicalSorter(_imports_between_modules()).prepare()


def test_relative_and_local_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    folder = tmp_path / "simple_multimodal/media"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "video.py").write_text(
        "import torch\nfrom ..models import encoders\nfrom .errors import MediaError\n"
        "def f():\n    import simple_multimodal.training.trainer\n    from simple_multimodal import processing\n"
    )
    (folder.parent / "models").mkdir()
    (folder.parent / "models/__init__.py").touch()
    assert _imported_modules(folder / "video.py") == {
        "simple_multimodal.models.encoders",
        "simple_multimodal.media.errors",
        "simple_multimodal.training.trainer",
        "simple_multimodal.processing",
    }


@pytest.mark.parametrize("module", ["media", "prepare.toy"])
def test_reading_and_making_clips_does_not_import_torch(module):
    code = f"import sys, simple_multimodal.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_cores_are_counted_in_one_place():
    counting = [path.name for path in _python_files() if "sched_getaffinity" in path.read_text(encoding="utf-8")]
    assert counting == ["cores.py"]


def test_every_progress_bar_is_hidden_without_a_terminal():
    """Each call of `tqdm` has `disable=not can_show_bars()`, possibly with a further condition."""
    found = 0
    for path in _python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm":
                disable = next((ast.unparse(word.value) for word in node.keywords if word.arg == "disable"), "")
                assert re.fullmatch(r"not (\([\w.]+ and )?can_show_bars\(\)\)?", disable), (
                    f"{path}, line {node.lineno}"
                )
                found += 1
    assert found


def test_every_module_starts_with_a_sentence():
    for path in _python_files():
        text = path.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text))
        assert not text or (docstring is not None and docstring.split("\n\n")[0].endswith((".", ":"))), path


def test_the_datasets_folder_does_not_hide_the_library():
    assert not list(REPOSITORY.glob("datasets/*.py"))
    import datasets

    assert REPOSITORY / "datasets" not in Path(datasets.__file__).parents


def test_scripts_are_short():
    for path in REPOSITORY.glob("run_scripts/*"):
        lines = path.read_text().splitlines()
        if path.suffix == ".sbatch":  # its header is for the scheduler
            lines = [line for line in lines if not line.startswith("#")]
        limits = {".sh": 10, ".sbatch": 10, ".py": 60}  # a client must not need the project
        assert len(lines) <= limits[path.suffix], path
    assert len((REPOSITORY / "train.py").read_text().splitlines()) <= 80


def test_only_tasks_know_tasks():
    """Other modules contain no string that is the name of a task."""
    names = {"pretraining", "retrieval", "question_answering"}
    may_name = ("tasks/", "prepare/", "evaluation/protocols.py", "defaults.py", "__init__.py")
    for path in [*_python_files(), REPOSITORY / "train.py"]:
        place = path.relative_to(REPOSITORY).as_posix().removeprefix("simple_multimodal/")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert place.startswith(may_name) or not texts & names, place


def _imports_of_other_tasks() -> dict[str, set[str]]:
    """Return for each file in a task's folder the modules in the folders of other tasks that it imports."""
    tasks = REPOSITORY / "simple_multimodal/tasks"
    folders = {path.name for path in tasks.iterdir() if path.is_dir()}
    found = {}
    for path in tasks.glob("*/**/*.py"):
        others = folders - {path.relative_to(tasks).parts[0]}
        foreign = {
            name
            for name in _imported_modules(path)
            if name.startswith("simple_multimodal.tasks.") and name.split(".")[2] in others
        }
        if foreign:
            found[path.relative_to(tasks).as_posix()] = foreign
    return found


def test_folders_of_tasks_do_not_import_each_other():
    """Shared code is in `tasks/` itself."""
    assert _imports_of_other_tasks() == {}


def test_imports_between_tasks_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    tasks = tmp_path / "simple_multimodal/tasks"
    for folder in ("search", "answers"):
        (tasks / folder).mkdir(parents=True)
        (tasks / folder / "__init__.py").touch()
    for package in (tasks.parent, tasks):
        (package / "__init__.py").touch()
    (tasks / "labels.py").touch()
    (tasks / "search/task.py").write_text(
        "from ..labels import read\nfrom simple_multimodal.tasks.search import head\n"
    )
    assert _imports_of_other_tasks() == {}
    (tasks / "answers/task.py").write_text("def f():\n    from ..search.task import head\n")
    (tasks / "answers/head.py").write_text("from simple_multimodal.tasks import search\n")
    assert _imports_of_other_tasks() == {
        "answers/task.py": {"simple_multimodal.tasks.search.task"},
        "answers/head.py": {"simple_multimodal.tasks.search"},
    }
