"""The towers and the crossformer without a head, and the base class of all models that have them."""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import (
    AUDIO_WINDOW_KEYS,
    CLIP_MODALITIES,
    INPUT_KEYS,
    MODALITIES,
    PRESENCE_KEYS,
    TOKEN_KEYS,
    Modality,
)
from simple_multimodal.models.audio.windows import encode_windows
from simple_multimodal.models.backbone import build_backbone
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import CONTRASTIVE_PAIRS, MultimodalConfig
from simple_multimodal.models.encoders import Encoder, EncoderOutput, get_encoder_class
from simple_multimodal.models.fusion.crossformer import (
    Clip,
    Crossformer,
    Stream,
    concatenate,
    load_pretrained_fusion,
)
from simple_multimodal.models.loading import LoadingReport, fit_towers, load_pretrained_tower
from simple_multimodal.models.lora import inject_lora
from simple_multimodal.models.losses import masked_mean, normalize
from simple_multimodal.models.outputs import Batch, MultimodalOutput
from simple_multimodal.models.patches import visible_patches
from simple_multimodal.models.video.images import ImageEncoder


class MultimodalPreTrainedModel(TowerModel):
    """Configuration, weight initialisation and loading shared by all multimodal models."""

    config_class = MultimodalConfig
    base_model_prefix = "multimodal"
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
        """Limit the inverse temperature to 100, with the softmax loss only; see [`TowerModel.limit_temperature`].

        With the sigmoid loss there is no limit: pretrained SigLIP models exceed 100.
        """
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
        """Assemble a model from pretrained towers.

        What no checkpoint provides is initialised at random: set the seed before the call.

        Args:
            config (`MultimodalConfig`): Configuration of the model to build.
            pretrained (`dict[str, str]`): Hub name or local folder of the weights of `text`, `audio`, `video` and
                `fusion`; the others start from random weights.
            same_vocabulary (`bool`, *optional*, defaults to `True`): Whether the tokenizer is the text checkpoint's
                own.
            cache_dir (`str`, *optional*): Folder where files from the hub are kept.

        Returns:
            The model, and one [`LoadingReport`] per checkpoint that names every tensor that was not simply loaded.
        """
        model = cls(config)
        base = model.base_model
        tower_reports = {
            modality: load_pretrained_tower(
                base.encoder(modality),
                model.masked_decoder(modality),
                pretrained[modality],
                same_vocabulary=same_vocabulary,
                cache_dir=cache_dir,
            )
            for modality in config.modalities
            if modality in pretrained
        }
        base.load_temperature(tower_reports)
        reports = [*tower_reports.values()]
        if "fusion" in pretrained:
            reports.append(load_pretrained_fusion(base.fusion, pretrained["fusion"], cache_dir=cache_dir))
        return model, reports

    def fit_inputs(self, sizes: Mapping[Modality, tuple[int, ...]]) -> tuple[Self, list[LoadingReport]]:
        """Copy the model, with position tables converted like a checkpoint's; see [`TowerModel.fit_inputs`]."""
        return fit_towers(self, sizes)


class MultimodalModel(MultimodalPreTrainedModel):
    """Encoders and crossformer without a head: embeddings of text, audio, video and clip, and fused text states."""

    _keys_to_ignore_on_load_unexpected = [  # heads
        r"^[a-z]+_decoder\.",
        r"^fusion_to_text\.",
        r"^matching_head\.",
        r"^classifier\.",
        r"^mapper\.",
    ]

    def __init__(self, config: MultimodalConfig):
        super().__init__(config)
        if not config.modalities or config.crossformer_config is None:
            raise InputError(
                f"A multimodal model needs at least one of {', '.join(f'`{m}_config`' for m in MODALITIES)}, and a "
                "`crossformer_config`. Add the missing ones to the configuration."
            )
        check_frame_pooling(config)
        # Direct children: `post_init` of transformers collects the settings of submodules, such as tied weights and
        # modules to keep in float32, only from these.
        for modality in config.modalities:
            self.add_module(f"{modality}_encoder", build_encoder(config, modality))
        sizes: dict[Modality, int] = {m: self.encoder(m).hidden_size for m in config.modalities}
        self.fusion = Crossformer(config.crossformer_config, form=config.fusion_form, token_sizes=sizes)
        if config.text_backbone_config is not None:
            self.backbone = build_backbone(config.text_backbone_config)
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
        """The clip modalities that the model has."""
        return tuple(m for m in CLIP_MODALITIES if m in self.config.modalities)

    def encoder(self, modality: Modality) -> Encoder:
        """Return the encoder of a modality that the model has."""
        return self.get_submodule(f"{modality}_encoder")

    def is_aligned(self, modality: Modality) -> bool:
        """Return whether a modality's embedding is its tower's own, as pretrained."""
        encoder = self.encoder(modality)
        size = encoder.embedding_size(encoder.config)
        return self.config.contrastive_loss_before_fusion and size == self.config.contrastive_dim

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The encoders that the model has, its `fusion`, and its text `backbone`, if it has one, by name."""
        towers = {**{m: self.encoder(m) for m in self.config.modalities}, "fusion": self.fusion}
        return towers if self.config.text_backbone_config is None else {**towers, "backbone": self.backbone}

    def check_inputs(self, modality: Modality, *size: int) -> None:
        """Raise a `ValueError` if the tower of a modality cannot take inputs of this size; see each encoder's own."""
        self.encoder(modality).check_inputs(*size)

    def scale_and_bias(self, objective: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the inverse temperature and bias of a contrastive objective, as scalars."""
        index = list(CONTRASTIVE_PAIRS).index(objective)
        scale = self.logit_scale[index]
        return scale.exp(), None if self.logit_bias is None else self.logit_bias[index]

    @torch.no_grad()
    def load_temperature(self, reports: Mapping[Modality, LoadingReport]) -> None:
        """Copy scale and bias of each contrastive objective from the checkpoint, if both sides come from the same one.

        Args:
            reports (`Mapping[Modality, LoadingReport]`): Report of what was loaded into each tower.
        """
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
        """Run one tower, or use its precomputed tokens if the batch holds them.

        Tokens of rows that lack the modality are masked out. The audio tower runs on the windows that the batch lists
        in `audio_windows`, or on all windows if it has no such entry.

        Args:
            modality (`str`): Name of the tower to run.
            batch (`dict[str, torch.Tensor]`): The collator's batch, with the tower's inputs or its tokens.
            masked_patches (`torch.LongTensor`, *optional*): Patches to leave out (audio, video); see the encoder.
        """
        if masked_patches is None and has_tokens(modality, batch):
            tokens, mask, seconds = (batch[key] for key in TOKEN_KEYS[modality])
            return EncoderOutput(tokens.to(self.dtype), mask, seconds)
        inputs = [batch[key] for key in INPUT_KEYS[modality]]
        if masked_patches is not None:
            inputs.append(masked_patches)
        if modality == "audio" and AUDIO_WINDOW_KEYS[0] in batch:
            output = encode_windows(self.encoder(modality), inputs, batch[AUDIO_WINDOW_KEYS[0]])
        else:
            output = self.encoder(modality)(*inputs)
        return output._replace(mask=output.mask & batch[PRESENCE_KEYS[modality]][:, None])

    def enter_fusion(
        self, modality: Modality, output: EncoderOutput, masked_patches: torch.Tensor | None = None
    ) -> Stream:
        """Embed an encoder's tokens for the crossformer, averaged per time step where `fusion_pool` is `"time"`.

        Args:
            modality (`str`): Name of the tower that made the tokens.
            output (`EncoderOutput`): Output of the tower.
            masked_patches (`torch.LongTensor`, *optional*): Patches that the tower left out.
        """
        if self.config.fusion_pool == "time" and output.seconds is not None:
            num_tokens = output.mask.shape[1] + (0 if masked_patches is None else masked_patches.shape[1])
            steps, num_steps = token_steps(self.encoder(modality), num_tokens, output.num_steps, output.mask.device)
            if masked_patches is not None:
                steps = steps[visible_patches(masked_patches, num_tokens)]
            output = pool_time_steps(output, steps, num_steps)
        return self.fusion.embed(modality, output.tokens, output.mask, output.seconds)

    def embed_tokens(
        self, modality: Modality, output: EncoderOutput, masked_patches: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the unit-length embedding `(batch_size, contrastive_dim)` of one modality's tokens or its tower's."""
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
        """Return the unit-length embedding `(batch_size, contrastive_dim)` of an output of `fusion.encode_clip`."""
        return normalize(self.embedding_projections["clip"](masked_mean(*concatenate(encoded))))

    def mean_embedding(
        self, embeds: Mapping[str, torch.Tensor], outputs: Mapping[Modality, EncoderOutput]
    ) -> torch.Tensor:
        """Return the unit-length mean `(batch_size, contrastive_dim)` of the embeddings of a clip's modalities."""
        present = [m for m in CLIP_MODALITIES if m in outputs]
        has = torch.stack([outputs[m].mask.any(dim=1) for m in present], dim=1)  # (batch, modalities)
        return normalize((torch.stack([embeds[m] for m in present], dim=1) * has[..., None]).sum(dim=1))

    def embed_all(
        self, outputs: dict[Modality, EncoderOutput], masked_patches: dict[Modality, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], Clip]:
        """Embed each side that `outputs` allow, and prepare the clip for the fusion.

        Args:
            outputs (`dict[Modality, EncoderOutput]`): Outputs of the towers.
            masked_patches (`dict[Modality, torch.LongTensor]`): Patches that towers left out, if any.

        Returns:
            Unit-length embeddings `(batch_size, contrastive_dim)` of each modality and of `clip`, and the fusion's
            input from the clips.
        """
        embeds: dict[str, torch.Tensor] = {
            m: self.embed_tokens(m, output, masked_patches.get(m)) for m, output in outputs.items()
        }
        streams: Clip = {
            m: self.enter_fusion(m, outputs[m], masked_patches.get(m)) for m in CLIP_MODALITIES if m in outputs
        }
        if not streams:
            return embeds, {}
        clip_embeds, clip = self._fuse_clip(outputs, streams, embeds)
        return {**embeds, "clip": clip_embeds}, clip

    def _fuse_clip(
        self, outputs: Mapping[Modality, EncoderOutput], streams: Clip, embeds: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, Clip]:
        """Embed clips by their fused states or by the mean of `embeds`, and prepare them for the fusion."""
        if self.config.clip_embedding == "fusion":
            encoded = self.fusion.encode_clip(streams)
            return self.embed_clip(encoded), self.fusion.clip_side(streams, encoded)
        clip = self._clip_side(streams)
        return self.mean_embedding(embeds, outputs), clip

    def _clip_side(self, streams: Clip) -> Clip:
        """Prepare clips for the fusion, encoding them only for the form that needs it."""
        encoded = streams
        if streams and self.fusion.form == "cross_attention":
            encoded = self.fusion.encode_clip(streams)
        return self.fusion.clip_side(streams, encoded)

    def encode_text(self, batch: Batch) -> tuple[torch.Tensor, Stream]:
        """Compute everything that depends on the texts alone.

        Args:
            batch (`dict[str, torch.Tensor]`): `input_ids`, `attention_mask` and, where rows may lack a text,
                `text_mask`.

        Returns:
            Unit-length embeddings `(batch_size, contrastive_dim)`, and the fusion's input from the texts.
        """
        present = torch.ones(len(batch["input_ids"]), dtype=torch.bool, device=batch["input_ids"].device)
        output = self.encode("text", {PRESENCE_KEYS["text"]: present, **batch})
        return self.embed_tokens("text", output), self.enter_fusion("text", output)

    def encode_clip(self, batch: Batch, *, with_embeds: bool = True) -> tuple[torch.Tensor | None, Clip]:
        """Compute everything that depends on the clips alone.

        Args:
            batch (`dict[str, torch.Tensor]`): The audio and video entries of a collator's batch.
            with_embeds (`bool`, *optional*, defaults to `True`): Whether to compute embeddings. Except in the form
                `cross_attention`, they may cost a pass through the fusion layers that nothing else needs.

        Returns:
            Unit-length embeddings `(batch_size, contrastive_dim)`, and the fusion's input from the clips.

        Raises:
            ValueError: If embeddings are requested from a model without a clip modality.
        """
        outputs: dict[Modality, EncoderOutput] = {m: self.encode(m, batch) for m in self.clip_modalities}
        streams: Clip = {m: self.enter_fusion(m, output) for m, output in outputs.items()}
        if not with_embeds:
            return None, self._clip_side(streams)
        if not streams:
            raise InputError(
                f"Clips have no embedding in a model that only has {', '.join(self.config.modalities)}. Pass "
                f"with_embeds=False, or build the model with a tower for {' or '.join(CLIP_MODALITIES)}."
            )
        averages = self.config.clip_embedding != "fusion"
        embeds = {m: self.embed_tokens(m, output) for m, output in outputs.items()} if averages else {}
        return self._fuse_clip(outputs, streams, embeds)

    def fuse_all(self, batch: Batch) -> Stream:
        """Return the states of all tokens after the fusion: those of the text, which have attended to the clip, and
        those of audio and video, fused with each other.

        Args:
            batch (`dict[str, torch.Tensor]`): A collator's batch. Tokens of rows that lack a modality are masked out.
        """
        outputs: dict[Modality, EncoderOutput] = {m: self.encode(m, batch) for m in self.config.modalities}
        streams: Clip = {m: self.enter_fusion(m, output) for m, output in outputs.items()}
        clip: Clip = {m: stream for m, stream in streams.items() if m in CLIP_MODALITIES}
        encoded = self.fusion.encode_clip(clip) if clip else {}
        if "text" not in streams:
            return concatenate(encoded)
        text = streams["text"]
        fused = self.fusion.fuse(text, self.fusion.clip_side(clip, encoded))
        return concatenate({"text": Stream(fused, text.mask), **encoded})

    def forward(self, **batch: torch.Tensor) -> MultimodalOutput:
        """Encode the modalities that the batch contains.

        Args:
            batch: Entries as the collator makes them (see [`MultimodalCollator`]); those of a modality may be left
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
            pose_embeds=embeds.get("pose"),
            clip_embeds=embeds.get("clip"),
        )


def has_tokens(modality: Modality, batch: Batch) -> bool:
    """Return whether a batch contains precomputed tokens of a modality instead of the tower's inputs."""
    return modality in TOKEN_KEYS and TOKEN_KEYS[modality][0] in batch


def build_encoder(config: MultimodalConfig, modality: Modality) -> Encoder:
    """Build the encoder of one modality, with random weights."""
    tower_config = config.tower_config(modality)
    encoder_class = get_encoder_class(tower_config.model_type, modality)
    settings: dict[str, Any] = {}
    if modality == "video":
        settings = {"image_mean": config.image_mean, "image_std": config.image_std}
        if config.frame_pooling_layers > 0:
            settings["frame_pooling_layers"] = config.frame_pooling_layers
    return encoder_class(tower_config, **settings)


def check_frame_pooling(config: MultimodalConfig) -> None:
    """Raise a `ValueError` if there are layers over frame embeddings that nothing uses."""
    layers, tower = config.frame_pooling_layers, config.video_config
    if layers == 0:
        return
    if tower is None or not issubclass(get_encoder_class(tower.model_type, "video"), ImageEncoder):
        found = "there is no video tower" if tower is None else f"{tower.model_type!r} has no frame embeddings"
        raise InputError(
            f"`frame_pooling_layers` is {layers}, but {found}. Set it to 0, or use an image tower such as CLIP's."
        )
    if not config.contrastive_loss_before_fusion:
        raise InputError(
            f"`frame_pooling_layers` is {layers}, but `contrastive_loss_before_fusion` is False: nothing uses "
            "the tower's embedding. Change one of the two."
        )


def token_steps(
    encoder: Encoder, num_tokens: int, num_steps: int | None, device: torch.device
) -> tuple[torch.Tensor, int]:
    """Find the time step of each token.

    Args:
        encoder (`Encoder`): Tower that made the tokens.
        num_tokens (`int`): Number of tokens of a row when nothing is masked.
        num_steps (`int`, *optional*): [`EncoderOutput.num_steps`]; `None` where steps follow from the tower's config.
        device (`torch.device`): Device of the result.

    Returns:
        `torch.LongTensor` of shape `(num_tokens,)`, and the number of steps.

    Raises:
        ValueError: If `num_tokens` is not a multiple of `num_steps`.
    """
    if num_steps is None:
        # Rounded up for a batch of features in which no row has the modality: it has one token, less than a step.
        return encoder.time_steps(num_tokens, device), math.ceil(num_tokens / encoder.tokens_per_step)
    if num_tokens % num_steps:
        raise InputError(
            f"The {encoder.modality} tower {encoder.model_type!r} returned {num_tokens} tokens for num_steps="
            f"{num_steps}. Return the same number of tokens for each step, or define time_steps and omit num_steps."
        )
    return torch.arange(num_tokens, device=device) // (num_tokens // num_steps), num_steps


def pool_time_steps(output: EncoderOutput, steps: torch.Tensor, num_steps: int) -> EncoderOutput:
    """Average the real tokens of each time step, leaving one token per step.

    Args:
        steps (`torch.LongTensor` of shape `(num_tokens,)` or `(batch_size, num_tokens)`): Time step of each token.
        num_steps (`int`): Number of time steps.
    """
    is_of_step = steps[..., None] == torch.arange(num_steps, device=steps.device)
    membership = (is_of_step & output.mask[..., None]).float()  # (batch, tokens, steps)
    counts = membership.sum(dim=1)  # (batch, steps)
    mean = (membership / counts.clamp(min=1)[:, None]).transpose(1, 2)  # (batch, steps, tokens)
    seconds = (mean * output.seconds[:, None]).sum(dim=-1)  # not a matrix product: autocast would round the times
    return EncoderOutput(mean.to(output.tokens.dtype) @ output.tokens, counts > 0, seconds)


AutoConfig.register(MultimodalConfig.model_type, MultimodalConfig)
AutoModel.register(MultimodalConfig, MultimodalModel)
