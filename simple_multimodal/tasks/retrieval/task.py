"""Contrast and matching of texts and clips, alone or together with the masked objectives of pre-training."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from simple_multimodal.alpro import AlproForRetrieval
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.targets import Targets
from simple_multimodal.evaluation.report import Example
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.base import Evaluation, Measuring, Task
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.tasks.retrieval.evaluate import evaluate_retrieval
from simple_multimodal.tasks.retrieval.examples import retrieval_examples
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining, MultimodalForRetrieval
from simple_multimodal.tasks.retrieval.options import RetrievalOptions
from simple_multimodal.tasks.retrieval.retriever import Retriever
from simple_multimodal.tasks.retrieval.targets import PretrainingTargets
from simple_multimodal.tasks.retrieval.twins import PairSet, evaluate_pairs

logger = logging.get_logger(__name__)

RERANK_TOP_K = 32
"""Number of candidates of each query that the matching head re-ranks, unless a protocol has another number."""

SEARCH = """\
from simple_multimodal import Retriever

retriever = Retriever.from_pretrained({model})
for match in retriever.search("a dog barks at a red ball", "my_clips/", top_k=3):
    print(match.id, match.score)"""

PROTOCOL = "every caption a query, one candidate per clip, cosine of text and audio-video embeddings"


class Retrieval(Task):
    """Find clips by text and texts by clip, by contrastive embeddings and a matching head."""

    name = "retrieval"
    summary = "contrastive and matching objectives only"
    model_classes = {"simple_multimodal": MultimodalForRetrieval, "alpro": AlproForRetrieval}
    options_class = RetrievalOptions
    pipeline_class = Retriever

    def __init__(self, options: TaskOptions | None = None):
        super().__init__(options)
        self.pairs: list[PairSet] = []

    def open_files(self, find: Callable[[str], Path], open_rows: Callable[[Path], RowDataset]) -> None:
        """Read the pairs of rows to compare, and open the rows of their swapped clips, if any."""
        names = self.options.pair_files
        swapped: list[RowDataset | None] = [open_rows(find(name)) for name in self.options.swapped_files]
        pairs = zip(names, swapped or [None] * len(names), strict=True)
        self.pairs = [PairSet.from_file(find(name), rows) for name, rows in pairs]

    def build_targets(self, model: TowerModel, processor: MultimodalProcessor) -> Targets:
        """Return the targets of the model's objectives."""
        weights, options, settings = model.loss_weights, self.options, dict[str, Any]()
        if "mlm" in weights:
            settings["mlm_probability"] = options.mlm_probability
        if "mam" in weights:
            settings["audio_mask_ratio"] = options.audio_mask_ratio
            settings["audio_patches_per_window"] = model.towers["audio"].num_patches
        if "mvm" in weights:
            settings["video_mask_ratio"] = options.video_mask_ratio
            settings["video_patch_grid"] = model.towers["video"].patch_grid
        if "matching" in weights:
            settings["vt_match_ratio"] = options.vt_match_ratio
        return PretrainingTargets(processor, **settings)

    def protocol_suffixes(self, pipeline: Pipeline, measuring: Measuring) -> dict[str, Any]:
        """Return the number of re-ranked candidates, and whether the dual softmax was used."""
        assert isinstance(pipeline, Retriever)
        rerank_top_k = self._rerank_top_k(pipeline, measuring) or None
        return {"rerank_top_k": rerank_top_k, "dual_softmax": self.options.dsl}

    def evaluate(self, pipeline: Pipeline, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        """Measure a model with [`evaluate_retrieval`], and the pair files in a final evaluation."""
        assert isinstance(pipeline, Retriever)
        saved = None if measuring.output_dir is None else measuring.output_dir / "embeddings"
        rerank_top_k = self._rerank_top_k(pipeline, measuring)
        is_default = self.options.rerank_top_k is None and not measuring.with_losses
        if rerank_top_k == 0 and is_default and pipeline.state.is_main_process:
            measured = pipeline.model.config.rerank_top_k is not None
            logger.warning(
                "Clips are ranked by cosine alone: re-ranking by the matching head "
                f"{'was not better' if measured else 'was not measured'} on the validation split of the training run. "
                "To re-rank the first candidates anyway, set `rerank_top_k` to their number, or to 'all'."
            )
        evaluation = evaluate_retrieval(
            pipeline,
            dataset,
            protocol=self.protocol(PROTOCOL, pipeline, measuring),
            rerank_top_k=rerank_top_k,
            with_losses=measuring.with_losses,
            compare_rerank=self.options.compare_rerank,
            dual_softmax=self.options.dsl,
            alpro=measuring.alpro,
            num_results=None if measuring.benchmark is None else measuring.benchmark.rerank_top_k,
            saved=saved,
            partial=measuring.partial,
        )
        for pair_set in self.pairs if measuring.is_final else ():
            evaluate_pairs(pipeline, evaluation, pair_set)
        return evaluation

    def examples(self, evaluation: Evaluation, collator: MultimodalCollator) -> list[Example]:
        """Return examples of search results, see [`retrieval_examples`]."""
        return [] if evaluation.details is None else retrieval_examples(evaluation.details, collator)

    def usage(self, modalities: Sequence[Modality]) -> str | None:
        """Return code that searches clips; `None` for a model without text."""
        return SEARCH if "text" in modalities else None

    def next_command(self, modalities: Sequence[Modality], text: str | None, file: str | None) -> str:
        """Return a command that searches clips for the text, or one that encodes clips if the model takes no text."""
        if "text" not in modalities:
            return "simple-multimodal encode {model} {clips}"
        return f"simple-multimodal search {{model}} {shlex.quote(text or 'a dog barks at a red ball')} {{clips}}"

    def _rerank_top_k(self, retriever: Retriever, measuring: Measuring) -> int | None:
        """Return the number of candidates to re-rank; `None` for all."""
        asked = self.options.rerank_top_k
        if asked == "all" or (asked is None and measuring.alpro):
            return None
        if asked is None:
            asked = RERANK_TOP_K if measuring.benchmark is None else measuring.benchmark.rerank_top_k
            if not measuring.with_losses and not retriever.reranks:
                return 0
        has_head = "matching" in retriever.model.loss_weights
        return asked if has_head or not measuring.with_losses else 0


class PreTraining(Retrieval):
    """All objectives, including the masked ones; measured like retrieval."""

    name = "pretraining"
    summary = "all objectives"
    model_classes = {"simple_multimodal": MultimodalForPreTraining}
