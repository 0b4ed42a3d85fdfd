"""Write the text of a clip: its translation, its caption or its transcript."""

import copy
import os
import shlex
from collections.abc import Sequence
from typing import Any

from simple_multimodal.assembly import saved_config
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.report import Example
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import Modality
from simple_multimodal.models.backbone import add_embeddings, load_backbone
from simple_multimodal.models.base import TowerModel
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.base import Evaluation, Measuring, Task
from simple_multimodal.tasks.generation.backbones import Backbone, choose_backbone
from simple_multimodal.tasks.generation.evaluate import evaluate_texts
from simple_multimodal.tasks.generation.examples import text_examples
from simple_multimodal.tasks.generation.modeling import MultimodalForConditionalGeneration
from simple_multimodal.tasks.generation.options import GenerationOptions
from simple_multimodal.tasks.generation.targets import TEXT_COLUMNS, TextTargets
from simple_multimodal.tasks.generation.translator import Translator

PROTOCOL = "every row with a text once; generated texts compared with those of the table"

NUM_BEAMS = 5
"""Beams of a new model."""

TRANSLATE = """\
from simple_multimodal import Translator

translator = Translator.from_pretrained({model})
print(translator("my_clips/0001.mp4")[0][0]["text"])"""


class Translation(Task):
    """Write a translation, scored by BLEU and chrF."""

    name = "translation"
    summary = "write a translation of clips (column caption or captions)"
    model_classes = {"simple_multimodal": MultimodalForConditionalGeneration}
    options_class = GenerationOptions
    row_settings = TEXT_COLUMNS
    pipeline_class = Translator
    reads_embeddings = False
    compares_with_training = True
    reads_text = False

    def __init__(self, options: GenerationOptions | None = None):
        super().__init__(options)
        self._backbone: Backbone | None = None

    def prepare(
        self,
        processor: MultimodalProcessor,
        source: str | os.PathLike[str] | None,
        train_set: RowDataset | None,
        *,
        cache_dir: str | None = None,
    ) -> None:
        """
        Put the backbone's tokenizer into the processor: that of a saved model of this kind, or of a new backbone. A
        text tower's tokenizer is left out, since text is the output.

        Raises:
            ValueError: If the backbone cannot be read, see [`choose_backbone`].
        """
        processor.tokenizer = None
        if source is not None and saved_config(source, cache_dir=cache_dir).get("text_backbone_config") is not None:
            return
        options = self.options
        if options.backbone_model_name_or_path is None and options.backbone_tokenizer_name is None:
            if train_set is None:
                raise InputError(
                    "A new model that writes text needs a backbone: name one with weights "
                    "(--backbone_model_name_or_path), or train it (--do_train)."
                )
        self._backbone = choose_backbone(
            model=options.backbone_model_name_or_path,
            config_name=options.backbone_config_name,
            tokenizer_name=options.backbone_tokenizer_name,
            new_tokens=options.new_tokens,
            texts=lambda: () if train_set is None else train_set.captions(),
            cache_dir=cache_dir,
        )
        processor.backbone_tokenizer = self._backbone.tokenizer

    def config_settings(self, source: str | os.PathLike[str] | None, train_set: RowDataset | None) -> dict[str, Any]:
        """Return the configuration of a new backbone, the prompts and the limit of texts. A saved model keeps its own
        backbone.
        """
        options = self.options
        settings: dict[str, Any] = {"text_config": None}
        if self._backbone is None:
            return settings
        return settings | {
            "text_backbone_config": self._backbone.config,
            "mapper_strides": options.mapper_strides,
            "encoder_prompt": options.encoder_prompt,
            "decoder_prompt": options.decoder_prompt,
            "max_target_length": options.max_target_length,
        }

    def finish(self, model: TowerModel, source: str | os.PathLike[str] | None) -> None:
        """Load the weights of a new backbone, scale the mapper to its word embeddings, and set how texts are
        generated.
        """
        assert isinstance(model, MultimodalForConditionalGeneration)
        options, backbone = self.options, self._backbone
        if backbone is not None:
            if backbone.weights is not None:
                loaded = load_backbone(backbone.config, backbone.weights)
                add_embeddings(loaded, len(backbone.tokenizer))
                model.multimodal.backbone = loaded
                model.config.text_backbone_config = loaded.config
            model.fit_mapper()
            model.generation_config = copy.deepcopy(model.backbone.generation_config)
            model.generation_config.update(
                do_sample=False, num_beams=NUM_BEAMS, max_new_tokens=options.max_target_length, max_length=None
            )
        for name in ("num_beams", "max_new_tokens", "length_penalty"):
            if getattr(options, name) is not None:
                setattr(model.generation_config, name, getattr(options, name))

    def build_targets(self, model: TowerModel, processor: MultimodalProcessor) -> TextTargets:
        """Return the tokens of each row's text."""
        self._targets = TextTargets.of(model.config, processor)
        return self._targets

    def warning_about(self, model: TowerModel, dataset: RowDataset) -> str | None:
        """Return a warning about rows whose text is missing or too long."""
        return self._targets.warning_about(dataset)

    def evaluate(self, pipeline: Pipeline, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        """Measure a model with [`evaluate_texts`]."""
        assert isinstance(pipeline, Translator)
        options = self.options
        return evaluate_texts(
            pipeline,
            dataset,
            task=self.name,
            protocol=self.protocol(PROTOCOL, pipeline, measuring),
            train_set=measuring.train_set if measuring.is_final else None,
            with_losses=measuring.with_losses,
            with_texts=options.predict_with_generate or measuring.is_final,
            partial=measuring.partial,
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            length_penalty=options.length_penalty,
        )

    def examples(self, evaluation: Evaluation, collator: MultimodalCollator) -> list[Example]:
        """Return rows with their texts from worst to best, see [`text_examples`]."""
        return [] if evaluation.details is None else text_examples(evaluation.details, collator)

    def usage(self, modalities: Sequence[Modality]) -> str:
        """Return code that writes the text of a clip."""
        return TRANSLATE

    def next_command(self, modalities: Sequence[Modality], text: str | None, file: str | None) -> str:
        """Return a command that writes the text of the clip."""
        return f"simple-multimodal translate {{model}} {shlex.quote(file or 'my_clips/0001.mp4')}"


class Captioning(Translation):
    """Write a caption, scored by CIDEr-D."""

    name = "captioning"
    summary = "write captions of clips (column caption or captions)"


class Transcription(Translation):
    """Write a transcript, scored by word error rate."""

    name = "transcription"
    summary = "write what is said in clips (column caption or captions)"
