"""ALPRO (Li et al. 2022, arXiv 2112.09583), built from the TimeSformer and the BERT of `transformers`."""

import functools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import AutoConfig, AutoModel, BertModel, TimesformerModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertLayer

from simple_multimodal.alpro.configuration import AlproConfig
from simple_multimodal.errors import InputError
from simple_multimodal.modalities import INPUT_KEYS, PRESENCE_KEYS, TOKEN_KEYS, Modality
from simple_multimodal.models.base import EncoderOutput, TowerModel
from simple_multimodal.models.distributed import sum_over_processes
from simple_multimodal.models.fusion.crossformer import Clip, Stream, concatenate
from simple_multimodal.models.gradient_caching import EncodedRows, encode_in_chunks, score_in_chunks
from simple_multimodal.models.lora import inject_lora
from simple_multimodal.models.losses import answer_loss, contrastive_loss, normalize
from simple_multimodal.models.matching import matching_loss
from simple_multimodal.models.outputs import Batch, MultimodalOutput
from simple_multimodal.models.patches import normalize_pixels


class AlproPreTrainedModel(TowerModel):
    """Configuration, weight initialisation and loading shared by all ALPRO models."""

    config_class = AlproConfig
    base_model_prefix = "alpro"
    # With `input_ids`, activation checkpointing puts a hook on all embeddings, which fails on the TimeSformer's: they
    # return a tuple (transformers 5.23).
    main_input_name = "pixel_values_videos"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlproForRetrieval):
            init.constant_(module.temperature, self.config.temperature_init_value)

    def cache_clip(self, clip: Clip) -> Clip:
        """Return the clip itself: from the first fusion layer on, every text changes its states."""
        return clip


class AlproModel(AlproPreTrainedModel):
    """The towers and the fusion: the lower layers of a BERT read the text, its upper ones text and video together."""

    _keys_to_ignore_on_load_unexpected = [  # heads
        r"^(text|video)_projection\.",
        r"^matching_head\.",
        r"^classifier\.",
        r"^temperature$",
    ]

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        text, video = config.text_config, config.video_config
        if text.hidden_size != video.hidden_size:
            raise InputError(
                "ALPRO's fusion does not project text and video tokens, so `hidden_size` must be the same, but it is "
                f"{text.hidden_size} in text_config and {video.hidden_size} in video_config."
            )
        if not 0 <= config.fusion_layer < text.num_hidden_layers:
            raise InputError(
                f"`fusion_layer` is {config.fusion_layer}, but the BERT has the layers 0 to "
                f"{text.num_hidden_layers - 1}, and at least the last one must fuse."
            )
        self.text_encoder = BertModel(text, add_pooling_layer=False)
        self.video_encoder = TimesformerModel(video)
        layers = self.video_encoder.encoder.layer
        for depth, layer in enumerate(layers):
            layer.drop_path = StochasticDepth(config.drop_path_rate * depth / max(len(layers) - 1, 1), "row")
        if config.lora is not None:
            inject_lora(self, config.lora)
        self.post_init()

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The lower layers of the BERT with its embeddings (`text`), the TimeSformer, the upper layers (`fusion`)."""
        layers, first = self.text_encoder.encoder.layer, self.config.fusion_layer
        text = nn.ModuleList([self.text_encoder.embeddings, *layers[:first]])
        return {"text": text, "video": self.video_encoder, "fusion": layers[first:]}

    def check_inputs(self, modality: Modality, *size: int) -> None:
        """
        Raise a `ValueError` if the model does not take such inputs.

        Args:
            modality (`str`): `"text"` or `"video"`.
            size (`int`): Tokens of the longest text; or frames, height and width in pixels.
        """
        text, video = self.config.text_config, self.config.video_config
        if modality == "text" and size[0] > text.max_position_embeddings:
            raise InputError(
                f"The texts have {size[0]} tokens, but this ALPRO takes {text.max_position_embeddings}. Set "
                "`max_seq_length` to that or less."
            )
        if modality == "video" and size != (video.num_frames, video.image_size, video.image_size):
            raise InputError(
                f"The clips have {size[0]} frames of {size[1]} by {size[2]} pixels, but this ALPRO takes "
                f"{video.num_frames} frames of {video.image_size} by {video.image_size}. Set num_frames and size of "
                "the video processor to these, or convert the checkpoint with another num_frames."
            )

    def encode_text(self, batch: Batch) -> Stream:
        """Run the text layers.

        Args:
            batch (`dict[str, torch.Tensor]`): `input_ids` and `attention_mask`, of shape `(batch_size,
                num_text_tokens)`.

        Returns:
            [`Stream`] of `num_text_tokens` tokens, starting with [CLS].
        """
        input_ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        self.check_inputs("text", input_ids.shape[1])
        states = self.text_encoder.embeddings(input_ids)  # (batch, tokens, hidden)
        return Stream(self._attend(self.text_encoder.encoder.layer[: self.config.fusion_layer], states, mask), mask)

    def encode_video(self, batch: Batch) -> Stream:
        """Run the TimeSformer and average each patch over time.

        Args:
            batch (`dict[str, torch.Tensor]`): `pixel_values_videos` of shape `(batch_size, num_frames, 3, height,
                width)`, `uint8` or already normalised, and optionally `video_mask` of shape `(batch_size,)`; or what
                an earlier output of this method for them, under `TOKEN_KEYS`.

        Returns:
            [`Stream`] of `1 + num_patches` tokens: [CLS], then the patches row by row. Those of a row without video
            are masked.
        """
        states_key, mask_key, _ = TOKEN_KEYS["video"]
        if states_key in batch:
            return Stream(batch[states_key].to(self.dtype), batch[mask_key])
        pixels = batch["pixel_values_videos"]
        num_frames = pixels.shape[1]
        self.check_inputs("video", num_frames, *pixels.shape[-2:])
        pixels = normalize_pixels(pixels, self.config.image_mean, self.config.image_std)
        dtype = self.video_encoder.embeddings.patch_embeddings.projection.weight.dtype
        tokens = self.video_encoder(pixels.to(dtype)).last_hidden_state  # (batch, 1 + patches * frames, hidden)
        patches = tokens[:, 1:].unflatten(1, (-1, num_frames)).mean(dim=2)  # time is the fast axis
        states = torch.cat([tokens[:, :1], patches], dim=1)  # (batch, 1 + patches, hidden)
        return Stream(states, is_present(batch, "video")[:, None].expand(states.shape[:2]))

    def encode(self, modality: Modality, batch: Batch) -> EncoderOutput:
        """Run [`encode_video`] under the name that every model with a tower of `modality` has, without token times."""
        assert modality == "video"
        states, mask = self.encode_video(batch)
        return EncoderOutput(states, mask, None)

    def fuse(self, text: Stream, clip: Clip) -> torch.Tensor:
        """Return the text's [CLS] after the fusion layers, `(batch_size, hidden_size)`, from the encoders' outputs."""
        states, mask = concatenate({"text": text, **clip})
        *layers, last = self.text_encoder.encoder.layer[self.config.fusion_layer :]
        return first_token(last, self._attend(layers, states, mask), mask)

    def _attend(self, layers: Iterable[BertLayer], states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run layers of the BERT over `(batch, tokens, hidden)` states with a `(batch, tokens)` mask."""
        # Checking whether the mask may be left out would have to read it on the host.
        attention_mask = create_bidirectional_mask(
            self.text_encoder.config, states, mask, allow_is_bidirectional_skip=False
        )
        for layer in layers:
            states = layer(states, attention_mask)
        return states

    def forward(self, **batch: torch.Tensor) -> MultimodalOutput:
        """Encode and fuse a batch of the collator; `last_hidden_state` only holds the text's [CLS]."""
        clip: Clip = {"video": self.encode_video(batch)}
        return MultimodalOutput(last_hidden_state=self.fuse(self.encode_text(batch), clip)[:, None], clip=clip)


def is_present(batch: Batch, modality: Modality) -> torch.Tensor:
    """Return which rows have the modality, `bool` of shape `(batch_size,)`: all of them if the batch does not say."""
    if PRESENCE_KEYS[modality] in batch:
        return batch[PRESENCE_KEYS[modality]]
    values = batch[INPUT_KEYS[modality][0]]
    return torch.ones(len(values), dtype=torch.bool, device=values.device)


def first_token(layer: BertLayer, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a layer for the first token only, because nothing reads the others.

    Args:
        layer (`BertLayer`): The layer.
        states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): Input of the layer.
        mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): `True` where a token is real.

    Returns:
        `torch.Tensor` of shape `(batch_size, hidden_size)`.
    """
    attention, first = layer.attention.self, states[:, :1]
    heads = attention.num_attention_heads, attention.attention_head_size
    query, key, value = (
        projection(tokens).unflatten(-1, heads).transpose(1, 2)  # (batch, heads, tokens, head)
        for projection, tokens in ((attention.query, first), (attention.key, states), (attention.value, states))
    )
    dropout = attention.dropout.p if layer.training else 0.0
    attended = F.scaled_dot_product_attention(query, key, value, mask[:, None, None], dropout_p=dropout)
    attended = layer.attention.output(attended.transpose(1, 2).flatten(2), first)  # (batch, 1, hidden)
    return layer.feed_forward_chunk(attended)[:, 0]


class AlproForRetrieval(AlproPreTrainedModel):
    """ALPRO with its heads for retrieval: contrastive embeddings of text and video, and matching."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.alpro = AlproModel(config)
        size = config.text_config.hidden_size
        self.text_projection = nn.Linear(size, config.contrastive_dim)
        self.video_projection = nn.Linear(size, config.contrastive_dim)
        self.matching_head = nn.Linear(size, 2)
        self.temperature = nn.Parameter(torch.empty(()))
        self.loss_weights = config.loss_weights
        self.post_init()

    @property
    def logit_scale(self) -> torch.Tensor:
        """Inverse temperature, a scalar."""
        return 1 / self.temperature

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Limit the temperature to 0.001 to 0.5, as the reference does; see [`TowerModel.limit_temperature`]."""
        self.temperature.clamp_(0.001, 0.5)

    def scale_and_bias(self, objective: str) -> tuple[torch.Tensor, None]:
        """Return the inverse temperature of the only contrastive objective; it has no bias."""
        return self.logit_scale, None

    def encode_text(self, batch: Batch) -> tuple[torch.Tensor, Stream]:
        """Return unit-length embeddings `(batch_size, contrastive_dim)`, and the input of [`matching_logits`]; see
        [`AlproModel.encode_text`].
        """
        text = self.alpro.encode_text(batch)
        return normalize(self.text_projection(text.states[:, 0])), text

    def encode_clip(self, batch: Batch) -> tuple[torch.Tensor, Clip]:
        """Return unit-length embeddings `(batch_size, contrastive_dim)`, and the input of [`matching_logits`]; see
        [`AlproModel.encode_video`].
        """
        video = self.alpro.encode_video(batch)
        return normalize(self.video_projection(video.states[:, 0])), {"video": video}

    def check_matching(self) -> None:
        """Do nothing: every ALPRO for retrieval has a matching head."""

    @property
    def cosine_weight(self) -> float:
        """Weight of the cosine as in [`MultimodalForPreTraining`]: 0, because ALPRO re-ranks by its head alone."""
        return 0.0

    def matching_logits(self, text: Stream, clip: Clip) -> torch.Tensor:
        """Return logits `(batch_size, 2)` of "is another clip's" and "belongs together", float32, row by row."""
        return self.matching_head(self.alpro.fuse(text, clip)).float()

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Count the rows of this batch that each objective averages over: those with text and video, in float32."""
        count = (is_present(batch, "text") & is_present(batch, "video")).sum().float()
        return dict.fromkeys(self.loss_weights, count)

    def _encode_rows(self, batch: Batch, *, keeps_streams: bool) -> EncodedRows:
        text_embeds, text = self.encode_text(batch)
        clip_embeds, clip = self.encode_clip(batch)
        streams: dict[Modality, Stream] = {"text": text, **clip} if keeps_streams else {}
        return EncodedRows({"text": text_embeds, "clip": clip_embeds}, streams, {}, {})

    def forward(
        self,
        num_items: dict[str, torch.Tensor] | None = None,
        objectives: Sequence[str] | None = None,
        chunk_size: int | None = None,
        **batch: torch.Tensor,
    ) -> MultimodalOutput:
        """Compute the objectives that the configuration gives a weight, as [`MultimodalForRetrieval`] does.

        Args:
            num_items (`dict[str, torch.Tensor]`, *optional*): Divisor of each objective's sum, as [`count_items`]
                summed over processes and accumulated batches. By default the counts of this batch on all processes.
                With several processes, `loss` is this process's share of the global loss.
            objectives (`Sequence[str]`, *optional*): Objectives to compute; by default, all.
            chunk_size (`int`, *optional*): Rows and pairs at a time, as in [`MultimodalForPreTraining.forward`].
            batch: A collator's batch with its random choices for matching, with the same number of rows in all
                processes.
        """
        weights = {name: w for name, w in self.loss_weights.items() if objectives is None or name in objectives}
        if num_items is None:
            num_items = {name: sum_over_processes(count) for name, count in self.count_items(batch).items()}
        keeps_streams = chunk_size is None or "matching" in weights
        embeds, streams, sums, metrics = encode_in_chunks(
            self, functools.partial(self._encode_rows, keeps_streams=keeps_streams), batch, chunk_size
        )
        clip: Clip = {m: stream for m, stream in streams.items() if m != "text"}
        has_text, has_clip = is_present(batch, "text"), is_present(batch, "video")
        logits = None
        if "contrastive_tv" in weights:
            sums["contrastive_tv"] = contrastive_loss(
                embeds["text"],
                embeds["clip"],
                present=has_text & has_clip,
                group_ids=batch["group_ids"],
                logit_scale=self.logit_scale,
                logit_bias=None,
                form="softmax",
                recompute=chunk_size is not None,
            )
        if "matching" in weights:
            sums["matching"], metrics["matching_accuracy"], logits = matching_loss(
                functools.partial(score_in_chunks, self, chunk_size=chunk_size),
                streams["text"],
                clip,
                text_embeds=embeds["text"],
                clip_embeds=embeds["clip"],
                has_text=has_text,
                has_clip=has_clip,
                logit_scale=self.logit_scale,
                hard_negative_ratio=self.config.hard_negative_ratio,
                batch=batch,
            )
        losses = {name: value / num_items[name].to(value.device).clamp(min=1) for name, value in sums.items()}
        return MultimodalOutput(
            loss=torch.stack([weights[name] * value for name, value in losses.items()]).sum() if losses else None,
            logits=logits,
            losses={name: value.detach() for name, value in losses.items()},
            metrics=metrics,
            clip=clip,
            text_embeds=embeds["text"],
            video_embeds=embeds["clip"],
            clip_embeds=embeds["clip"],
        )


class AlproForQuestionAnswering(AlproPreTrainedModel):
    """ALPRO that chooses an answer from the configuration's `id2label`, by the fused [CLS] of the question."""

    loss_weights = {"answer": 1.0}
    _keys_to_ignore_on_load_unexpected = [r"^(text|video)_projection\.", r"^matching_head\.", r"^temperature$"]

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.alpro = AlproModel(config)
        size = config.text_config.hidden_size
        self.classifier = nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, config.num_labels))
        self.post_init()

    def encode_text(self, batch: Batch) -> tuple[None, Stream]:
        """Return no embedding, and the input of [`answer_logits`] from questions; see [`AlproModel.encode_text`]."""
        return None, self.alpro.encode_text(batch)

    def encode_clip(self, batch: Batch) -> tuple[None, Clip]:
        """Return no embedding, and the input of [`answer_logits`] from clips; see [`AlproModel.encode_video`]."""
        return None, {"video": self.alpro.encode_video(batch)}

    def answer_logits(self, text: Stream, clip: Clip) -> torch.Tensor:
        """Return logits `(batch_size, num_labels)` of the answers, float32, question `i` with clip `i`."""
        return self.classifier(self.alpro.fuse(text, clip)).float()

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Count the questions with a known answer in this batch."""
        return {"answer": (batch["labels"] >= 0).sum().float()}

    def forward(
        self,
        labels: torch.Tensor | None = None,
        num_items: dict[str, torch.Tensor] | None = None,
        **batch: torch.Tensor,
    ) -> MultimodalOutput:
        """Score every answer.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Index of the answer; negative if it is
                not in the list, in which case it takes no part in the loss.
            num_items (`dict[str, torch.Tensor]`, *optional*): Global count of answered questions, the sum of
                [`count_items`].
            batch: A collator's batch whose text is the question.
        """
        _, text = self.encode_text(batch)
        _, clip = self.encode_clip(batch)
        logits = self.answer_logits(text, clip)
        if labels is None:
            return MultimodalOutput(logits=logits, clip=clip)
        loss, accuracy = answer_loss(logits, labels, num_items)
        return MultimodalOutput(
            loss=loss,
            logits=logits,
            losses={"answer": loss.detach()},
            metrics={"answer_accuracy": accuracy},
            clip=clip,
        )


AutoConfig.register(AlproConfig.model_type, AlproConfig)
AutoModel.register(AlproConfig, AlproModel)
