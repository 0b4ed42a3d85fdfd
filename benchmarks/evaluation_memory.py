"""Peak memory and time of evaluating retrieval over a whole set on two processes.

python benchmarks/evaluation_memory.py [--rows 50000] [--processes 2] [--top_k 32]

Each process makes the embeddings of every second row, like the outputs of the towers. They are gathered on the host;
then follow ranks in both directions, metrics and intervals, re-ranking of the first candidates by a cheap stand-in for
the matching head, and the contrastive loss of the set. Every tenth clip is in the set twice, every twentieth caption
equals another clip's caption, and every twentieth clip equals another one. The peak is `VmHWM`, since the start of the
process; the memory of the libraries is reported separately.

Before that, ranks and re-ranked ranks of 3,000 captions and clips are compared with those computed from one matrix:
once for cosines, and once in ten blocks for products of small integers, many of which are equal.
"""

import common  # noqa: I001  # sets the number of threads

import argparse
import json
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from simple_multimodal.evaluation import scores as scores_module
from simple_multimodal.evaluation.ranking import text_clip_ranks
from simple_multimodal.evaluation.reranking import choose_candidates, rerank
from simple_multimodal.evaluation.retrieval import text_clip_retrieval
from simple_multimodal.evaluation.scores import CosineScores, Processes
from simple_multimodal.models.distributed import gather_objects, gather_on_host
from simple_multimodal.models.losses import normalize, whole_set_contrastive_loss

DIM = 512
NOISE = 5.0
"""Length of the noise added to a caption's embedding: about half of the captions rank their clip first."""
CHECKED_ROWS = 3000
GIGABYTE = 1e9


def peak_memory() -> int:
    """Return the peak memory of this process so far, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def vector(kind: int, number: int) -> torch.Tensor:
    return torch.randn(DIM, generator=torch.Generator().manual_seed(2 * number + kind))


def make_rows(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of captions and clips of rows; they do not depend on the process."""
    texts, clips = [], []
    for row in ids:
        told = row - (row % 20 == 5)  # as the caption before
        seen = row - (row % 10 == 9) - (row % 20 == 15)  # as the clip before, of the same group or another one
        texts.append(normalize(normalize(vector(0, told)) + NOISE * normalize(vector(1, told))))
        clips.append(normalize(vector(0, seen)))
    return torch.stack(texts), torch.stack(clips)


def groups_of(num_rows: int) -> np.ndarray:
    """Return the groups of rows: every tenth row shows the clip of the row before."""
    rows = np.arange(num_rows)
    return rows - (rows % 10 == 9)


def stand_in(pairs: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Return scores like those of a matching head: the cosine plus a number that depends on the pair."""
    return cosines + 0.02 * np.sin(pairs @ np.array([12.9898, 78.233])).astype(np.float32)


def plain_ranks(
    scores: np.ndarray, right: np.ndarray, second: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each query by the first scores and after re-ranking, by sorting all candidates twice."""
    order = np.lexsort((right, -scores), axis=1)
    ranks = np.take_along_axis(right, order, axis=1).argmax(axis=1) + 1
    first = order[:, :top_k]
    again = np.lexsort((np.take_along_axis(right, first, axis=1), -np.take_along_axis(second, first, axis=1)), axis=1)
    order[:, :top_k] = np.take_along_axis(first, again, axis=1)
    return ranks, np.take_along_axis(right, order, axis=1).argmax(axis=1) + 1


def check(processes: Processes, top_k: int) -> dict[str, dict[str, float]]:
    """Compare with ranks from one matrix; raise if a rank differs."""
    groups = groups_of(CHECKED_ROWS)
    right = groups[:, None] == groups
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-1, 2, (2, CHECKED_ROWS, 24), generator=generator).float()
    found = {}
    for name, (texts, clips), max_elements in (
        ("cosines", make_rows(list(range(CHECKED_ROWS))), scores_module.MAX_BLOCK_ELEMENTS),
        ("whole_numbers", numbers, 1 << 20),
    ):
        matrix = (texts @ clips.T).numpy()
        second = stand_in(np.argwhere(np.ones_like(right)), matrix.ravel()).reshape(matrix.shape).round(2)
        default, scores_module.MAX_BLOCK_ELEMENTS = scores_module.MAX_BLOCK_ELEMENTS, max_elements
        scores = CosineScores(texts, clips, processes=processes)
        ranks = text_clip_ranks(scores, groups, groups)
        candidates = choose_candidates(scores, groups, groups, top_k)
        reranked = rerank(ranks, candidates, second[tuple(candidates.pairs.T)], groups, groups)
        scores_module.MAX_BLOCK_ELEMENTS = default
        for found_ranks, plain in (
            ((ranks.texts, reranked.texts), plain_ranks(matrix, right, second, top_k)),
            ((ranks.clips, reranked.clips), plain_ranks(matrix.T, right.T, second.T, top_k)),
        ):
            np.testing.assert_array_equal(found_ranks, plain)
        best = np.where(right, matrix, -np.inf).max(axis=1, keepdims=True)
        found[name] = {
            "blocks": -(-CHECKED_ROWS // scores.rows_per_block),
            "queries_with_ties_at_their_rank": int(((matrix == best) & ~right).any(axis=1).sum()),
            "pairs_scored": len(candidates.pairs),
        }
    return found


def work(index: int, folder: Path, options: argparse.Namespace, part: str) -> None:
    """Run one process, which does `check` or `measure`: the check must not raise the measured peak."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{part}",
        rank=index,
        world_size=options.processes,
        timeout=timedelta(hours=1),
    )
    processes = Processes(index, options.processes, gather_objects)
    outcome = check(processes, options.top_k) if part == "check" else measure(processes, options)
    (folder / f"{part}_{index}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


def measure(processes: Processes, options: argparse.Namespace) -> dict[str, dict]:
    """Evaluate a set, and return memory and time after each step, and the results."""
    points: dict[str, dict[str, float]] = {}
    start = time.perf_counter(), time.process_time()

    def note(name: str) -> None:
        nonlocal start
        now = time.perf_counter(), time.process_time()
        seconds, cpu = now[0] - start[0], now[1] - start[1]
        points[name] = {"peak_gigabytes": peak_memory() / GIGABYTE, "seconds": seconds, "cpu_seconds": cpu}
        if processes.index == 0:
            print(f"{name}: {points[name]}", flush=True)
        start = now

    note("libraries")
    ids = list(range(processes.index, options.rows, processes.count))
    texts, clips = make_rows(ids)
    note("own rows")
    _, columns = gather_on_host(torch.tensor(ids), {"text": texts, "clip": clips})
    texts, clips = columns["text"], columns["clip"]
    note("gathered")
    scores, groups = CosineScores(texts, clips, processes=processes), groups_of(options.rows)
    ranks = text_clip_ranks(scores, groups, groups)
    note("ranks")
    result = text_clip_retrieval(ranks, groups, groups)
    note("metrics and intervals")
    hardest = np.stack([np.arange(options.rows), ranks.first_wrong], axis=1)
    candidates = choose_candidates(scores, groups, groups, options.top_k, needed=hardest)
    values = stand_in(candidates.pairs, scores.at(candidates.pairs))
    reranked = rerank(ranks, candidates, values, groups, groups)
    matched = text_clip_retrieval(reranked, groups, groups, prefix="matching_")
    note("re-ranked")
    loss = whole_set_contrastive_loss(
        texts,
        clips,
        group_ids=torch.from_numpy(groups),
        logit_scale=torch.tensor(20.0),
        logit_bias=None,
        form="softmax",
    )
    note("contrastive loss")
    outcome = {
        "metrics": result.metrics | matched.metrics | {"contrastive_loss": float(loss) / options.rows},
        "intervals": result.intervals | matched.intervals,
        "pairs_scored": len(candidates.pairs),
    }
    outcomes = gather_objects(outcome)
    assert all(other == outcome for other in outcomes), "processes differ"
    return {"points": points, **outcome}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--top_k", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), options.processes
        for part in ("check", "measure"):
            start_processes(work, args=(folder, options, part), nprocs=count, start_method="spawn")
        checked = json.loads((folder / "check_0.json").read_text())
        found = [json.loads((folder / f"measure_{index}.json").read_text()) for index in range(count)]
    points = [process.pop("points") for process in found]
    peaks = [max(point["peak_gigabytes"] for point in own.values()) for own in points]
    print(f"peak per process: {', '.join(f'{peak:.2f} GB' for peak in peaks)}")
    common.save(
        "evaluation_memory",
        {
            **vars(options),
            "dim": DIM,
            "peak_gigabytes": peaks,
            "steps_by_process": points,
            **found[0],
            "checked_at_3000": checked,
        },
    )


if __name__ == "__main__":
    main()
