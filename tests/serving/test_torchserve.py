"""Archives for TorchServe: what they hold, what their handler answers, and TorchServe itself where it is installed."""

import importlib.util
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simple_multimodal.cli import main
from tests.closeness import assert_close
from tests.serving.models import assert_same_results

torchserve = pytest.importorskip("simple_multimodal.serving.torchserve", reason="needs the extra `serve`")

ROOT = Path(__file__).resolve().parents[2]
BROKEN = b"not a media file" * 100
LIMIT_SECONDS = 90.0


class Context:
    """Stand-in for TorchServe's context of a batch, with the documented methods that the handler uses."""

    model_name = "films"

    def __init__(self, model_dir=None, batch_size=8, gpu_id=None):
        self.system_properties = {"model_dir": model_dir, "batch_size": batch_size, "gpu_id": gpu_id}
        self.statuses = {}
        self.types = {}

    def get_request_id(self, idx=0):
        return f"request-{idx}"

    def set_response_status(self, code=200, phrase="", idx=0):
        self.statuses[idx] = code

    def set_response_content_type(self, idx, value):
        self.types[idx] = value


def ask(handler, *requests):
    """Run a batch; return the answers, and the statuses that are not 200."""
    context = Context()
    answers = handler.handle(list(requests), context)
    assert context.types == dict.fromkeys(range(len(requests)), "application/json")
    return json.loads(json.dumps(answers)), context.statuses


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory) -> Path:
    """The folder of a model as training leaves it."""
    folder = tmp_path_factory.mktemp("outputs") / "toy_actions"
    shutil.copytree(models / "actions", folder)
    (folder / "checkpoint-8").mkdir()
    for name in ("checkpoint-8/optimizer.pt", "training_args.bin", "report.html"):
        (folder / name).write_text("not for others")
    (folder / "run.json").write_text(json.dumps({"precision": "fp32", "command": "not for others"}))
    return folder


@pytest.fixture(scope="module")
def archive(trained, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store") / "model_store"
    assert main(["export_mar", str(trained), "--output", str(store)]) == 0
    (found,) = store.iterdir()
    return found


@pytest.fixture(scope="module")
def handler(archive, tmp_path_factory):
    """The handler of the archive, found and started as TorchServe does."""
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(archive).extractall(folder)
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (kind,) = [member for _, member in inspect.getmembers(module, inspect.isclass) if member.__module__ == "handler"]
    handler = kind()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simple_multimodal.serving.uploads.default_folder", lambda: tmp_path_factory.mktemp("uploads"))
        handler.initialize(Context(str(folder)))
    yield handler
    assert not list(handler.uploads.path.iterdir())
    handler.model.close()
    handler.uploads.close()


def handler_of(service, name):
    """Return a handler of a model that is served already."""
    handler = torchserve.TorchServeHandler()
    handler.model, handler.limits, handler.uploads = service.models[name], service.limits, service.uploads
    return handler


def test_an_archive_holds_a_model_a_handler_and_a_manifest(archive, trained, tmp_path):
    assert archive.name == "toy_actions.mar"
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
        names = set(file.namelist())
    loaded = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"MAR-INF/MANIFEST.json", "handler.py", *(f"model/{name}" for name in (*loaded, "run.json"))}
    manifest = json.loads((tmp_path / "MAR-INF/MANIFEST.json").read_text())
    assert manifest["runtime"] == "python" and manifest["createdOn"] and manifest["archiverVersion"]
    assert manifest["model"] == {"modelName": "toy_actions", "modelVersion": "1.0", "handler": "handler.py"}
    assert json.loads((tmp_path / "model/run.json").read_text()) == {"precision": "fp32"}
    for path in tmp_path.rglob("*.*"):
        assert not any(text in path.read_bytes() for text in (b"not for others", os.fsencode(trained.parent)))
    saved, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", trained))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def test_an_archive_is_only_replaced_if_that_is_wanted(models, archive, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(archive.parent, store)
    before = (store / archive.name).read_bytes()
    (tmp_path / "toy_actions").symlink_to(models / "actions")
    argv = ["export_mar", str(tmp_path / "toy_actions"), "--output", str(store)]
    assert main(argv) == 2
    assert "toy_actions.mar exists. Replace it with --overwrite, or give another folder." in capsys.readouterr().err
    assert (store / archive.name).read_bytes() == before
    assert main([*argv, "--overwrite"]) == 0
    assert capsys.readouterr().out == f"{store / archive.name}\n"
    assert [path.name for path in store.iterdir()] == [archive.name]
    assert "model/run.json" not in zipfile.ZipFile(store / archive.name).namelist()


@pytest.mark.parametrize(
    ("model", "output", "message"),
    [
        ("absent/model", "store", "absent/model is not a saved model: no such folder"),
        ("empty", "store", "empty is not a saved model: "),
        ("adapters", "store", "adapters only holds LoRA adapters."),
        ("tower", "store", "tower holds BertModel, which cannot be served; "),
        ("no weights", "store", "name of a served model may have letters"),
        ("no_weights", "store", "no_weights"),
        ("actions", "empty/a_file", "a_file is a file; give a folder."),
        ("actions", "empty/a_file/store", "Not a directory: "),
    ],
)
def test_what_cannot_be_exported_is_one_line(models, tmp_path, monkeypatch, capsys, model, output, message):
    monkeypatch.chdir(tmp_path)
    Path("actions").symlink_to(models / "actions")
    for folder in ("empty", "adapters", "tower", "no weights", "no_weights"):
        Path(folder).mkdir()
    Path("empty/a_file").touch()
    Path("adapters/adapter_config.json").write_text("{}")
    Path("tower/config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    for folder in ("no weights", "no_weights"):
        shutil.copy(models / "actions/config.json", folder)
    assert main(["export_mar", model, "--output", output]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("simple-multimodal: error: ") and message in error
    assert not Path("store").exists()


# Clip and text of 8 requests, one of them broken, whose answers all differ.
ASKED = [
    ("0.mp4", "a cat purrs"), ("1.mp4", ""), ("2.mp4", "two dogs"), None, (None, "two dogs"), ("3.mp4", "cat"),
    ("5.mp4", ""), ("audio.wav", "two dogs bark"),
]  # fmt: skip


def expected_of(classifier, clips):
    """Return the pipeline's results for the seven that are not broken."""
    inputs = [
        {"clip": {"video": None, "caption": text} if clip is None else str(clips / clip), "text": text}
        for clip, text in filter(None, ASKED)
    ]
    return classifier(inputs)


def test_a_batch_of_mixed_requests_gets_the_answers_of_the_pipeline(handler, pipelines, clips, files):
    requests = [
        {
            **({} if clip is None else {"data": bytearray(files[clip])}),
            **({"script": bytearray(text.encode())} if text else {}),
        }
        for clip, text in (own or ASKED[0] for own in ASKED)
    ]
    requests[1] |= {"labels": ["decoded"]}
    requests[2] |= {"text": requests[2].pop("script").decode(), "labels": b"\xff[no JSON"}
    requests[3] |= {"data": bytearray(BROKEN)}
    requests[5] |= {"top_k": b"2"}
    requests[6] |= {"threshold": "0.5"}
    answers, statuses = ask(handler, *requests)
    assert statuses == {3: 422}
    assert answers.pop(3) == {"error": "cannot be read as media: Invalid data found when processing input"}
    expected = expected_of(pipelines["actions"], clips)
    expected[4] = expected[4][:2]
    expected[5] = [result for result in expected[5] if result["score"] >= 0.5]
    assert 0 < len(expected[5]) < 4 and len({str(results) for results in expected}) == 7
    assert_same_results(answers, expected)
    for request, results in zip([*requests[:3], *requests[4:]], answers, strict=True):  # alone
        assert_same_results(ask(handler, request)[0], [results])
    assert ask(handler) == ([], {})


def test_invalid_requests_cost_their_own_answer(handler, files):
    accepted = "A request may have the parts data, script, text, labels, top_k, threshold; it has another one, body."
    cases = [
        ({}, "films needs a clip or a text."),
        ({"script": b" "}, "films needs a clip or a text."),
        ({"labels": b"[]"}, "films needs a clip or a text."),
        ({"body": files["0.mp4"]}, accepted),
        ({"data": b""}, "the file is empty (0 bytes)"),
        ({"data": "text"}, "cannot be read as media: Invalid data found when processing input"),
        ({"data": {"a": 1}}, "The part data must not be JSON."),
        ({"script": ["a"]}, "The part script must not be JSON."),
        ({"script": b"\xff"}, "The part script is not UTF-8."),
        ({"script": "\ud800"}, "The part script is not UTF-8."),
        ({"script": b"a", "text": b"a"}, "Only one part may be named script or text."),
        ({"script": b"a" * 10_001}, "A text is longer than 10000 characters."),
        *(
            ({"script": b"a", name: value}, "`top_k` must be an integer from 1 to 10000, and `threshold` a number")
            for name, value in (("top_k", b"0"), ("top_k", b"many"), ("threshold", b"2"), ("threshold", b"nan"))
        ),
    ]
    answers, statuses = ask(handler, *(request for request, _ in cases), {"script": b"two dogs"})
    assert statuses == dict.fromkeys(range(len(cases)), 422)
    assert_same_results([answers.pop()], ask(handler, {"script": b"two dogs"})[0])
    for (request, reason), answer in zip(cases, answers, strict=True):
        assert set(answer) == {"error"} and answer["error"].startswith(reason), request


def test_the_model_runs_on_all_clips_of_a_batch(handler, files, monkeypatch):
    """Not on one after another, as they are read."""
    model, events = handler.model, []
    read, submit = model.read, model.batcher.submit

    async def note_read(*args):
        batches = await read(*args)
        events.append("read")
        return batches

    def note_submit(*args, **settings):
        events.append("run")
        return submit(*args, **settings)

    monkeypatch.setattr(model, "read", note_read)
    monkeypatch.setattr(model.batcher, "submit", note_submit)
    assert model.batcher.max_batch_size == 8
    assert ask(handler, *[{"data": files["0.mp4"]}] * 4, {"script": b"cat"})[1] == {}
    assert events == ["read"] * 4 + ["run"] * 5


def test_an_error_of_the_model_costs_one_request_and_stays_in_the_log(handler, monkeypatch, caplog):
    run = handler.model.batcher.run

    def fail(queries):
        if any(query.text == "fail" for query in queries):
            raise RuntimeError("/srv/models fail")
        return run(queries)

    monkeypatch.setattr(handler.model.batcher, "run", fail)
    answers, statuses = ask(handler, {"script": b"cat"}, {"script": b"fail"}, {"script": b"two dogs"})
    assert statuses == {1: 500} and answers[1] == {
        "error": "The model, or reading the clip, failed; the log of the server says why."
    }
    assert len(answers[0]) == len(answers[2]) == 4
    (record,) = [json.loads(record.message) for record in caplog.records if record.levelname == "ERROR"]
    assert (record["request_id"], record["error"]) == ("request-1", "RuntimeError")
    assert "/srv/models" not in caplog.text


def test_requests_that_are_late_are_not_computed(handler, files, monkeypatch):
    monkeypatch.setattr(handler, "limits", replace(handler.limits, answer_seconds=1e-9))
    answers, statuses = ask(handler, {"data": files["0.mp4"]}, {"script": b"cat"})
    assert statuses == {0: 504, 1: 504}
    assert answers == [{"error": "The request was not answered in time."}] * 2


def test_other_tasks_answer_questions_and_return_embeddings(service, pipelines, clips, files):
    handler = handler_of(service, "questions")
    answers, statuses = ask(handler, {"data": files["0.mp4"], "text": b"who purrs?"}, {"text": b"who purrs?"})
    assert statuses == {1: 422} and answers[1] == {"error": "questions needs a clip."}
    expected = pipelines["questions"]({"clip": str(clips / "0.mp4"), "question": "who purrs?"})
    assert_same_results(answers[:1], expected)

    handler = handler_of(service, "clips")
    both = {"data": files["0.mp4"], "text": b"a cat purrs"}
    answers, statuses = ask(handler, {"text": b"a cat purrs"}, {"data": files["0.mp4"]}, both)
    assert statuses == {2: 422}
    assert_close(torch.tensor(answers[0]["embedding"]), pipelines["clips"].embed_texts(["a cat purrs"])[0])
    assert_close(torch.tensor(answers[1]["embedding"]), pipelines["clips"].index([clips / "0.mp4"]).embeds[0])


@pytest.mark.parametrize(("gpu_id", "has_gpu", "devices"), [(1, True, [1]), (0, False, []), (None, True, [])])
def test_the_model_runs_on_the_gpu_of_its_worker(monkeypatch, tmp_path, gpu_id, has_gpu, devices):
    used = []
    monkeypatch.setattr("simple_multimodal.serving.uploads.default_folder", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torchserve.ServedModel, "load", lambda *args, **settings: Context())
    handler = torchserve.TorchServeHandler()
    handler.initialize(Context("/unpacked", gpu_id=gpu_id))
    handler.uploads.close()
    assert used == devices


needs_torchserve = pytest.mark.skipif(
    None in (shutil.which("java"), shutil.which("torchserve")),
    reason="needs Java and torchserve on the PATH (docs/serving.md)",
)


@contextmanager
def running_torchserve(store, folder):
    """Run TorchServe on free ports of the loopback address; return the URLs for inference and management."""
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        ports = [one.getsockname()[1] for one in opened]
    urls = [f"http://127.0.0.1:{port}" for port in ports[:3]]
    names = (
        "inference_address",
        "management_address",
        "metrics_address",
        "grpc_inference_port",
        "grpc_management_port",
    )
    lines = [f"{name}={value}" for name, value in zip(names, [*urls, *ports[3:]], strict=True)]
    (folder / "config.properties").write_text("\n".join(lines))
    (folder / "temp").mkdir()
    temp = str(folder / "temp")
    env = {**os.environ, "TEMP": temp, "TMPDIR": temp, "PYTHONPATH": str(ROOT)}
    argv = ["torchserve", "--start", "--foreground", "--ncs", "--model-store", str(store)]
    argv += ["--ts-config", "config.properties", "--disable-token-auth", "--enable-model-api"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            argv, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        ends = time.monotonic() + LIMIT_SECONDS
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{urls[0]}/ping"):
                break
            assert process.poll() is None and time.monotonic() < ends, (folder / "log").read_text()[-3000:]
            time.sleep(0.1)
        yield urls[:2]
        subprocess.run(["torchserve", "--stop", "--foreground"], cwd=folder, env=env, check=True)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@needs_torchserve
def test_torchserve_answers_seven_of_a_batch_of_eight_with_a_broken_one(archive, pipelines, clips, tmp_path):
    """It waits longer for a batch of 8 than `request.py` may take: what is answered was in one batch."""
    (tmp_path / "broken").write_bytes(BROKEN)

    def run(number, url):
        clip, text = ASKED[number] or (tmp_path / "broken", "")
        folder = tmp_path / str(number)
        folder.mkdir()
        argv = [sys.executable, "-I", str(ROOT / "run_scripts/request.py"), f"{url}/predictions/toy_actions"]
        argv += [*([] if clip is None else [str(clips / clip)]), "--text", text]
        return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS)

    with running_torchserve(archive.parent, tmp_path) as (inference, management):
        query = f"url={archive.name}&batch_size=8&max_batch_delay=600000&initial_workers=1&synchronous=true"
        with urllib.request.urlopen(urllib.request.Request(f"{management}/models?{query}", method="POST")):
            pass
        with ThreadPoolExecutor(len(ASKED)) as pool:
            found = list(pool.map(run, range(len(ASKED)), [inference] * len(ASKED)))
    broken = found.pop(3)
    assert broken.returncode == 1 and broken.stderr.startswith("request.py: 422 ")
    assert "cannot be read as media: Invalid data" in broken.stderr
    assert [one.stderr for one in found if one.returncode] == []
    assert_same_results([json.loads(one.stdout) for one in found], expected_of(pipelines["actions"], clips))
    assert not list(tmp_path.glob("temp/simple_multimodal_uploads_*/server-*/*"))
