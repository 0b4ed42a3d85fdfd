"""Speed of generation: the evaluation's loop against `generate` on finished batches, and what batches bring.

    python benchmarks/generation.py MODEL MANIFEST [--pose_root DIR] [--video_root DIR] [--num_rows 128]

MODEL writes texts. The first rows of MANIFEST are cut to segments of random lengths, so that their sizes differ.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common

import simple_multimodal as smm
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.tasks.generation.translator import clip_size

BATCH_SIZE = 32
SHORTEST = 0.3  # share of the clip


def cut(rows: Sequence[Row], seconds: float) -> list[Row]:
    """Return the rows with segments of random lengths, from the beginning of their clips."""
    generator = random.Random(0)
    return [
        {**row, "start_seconds": 0.0, "end_seconds": seconds * generator.uniform(SHORTEST, 1.0)}  # type: ignore[misc]
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--pose_root", type=Path)
    parser.add_argument("--video_root", type=Path)
    parser.add_argument("--num_rows", type=int, default=128)
    parser.add_argument("--clip_seconds", type=float, default=2.8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    translator = smm.Translator.from_pretrained(options.model, batch_size=BATCH_SIZE)
    modalities = translator.processor.modalities
    roots = {name: getattr(options, f"{name}_root") for name in ("pose", "video")}
    dataset = RowDataset.from_manifest(
        options.manifest, modalities=modalities, roots={name: root for name, root in roots.items() if root is not None}
    )
    rows = cut(list(dataset.rows(files="named"))[: options.num_rows], options.clip_seconds)
    in_order = sorted(rows, key=lambda row: clip_size(row, modalities))

    def batches(rows: Sequence[Row], size: int) -> list[dict[str, Any]]:
        return [translator.collator(rows[place : place + size]) for place in range(0, len(rows), size)]

    def by_hand(prepared: list[dict[str, Any]]) -> int:
        return sum(len(own) for batch in prepared for own in translator.model.generate(batch)[0])

    prepared = {
        "`generate` on these batches": batches(in_order, BATCH_SIZE),
        "`generate` on batches in the table's order": batches(rows, BATCH_SIZE),
        "`generate` row by row": batches(rows, 1),
    }
    ways: dict[str, Callable[[], Any]] = {
        "the evaluation, reading included": lambda: translator.write(rows),
        **{name: (lambda own=own: by_hand(own)) for name, own in prepared.items()},
    }
    num_tokens = by_hand(prepared["`generate` on these batches"])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            seconds[name].append(common.measured(ways[name])[1])
    fastest = statistics.median(seconds["`generate` on these batches"])
    print(f"{len(rows)} rows, {num_tokens} tokens, batches of {BATCH_SIZE}, one thread\n")
    print("| | tokens per CPU second | of `generate` |\n|---|---|---|")
    for name, own in seconds.items():
        median = statistics.median(own)
        print(f"| {name} | {num_tokens / median:,.0f} | {fastest / median:.2f} |")


if __name__ == "__main__":
    main()
