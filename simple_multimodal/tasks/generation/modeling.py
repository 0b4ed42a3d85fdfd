"""A text backbone of `transformers` behind the towers and the fusion, which generates the text of a clip."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init

from simple_multimodal.defaults import Precision
from simple_multimodal.errors import InputError
from simple_multimodal.models.backbone import embedding_scale
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.distributed import sum_over_processes
from simple_multimodal.models.losses import label_smoothed_loss
from simple_multimodal.models.modeling import MultimodalModel, MultimodalPreTrainedModel
from simple_multimodal.models.outputs import Batch, MultimodalOutput
from simple_multimodal.tasks.generation.targets import IGNORED


class Sequences(NamedTuple):
    """
    Tokens of each row, or their states.

    Args:
        states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): States, or numbers of tokens, of
            size 1.
        mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): `True` for real tokens.
    """

    states: torch.Tensor
    mask: torch.Tensor


def join(parts: list[Sequences], *, pads_left: bool = False) -> Sequences:
    """
    Concatenate sequences, and move the real tokens of each row together, so that a row does not depend on the padding
    of others.

    Args:
        parts (`list[Sequences]`): Sequences of the same rows.
        pads_left (`bool`, *optional*, defaults to `False`): Whether the padding comes before the tokens, as a decoder
            that continues them needs it, instead of after them.
    """
    states = torch.cat([part.states for part in parts], dim=1)
    mask = torch.cat([part.mask for part in parts], dim=1)
    order = (mask if pads_left else ~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return Sequences(states.gather(1, order[..., None].expand(-1, -1, states.shape[-1])), mask.gather(1, order))


class MapperProjection(nn.Linear):
    """The linear layer to the size of word embeddings, whose outputs have a mean square of 1 at first."""


class Mapper(nn.Module):
    """
    Bring the tokens of a clip to the size and scale of a backbone's word embeddings.

    Args:
        hidden_size (`int`): Size of the tokens.
        embedding_size (`int`): Size of the word embeddings.
        num_strides (`int`): Number of convolutions that each halve the number of tokens.
        dropout (`float`): Dropout probability of the outputs.
    """

    def __init__(self, hidden_size: int, embedding_size: int, *, num_strides: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(hidden_size, hidden_size, kernel_size=3, stride=2, padding=1) for _ in range(num_strides)
        )
        self.projection = MapperProjection(hidden_size, embedding_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Sequences) -> Sequences:
        """Map tokens; a token of the output is real if the one in the middle of its convolution is."""
        states, mask = self.norm(tokens.states), tokens.mask
        for convolution in self.convolutions:
            # Padding must not differ from the zeros that a convolution adds at the ends.
            states = convolution((states * mask[..., None]).transpose(1, 2)).transpose(1, 2)
            states, mask = nn.functional.gelu(states), mask[:, ::2]
        return Sequences(self.dropout(self.projection(states)), mask)


class MultimodalForConditionalGeneration(MultimodalPreTrainedModel, GenerationMixin):
    """
    Generate text from clips: the tokens of a clip after the fusion go, through a [`Mapper`], into the encoder of a
    sequence-to-sequence model of `transformers`, or in front of the text of a decoder-only one.

    The backbone is that of the configuration's `text_backbone_config`. Its encoder sees `[prompt][clip][end]`, and its
    decoder continues `[start][prompt]`; a decoder-only one continues `[start][prompt][clip][prompt]`.
    """

    loss_weights = {"generation": 1.0}
    label_smoothing = 0.0
    _keys_to_ignore_on_load_unexpected = [
        r"^[a-z]+_decoder\.",
        r"^fusion_to_text\.",
        r"^matching_head\.",
        r"^classifier\.",
    ]

    def __init__(self, config: MultimodalConfig):
        super().__init__(config)
        if config.text_backbone_config is None or "text" in config.modalities:
            raise InputError(
                "A model that generates text needs a `text_backbone_config`, and no `text_config`: text is its output."
            )
        self.multimodal = MultimodalModel(config)
        self.mapper = Mapper(
            self.multimodal.fusion.hidden_size,
            self.backbone.get_input_embeddings().embedding_dim,
            num_strides=config.mapper_strides,
            dropout=config.mapper_dropout,
        )
        self.generation_config = copy.deepcopy(self.backbone.generation_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MapperProjection):
            init.normal_(module.weight, std=1 / math.sqrt(module.in_features))

    @property
    def backbone(self) -> Any:
        """The text backbone."""
        return self.multimodal.backbone

    @property
    def is_seq2seq(self) -> bool:
        """Whether the backbone has an encoder and a decoder."""
        return self.config.text_backbone_config.is_encoder_decoder

    def check_precision(self, precision: Precision) -> None:
        """Refuse float16 for a T5, whose layers compute values beyond its range."""
        model_type = self.config.text_backbone_config.model_type
        if precision == "fp16" and "t5" in model_type:
            raise InputError(f"fp16: the {model_type} backbone overflows in float16. Use bf16, or leave it out.")

    @property
    def start_token_id(self) -> int:
        """Number of the token that the decoder starts from."""
        config = self.config.text_backbone_config
        names = ("decoder_start_token_id", "bos_token_id", "eos_token_id")
        ids = [getattr(config, name, None) for name in names[0 if self.is_seq2seq else 1 :]]
        return next(number for number in ids if number is not None)

    @torch.no_grad()
    def fit_mapper(self) -> None:
        """Scale the outputs of a new mapper to the backbone's word embeddings."""
        self.mapper.projection.weight.mul_(embedding_scale(self.backbone))

    def smooth_labels(self, factor: float) -> None:
        """Spread a share of each target over the whole vocabulary in training, see [`label_smoothed_loss`]."""
        self.label_smoothing = factor

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Count what the loss of a batch is averaged over: tokens to predict."""
        return {"generation": (batch["labels"] != IGNORED).sum().float()}

    def forward(
        self,
        labels: torch.Tensor | None = None,
        num_items: dict[str, torch.Tensor] | None = None,
        **batch: torch.Tensor,
    ) -> MultimodalOutput:
        """
        Predict each token of the texts from those before it.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, num_tokens)`): Tokens of the texts, with the end token;
                -100 after it, and for rows without a text.
            num_items (`dict[str, torch.Tensor]`, *optional*): Global number of tokens: the sum of [`count_items`].
            batch: A collator's batch, with the entries of [`TextTargets`].
        """
        if labels is None:
            raise InputError("`labels` are needed to compute a loss; to write text, call `generate`.")
        logits, wanted = self._predict(labels, batch)
        total = label_smoothed_loss(
            logits.float().flatten(0, 1), wanted.flatten(), smoothing=self.label_smoothing if self.training else 0.0
        )
        count = num_items or {"generation": sum_over_processes(self.count_items({"labels": labels})["generation"])}
        loss = total / count["generation"].to(total.device).clamp(min=1)
        return MultimodalOutput(loss=loss, logits=logits, losses={"generation": loss.detach()}, metrics={})

    @torch.no_grad()
    def token_losses(self, labels: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor:
        """Return the sum of the cross-entropies of each row's tokens, without smoothing, and their number, as float32
        of shape `(batch_size, 2)`.
        """
        logits, wanted = self._predict(labels, batch)
        losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        return torch.stack([losses.sum(dim=1), (wanted != IGNORED).sum(dim=1).float()], dim=1)

    def _predict(self, labels: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits `(batch_size, num_tokens, vocabulary_size)` and the token that each should predict."""
        text = Sequences(labels[..., None], labels != IGNORED)
        start, prompt = self._decoder_start(batch)
        if self.is_seq2seq:
            clip = self._encoder_inputs(batch)
            known = join([start, prompt])
            tokens = join([known, text._replace(states=text.states.clamp(min=0))])
            logits = self.backbone(
                inputs_embeds=clip.states,
                attention_mask=clip.mask.long(),
                decoder_input_ids=tokens.states[:, :-1, 0],
                decoder_attention_mask=tokens.mask[:, :-1].long(),
            ).logits
        else:
            known = self._decoder_inputs(batch, start, prompt)
            inputs = join([known, self._embed(text._replace(states=text.states.clamp(min=0)))])
            logits = self.backbone(
                inputs_embeds=inputs.states[:, :-1], attention_mask=inputs.mask[:, :-1].long()
            ).logits
        ignored = torch.full((*known.mask.shape, 1), IGNORED, device=labels.device)
        wanted = join([Sequences(ignored, known.mask), text])
        return logits, wanted.states[..., 0].masked_fill(~wanted.mask, IGNORED)[:, 1:]

    @torch.no_grad()
    def generate(self, batch: Batch, **settings: Any) -> tuple[list[torch.Tensor], torch.Tensor]:  # type: ignore[override]
        """
        Write the text of each clip. A row does not depend on the others.

        Args:
            batch (`dict[str, torch.Tensor]`): A collator's batch, with the prompts of [`TextTargets`].
            settings: Settings of generation that replace those of `generation_config`, such as `num_beams`.

        Returns:
            `list[torch.LongTensor]`: Tokens of each row, without the prompt.
            `torch.FloatTensor` of shape `(batch_size,)`: Mean log-probability of the tokens of each row.
        """
        start, prompt = self._decoder_start(batch)
        if self.is_seq2seq:
            inputs = self._encoder_inputs(batch)
            lengths = prompt.mask.sum(dim=1)
        else:
            inputs = self._decoder_inputs(batch, start, prompt, pads_left=True)
            lengths = torch.zeros(len(prompt.mask), dtype=torch.long, device=prompt.mask.device)
        chosen = copy.deepcopy(self.generation_config)
        chosen.update(**settings, return_dict_in_generate=True, output_scores=True)
        tokens: list[torch.Tensor] = [torch.empty(0)] * len(lengths)
        scores = torch.zeros(len(lengths))
        for length in lengths.unique().tolist():  # a decoder's prompts cannot be padded
            rows = (lengths == length).nonzero()[:, 0]
            own: dict[str, torch.Tensor] = {}
            if self.is_seq2seq:
                ids = join([Sequences(part.states[rows], part.mask[rows]) for part in (start, prompt)])
                own = {"decoder_input_ids": ids.states[:, : length + 1, 0]}
            found = self.backbone.generate(
                inputs_embeds=inputs.states[rows],
                attention_mask=inputs.mask[rows].long(),
                generation_config=chosen,
                **own,
            )
            num_given = length + 1 if self.is_seq2seq else 0
            steps = self.backbone.compute_transition_scores(
                found.sequences, found.scores, getattr(found, "beam_indices", None), normalize_logits=True
            )
            for place, row in enumerate(rows.tolist()):
                tokens[row] = found.sequences[place, num_given:].cpu()
                written = steps[place].isfinite() & (steps[place] != 0)
                scores[row] = steps[place][written].sum().float() / written.sum().clamp(min=1)
        return tokens, scores

    def _clip(self, batch: Batch) -> Sequences:
        """Return the mapped tokens of the clips."""
        stream = self.multimodal.fuse_all(batch)
        return self.mapper(Sequences(stream.states, stream.mask))

    def _embed(self, tokens: Sequences) -> Sequences:
        """Return the word embeddings of tokens."""
        return Sequences(self.backbone.get_input_embeddings()(tokens.states[..., 0]), tokens.mask)

    def _decoder_start(self, batch: Batch) -> tuple[Sequences, Sequences]:
        """Return the start token and the decoder's prompt of each row."""
        prompt = batch["decoder_prompt_ids"]
        start = torch.full((len(prompt), 1, 1), self.start_token_id, device=prompt.device)
        return (
            Sequences(start, torch.ones_like(start[..., 0], dtype=torch.bool)),
            Sequences(prompt[..., None], batch["decoder_prompt_attention_mask"].bool()),
        )

    def _prompt(self, batch: Batch) -> Sequences:
        """Return the embedded prompt in front of the clip."""
        return self._embed(Sequences(batch["prompt_ids"][..., None], batch["prompt_attention_mask"].bool()))

    def _encoder_inputs(self, batch: Batch) -> Sequences:
        """Return what the encoder of a sequence-to-sequence model sees."""
        clip = self._clip(batch)
        end_token_id = self.config.text_backbone_config.eos_token_id
        parts = [self._prompt(batch), clip]
        if end_token_id is not None:
            end = torch.full((len(clip.mask), 1, 1), end_token_id, device=clip.mask.device)
            parts.append(self._embed(Sequences(end, torch.ones_like(end[..., 0], dtype=torch.bool))))
        return join(parts)

    def _decoder_inputs(
        self, batch: Batch, start: Sequences, prompt: Sequences, *, pads_left: bool = False
    ) -> Sequences:
        """Return what a decoder-only model continues."""
        parts = [self._embed(start), self._prompt(batch), self._clip(batch), self._embed(prompt)]
        return join(parts, pads_left=pads_left)
