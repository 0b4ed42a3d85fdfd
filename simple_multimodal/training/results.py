"""What a run leaves for people: the metrics file, the report page, and the model card."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from simple_multimodal.data.bad_samples import as_json
from simple_multimodal.data.manifest import Row, row_captions
from simple_multimodal.evaluation.ranking import ranking, retrieval_ranks
from simple_multimodal.evaluation.report import QueryExample, RetrievedClip, write_metrics, write_report
from simple_multimodal.modalities import INPUT_KEYS
from simple_multimodal.training.evaluation import RetrievalEvaluation
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
        "headline": evaluation.headline,
    }
    examples = []
    if isinstance(evaluation, RetrievalEvaluation) and evaluation.headline is not None:
        examples = choose_examples(trainer, evaluation)
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


def choose_examples(trainer: MultimodalTrainer, evaluation: RetrievalEvaluation) -> list[QueryExample]:
    """The worst ranked query, and others spread evenly over the set, with the clips found for each."""
    positives = np.array([[c.group_id == clip.group_id for clip in evaluation.clips] for c in evaluation.captions])
    ranks = retrieval_ranks(evaluation.scores, positives)
    bad_rows = {sample.row for sample in evaluation.bad_samples}
    shown = np.flatnonzero([caption.row_id not in bad_rows for caption in evaluation.captions])
    if len(shown) == 0:
        return []
    spread = shown[np.linspace(0, len(shown) - 1, min(NUM_EXAMPLES, len(shown))).astype(int)]
    chosen = list(dict.fromkeys([int(shown[ranks[shown].argmax()]), *spread.tolist()]))[:NUM_EXAMPLES]
    order = ranking(evaluation.scores, positives, NUM_RESULTS)
    rows = trainer.eval_dataset
    texts = caption_texts(evaluation, rows)
    examples = []
    for query in chosen:
        results = []
        places = order[query].tolist()
        if ranks[query] > len(places):
            places.append(int(np.where(positives[query], evaluation.scores[query], -np.inf).argmax()))
        for place, candidate in enumerate(places):
            if evaluation.clips[candidate].is_bad:
                continue
            row = rows[evaluation.clips[candidate].row_id]
            results.append(
                RetrievedClip(
                    name=row["id"],
                    rank=place + 1 if place < NUM_RESULTS else int(ranks[query]),
                    score=float(evaluation.scores[query, candidate]),
                    is_correct=bool(positives[query, candidate]),
                    caption=next(iter(row_captions(row)), None),
                    frames=frame_strip(trainer, row),
                )
            )
        examples.append(QueryExample(texts[query], int(ranks[query]), len(evaluation.clips), results))
    return examples


def caption_texts(evaluation: RetrievalEvaluation, rows) -> list[str]:
    """Text of each caption of an evaluation, captions of a row following one another in its own order; "" for those of
    a row that could not be read.
    """
    bad_rows = {sample.row for sample in evaluation.bad_samples}
    texts: list[str] = []
    position: dict[int, int] = {}
    for caption in evaluation.captions:
        if caption.row_id in bad_rows:
            texts.append("")
            continue
        number = position.get(caption.row_id, 0)
        texts.append(row_captions(rows[caption.row_id])[number])
        position[caption.row_id] = number + 1
    return texts


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
