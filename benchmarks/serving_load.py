"""What `simple-multimodal serve` promises under load: right answers, bounds, and no request lost.

python benchmarks/serving_load.py [JOB ...] --clips FOLDER [FOLDER ...] [--models FOLDER ...]

A job is one of `parity`, `flood`, `bodies`, `stopping`, `reload`, `readers` and `memory`; by default all are run. The
first `--max_clips` clips of each folder are sent; a server is stopped, or its models are reloaded, `--times` times.
Without `--models`, the models have the size of the quickstart's and random weights. Clients and pipelines run in this
process. Times stand beside others of the same run: their ratios matter.
"""

import argparse
import asyncio
import collections
import itertools
import json
import os
import random
import signal
import statistics
import struct
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import common
import psutil
import torch
from serving import ServerUnderTest, post
from serving_clients import Answer, counts, form, get, infer, load, metrics
from serving_dialects import Dialects
from stand_ins import model_config

import simple_multimodal as smm
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.processing import AudioFeatureExtractor, VideoClipProcessor
from simple_multimodal.serving.models import task_of_model

MEGABYTE = 10**6
TOLERANCE = 1e-5
CLASSES = {
    "actions": smm.MultimodalForVideoClassification,
    "questions": smm.MultimodalForQuestionAnswering,
    "clips": smm.MultimodalForRetrieval,
}
WORDS = "a large red circle rises while fast high pure notes play beside the small blue square".split()


def caption(number: int) -> str:
    return " ".join(random.Random(number).sample(WORDS, 6)) + f" {number}"


def write_model(folder: Path, seed: int = 0) -> str:
    """Write a model of the quickstart's size; its kind is the name of its folder."""
    config = model_config("toy", id2label={n: f"label {n}" for n in range(25)})
    if folder.name == "actions":
        config.problem_type = "multi_label_classification"
    torch.manual_seed(seed)
    model = CLASSES[folder.name](config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:  # else all clips would look alike
                parameter.add_(torch.randn_like(parameter) * 0.1)
    (mel_bins, num_frames), video = config.audio_config.image_size, config.video_config
    model.save_pretrained(folder)
    smm.MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=mel_bins, num_frames=num_frames),
        video_processor=VideoClipProcessor(num_frames=video.num_frames, size=video.image_size),
        tokenizer=train_tokenizer(map(caption, range(200)), vocab_size=config.text_config.vocab_size),
    ).save_pretrained(folder)
    return str(folder)


def rows_of(found: dict[str, float]) -> tuple[int, int]:
    """Return how many clips were read, and on how many rows models were run."""
    clips = sum(value for name, value in found.items() if "_clips_total{" in name and 'result="read"' in name)
    sizes = {name: value for name, value in found.items() if "_batches_total{" in name}
    return int(clips), int(sum(int(name.partition('size="')[2].partition('"')[0]) * n for name, n in sizes.items()))


async def is_idle(port: int) -> None:
    """Wait until nothing is read or computed any more."""
    before = None
    while (now := rows_of(await metrics(port))) != before:
        before = now
        await asyncio.sleep(1.0)


class Bench:
    """Clips, models, and a folder for what the jobs write."""

    def __init__(self, folder: Path, clips: list[Path], models: list[str], times: int):
        self.times = times
        self.folder = folder
        self.clips = clips
        self.models = models or [write_model(folder / "models" / name) for name in CLASSES]
        self.pipelines = {
            Path(model).resolve().name: task_of_model(model).pipeline_class.from_pretrained(model)
            for model in self.models
        }
        self.classifier = next(
            model for model in self.models if task_of_model(model).pipeline_class is smm.VideoClassifier
        )
        self.name = Path(self.classifier).resolve().name
        self.log = str(folder / "log")

    def serve(self, *flags: Any, models: list[str] | None = None) -> ServerUnderTest:
        uploads = ("--upload_dir", self.folder / "uploads")
        return ServerUnderTest(models or [self.classifier], tuple(map(str, (*uploads, *flags))), self.log)

    def events(self, name: str) -> int:
        return Path(self.log).read_text().count(f'"event": "{name}"')

    def text(self, number: int) -> bytes:
        return infer(self.name, text=[caption(number)])

    def small_clips(self) -> list[bytes]:
        """Return requests with the smallest clips."""
        files = sorted(self.clips, key=lambda file: file.stat().st_size)[:50]
        return [form(f"/predictions/{self.name}", ("data", file.read_bytes())) for file in files]


async def parity(bench: Bench) -> dict[str, Any]:
    """Compare every answer with the pipelines': alone, under 64 clients, and while a third of them leaves."""
    retriever = next(own for own in bench.pipelines.values() if isinstance(own, smm.Retriever))
    saved = bench.folder / "index"
    index = retriever.index([str(clip) for clip in bench.clips], saved=saved)
    dialects = Dialects(bench.pipelines, bench.clips, [caption(n) for n in range(len(bench.clips))], index)
    expected, requests = dialects.expected, dialects.requests
    server = bench.serve("--index", saved, models=bench.models)
    results: dict[str, Any] = {"clips": len(bench.clips), "requests": len(requests)}
    draw = random.Random(0)
    took: list[float] = []

    def a_third() -> float | None:
        return draw.choice(took) * draw.random() if draw.random() < 1 / 3 else None

    try:
        for what, num_clients, leaves in (
            ("alone", 1, None),
            ("64 clients", 64, None),
            ("a third leaves", 64, a_third),
        ):
            draw.shuffle(requests)
            answers = await load(server.port, requests, num_clients, request_of=lambda a: a.request, leaves=leaves)
            took = [answer.seconds for _, answer in answers]
            largest = dict.fromkeys((f"{one.dialect}: {one.key}" for one in requests), 0.0)
            num_others = 0
            for one, answer in answers:
                if answer.status == "200":
                    distances = (expected[one.key] - torch.tensor(one.scores(answer.json))).abs().amax(1)
                    name = f"{one.dialect}: {one.key}"
                    largest[name] = max(largest[name], distances[one.number].item())
                    num_others += int(distances.argmin() != one.number)
            results[what] = {
                "answers": counts(answer for _, answer in answers),
                "answers nearer to those of another clip": num_others,
                "largest difference": max(largest.values()),
                "largest differences": largest,
            }
    finally:
        results["exit code"] = server.end()
    apart = {key: torch.cdist(v, v, p=float("inf")).fill_diagonal_(9.0).min().item() for key, v in expected.items()}
    return {**results, "smallest distances of two clips": apart}


async def flood(bench: Bench) -> dict[str, Any]:
    """Send 400 requests at once to a server that takes 64, and let clients leave."""
    server = bench.serve("--max_requests", 64)
    results: dict[str, Any] = {}
    try:
        for kind, bodies in (("clips", bench.small_clips()), ("texts", [bench.text(n) for n in range(400)])):
            times: dict[str, list[float]] = {}
            statuses: collections.Counter = collections.Counter()

            async def at_once(
                number: int, what: str, bodies: list[bytes] = bodies, times: Any = times
            ) -> list[Answer]:
                requests = itertools.islice(itertools.cycle(bodies), number)
                answers = [a for _, a in await load(server.port, requests, number)]
                took = [answer.seconds for answer in answers if answer.status == "200"]
                times.setdefault(what, []).append(max(took))
                return answers

            for _ in range(5):
                await at_once(64, "full queue")
                await at_once(16, "one batch")
                answers = await at_once(400, "slowest accepted of 400")
                assert all("retry-after" in a.headers for a in answers if a.status == "429")
                statuses += collections.Counter(counts(answers))
                await at_once(1, "first after")
            middle = {what: statistics.median(values) for what, values in times.items()}
            results[kind] = {
                "answers": dict(statuses), "seconds": middle,
                "slowest accepted / full queue": middle["slowest accepted of 400"] / middle["full queue"],
                "first after / one batch": middle["first after"] / middle["one batch"],
            }  # fmt: skip
        before = rows_of(await metrics(server.port))
        requests = itertools.islice(itertools.cycle(bench.small_clips()), 64)
        answers = await load(server.port, requests, 64, leaves=lambda: 0.1)
        await is_idle(server.port)
        after = rows_of(await metrics(server.port))
        read, computed = (new - old for new, old in zip(after, before, strict=True))
        results["leaving after 0.1 s"] = {"answers": counts(a for _, a in answers), "read": read, "computed": computed}
    finally:
        results["exit code"] = server.end()
    return results


async def bodies(bench: Bench) -> dict[str, Any]:
    """Send bodies of 10 times all memory allowed at once, and take the largest memory of all processes."""
    largest, allowed = 8, 64
    number, size = 10 * allowed // largest, largest * MEGABYTE - 2000
    server = bench.serve("--max_body_megabytes", largest, "--max_waiting_megabytes", allowed)
    file = next(clip for clip in bench.clips if clip.suffix == ".mp4")

    def padded(size: int) -> bytes:
        content = file.read_bytes()
        return content + struct.pack(">I4s", size - len(content), b"free") + bytes(size - len(content) - 8)

    def values(unit: str) -> bytes:
        head, tail = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [', '"a"]}]}'
        body = head + unit * (size // len(unit)) + tail
        return post(f"/v2/models/{bench.name}/infer", "application/json", body.encode())

    kinds = {
        "multipart": form(f"/predictions/{bench.name}", ("data", padded(size - 500))),
        "/v2 JSON": infer(bench.name, video=[padded(size * 3 // 4 - 500)]),
        "/v2 binary": infer(bench.name, binary=True, video=[padded(size - 500)]),
        "/v2 of empty lists": values("[],"),
        "/v2 of texts": values('"ab",'),
    }
    results: dict[str, Any] = {"allowed MB": allowed, "a body MB": largest, "sent MB": number * largest}
    try:
        await load(server.port, bench.small_clips(), 16)
        for kind, request in kinds.items():
            await is_idle(server.port)
            before = server.each(memory)
            for pid in before:
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the largest memory is that of now
            answers = [a for _, a in await load(server.port, [request] * number, number)]
            after = server.each(memory)
            own = server.process.pid
            growth = {pid: after[pid][1] - before[pid][0] for pid in after if pid in before}
            results[kind] = {
                "answers": counts(answers),
                "server MB": before[own][0],
                "largest growth of the server MB": growth.pop(own),
                "largest growth of the others MB": sum(growth.values()),
                "slowest seconds": max(answer.seconds for answer in answers),
            }
    finally:
        results["exit code"] = server.end()
    return results


def memory(process: psutil.Process) -> tuple[float, float, int]:
    """Return the resident memory of a process in MB, the largest one so far, and its number of open files."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(sizes["VmRSS"]) * 1024 / MEGABYTE, int(sizes["VmHWM"]) * 1024 / MEGABYTE, process.num_fds()


async def stopping(bench: Bench) -> dict[str, Any]:
    """SIGTERM under 64 clients, half of them with a new connection for every request."""
    totals: collections.Counter = collections.Counter()
    results: dict[str, Any] = {"exit codes": [], "not ready before the end": 0, "seconds to the end": []}
    clips = bench.small_clips()
    for _ in range(bench.times):
        server = bench.serve("--drain_seconds", 1.0)
        mixed = (clips[n % len(clips)] if n % 8 == 0 else bench.text(n) for n in itertools.count())
        asking = [asyncio.ensure_future(load(server.port, mixed, 32, keeps=keeps)) for keeps in (True, False)]
        probing = asyncio.ensure_future(load(server.port, itertools.repeat(get("/v2/health/ready")), 1, keeps=False))
        await asyncio.sleep(1.0)
        begin = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        results["exit codes"].append(await asyncio.to_thread(server.process.wait, 60))
        results["seconds to the end"].append(time.perf_counter() - begin)
        for answers in await asyncio.gather(*asking):
            totals += collections.Counter(counts(answer for _, answer in answers))
        statuses = [answer.status for _, answer in await probing]
        results["not ready before the end"] += statuses[-2] == "503" and statuses[0] == "200"
    seconds = results["seconds to the end"]
    return {**results, "seconds to the end": [min(seconds), max(seconds)], "answers": dict(totals)}


async def reload(bench: Bench) -> dict[str, Any]:
    """SIGHUP under 16 clients, while the folder changes between two models."""
    link, texts = bench.folder / "link" / "actions", [caption(n) for n in range(4)]
    link.parent.mkdir()
    folders = [write_model(bench.folder / str(seed) / "actions", seed) for seed in range(2)]
    clip = str(min(bench.clips, key=lambda file: file.stat().st_size))
    expected = []
    for folder in folders:
        pipeline = smm.VideoClassifier.from_pretrained(folder)
        asks = [*({"clip": {"video": None, "caption": text}} for text in texts), {"clip": clip, "text": texts[0]}]
        labels = pipeline.model.config.id2label
        by_name = [{own["label"]: own["score"] for own in found} for found in pipeline(asks, top_k=10_000)]
        expected.append(torch.tensor([[own[labels[n]] for n in range(len(labels))] for own in by_name]))
    requests = [
        (slice(0, 4), infer("actions", text=texts)),
        (slice(4, 5), infer("actions", video=[Path(clip).read_bytes()], text=texts[:1])),
    ]
    os.symlink(folders[0], link)
    server = bench.serve(models=[str(link)])
    is_over = False
    mixed = itertools.takewhile(lambda _: not is_over, itertools.cycle([requests[0]] * 7 + requests[1:]))
    before, before_failed = bench.events("reloaded"), bench.events("reload failed")
    try:
        asking = asyncio.ensure_future(load(server.port, mixed, 16, request_of=lambda one: one[1]))
        for number in range(bench.times):
            link.unlink()
            os.symlink(folders[(number + 1) % 2], link)
            server.process.send_signal(signal.SIGHUP)
            while bench.events("reloaded") < before + number + 1:
                assert server.process.poll() is None and bench.events("reload failed") == before_failed
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
        is_over = True
        answers = await asking
    finally:
        code = server.end()
    models: collections.Counter = collections.Counter()
    for (place, _), answer in answers:
        if answer.status == "200":
            scores = torch.tensor(answer.json["outputs"][0]["data"]).view(-1, expected[0].shape[1])
            near = [bool((scores - own[place]).abs().max() <= TOLERANCE) for own in expected]
            models[{(True, False): "first model", (False, True): "second model"}.get(tuple(near), "neither")] += 1
    return {"answers": counts(a for _, a in answers), "answered by": dict(models), "exit code": code}


async def readers(bench: Bench) -> dict[str, Any]:
    """SIGKILL of every process that reads clips, and of their children, under 16 clients."""
    server = bench.serve()
    is_over = False
    mixed = itertools.takewhile(lambda _: not is_over, itertools.cycle(bench.small_clips()))
    results: dict[str, Any] = {}
    kills: list[tuple[str, float]] = []
    try:
        await load(server.port, bench.small_clips(), 16)
        asking = asyncio.ensure_future(load(server.port, mixed, 16))
        for kind in [*(["its child", "reading process"] * 3), "server of processes"]:
            forks = psutil.Process(server.process.pid).children()
            reading = [process for fork in forks for process in fork.children()]
            killed = {
                "its child": [child for process in reading for child in process.children()],
                "reading process": reading,
                "server of processes": [fork for fork in forks if fork.children()],
            }
            for process in killed[kind]:
                kills.append((kind, time.perf_counter()))
                process.kill()
                await asyncio.sleep(3.0)
        is_over = True
        answers = [answer for _, answer in await asking]
        others = await load(server.port, bench.small_clips(), 16)
    finally:
        results["exit code"] = server.end()
    results["kills"] = []
    for number, (kind, when) in enumerate(kills):
        until = kills[number + 1][1] if number + 1 < len(kills) else float("inf")
        ends = [(a.begin + a.seconds, a) for a in answers if when <= a.begin + a.seconds < until]
        next_right = min((end for end, a in ends if a.status == "200" and a.begin >= when), default=float("inf"))
        own_counts = counts(a for _, a in ends)
        results["kills"].append({"killed": kind, "answers": own_counts, "seconds to a new answer": next_right - when})
    return {**results, "answers": counts(answers), "afterwards": counts(a for _, a in others)}


async def memory_job(bench: Bench) -> dict[str, Any]:
    """Compare memory and open files after 1,000 and after 10,000 requests: texts, clips, and refused ones."""
    server = bench.serve()
    path, clips = f"/predictions/{bench.name}", bench.small_clips()
    wrong = [
        form(path, ("data", b"no media file" * 100)), form("/predictions/other", ("text", "a")), get("/nothing"),
        form(path, ("text", "a"), ("top_k", 0)), post("/search", "application/json", b"{"), infer(bench.name, text=[]),
    ]  # fmt: skip
    kinds = [*["text"] * 16, "clip", "wrong", "clip", "wrong"]

    def mixed(first: int, last: int) -> Iterable[bytes]:
        for n in range(first, last):
            kind = kinds[n % len(kinds)]
            yield (
                bench.text(n)
                if kind == "text"
                else (clips if kind == "clip" else wrong)[n % len(clips if kind == "clip" else wrong)]
            )

    results: dict[str, Any] = {}
    statuses: collections.Counter = collections.Counter()
    try:
        for first, last in ((0, 1000), (1000, 10_000)):
            statuses += collections.Counter(counts(a for _, a in await load(server.port, mixed(first, last), 16)))
            await asyncio.sleep(2.0)
            found = server.each(memory)
            results[f"after {last}"] = {
                "server MB": found[server.process.pid][0],
                "all MB": sum(own[0] for own in found.values()),
                "open files of the server": found[server.process.pid][2],
                "open files of all": sum(own[2] for own in found.values()),
                "processes": len(found),
            }
    finally:
        results["exit code"] = server.end()
    one, ten = results["after 1000"], results["after 10000"]
    growth = {name: ten[name] / one[name] for name in ("server MB", "all MB")}
    return {**results, "answers": dict(statuses), "growth": growth}


JOBS = {
    "parity": parity, "flood": flood, "bodies": bodies, "stopping": stopping, "reload": reload, "readers": readers,
    "memory": memory_job,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)}; by default all")
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="folders of clips")
    parser.add_argument("--models", nargs="*", default=[], help="a model of each kind; by default they are made")
    parser.add_argument("--max_clips", type=int, default=52, help="number of clips of each folder")
    parser.add_argument("--times", type=int, default=20, help="how often a server is stopped or reloaded")
    options = parser.parse_args()
    files = [sorted(f for f in folder.iterdir() if f.is_file())[: options.max_clips] for folder in options.clips]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), [file for own in files for file in own], options.models, options.times)
        for job in options.jobs or JOBS:
            results = asyncio.run(JOBS[job](bench))
            print(job, json.dumps(results, indent=1))
            common.save(f"serving_load_{job}", results)


if __name__ == "__main__":
    main()
