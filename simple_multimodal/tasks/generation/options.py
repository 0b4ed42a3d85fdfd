"""The options of the tasks that generate text."""

from dataclasses import dataclass

from simple_multimodal.flags import EVALUATION, GENERATION, Command, flag
from simple_multimodal.missing import Named
from simple_multimodal.tasks.options import TaskOptions

BOTH: tuple[Command, ...] = ("train", "infer")


@dataclass(frozen=True)
class GenerationOptions(TaskOptions):
    """
    Args:
        backbone_model_name_or_path, backbone_config_name, backbone_tokenizer_name, new_tokens: See
            [`choose_backbone`].
        encoder_prompt, decoder_prompt (`str`, *optional*, default to `""`): Prompts of rows that have none of their
            own, see [`TextTargets`].
        max_target_length (`int`, *optional*, defaults to 128): Largest number of tokens of a text in training.
        mapper_strides (`int`, *optional*, defaults to 0): See [`Mapper`].
        num_beams, max_new_tokens (`int`, *optional*), length_penalty (`float`, *optional*): Settings of generation;
            by default 5 beams, and as many tokens as `max_target_length` in a new model, and those saved with the
            model otherwise.
        predict_with_generate (`bool`, *optional*, defaults to `True`): Whether evaluation during training writes texts
            and scores them, and not only the loss.
    """

    backbone_model_name_or_path: str | None = flag(
        None,
        GENERATION,
        "Hub name or folder of the sequence-to-sequence or decoder-only model that writes text.",
        names=Named.MODEL,
    )
    backbone_config_name: str | None = flag(
        None,
        GENERATION,
        "Config of that model (JSON file or hub name), for random weights. Default: a small M2M-100.",
        names=Named.MODEL,
    )
    backbone_tokenizer_name: str | None = flag(
        None,
        GENERATION,
        "Hub name or folder of its tokenizer. Default: the model's own, or one trained on the training texts.",
        names=Named.MODEL,
    )
    new_tokens: list[str] = flag([], GENERATION, "Tokens to add to the tokenizer, such as __dgs__.")
    encoder_prompt: str = flag("", GENERATION, "Text in front of the clip, for rows without `encoder_prompt`.")
    decoder_prompt: str = flag("", GENERATION, "Beginning of the text, for rows without `decoder_prompt`.")
    max_target_length: int = flag(
        128, GENERATION, "Largest number of tokens of a text in training.", at_least=2, remedy="give 2 or more"
    )
    mapper_strides: int = flag(
        0,
        GENERATION,
        "Convolutions before the text model that each halve the number of tokens of a clip.",
        at_least=0,
    )
    num_beams: int | None = flag(
        None, EVALUATION, "Beams of generation. Default: the model's, 5 if it is new.", at_least=1, commands=BOTH
    )
    max_new_tokens: int | None = flag(
        None,
        EVALUATION,
        "Largest number of tokens to generate. Default: the model's, --max_target_length if it is new.",
        at_least=1,
        commands=BOTH,
    )
    length_penalty: float | None = flag(
        None,
        EVALUATION,
        "Exponent of the length that beams' scores are divided by. Default: the model's.",
        commands=BOTH,
    )
    predict_with_generate: bool = flag(
        True, EVALUATION, "Generate texts and score them when evaluating during training, not only the loss."
    )
