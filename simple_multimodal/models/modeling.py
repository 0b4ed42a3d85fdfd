"""The models: towers and crossformer, and the heads for pre-training, retrieval and question answering."""

import functools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from simple_multimodal.modalities import CLIP_MODALITIES, INPUT_KEYS, PRESENCE_KEYS, TOKEN_KEYS, Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import OBJECTIVES, MultimodalConfig
from simple_multimodal.models.distributed import RowExchange, first_row, gather_rows, sum_over_processes
from simple_multimodal.models.encoders import Encoder, EncoderOutput, get_encoder_class
from simple_multimodal.models.fusion.crossformer import (
    Clip,
    ClipCache,
    Crossformer,
    Stream,
    concatenate,
    load_pretrained_fusion,
)
from simple_multimodal.models.gradient_caching import EncodedRows, encode_in_chunks, score_in_chunks
from simple_multimodal.models.loading import LoadingReport, load_pretrained_tower
from simple_multimodal.models.lora import inject_lora
from simple_multimodal.models.losses import (
    compute_dtype,
    contrastive_loss,
    draw_hard_negatives,
    masked_mean,
    normalize,
)
from simple_multimodal.models.patches import visible_patches
from simple_multimodal.models.video.pictures import PictureEncoder

Batch = dict[str, torch.Tensor]

MASKED_OBJECTIVES: dict[str, Modality] = {"mlm": "text", "mam": "audio", "mvm": "video"}
"""The modality that each masked objective predicts."""

CONTRASTIVE_PAIRS: dict[str, tuple[str, str]] = {
    "contrastive_tv": ("text", "video"),
    "contrastive_ta": ("text", "audio"),
    "contrastive_av": ("audio", "video"),
    "contrastive_tav": ("text", "clip"),
}
"""The two sides that each contrastive objective compares; `clip` is audio and video fused without text."""


@dataclass
class MultimodalOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): weighted sum of the objectives.
        logits (`torch.FloatTensor`, *optional*): the head's prediction: answers `(batch_size, num_answers)` or
            matching `(batch_size, 2)`.
        text_embeds, audio_embeds, video_embeds, clip_embeds (`torch.FloatTensor`, *optional*):
            of shape `(batch_size, contrastive_dim)`: unit-length embeddings; meaningless (but finite) for rows that
            lack the modality.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_text_tokens, hidden_size)`, *optional*):
            text states that have seen the clip.
        losses (`dict[str, torch.FloatTensor]`, *optional*): value of each objective, unweighted, detached.
        metrics (`dict[str, torch.FloatTensor]`, *optional*): `(sum, count)` of each metric, of shape `(2,)`, detached.
        clip (`dict[Modality, Stream]`, *optional*): what [`MultimodalForPreTraining.matching_logits`] takes of the
            clip; empty where rows were encoded in chunks and nothing reads it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    clip_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    metrics: dict[str, torch.Tensor] | None = None
    clip: Clip | None = None


class MultimodalPreTrainedModel(TowerModel):
    """Configuration, weight initialisation and loading shared by all multimodal models."""

    config_class = MultimodalConfig
    base_model_prefix = "multimodal"
    decoded_modalities: tuple[Modality, ...] = ()
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MultimodalModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, -10.0)  # as SigLIP: most pairs are negatives

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """[`TowerModel.limit_temperature`]: an inverse temperature of at most 100; SigLIP's ends above."""
        if self.config.contrastive_form == "softmax":
            self.base_model.logit_scale.clamp_(max=math.log(100))

    @classmethod
    def from_encoders(
        cls,
        config: MultimodalConfig,
        pretrained: dict[str, str],
        *,
        same_vocabulary: bool = True,
        cache_dir: str | None = None,
    ) -> tuple[Self, list[LoadingReport]]:
        """Assemble a model from pretrained towers; what no checkpoint gives is drawn at random (seed before the call).

        Args:
            config (`MultimodalConfig`): what to build.
            pretrained (`dict[str, str]`): hub name or local folder of the weights of `text`, `audio`, `video` and
                `fusion`; towers that are not named start from random weights.
            same_vocabulary (`bool`, *optional*, defaults to `True`): whether the tokenizer is the text checkpoint's
                own.
            cache_dir (`str`, *optional*): where files from the hub are kept.

        Returns:
            The model, and one [`LoadingReport`] per checkpoint that names every tensor that was not simply loaded.
        """
        model = cls(config)
        base = model.multimodal
        reports: dict[Modality, LoadingReport] = {}
        for modality in config.modalities:
            if modality in pretrained:
                decoder = model.get_submodule(f"{modality}_decoder") if modality in model.decoded_modalities else None
                reports[modality] = load_pretrained_tower(
                    base.encoder(modality),
                    decoder,
                    pretrained[modality],
                    same_vocabulary=same_vocabulary,
                    cache_dir=cache_dir,
                )
        base.take_temperature(reports)
        fusion = []
        if "fusion" in pretrained:
            fusion.append(load_pretrained_fusion(base.fusion, pretrained["fusion"], cache_dir=cache_dir))
        return model, [*reports.values(), *fusion]


class MultimodalModel(MultimodalPreTrainedModel):
    """Encoders and crossformer without a head: embeddings of text, audio, video and clip, and fused text states."""

    def __init__(self, config: MultimodalConfig):
        super().__init__(config)
        if not config.modalities or config.crossformer_config is None:
            raise ValueError(
                "A multimodal model needs at least one of `text_config`, `audio_config`, `video_config`, and a "
                "`crossformer_config`. Give the missing ones in the configuration."
            )
        check_frame_pooling(config)
        # Direct children, because that is where `post_init` looks for what towers can and want.
        for modality in config.modalities:
            self.add_module(f"{modality}_encoder", build_encoder(config, modality))
        sizes: dict[Modality, int] = {m: self.encoder(m).hidden_size for m in config.modalities}
        self.fusion = Crossformer(config.crossformer_config, form=config.fusion_form, token_sizes=sizes)
        projections: dict[str, nn.Module] = {}
        for modality, size in sizes.items():
            if self.is_aligned(modality):
                projections[modality] = nn.Identity()
                continue
            if config.contrastive_loss_before_fusion:
                encoder = self.encoder(modality)
                size = encoder.embedding_size(encoder.config) or size
            else:
                size = self.fusion.hidden_size
            projections[modality] = nn.Linear(size, config.contrastive_dim, bias=False)
        if self.clip_modalities and config.clip_embedding == "fusion":
            projections["clip"] = nn.Linear(self.fusion.hidden_size, config.contrastive_dim, bias=False)
        self.embedding_projections = nn.ModuleDict(projections)
        # One temperature per pair of sides: a pair with little in common must not flatten the others.
        self.logit_scale = nn.Parameter(torch.empty(len(CONTRASTIVE_PAIRS)))
        self.logit_bias = (
            nn.Parameter(torch.empty(len(CONTRASTIVE_PAIRS))) if config.contrastive_form == "sigmoid" else None
        )
        if config.lora is not None:
            inject_lora(self, config.lora)
        self.post_init()

    @property
    def clip_modalities(self) -> tuple[Modality, ...]:
        """Which of audio and video the model has."""
        return tuple(m for m in CLIP_MODALITIES if m in self.config.modalities)

    def encoder(self, modality: Modality) -> Encoder:
        """The encoder of a modality that the model has."""
        return self.get_submodule(f"{modality}_encoder")

    def is_aligned(self, modality: Modality) -> bool:
        """Whether a modality's embedding is its tower's own, as pretrained."""
        encoder = self.encoder(modality)
        size = encoder.embedding_size(encoder.config)
        return self.config.contrastive_loss_before_fusion and size == self.config.contrastive_dim

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The encoders that the model has, and its `fusion`, by name."""
        return {**{m: self.encoder(m) for m in self.config.modalities}, "fusion": self.fusion}

    def check_inputs(self, modality: Modality, *size: int) -> None:
        """Raise a `ValueError` if the tower of a modality cannot take inputs of this size; see each encoder's own."""
        self.encoder(modality).check_inputs(*size)  # type: ignore[operator]  # each kind has its own

    def scale_and_bias(self, objective: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Inverse temperature and bias of a contrastive objective; scalars."""
        index = list(CONTRASTIVE_PAIRS).index(objective)
        scale = self.logit_scale[index]
        return scale.exp(), None if self.logit_bias is None else self.logit_bias[index]

    @torch.no_grad()
    def take_temperature(self, reports: dict[Modality, LoadingReport]) -> None:
        """Scale and bias of each contrastive objective whose sides were pretrained together, from their checkpoint."""
        for index, sides in enumerate(CONTRASTIVE_PAIRS.values()):
            if "clip" in sides and self.config.clip_embedding == "fusion":
                continue
            towers = {m for side in sides for m in (self.clip_modalities if side == "clip" else (side,))}
            if not all(m in reports and self.is_aligned(m) for m in towers):  # type: ignore[arg-type]
                continue
            found = [reports[m] for m in towers]  # type: ignore[index]
            if len({report.name for report in found}) == 1 and found[0].logit_scale is not None:
                self.logit_scale[index] = found[0].logit_scale.squeeze()
                if self.logit_bias is not None and found[0].logit_bias is not None:
                    self.logit_bias[index] = found[0].logit_bias.squeeze()
        self.limit_temperature()

    def encode(self, modality: Modality, batch: Batch, masked_patches: torch.Tensor | None = None) -> EncoderOutput:
        """Run one tower, or take what it gave before. Tokens of rows that lack the modality are masked out.

        Args:
            modality (`str`): the tower to run.
            batch (`dict[str, torch.Tensor]`): the collator's batch, with the tower's inputs or its tokens.
            masked_patches (`torch.LongTensor`, *optional*): patches to leave out (audio, video), see the encoder.
        """
        if masked_patches is None and has_tokens(modality, batch):
            tokens, mask, seconds = (batch[key] for key in TOKEN_KEYS[modality])
            return EncoderOutput(tokens.to(self.dtype), mask, seconds)
        inputs = [batch[key] for key in INPUT_KEYS[modality]]
        if masked_patches is not None:
            inputs.append(masked_patches)
        output = self.encoder(modality)(*inputs)
        return output._replace(mask=output.mask & batch[PRESENCE_KEYS[modality]][:, None])

    def enter_fusion(
        self, modality: Modality, output: EncoderOutput, masked_patches: torch.Tensor | None = None
    ) -> Stream:
        """Pool (if so configured) and embed an encoder's tokens, made with `masked_patches`, for the crossformer."""
        if self.config.fusion_pool == "time" and modality != "text":
            num_tokens = output.mask.shape[1] + (0 if masked_patches is None else masked_patches.shape[1])
            encoder, device = self.encoder(modality), output.mask.device
            if output.num_steps is None:
                num_steps = math.ceil(
                    num_tokens / encoder.tokens_per_step
                )  # 1 where features of no clip are one token
                steps = encoder.time_steps(num_tokens, device)
            else:
                num_steps = output.num_steps
                steps = torch.arange(num_tokens, device=device) // (num_tokens // num_steps)
            if masked_patches is not None:
                steps = steps[visible_patches(masked_patches, num_tokens)]
            output = pool_time_steps(output, steps, num_steps)
        return self.fusion.embed(modality, output.tokens, output.mask, output.seconds)

    def embed_tokens(
        self, modality: Modality, output: EncoderOutput, masked_patches: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit-length embedding `(batch_size, contrastive_dim)` of one modality's tokens, or the tower's own."""
        if self.config.contrastive_loss_before_fusion:
            pooled = masked_mean(output.tokens, output.mask) if output.embedding is None else output.embedding
        else:
            stream = self.enter_fusion(modality, output, masked_patches)
            if modality == "text":
                pooled = masked_mean(self.fusion.encode_text(stream), stream.mask)
            else:
                pooled = masked_mean(*self.fusion.encode_clip({modality: stream})[modality])
        return normalize(self.embedding_projections[modality](pooled))

    def embed_clip(self, encoded: Clip) -> torch.Tensor:
        """Unit-length embedding `(batch_size, contrastive_dim)` of a clip that [`Crossformer.encode_clip`] encoded."""
        return normalize(self.embedding_projections["clip"](masked_mean(*concatenate(encoded))))

    def mean_embedding(
        self, embeds: Mapping[str, torch.Tensor], outputs: Mapping[Modality, EncoderOutput]
    ) -> torch.Tensor:
        """Unit-length embedding `(batch_size, contrastive_dim)` of a clip: the mean of those of what it has."""
        present = [m for m in CLIP_MODALITIES if m in outputs]
        has = torch.stack([outputs[m].mask.any(dim=1) for m in present], dim=1)  # (batch, modalities)
        return normalize((torch.stack([embeds[m] for m in present], dim=1) * has[..., None]).sum(dim=1))

    def embed_all(
        self, outputs: dict[Modality, EncoderOutput], masked_patches: dict[Modality, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], Clip]:
        """Embeddings of each side that `outputs` allow, by name, and what the fusion needs of the clip.

        Args:
            outputs (`dict[Modality, EncoderOutput]`): what the towers returned.
            masked_patches (`dict[Modality, torch.LongTensor]`): what outputs were made without; none for clean ones.
        """
        embeds: dict[str, torch.Tensor] = {
            m: self.embed_tokens(m, output, masked_patches.get(m)) for m, output in outputs.items()
        }
        embedded: Clip = {
            m: self.enter_fusion(m, outputs[m], masked_patches.get(m)) for m in CLIP_MODALITIES if m in outputs
        }
        if not embedded:
            return embeds, {}
        encoded = embedded
        if self.config.clip_embedding == "fusion" or self.fusion.form == "cross_attention":
            encoded = self.fusion.encode_clip(embedded)
        if self.config.clip_embedding == "fusion":
            embeds["clip"] = self.embed_clip(encoded)
        else:
            embeds["clip"] = self.mean_embedding(embeds, outputs)
        return embeds, self.fusion.clip_side(embedded, encoded)

    def encode_text(self, batch: Batch) -> tuple[torch.Tensor, Stream]:
        """Everything about texts that depends on no clip.

        Args:
            batch (`dict[str, torch.Tensor]`): `input_ids`, `attention_mask` and, where rows may lack a text,
                `text_mask`.

        Returns:
            Unit-length embeddings `(batch_size, contrastive_dim)`, and what the fusion takes of the texts.
        """
        present = torch.ones(len(batch["input_ids"]), dtype=torch.bool, device=batch["input_ids"].device)
        output = self.encode("text", {PRESENCE_KEYS["text"]: present, **batch})
        return self.embed_tokens("text", output), self.enter_fusion("text", output)

    def encode_clip(self, batch: Batch, *, with_embeds: bool = True) -> tuple[torch.Tensor | None, Clip]:
        """Everything about clips that depends on no text.

        Args:
            batch (`dict[str, torch.Tensor]`): the audio and video entries of a collator's batch.
            with_embeds (`bool`, *optional*, defaults to `True`): whether embeddings are wanted; but for the form
                `cross_attention` they cost a pass through the fusion layers that nothing else needs.

        Returns:
            Unit-length embeddings `(batch_size, contrastive_dim)`, and what the fusion takes of the clips.
        """
        outputs: dict[Modality, EncoderOutput] = {m: self.encode(m, batch) for m in self.clip_modalities}
        embedded: Clip = {m: self.enter_fusion(m, output) for m, output in outputs.items()}
        pools = with_embeds and self.config.clip_embedding == "fusion"
        encoded = embedded
        if pools or self.fusion.form == "cross_attention":
            encoded = self.fusion.encode_clip(embedded)
        embeds = None
        if pools:
            embeds = self.embed_clip(encoded)
        elif with_embeds:
            embeds = self.mean_embedding({m: self.embed_tokens(m, output) for m, output in outputs.items()}, outputs)
        return embeds, self.fusion.clip_side(embedded, encoded)

    def forward(self, **batch: torch.Tensor) -> MultimodalOutput:
        """Encode whatever modalities the batch holds.

        Args:
            batch: entries as the collator makes them (see [`MultimodalCollator`]); those of a modality may be left
                out.
        """
        present = [m for m in self.config.modalities if INPUT_KEYS[m][0] in batch or has_tokens(m, batch)]
        outputs: dict[Modality, EncoderOutput] = {m: self.encode(m, batch) for m in present}
        embeds, clip = self.embed_all(outputs, {})
        fused = self.fusion.fuse(self.enter_fusion("text", outputs["text"]), clip) if "text" in outputs else None
        return MultimodalOutput(
            last_hidden_state=fused,
            text_embeds=embeds.get("text"),
            audio_embeds=embeds.get("audio"),
            video_embeds=embeds.get("video"),
            clip_embeds=embeds.get("clip"),
        )


def has_tokens(modality: Modality, batch: Batch) -> bool:
    """Whether a batch has what the tower of a modality gave, instead of its inputs."""
    return modality in TOKEN_KEYS and TOKEN_KEYS[modality][0] in batch


def build_encoder(config: MultimodalConfig, modality: Modality) -> Encoder:
    """The encoder of one modality, with random weights."""
    tower_config = config.tower_config(modality)
    encoder_class = get_encoder_class(tower_config.model_type, modality)
    settings: dict[str, Any] = {}
    if modality == "video":
        settings = {"image_mean": config.image_mean, "image_std": config.image_std}
        if config.frame_pooling_layers > 0:
            settings["frame_pooling_layers"] = config.frame_pooling_layers
    return encoder_class(tower_config, **settings)


def check_frame_pooling(config: MultimodalConfig) -> None:
    """Raise a `ValueError` if there are layers over the embeddings of frames, but no use for them."""
    layers, tower = config.frame_pooling_layers, config.video_config
    if layers == 0:
        return
    if tower is None or not issubclass(get_encoder_class(tower.model_type, "video"), PictureEncoder):
        found = "there is no video tower" if tower is None else f"{tower.model_type!r} has no embeddings of frames"
        raise ValueError(
            f"frame_pooling_layers is {layers}, but {found}. Set it to 0, or take a tower of pictures such as CLIP's."
        )
    if not config.contrastive_loss_before_fusion:
        raise ValueError(
            f"frame_pooling_layers is {layers}, but contrastive_loss_before_fusion is False: nothing takes the "
            "tower's embedding. Change one of the two."
        )


def pool_time_steps(output: EncoderOutput, steps: torch.Tensor, num_steps: int) -> EncoderOutput:
    """Average the real tokens that stand for the same moment: one token per time step.

    Args:
        steps (`torch.LongTensor` of shape `(num_tokens,)` or `(batch_size, num_tokens)`): time step of each token.
        num_steps (`int`): how many there are.
    """
    is_of_step = steps[..., None] == torch.arange(num_steps, device=steps.device)
    membership = (is_of_step & output.mask[..., None]).float()  # (batch, tokens, steps)
    counts = membership.sum(dim=1)  # (batch, steps)
    mean = (membership / counts.clamp(min=1)[:, None]).transpose(1, 2)  # (batch, steps, tokens)
    seconds = (mean * output.seconds[:, None]).sum(dim=-1)  # no matrix product: autocast would round the times
    return EncoderOutput(mean.to(output.tokens.dtype) @ output.tokens, counts > 0, seconds)


class MultimodalForPreTraining(MultimodalPreTrainedModel):
    """All pre-training objectives over one model: masked language, audio and video modelling, contrast, and matching.

    Each loss is a sum over the rows of this process divided by a count over the rows of all processes and accumulated
    batches, so that neither missing modalities nor the number of processes change it. A row takes no part in a loss
    that needs a modality it lacks.
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
                    raise ValueError(
                        f"{name}_loss_weight is {weights[name]}, but the {modality} tower {encoder.model_type!r} has "
                        f"no decoder for a masked objective. Set {name}_loss_weight to 0, or take another tower."
                    )
                self.add_module(f"{modality}_decoder", encoder.decoder_class(encoder.config))
        fusion_size = self.multimodal.fusion.hidden_size
        if "mlm" in weights:
            self.fusion_to_text = nn.Linear(fusion_size, self.multimodal.encoder("text").hidden_size)
        if "matching" in weights:
            self.matching_head = nn.Linear(fusion_size, 2)
        self.post_init()

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """How many items of this batch each objective averages over: masked tokens, masked patches, or rows.

        Args:
            batch (`dict[str, torch.Tensor]`): the collator's batch, on any device.

        Returns:
            `dict[str, torch.Tensor]`: float32 scalars by objective.
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
        """Which masked patches count: real ones of a row that has the modality; `bool` of the shape of their
        positions.
        """
        modality = MASKED_OBJECTIVES[objective]
        masked = batch[f"{modality}_masked_patches"]
        counted = batch[PRESENCE_KEYS[modality]][:, None].expand_as(masked)
        if modality == "audio":
            real = self.multimodal.encoder("audio").token_mask(batch["audio_attention_mask"])
            counted = counted & real.gather(1, masked)
        return counted

    def _encode_rows(self, batch: Batch, *, objectives: Container[str], keeps_streams: bool) -> EncodedRows:
        """Everything that rows do not need each other for: embeddings, streams for matching, and masked objectives."""
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
        """Compute the objectives that the configuration gives a weight.

        Args:
            num_items (`dict[str, torch.Tensor]`, *optional*): what to divide each objective's sum by, as
                [`count_items`] summed over processes and accumulated batches. By default the counts of this batch on
                all processes. With several processes, `loss` is this process's share of the global loss.
            objectives (`Sequence[str]`, *optional*): compute only these. Without contrast and matching, and with
                `num_items` given, processes do not talk to each other.
            chunk_size (`int`, *optional*): encode so many rows at a time, and so many pairs of matching, and once more
                in the backward pass, see [`run_in_chunks`]: the same loss and gradients in less memory.
            batch: a collator's batch with its pre-training draws; rows of all processes must be equally many.
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
        """Squared error of the masked patches, averaged over a patch's values, summed over patches (MAE, VideoMAE)."""
        modality = MASKED_OBJECTIVES[objective]
        values, masked = batch[INPUT_KEYS[modality][0]], batch[f"{modality}_masked_patches"]
        predictions = self.get_submodule(f"{modality}_decoder")(visible, masked).float()  # (batch, masked, patch)
        targets = self.multimodal.encoder(modality).patch_targets(values, masked)
        counted = self._reconstructed(objective, batch)
        return ((predictions - targets) ** 2).mean(dim=-1).masked_fill(~counted, 0).sum()

    def encode_text(self, batch: Batch) -> tuple[torch.Tensor, Stream]:
        """[`MultimodalModel.encode_text`]."""
        return self.multimodal.encode_text(batch)

    def encode_clip(self, batch: Batch) -> tuple[torch.Tensor | None, Clip]:
        """[`MultimodalModel.encode_clip`]."""
        return self.multimodal.encode_clip(batch)

    def scale_and_bias(self, objective: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[`MultimodalModel.scale_and_bias`]."""
        return self.multimodal.scale_and_bias(objective)

    def cache_clip(self, clip: Clip) -> Clip | ClipCache:
        """[`Crossformer.cache_clip`]."""
        return self.multimodal.fusion.cache_clip(clip)

    def check_matching(self) -> None:
        """Raise a `ValueError` if the model has no matching head."""
        if "matching" not in self.loss_weights:
            raise ValueError(
                "This model was made without matching (matching_loss_weight is 0): nothing can be re-ranked. Rank by "
                "embeddings alone (rerank 0, --matching_top_k 0), or train it."
            )

    @property
    def cosine_weight(self) -> float:
        """What the cosine of a pair is multiplied by before it joins the matching head's log odds, in the score that
        pairs are ranked by: the inverse temperature of `contrastive_tav`; 0 without `matching_residual`.
        """
        return self.scale_and_bias("contrastive_tav")[0].item() if self.config.matching_residual else 0.0

    def matching_logits(self, text: Stream, clip: Clip | ClipCache) -> torch.Tensor:
        """Logits `(batch_size, 2)` of "is another clip's" and "belongs together", float32, from embedded streams as
        [`Crossformer.fuse`] takes them.

        Raises:
            ValueError: The model has no matching head.
        """
        self.check_matching()
        return self.matching_head(self.multimodal.fusion.fuse(text, clip, num_queries=1)[:, 0]).float()


def take_clips(clip: Clip, rows: torch.Tensor) -> Clip:
    """Streams of rows of any process, which send what is taken and nothing else; gradients flow back to their owners.

    Under autocast states are rounded to its type on the way, which is what the fusion multiplies them in.

    Args:
        clip (`dict[Modality, Stream]`): of the rows of this process.
        rows (`torch.LongTensor` of shape `(batch_size,)`): places in what [`gather_rows`] would return.

    Returns:
        `dict[Modality, Stream]`: padded to the longest of any process.
    """
    exchange = RowExchange(rows, [stream.mask.shape[1] for stream in clip.values()])
    taken: Clip = {}
    for (modality, (states, mask)), length in zip(clip.items(), exchange.largest, strict=True):
        missing = length - mask.shape[1]
        if missing:
            states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        taken[modality] = Stream(exchange.take(states, compute_dtype(states)), exchange.take(mask, torch.uint8))
    return taken


def matching_loss(
    score: Callable[[Stream, Clip], torch.Tensor],
    text: Stream,
    clip: Clip,
    *,
    text_embeds: torch.Tensor,
    clip_embeds: torch.Tensor,
    has_text: torch.Tensor,
    has_clip: torch.Tensor,
    logit_scale: torch.Tensor,
    hard_negative_ratio: float,
    batch: Batch,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Does the text belong to the clip? Rows not `match_aligned` get a negative clip of any process: one of another
    group, whose own text is another.

    Args:
        score (`Callable`): the model's `matching_logits`.
        text (`Stream`), clip (`dict[Modality, Stream]`): what `score` takes of the rows of this process.
        text_embeds, clip_embeds (`torch.Tensor` of shape `(batch_size, dim)`): unit length; hard negatives are drawn
            by their similarity times `logit_scale`.
        hard_negative_ratio (`float`): share of the negatives that are hard; see [`draw_hard_negatives`].
        has_text, has_clip (`torch.BoolTensor` of shape `(batch_size,)`): rows that lack one take no part.
        batch (`dict[str, torch.Tensor]`): the collator's, for its groups, texts and draws.

    Returns:
        Sum of the loss over rows, `(sum, count)` of correct rows, and the logits `(batch_size, 2)`.
    """
    own = torch.arange(text.mask.shape[0], device=text.mask.device) + first_row(text.mask.shape[0])
    negatives, exists = draw_hard_negatives(
        text_embeds,
        gather_rows(clip_embeds.detach()),
        query_groups=batch["group_ids"],
        candidate_groups=gather_rows(batch["group_ids"]),
        query_texts=batch["text_ids"],
        candidate_texts=gather_rows(batch["text_ids"]),
        candidate_present=gather_rows(has_clip),
        logit_scale=logit_scale,
        hard_ratio=hard_negative_ratio,
        uniform=batch["match_uniform"],
    )
    aligned = batch["match_aligned"] | ~exists
    chosen = torch.where(aligned, own, negatives)
    logits = score(text, take_clips(clip, chosen))
    counted = has_text & has_clip
    loss = F.cross_entropy(logits, aligned.long(), reduction="none").masked_fill(~counted, 0).sum()
    correct = ((logits.argmax(dim=-1) == aligned) & counted).sum()
    return loss, torch.stack([correct, counted.sum()]).float(), logits


class MultimodalForRetrieval(MultimodalForPreTraining):
    """Contrast and matching alone, without the decoders of the masked objectives: what retrieval needs."""

    objectives = (*CONTRASTIVE_PAIRS, "matching")
    _keys_to_ignore_on_load_unexpected = [r"^(text|audio|video)_decoder\.", r"^fusion_to_text\."]


class MultimodalForQuestionAnswering(MultimodalPreTrainedModel):
    """Choose an answer from a fixed list, from the fused states of question and clip.

    The head is ALPRO's (Li et al. 2022): two linear layers with a ReLU between them on the first fused text token. The
    list of answers is the configuration's `id2label`.
    """

    _keys_to_ignore_on_load_unexpected = [
        r"^(text|audio|video)_decoder\.",
        r"^fusion_to_text\.",
        r"^matching_head\.",
    ]

    def __init__(self, config: MultimodalConfig):
        super().__init__(config)
        self.multimodal = MultimodalModel(config)
        size = self.multimodal.fusion.hidden_size
        self.classifier = nn.Sequential(
            nn.Linear(size, 2 * size), ACT2FN["relu"], nn.Linear(2 * size, config.num_labels)
        )
        self.post_init()

    def encode_text(self, batch: Batch) -> tuple[torch.Tensor, Stream]:
        """[`MultimodalModel.encode_text`] of questions."""
        return self.multimodal.encode_text(batch)

    def encode_clip(self, batch: Batch) -> tuple[None, Clip]:
        """[`MultimodalModel.encode_clip`], without embeddings."""
        return None, self.multimodal.encode_clip(batch, with_embeds=False)[1]

    def cache_clip(self, clip: Clip) -> Clip | ClipCache:
        """[`Crossformer.cache_clip`]."""
        return self.multimodal.fusion.cache_clip(clip)

    def answer_logits(self, text: Stream, clip: Clip | ClipCache) -> torch.Tensor:
        """Logits `(batch_size, num_labels)`, float32, of every answer to questions about clips."""
        return self.classifier(self.multimodal.fusion.fuse(text, clip, num_queries=1)[:, 0]).float()

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Questions with a known answer in this batch."""
        return {"answer": (batch["labels"] >= 0).sum().float()}

    def forward(
        self,
        labels: torch.Tensor | None = None,
        num_items: dict[str, torch.Tensor] | None = None,
        **batch: torch.Tensor,
    ) -> MultimodalOutput:
        """Score every answer.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): index of the answer; negative: not in the
                list, takes no part in the loss.
            num_items (`dict[str, torch.Tensor]`, *optional*): global count of answered questions, as [`count_items`]
                sums to.
            batch: a collator's batch whose text is the question.
        """
        text, clip = self.encode_text(batch)[1], self.encode_clip(batch)[1]
        return answer_output(self.answer_logits(text, clip), labels, num_items, clip=clip)


def answer_output(
    logits: torch.Tensor, labels: torch.Tensor | None, num_items: dict[str, torch.Tensor] | None, **entries
) -> MultimodalOutput:
    """The output of a model that chooses answers: with labels, its loss and accuracy, too.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_answers)`): one per answer.
        labels, num_items: as in [`MultimodalForQuestionAnswering.forward`].
        entries: further entries of the output.
    """
    if labels is None:
        return MultimodalOutput(logits=logits, **entries)
    known = labels >= 0
    count = num_items["answer"] if num_items else sum_over_processes(known.sum().float())
    loss = F.cross_entropy(logits, labels.masked_fill(~known, -100), ignore_index=-100, reduction="sum")
    loss = loss / count.to(loss.device).clamp(min=1)
    correct = (logits.argmax(dim=-1) == labels).sum()
    return MultimodalOutput(
        loss=loss,
        logits=logits,
        losses={"answer": loss.detach()},
        metrics={"answer_accuracy": torch.stack([correct, torch.full_like(correct, len(labels))]).float()},
        **entries,
    )


AutoConfig.register(MultimodalConfig.model_type, MultimodalConfig)
AutoModel.register(MultimodalConfig, MultimodalModel)
