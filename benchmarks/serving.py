"""Throughput and latency of `simple-multimodal serve`, with shared batches and without, for texts and clips.

python benchmarks/serving.py RETRIEVAL_MODEL CLASSIFIER CLIPS [--rounds 2] [--litserve PYTHON]

RETRIEVAL_MODEL and CLASSIFIER are models of the toy world, CLIPS a folder of its clips. Two servers run at the same
time, one with the default `--max_batch_size` and one with 1, and take turns under 1, 8 and 64 clients that send one
request after the other on a connection that stays open. CPU time is that of the server's process, and that of the
processes that read its clips; clients are in a process of their own. Beside it stands what a clip costs if it is read
and classified in one process, one by one.

With --litserve, the same models on LitServe take their turns, too: PYTHON is the interpreter of an environment for
`serving_litserve.py`. One load has a blank text, which is refused, in every 16 requests; rates count right answers.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import psutil

import simple_multimodal as smm

REQUESTS = {
    "texts": {1: 300, 8: 1200, 64: 3000},
    "texts, some blank": {64: 3000},
    "clips": {1: 60, 8: 240, 64: 480},
}
BLANK_EVERY = 16
ANSWER_SECONDS = 10
VARIANTS = {"batches": (), "one by one": ("--max_batch_size", "1")}
BOUNDARY = "boundary-of-the-benchmark"


def text_request(number: int, *, blank_every: int | None = None) -> bytes:
    text = f"a large red circle rises while fast high pure notes play {number}"
    if blank_every is not None and number % blank_every == 0:
        text = " "
    body = json.dumps({"input": text}).encode()
    return post("/v1/embeddings", "application/json", body)


def clip_request(name: str, clip: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="data"; filename="clip.mp4"\r\n\r\n'
    body = head.encode() + clip + f"\r\n--{BOUNDARY}--\r\n".encode()
    return post(f"/predictions/{name}", f"multipart/form-data; boundary={BOUNDARY}", body)


def post(path: str, content_type: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def client(port: int, requests: Any, times: list[float], statuses: list[int]) -> None:
    """Send requests one after the other. The status of one without an answer is 0."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        begin = time.perf_counter()
        try:
            status = await asyncio.wait_for(exchange(reader, writer, request), ANSWER_SECONDS)
        except (OSError, EOFError, LookupError, TimeoutError):
            status = 0
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        times.append(time.perf_counter() - begin)
        statuses.append(status)
    writer.close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request, read the answer, and return its status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")][0]
    await reader.readexactly(int(length.split(b":")[1]))
    return int(head.split(b" ")[1])


def flood(port: int, requests: list[bytes], num_clients: int, num_requests: int, results: Any) -> None:
    """Run the clients; they share the requests."""
    times: list[float] = []
    statuses: list[int] = []
    shared = itertools.islice(itertools.cycle(requests), num_requests)

    async def run() -> None:
        await asyncio.gather(*(client(port, shared, times, statuses) for _ in range(num_clients)))

    begin = time.perf_counter()
    asyncio.run(run())
    results.put((time.perf_counter() - begin, times, statuses))


def is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return answer.status == 200
    return False


class ServerUnderTest:
    """A server in a session of its own, to which its reading processes belong. Its log goes to a file, or nowhere."""

    def __init__(
        self, models: list[str], flags: tuple[str, ...], log: str = os.devnull, command: list[str] | None = None
    ):
        serve = [sys.executable, "-m", "simple_multimodal", "serve", *models, "--port", "0", *flags]
        with open(log, "a", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                serve if command is None else command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                text=True,
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        while command is not None and not is_healthy(self.port):
            time.sleep(0.5)

    def each(self, value: Callable[[psutil.Process], Any]) -> dict[int, Any]:
        """Return a value of every process of the session by process id; the server's is the first."""
        found = {}
        for pid in [self.process.pid, *psutil.pids()]:
            try:
                if os.getsid(pid) == self.process.pid:
                    found[pid] = value(psutil.Process(pid))
            except (psutil.Error, OSError):  # it has ended
                pass
        return found

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time of the server's process, and of all others of its session."""
        seconds = self.each(lambda process: sum(process.cpu_times()[:2]))
        own = seconds[self.process.pid]
        return own, sum(seconds.values()) - own

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):  # LitServe leaves processes behind
            os.killpg(self.process.pid, signal.SIGKILL)
        return code


def measure(
    server: ServerUnderTest, requests: list[bytes], num_clients: int, num_requests: int, num_blank: int
) -> dict[str, float]:
    """Return right answers per second, how many others are missing, latencies and CPU time per request."""
    results = multiprocessing.get_context("spawn").SimpleQueue()
    before = server.cpu_seconds()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=flood, args=(server.port, requests, num_clients, num_requests, results))
    process.start()
    seconds, times, statuses = results.get()
    process.join()
    own, others = (after - was for after, was in zip(server.cpu_seconds(), before, strict=True))
    num_right = statuses.count(200)
    assert num_right == num_requests or num_blank, sorted(set(statuses))
    quantiles = statistics.quantiles(times, n=20)
    return {
        "per_second": num_right / seconds,
        "wrong": num_requests - num_blank - num_right,
        "p50_ms": 1000 * statistics.median(times),
        "p95_ms": 1000 * quantiles[18],
        "server_ms": 1000 * own / num_requests,
        "readers_ms": 1000 * others / num_requests,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("retrieval_model", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--litserve", type=Path, help="interpreter of an environment with LitServe")
    options = parser.parse_args()
    files = sorted(options.clips.glob("*.mp4"))[:64]
    requests = {
        "texts": [text_request(number) for number in range(512)],
        "texts, some blank": [text_request(number, blank_every=BLANK_EVERY) for number in range(512)],
        "clips": [clip_request(options.classifier.resolve().name, file.read_bytes()) for file in files],
    }
    models = [str(options.retrieval_model.resolve()), str(options.classifier.resolve())]
    servers = {name: ServerUnderTest(models, flags) for name, flags in VARIANTS.items()}
    if options.litserve is not None:
        script = str(Path(__file__).with_name("serving_litserve.py"))
        servers["LitServe"] = ServerUnderTest(models, (), command=[str(options.litserve), script, *models])
    rows: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    try:
        loads = [(kind, *load) for kind, by_clients in REQUESTS.items() for load in by_clients.items()]
        for kind, num_clients, num_requests in loads:
            num_blank = math.ceil(num_requests / BLANK_EVERY) if "blank" in kind else 0
            for server in servers.values():  # warm
                measure(server, requests[kind], num_clients, min(64, num_requests), num_blank)
            for number in range(options.rounds):
                for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
                    found = measure(servers[name], requests[kind], num_clients, num_requests, num_blank)
                    rows.setdefault((kind, num_clients, name), []).append(found)
                    print(f"{kind}, {num_clients} clients, {name}: {found['per_second']:.1f}/s", file=sys.stderr)
    finally:
        codes = [server.end() for server in servers.values()]
    results: dict[str, Any] = {}
    for (kind, num_clients, name), found in rows.items():
        mean = {key: statistics.mean(one[key] for one in found) for key in found[0]}
        results[f"{kind}, {num_clients} clients, {name}"] = mean
        print(f"{kind}, {num_clients:2d} clients, {name:10s} " + "  ".join(f"{k} {v:8.2f}" for k, v in mean.items()))
    classifier = smm.VideoClassifier.from_pretrained(options.classifier)
    classifier(str(files[0]))
    cpu = time.process_time()
    for file in files:
        classifier(str(file))
    alone = 1000 * (time.process_time() - cpu) / len(files)
    results["clips in one process"] = {"cpu_ms": alone}
    print(f"clips read and classified in one process, one by one: {alone:.2f} ms of CPU")
    print(f"exit codes of the servers: {codes}")
    common.save("serving", results)


if __name__ == "__main__":
    main()
