"""Read the corpus of hostile and broken inputs in the ways that users' inputs are read, each in its own process.

    python -m tests.faults.hostile RESULTS_FOLDER            # the whole corpus: hostile.json and hostile.txt
    python -m tests.faults.hostile RESULTS_FOLDER --quick    # the part in the ordinary test run

Exits with 1 if a case did not end as expected: refused with a reason or read, within the limits of time and memory,
without a connection to the listener that all addresses in the corpus point to, and without running a payload. Linux.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import datasets
import torch
from transformers import BertConfig

from arguments import parse_args
from simple_multimodal.alpro import load_alpro
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import load_pretrained_tower
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.retrieval.retriever import Retriever
from tests.faults.corpus import Case, build_corpus
from tests.faults.supervised import supervise
from tests.models.tiny import SIZES, VOCAB_SIZE

LIMIT_SECONDS = 120.0
LIMIT_MEGABYTES = 512.0


def processor() -> MultimodalProcessor:
    """Make a processor with the sizes of real models."""
    return MultimodalProcessor(feature_extractor=AudioFeatureExtractor(), video_processor=VideoClipProcessor())


def read_media(path: Path, backend: str = "pyav") -> None:
    """Read a file named on the command line, through all of loading."""
    MultimodalCollator(processor(), video_backend=backend)(list(RowDataset.from_files(path)))


def read_row(manifest: Path) -> None:
    """Read a manifest: its rows, and the files they name."""
    with tempfile.TemporaryDirectory() as cache:
        dataset = RowDataset.from_manifest(manifest, cache_dir=cache, modalities=())
        collator = MultimodalCollator(processor())
        for row in dataset:
            collator([row])
        list(dataset.captions())


def read_video_cell(path: Path) -> None:
    """Read a file that a manifest names as video."""
    row = RowDataset.from_files(path)[0]
    MultimodalCollator(processor())([{**row, "video": str(path)}])


def read_model(folder: Path) -> None:
    Retriever.from_pretrained(folder)


def read_tower(folder: Path) -> None:
    encoder = get_encoder_class("bert", "text")(BertConfig(**SIZES, vocab_size=VOCAB_SIZE))
    load_pretrained_tower(encoder, None, str(folder))


def read_config(path: Path) -> None:
    parse_args(["--config", str(path), "--train_file", "a.csv", "--output_dir", "out"])


READERS = {
    "media": read_media,
    "torchcodec": partial(read_media, backend="torchcodec"),
    "decord": partial(read_media, backend="decord"),
    "video_cell": read_video_cell,
    "row": read_row,
    "model": read_model,
    "tower": read_tower,
    "convert": load_alpro,
    "config": read_config,
}


class Listener:
    """Listener that counts connections to a port of 127.0.0.1."""

    def __init__(self):
        self.connections = 0
        self.sockets = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            bound = socket.socket(socket.AF_INET, kind)
            bound.bind(("127.0.0.1", self.sockets[0].getsockname()[1] if self.sockets else 0))
            self.sockets.append(bound)
        self.sockets[0].listen()
        self.port = self.sockets[0].getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._receive, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.sockets[0].accept()
            self.connections += 1
            connection.close()

    def _receive(self) -> None:
        while True:
            self.sockets[1].recvfrom(65536)
            self.connections += 1


def judge(case: Case, outcome: str, megabytes: float, connections: int, was_executed: bool) -> str:
    """Return what is wrong with how a case ended; empty if nothing is."""
    problems = []
    if outcome not in ("reads", "refused") or case.expected not in ("either", outcome):
        problems.append(f"{outcome}, not {case.expected}")
    if megabytes > LIMIT_MEGABYTES:
        problems.append(f"{megabytes} MB")
    if connections:
        problems.append(f"{connections} connections")
    if was_executed:
        problems.append("a payload was executed")
    return "; ".join(problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Output folder of hostile.json and hostile.txt.")
    parser.add_argument("--quick", action="store_true", help="Read only the part in the ordinary test run.")
    parser.add_argument("--only", default="", help="Read only cases whose name contains this.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    listener = Listener()
    records, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SIMPLE_MULTIMODAL_INDEX_DIR"] = f"{folder}/index"
        executed = Path(folder, "corpus", "executed")
        Path(folder, "corpus").mkdir()
        for case in build_corpus(Path(folder, "corpus"), port=listener.port, quick=options.quick):
            if options.only not in case.name:
                continue
            before = listener.connections
            ending = supervise(partial(READERS[case.kind], case.path), limit_seconds=LIMIT_SECONDS)
            was_executed = executed.exists()
            problem = judge(case, ending.outcome, ending.megabytes, listener.connections - before, was_executed)
            if was_executed:
                executed.rmdir()
            reason = ending.reason.replace(folder, "")
            records.append(
                {
                    "name": case.name,
                    "expected": case.expected,
                    **ending._asdict(),
                    "reason": reason,
                    "problem": problem,
                }
            )
            lines.append(
                f"{'!!' if problem else 'ok'} {case.name:45} {ending.outcome:8} {ending.seconds:7.2f} s "
                f"{ending.megabytes:6.0f} MB  {problem or reason[:150]}"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    outcomes = Counter(record["outcome"] for record in records)
    summary = {
        "cases": len(records),
        "as_expected": sum(not record["problem"] for record in records),
        **{name: outcomes[name] for name in ("refused", "reads", "error", "crash", "hang")},
        "connections": listener.connections,
        "slowest_seconds": max((record["seconds"] for record in records), default=0),
        "peak_megabytes": max((record["megabytes"] for record in records), default=0),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "hostile.json").write_text(json.dumps({"summary": summary, "cases": records}, indent=1))
    (options.results / "hostile.txt").write_text("\n".join([*lines, json.dumps(summary)]) + "\n")
    print(json.dumps(summary))
    return 0 if summary["as_expected"] == len(records) else 1


if __name__ == "__main__":
    sys.exit(main())
