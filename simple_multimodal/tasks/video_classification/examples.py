"""Examples of classified clips for the report."""

import numpy as np

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.preview import PREVIEW_SAMPLING_RATE, ClipPreview
from simple_multimodal.evaluation.report import Example, ExampleResult, Excerpt
from simple_multimodal.tasks.video_classification.evaluate import Classified

NUM_EXAMPLES = 8
NUM_RESULTS = 4


def class_examples(classified: Classified, collator: MultimodalCollator) -> list[Example]:
    """
    Choose the clip whose labels have the lowest scores and others spread evenly over the set, with the labels that the
    model gives each.

    Args:
        classified ([`Classified`]): The details of an evaluation.
        collator ([`MultimodalCollator`]): Collator of the evaluation.
    """
    probabilities = classified.probabilities.numpy()
    shown = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    if len(shown) == 0:
        return []
    number = {name: place for place, name in enumerate(classified.names)}
    own = [[number[label] for label in labels] for labels in classified.labels]
    lowest = {place: probabilities[place, own[place]].min(initial=1.0) for place in shown.tolist()}
    spread = shown[np.linspace(0, len(shown) - 1, min(NUM_EXAMPLES, len(shown))).astype(int)]
    chosen = list(dict.fromkeys([min(lowest, key=lowest.__getitem__), *spread.tolist()]))[:NUM_EXAMPLES]
    preview = ClipPreview(collator)
    examples = []
    for place in chosen:
        row = classified.rows[place]
        order = np.argsort(-probabilities[place], kind="stable")
        results = [
            ExampleResult(
                name=classified.names[label],
                rank=rank,
                score=float(probabilities[place, label]),
                is_correct=label in own[place],
            )
            for rank, label in enumerate(order[: max(NUM_RESULTS, len(own[place]))].tolist(), start=1)
        ]
        audio = preview.audio(row)
        excerpt = None if audio is None else Excerpt(audio, PREVIEW_SAMPLING_RATE)
        labels = ", ".join(classified.labels[place]) or "none of the labels"
        examples.append(Example(row["id"], f"Labelled {labels}.", results, preview.frames(row), excerpt))
    return examples
