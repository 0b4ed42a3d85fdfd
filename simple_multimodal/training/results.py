"""What a run leaves for people: the metrics file, the report page, and the model card."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from simple_multimodal.data.bad_samples import as_json
from simple_multimodal.data.rows import Row, row_captions
from simple_multimodal.evaluation.report import QueryExample, RetrievedClip, write_metrics, write_report
from simple_multimodal.evaluation.retrieval import positives_from_groups, retrieval_ranks
from simple_multimodal.evaluation.retrieval import ranking as best_first
from simple_multimodal.modalities import INPUT_KEYS
from simple_multimodal.tasks.retrieval.evaluate import Ranking
from simple_multimodal.training.trainer import MultimodalTrainer

NUM_EXAMPLES = 8
NUM_RESULTS = 4
FRAMES_PER_STRIP = 4


def write_results(trainer: MultimodalTrainer) -> None:
    """Write `evaluation.json`, `report.html` and, beside a model that was trained, its `README.md`, and into its
    configuration whether matching re-ranks; main process only.

    Args:
        trainer (`MultimodalTrainer`): after training and/or evaluation.
    """
    evaluation = trainer.last_evaluation
    if not trainer.is_world_process_zero() or evaluation is None:
        return
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = {
        "metrics": evaluation.metrics,
        "protocol": evaluation.protocol,
        "counts": evaluation.counts,
        "intervals": evaluation.intervals,
        "headline": evaluation.primary_metric,
    }
    examples = []
    if isinstance(evaluation.details, Ranking):
        examples = choose_examples(trainer, evaluation.details)
    run = trainer.run_record or {}
    bad = as_json(evaluation.bad_samples)
    write_metrics(
        folder / "evaluation.json",
        selection_split=run.get("selection_split"),
        precision=trainer.args.precision,
        decoder=trainer.eval_collator.decoder,
        bad_samples=bad,
        **shared,
    )
    write_report(
        folder / "report.html",
        title=folder.name,
        log_history=trainer.state.log_history,
        examples=examples,
        run=run,
        **shared,
    )
    if trainer.args.do_train:
        trainer.save_config()
        trainer.create_model_card()


def choose_examples(trainer: MultimodalTrainer, ranking: Ranking) -> list[QueryExample]:
    """The worst ranked query, and others spread evenly over the set, with the clips found for each."""
    found, scores = ranking.found, ranking.scores
    positives = positives_from_groups(*found.groups)
    ranks = retrieval_ranks(scores, positives)
    shown = np.flatnonzero([row["index"] not in found.bad for row, _ in found.captions])
    if len(shown) == 0:
        return []
    spread = shown[np.linspace(0, len(shown) - 1, min(NUM_EXAMPLES, len(shown))).astype(int)]
    chosen = list(dict.fromkeys([int(shown[ranks[shown].argmax()]), *spread.tolist()]))[:NUM_EXAMPLES]
    order = best_first(scores, positives, NUM_RESULTS)
    examples = []
    for query in chosen:
        results = []
        places = order[query].tolist()
        if ranks[query] > len(places):
            places.append(int(np.where(positives[query], scores[query], -np.inf).argmax()))
        for place, candidate in enumerate(places):
            row = found.clips[candidate]
            if row["index"] in found.bad:
                continue
            results.append(
                RetrievedClip(
                    name=row["id"],
                    rank=place + 1 if place < NUM_RESULTS else int(ranks[query]),
                    score=float(scores[query, candidate]),
                    is_correct=bool(positives[query, candidate]),
                    caption=next(iter(row_captions(row)), None),
                    frames=frame_strip(trainer, row),
                )
            )
        examples.append(QueryExample(found.captions[query][1], int(ranks[query]), len(found.clips), results))
    return examples


def frame_strip(trainer: MultimodalTrainer, row: Row) -> np.ndarray | None:
    """A few frames as the model sees them, `uint8` of shape `(num_frames, height, width, 3)`; `None` without video."""
    collator = copy.copy(trainer.eval_collator)
    # Pictures are wanted, and not what a tower made of them.
    collator.features = {m: reader for m, reader in collator.features.items() if m != "video"}
    batch = collator([row])
    if "video_mask" not in batch or not batch["video_mask"][0]:
        return None
    frames = batch[INPUT_KEYS["video"][0]][0]  # (frames, 3, height, width)
    places = np.linspace(0, len(frames) - 1, min(FRAMES_PER_STRIP, len(frames))).astype(int)
    return frames[places].permute(0, 2, 3, 1).contiguous().cpu().numpy()
