"""Examples of search results for the report."""

import os

import numpy as np

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.preview import PREVIEW_SAMPLING_RATE, ClipPreview
from simple_multimodal.data.rows import Row, clip_file, row_captions
from simple_multimodal.evaluation.ranking import ranking
from simple_multimodal.evaluation.report import Example, ExampleResult, Excerpt
from simple_multimodal.tasks.retrieval.evaluate import Ranking

NUM_EXAMPLES = 8
NUM_RESULTS = 4


def retrieval_examples(ranked: Ranking, collator: MultimodalCollator) -> list[Example]:
    """
    Choose the query with the worst rank and others spread evenly over the set, with the clips found for each.

    Args:
        ranked ([`Ranking`]): The details of an evaluation.
        collator ([`MultimodalCollator`]): Collator of the evaluation.
    """
    found, scores, ranks = ranked.found, ranked.scores, ranked.ranks.texts
    text_groups, clip_groups = found.groups
    shown = np.flatnonzero([row["index"] not in found.bad for row, _ in found.captions])
    if len(shown) == 0:
        return []
    spread = shown[np.linspace(0, len(shown) - 1, min(NUM_EXAMPLES, len(shown))).astype(int)]
    chosen = list(dict.fromkeys([int(shown[ranks[shown].argmax()]), *spread.tolist()]))[:NUM_EXAMPLES]
    own = {query: scores.rows(query, query + 1)[0] for query in chosen}
    right = {query: clip_groups == text_groups[query] for query in chosen}
    preview = ClipPreview(collator)
    examples = []
    for query in chosen:
        results = []
        places = ranking(own[query][None], right[query][None], NUM_RESULTS)[0].tolist()
        if ranks[query] > len(places):
            places.append(int(np.where(right[query], own[query], -np.inf).argmax()))
        for place, candidate in enumerate(places):
            row = found.clips[candidate]
            if row["index"] in found.bad:
                continue
            audio = preview.audio(row)
            results.append(
                ExampleResult(
                    name=_name_of(row),
                    rank=place + 1 if place < NUM_RESULTS else int(ranks[query]),
                    score=float(own[query][candidate]),
                    is_correct=bool(right[query][candidate]),
                    text=next(iter(row_captions(row)), None),
                    frames=preview.frames(row),
                    audio=None if audio is None else Excerpt(audio, PREVIEW_SAMPLING_RATE),
                )
            )
        note = f"The right clip is at rank {ranks[query]:,} of {len(found.clips):,}."
        examples.append(Example(found.captions[query][1], note, results))
    return examples


def _name_of(row: Row) -> str:
    """Return the id of a row, or the name of its file if it has none, so that its number stands for it."""
    file = clip_file(row)
    return row["id"] if file is None or row["id"] != str(row["index"]) else os.path.basename(file)
