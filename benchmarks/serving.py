"""Throughput and latency of `simple-multimodal serve`, with shared batches and without, for texts and clips.

python benchmarks/serving.py RETRIEVAL_MODEL CLASSIFIER CLIPS [--rounds 2]

RETRIEVAL_MODEL and CLASSIFIER are models of the toy world, CLIPS a folder of its clips. Two servers run at the same
time, one with the default `--max_batch_size` and one with 1, and take turns under 1, 8 and 64 clients that send one
request after the other on a connection that stays open. CPU time is that of the server's process, and that of the
processes that read its clips; clients are in a process of their own. Beside it stands what a clip costs if it is read
and classified in one process, one by one.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import psutil

import simple_multimodal as smm

CLIENTS = (1, 8, 64)
REQUESTS = {"texts": {1: 300, 8: 1200, 64: 3000}, "clips": {1: 60, 8: 240, 64: 480}}
VARIANTS = {"batches": (), "one by one": ("--max_batch_size", "1")}
BOUNDARY = "boundary-of-the-benchmark"


def text_request(number: int) -> bytes:
    body = json.dumps({"input": f"a large red circle rises while fast high pure notes play {number}"}).encode()
    return post("/v1/embeddings", "application/json", body)


def clip_request(name: str, clip: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="data"; filename="clip.mp4"\r\n\r\n'
    body = head.encode() + clip + f"\r\n--{BOUNDARY}--\r\n".encode()
    return post(f"/predictions/{name}", f"multipart/form-data; boundary={BOUNDARY}", body)


def post(path: str, content_type: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def client(port: int, requests: Any, times: list[float], statuses: list[int]) -> None:
    """Send requests one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        begin = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        times.append(time.perf_counter() - begin)
        statuses.append(int(head.split(b" ")[1]))
    writer.close()


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


class ServerUnderTest:
    """A server in a session of its own, to which its reading processes belong. Its log goes to a file, or nowhere."""

    def __init__(self, models: list[str], flags: tuple[str, ...], log: str = os.devnull):
        with open(log, "a", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simple_multimodal", "serve", *models, "--port", "0", *flags],
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                text=True,
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])

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
        return self.process.wait(60)


def measure(server: ServerUnderTest, requests: list[bytes], num_clients: int, num_requests: int) -> dict[str, float]:
    """Return requests per second, latencies and CPU time per request."""
    results = multiprocessing.get_context("spawn").SimpleQueue()
    before = server.cpu_seconds()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=flood, args=(server.port, requests, num_clients, num_requests, results))
    process.start()
    seconds, times, statuses = results.get()
    process.join()
    own, others = (after - was for after, was in zip(server.cpu_seconds(), before, strict=True))
    assert statuses == [200] * num_requests, sorted(set(statuses))
    quantiles = statistics.quantiles(times, n=20)
    return {
        "per_second": num_requests / seconds,
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
    options = parser.parse_args()
    files = sorted(options.clips.glob("*.mp4"))[:64]
    requests = {
        "texts": [text_request(number) for number in range(512)],
        "clips": [clip_request(options.classifier.resolve().name, file.read_bytes()) for file in files],
    }
    models = [str(options.retrieval_model.resolve()), str(options.classifier.resolve())]
    servers = {name: ServerUnderTest(models, flags) for name, flags in VARIANTS.items()}
    rows: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    try:
        for kind, num_clients in itertools.product(REQUESTS, CLIENTS):
            for server in servers.values():  # warm
                measure(server, requests[kind], num_clients, min(64, REQUESTS[kind][num_clients]))
            for number in range(options.rounds):
                for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
                    found = measure(servers[name], requests[kind], num_clients, REQUESTS[kind][num_clients])
                    rows.setdefault((kind, num_clients, name), []).append(found)
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
