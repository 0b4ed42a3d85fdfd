"""Examples of generated texts for the report."""

import numpy as np

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.preview import PREVIEW_SAMPLING_RATE, ClipPreview
from simple_multimodal.evaluation.glossary import LOWER_IS_BETTER
from simple_multimodal.evaluation.report import Example, ExampleResult, Excerpt
from simple_multimodal.tasks.generation.evaluate import Written

NUM_EXAMPLES = 9


def text_examples(written: Written, collator: MultimodalCollator) -> list[Example]:
    """
    Choose the worst, median and best rows, and others evenly between them, each with its text and the expected one.

    Args:
        written ([`Written`]): The details of an evaluation.
        collator ([`MultimodalCollator`]): Collator of the evaluation.
    """
    values = -written.values if written.metric.endswith(LOWER_IS_BETTER) else written.values
    scored = [
        number for number in np.argsort(values, kind="stable").tolist() if written.texts[number].score is not None
    ]
    scored = [number for number in scored if not np.isnan(values[number])]
    if not scored:
        return []
    places = np.linspace(0, len(scored) - 1, min(NUM_EXAMPLES, len(scored))).round().astype(int)
    preview = ClipPreview(collator)
    examples = []
    for number in [scored[place] for place in places]:
        row, text = written.rows[number], written.texts[number]
        expected = " / ".join(text.references)
        result = ExampleResult(
            name=f"{written.metric} {written.values[number]:.3f}",
            rank=1,
            score=float(text.score or 0.0),
            is_correct=text.prediction in text.references,
            text=text.prediction or "(empty)",
        )
        audio = preview.audio(row)
        excerpt = None if audio is None else Excerpt(audio, PREVIEW_SAMPLING_RATE)
        examples.append(Example(row["id"], f"Expected: {expected}", [result], preview.frames(row), excerpt))
    return examples
