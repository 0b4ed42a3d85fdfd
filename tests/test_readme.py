"""README and docs: commands parse, files exist, Python code runs."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from arguments import parse_args
from simple_multimodal import QuestionAnswerer, Retriever, VideoClassifier
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.evaluation.glossary import LOSSES, METRICS
from simple_multimodal.models import encoders
from simple_multimodal.models.loading import load_pretrained_tower, load_tower_config
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.closeness import assert_close
from tests.models.tiny import tiny_config

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """
    Return the arguments of every complete command of the README and docs/ that runs `train.py`, directly or in a job
    script. Commands with `--help`, or with `...` for the reader to fill in, are left out.
    """
    found = []
    for page in (REPOSITORY / "README.md", *PAGES):
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        blocks += re.findall(r"`(python train\.py [^`]*)`", text)
        for line in (line for block in blocks for line in block.replace("\\\n", " ").splitlines()):
            words = shlex.split(line, comments=True)
            places = [n for n, word in enumerate(words) if word == "train.py" or word.endswith(".sbatch")]
            if places and not {"--help", "...", "…"} & set(words):
                found.append((page.name, words[places[0] + 1 :]))
    return found


@pytest.mark.parametrize("page, words", commands(), ids=lambda value: str(value)[:60])
def test_commands_parse(page, words, tmp_path, monkeypatch):
    for name in ("mine", "NAME"):  # the reader's own configs
        words = [str(tmp_path / "own.yaml") if word == f"configs/runs/{name}.yaml" else word for word in words]
    (tmp_path / "own.yaml").write_text("train_file: train.csv\nvalidation_file: validation.csv\n")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # `--logging_dir` sets it
    parse_args([*words, "--use_cpu", "--output_dir", str(tmp_path)])


def test_commands_are_found():
    pages = [page for page, _ in commands()]
    assert pages.count("README.md") >= 3 and pages.count("tracking.md") >= 6


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [x for x in links if not (x.startswith("https://") or (page.parent / x).exists())] == []


def test_index_names_every_page():
    index = (REPOSITORY / "docs/README.md").read_text(encoding="utf-8")
    notebooks = (REPOSITORY / "docs/notebooks").glob("*.ipynb")
    assert [page.name for page in (*PAGES, *notebooks) if f"{page.name}](" not in index] == []


def test_glossary_has_every_metric_of_the_report():
    """As a separate word: `mlm_accuracy` does not count for `accuracy`."""
    index = (REPOSITORY / "docs/README.md").read_text(encoding="utf-8")
    names = ["{type}_accuracy" if name == "_accuracy" else name for name in METRICS]
    assert [name for name in (*names, *LOSSES) if f"`{name}`" not in index] == []


def test_named_scripts_exist():
    for page in (REPOSITORY / "README.md", *PAGES):
        for script in re.findall(
            r"bash (run_scripts/[\w.]+)|sbatch (run_scripts/[\w.]+)", page.read_text(encoding="utf-8")
        ):
            assert (REPOSITORY / "".join(script)).is_file()


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["a large red circle rises while fast high pure notes play"])
    config = tiny_config()
    config.text_config.vocab_size = len(tokenizer)
    MultimodalForPreTraining(config).save_pretrained(tmp_path / "outputs/toy")
    MultimodalProcessor(tokenizer=tokenizer).save_pretrained(tmp_path / "outputs/toy")
    monkeypatch.chdir(tmp_path)
    code = next(block for block in PYTHON_BLOCKS if "MultimodalProcessor" in block)
    values: dict = {}
    exec(compile(code, "README.md", "exec"), values)
    model = MultimodalForPreTraining.from_pretrained("outputs/toy")
    assert values["embedding"].shape == (1, model.config.contrastive_dim)
    assert float(values["embedding"].norm()) == pytest.approx(1, abs=1e-5)


def test_inference_of_the_readme_matches_the_api(monkeypatch):
    """Names and arguments only; their behaviour is tested in `tests/inference`."""
    code = next(block for block in PYTHON_BLOCKS if "Retriever" in block)
    calls = []
    for kind in (Retriever, QuestionAnswerer, VideoClassifier):
        monkeypatch.setattr(kind, "__init__", lambda self: None)
        monkeypatch.setattr(kind, "from_pretrained", classmethod(lambda cls, name: cls()))
        for name in {"index", "search", "answer", "__call__"} & set(vars(kind)):
            signature = inspect.signature(getattr(kind, name))

            def record(*arguments, _signature=signature, _name=name, **settings):
                _signature.bind(*arguments, **settings)
                calls.append(_name)

            monkeypatch.setattr(kind, name, record)
    exec(compile(code, "README.md", "exec"), {})
    assert calls == ["index", "search", "answer", "__call__"]


def test_example_encoder_loads_a_checkpoint(tmp_path, monkeypatch):
    code = next(block for block in PYTHON_BLOCKS if "RobertaTextEncoder" in block)
    values: dict = {"__name__": "simple_multimodal.models.text.roberta"}
    exec(compile(code, "README.md", "exec"), values)
    encoder_class = values["RobertaTextEncoder"]
    monkeypatch.setitem(encoders.ENCODERS, ("text", encoder_class.model_type), encoder_class)

    config = RobertaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    stock = RobertaForMaskedLM(config).eval()
    stock.save_pretrained(tmp_path)
    encoder = encoder_class(load_tower_config(str(tmp_path), "text")).eval()
    decoder = encoder.decoder_class(encoder.config).eval()
    report = load_pretrained_tower(encoder, decoder, str(tmp_path))
    assert report.new == [] and report.unused == {}
    input_ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        logits = decoder(encoder(input_ids, torch.ones_like(input_ids)).tokens, encoder.word_embeddings)
        assert_close(logits, stock(input_ids).logits)
