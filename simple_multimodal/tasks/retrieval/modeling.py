"""The heads for pre-training and retrieval: masked objectives, contrast and matching."""

import functools
from collections.abc import Container, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import AUDIO_WINDOW_KEYS, CLIP_MODALITIES, INPUT_KEYS, PRESENCE_KEYS, Modality
from simple_multimodal.models.audio.windows import take_windows
from simple_multimodal.models.configuration import CONTRASTIVE_PAIRS, MASKED_OBJECTIVES, OBJECTIVES, MultimodalConfig
from simple_multimodal.models.distributed import sum_over_processes
from simple_multimodal.models.encoders import EncoderOutput
from simple_multimodal.models.fusion.crossformer import Clip, ClipCache, Stream
from simple_multimodal.models.gradient_caching import EncodedRows, encode_in_chunks, score_in_chunks
from simple_multimodal.models.losses import contrastive_loss
from simple_multimodal.models.matching import matching_loss
from simple_multimodal.models.modeling import MultimodalModel, MultimodalPreTrainedModel
from simple_multimodal.models.outputs import Batch, MultimodalOutput


class MultimodalForPreTraining(MultimodalPreTrainedModel):
    """All pre-training objectives over one model: masked language, audio and video modeling, contrast, and matching.

    Each loss is a sum over the rows of this process divided by a count over the rows of all processes and accumulated
    batches, so that neither missing modalities nor the number of processes change it. A row without one of the
    modalities that a loss needs does not take part in it.
    """

    objectives: tuple[str, ...] = OBJECTIVES

    def __init__(self, config: MultimodalConfig):
        super().__init__(config)
        self.multimodal = MultimodalModel(config)
        self.loss_weights = {name: weight for name, weight in config.loss_weights.items() if name in self.objectives}
        weights = self.loss_weights
        self.decoded_modalities = tuple(m for name, m in MASKED_OBJECTIVES.items() if name in weights)
        for name, modality in MASKED_OBJECTIVES.items():
            if name in weights:
                encoder = self.multimodal.encoder(modality)
                if encoder.decoder_class is None:
                    raise InputError(
                        f"{name}_loss_weight is {weights[name]}, but the {modality} tower {encoder.model_type!r} has "
                        f"no decoder for a masked objective. Set {name}_loss_weight to 0, or use another tower."
                    )
                self.add_module(f"{modality}_decoder", encoder.decoder_class(encoder.config))
        fusion_size = self.multimodal.fusion.hidden_size
        if "mlm" in weights:
            self.fusion_to_text = nn.Linear(fusion_size, self.multimodal.encoder("text").hidden_size)
        if "matching" in weights:
            self.matching_head = nn.Linear(fusion_size, 2)
        self.post_init()

    def masked_decoder(self, modality: Modality) -> nn.Module | None:
        """Return the decoder of a modality, see [`TowerModel.masked_decoder`]."""
        return self.get_submodule(f"{modality}_decoder") if modality in self.decoded_modalities else None

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Count the items of a batch that each objective averages over: masked tokens, masked patches, or rows.

        Args:
            batch (`dict[str, torch.Tensor]`): The collator's batch, on any device.

        Returns:
            `dict[str, torch.Tensor]`: Counts by objective, float32 scalars.
        """
        presence = {m: batch[PRESENCE_KEYS[m]] for m in self.config.modalities}
        clip = [presence[m] for m in self.multimodal.clip_modalities]
        presence["clip"] = torch.stack(clip).any(dim=0) if clip else torch.zeros_like(next(iter(presence.values())))
        counts = {}
        for name in self.loss_weights:
            if name == "mlm":
                count = (batch["mlm_labels"] != -100).sum()
            elif name in ("mam", "mvm"):
                count = self._reconstructed(name, batch).sum()
            else:
                first, second = CONTRASTIVE_PAIRS.get(name, ("text", "clip"))
                count = (presence[first] & presence[second]).sum()
            counts[name] = count.float()
        return counts

    def _reconstructed(self, objective: str, batch: Batch) -> torch.Tensor:
        """Return which masked patches count (not padding, in a row that has the modality): `bool`, in the shape of
        their positions.
        """
        modality = MASKED_OBJECTIVES[objective]
        masked = batch[f"{modality}_masked_patches"]
        counted = batch[PRESENCE_KEYS[modality]][:, None].expand_as(masked)
        if modality == "audio":
            real = self.multimodal.encoder("audio").token_mask(batch["audio_attention_mask"])
            counted = counted & real.gather(1, masked)
        return counted

    def _encode_rows(self, batch: Batch, *, objectives: Container[str], keeps_streams: bool) -> EncodedRows:
        """Compute all that does not depend on other rows: embeddings, streams for matching, and masked objectives."""
        model = self.multimodal
        share_masked = self.config.share_masked_pass and self.training
        sums: dict[str, torch.Tensor] = {}
        metrics: dict[str, torch.Tensor] = {}

        masked: dict[Modality, EncoderOutput] = {}
        for name in ("mam", "mvm"):
            if name in objectives:
                modality = MASKED_OBJECTIVES[name]
                masked[modality] = model.encode(modality, batch, batch[f"{modality}_masked_patches"])
                sums[name] = self._reconstruction_loss(name, masked[modality], batch)
        if "mlm" in objectives:
            masked["text"] = model.encode("text", {**batch, "input_ids": batch["mlm_input_ids"]})
        shared = masked if share_masked else {}
        outputs: dict[Modality, EncoderOutput] = {
            m: shared[m] if m in shared else model.encode(m, batch) for m in self.config.modalities
        }
        embeds, clip = model.embed_all(
            outputs, {m: batch[f"{m}_masked_patches"] for m in CLIP_MODALITIES if m in shared}
        )
        if "text" in masked:
            fused = model.fusion.fuse(model.enter_fusion("text", masked["text"]), clip)
            sums["mlm"], metrics["mlm_accuracy"] = self._masked_language_loss(fused, batch["mlm_labels"])
        streams = clip if keeps_streams else {}
        if "matching" in objectives:
            streams = {"text": model.enter_fusion("text", outputs["text"]), **streams}
        return EncodedRows(embeds, streams, sums, metrics)

    def forward(
        self,
        num_items: dict[str, torch.Tensor] | None = None,
        objectives: Sequence[str] | None = None,
        chunk_size: int | None = None,
        **batch: torch.Tensor,
    ) -> MultimodalOutput:
        """Compute the objectives with a weight in the configuration.

        Args:
            num_items (`dict[str, torch.Tensor]`, *optional*): Divisor of each objective's sum: [`count_items`] summed
                over processes and accumulated batches. By default the counts of this batch on all processes. With
                several processes, `loss` is this process's share of the global loss.
            objectives (`Sequence[str]`, *optional*): Objectives to compute; by default all. Without contrast and
                matching, and with `num_items`, processes do not communicate.
            chunk_size (`int`, *optional*): Number of rows, and of pairs of matching, to encode at a time, and again in
                the backward pass, see [`run_in_chunks`]: the same loss and gradients in less memory.
            batch: A collator's batch with pre-training targets; all processes must have the same number of rows.
        """
        model = self.multimodal
        weights = {name: w for name, w in self.loss_weights.items() if objectives is None or name in objectives}
        if num_items is None:
            num_items = {name: sum_over_processes(count) for name, count in self.count_items(batch).items()}
        keeps_streams = chunk_size is None or "matching" in weights
        embeds, streams, sums, metrics = encode_in_chunks(
            self,
            functools.partial(self._encode_rows, objectives=weights, keeps_streams=keeps_streams),
            batch,
            chunk_size,
        )
        clip: Clip = {m: stream for m, stream in streams.items() if m != "text"}
        presence = {m: batch[PRESENCE_KEYS[m]] for m in self.config.modalities}
        if model.clip_modalities:
            presence["clip"] = torch.stack([presence[m] for m in model.clip_modalities]).any(dim=0)
        for name in CONTRASTIVE_PAIRS:
            if name in weights:
                first, second = CONTRASTIVE_PAIRS[name]
                scale, bias = model.scale_and_bias(name)
                sums[name] = contrastive_loss(
                    embeds[first],
                    embeds[second],
                    present=presence[first] & presence[second],
                    group_ids=batch["group_ids"],
                    logit_scale=scale,
                    logit_bias=bias,
                    form=self.config.contrastive_form,
                    recompute=chunk_size is not None,
                )
        logits = None
        if "matching" in weights:
            sums["matching"], metrics["matching_accuracy"], logits = matching_loss(
                functools.partial(score_in_chunks, self, chunk_size=chunk_size),
                streams["text"],
                clip,
                text_embeds=embeds["text"],
                clip_embeds=embeds["clip"],
                has_text=presence["text"],
                has_clip=presence["clip"],
                logit_scale=model.scale_and_bias("contrastive_tav")[0],
                hard_negative_ratio=self.config.hard_negative_ratio,
                batch=batch,
            )

        losses = {name: sums[name] / num_items[name].to(sums[name].device).clamp(min=1) for name in weights}
        return MultimodalOutput(
            loss=torch.stack([weights[name] * value for name, value in losses.items()]).sum() if losses else None,
            logits=logits,
            losses={name: value.detach() for name, value in losses.items()},
            metrics=metrics,
            clip=clip,
            text_embeds=embeds.get("text"),
            audio_embeds=embeds.get("audio"),
            video_embeds=embeds.get("video"),
            pose_embeds=embeds.get("pose"),
            clip_embeds=embeds.get("clip"),
        )

    def _masked_language_loss(self, fused: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        words = self.multimodal.encoder("text").word_embeddings
        logits = self.text_decoder(self.fusion_to_text(fused), words).float()  # (batch, tokens, vocabulary)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        chosen = labels != -100
        correct = (logits.argmax(dim=-1) == labels) & chosen
        return loss, torch.stack([correct.sum(), chosen.sum()]).float()

    def _reconstruction_loss(self, objective: str, visible: EncoderOutput, batch: Batch) -> torch.Tensor:
        """Compute the squared error of masked patches, mean over values, sum over patches (MAE, VideoMAE)."""
        modality = MASKED_OBJECTIVES[objective]
        values, masked = batch[INPUT_KEYS[modality][0]], batch[f"{modality}_masked_patches"]
        counted = self._reconstructed(objective, batch)
        if modality == "audio" and AUDIO_WINDOW_KEYS[0] in batch:  # rows are windows from here on
            assert visible.class_tokens is not None
            windows, num_windows = batch[AUDIO_WINDOW_KEYS[0]], visible.class_tokens.shape[1]
            values = take_windows(values, windows, num_windows, dim=3)
            tokens, class_tokens, masked, counted = (
                take_windows(part, windows, num_windows)
                for part in (visible.tokens, visible.class_tokens, masked, counted)
            )
            visible = visible._replace(tokens=tokens, class_tokens=class_tokens)
        predictions = self.get_submodule(f"{modality}_decoder")(visible, masked).float()  # (batch, masked, patch)
        targets = self.multimodal.encoder(modality).patch_targets(values, masked)
        return ((predictions - targets) ** 2).mean(dim=-1).masked_fill(~counted, 0).sum()

    def encode_text(self, batch: Batch) -> tuple[torch.Tensor, Stream]:
        """Encode texts, see [`MultimodalModel.encode_text`]."""
        return self.multimodal.encode_text(batch)

    def encode_clip(self, batch: Batch) -> tuple[torch.Tensor | None, Clip]:
        """Encode clips, see [`MultimodalModel.encode_clip`]."""
        return self.multimodal.encode_clip(batch)

    def scale_and_bias(self, objective: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scale and bias of a contrastive objective, see [`MultimodalModel.scale_and_bias`]."""
        return self.multimodal.scale_and_bias(objective)

    def cache_clip(self, clip: Clip) -> Clip | ClipCache:
        """Cache a clip for several texts, see [`Crossformer.cache_clip`]."""
        return self.multimodal.fusion.cache_clip(clip)

    def check_matching(self) -> None:
        """Raise a `ValueError` if the model has no matching head."""
        if "matching" not in self.loss_weights:
            raise InputError(
                "This model has no matching head to re-rank with (matching_loss_weight=0). Set rerank_top_k=0 "
                "(in a search rerank=0) to rank by embeddings alone, or train the model with matching."
            )

    @property
    def cosine_weight(self) -> float:
        """Weight of the cosine in the score that pairs are ranked by, to which the matching head's log odds are added:
        the inverse temperature of `contrastive_tav`; 0 without `matching_residual`.
        """
        return self.scale_and_bias("contrastive_tav")[0].item() if self.config.matching_residual else 0.0

    def matching_logits(self, text: Stream, clip: Clip | ClipCache) -> torch.Tensor:
        """Return logits `(batch_size, 2)` of "text of another clip" and "text of this clip", float32, from embedded
        streams as [`Crossformer.fuse`] takes them.

        Raises:
            ValueError: If the model has no matching head.
        """
        self.check_matching()
        return self.matching_head(self.multimodal.fusion.fuse(text, clip, num_queries=1)[:, 0]).float()


class MultimodalForRetrieval(MultimodalForPreTraining):
    """Contrast and matching only, without the decoders of the masked objectives, which retrieval does not need."""

    objectives = (*CONTRASTIVE_PAIRS, "matching")
    _keys_to_ignore_on_load_unexpected = [r"^(text|audio|video)_decoder\.", r"^fusion_to_text\."]
