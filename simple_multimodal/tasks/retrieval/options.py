"""The options of retrieval and pre-training."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import Literal

from simple_multimodal.errors import InputError
from simple_multimodal.flags import EVALUATION, OBJECTIVES, flag
from simple_multimodal.missing import Named
from simple_multimodal.tasks.options import TaskOptions


def number_or_all(text: str) -> int | Literal["all"]:
    """Read a number of candidates, or `all`."""
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is neither a number nor 'all'") from None


@dataclass(frozen=True)
class RetrievalOptions(TaskOptions):
    """
    Args:
        mlm_probability (`float`, *optional*, defaults to 0.3): Fraction of a caption's tokens to predict.
        audio_mask_ratio (`float`, *optional*, defaults to 0.3): Fraction of a window's audio patches to mask.
        video_mask_ratio (`float`, *optional*, defaults to 0.8): Fraction of a clip's video tubes to mask.
        vt_match_ratio (`float`, *optional*, defaults to 0.5): Fraction of rows that keep their pair for matching.
        rerank_top_k (`int` or `"all"`, *optional*): Number of candidates of each query that the matching head
            re-ranks; 0 for none. By default the number of the rows' protocol, else 32; 0 for a model for which
            matching was not better than the cosine during training.
        compare_rerank (`bool`): Whether to score all pairs, and report how every metric changes if only the first
            candidates are re-ranked.
        dsl (`bool`): Whether to rank by dual softmax over all queries.
        pair_files (`list[str]`): Files of pairs of rows that differ in one thing, read by [`Retrieval.open_files`].
        swapped_files (`list[str]`): Manifest of the swapped rows for each pair file.
    """

    mlm_probability: float = flag(0.3, OBJECTIVES, "Fraction of a caption's tokens to predict, 0 to 1.", share=True)
    audio_mask_ratio: float = flag(
        0.3, OBJECTIVES, "Fraction of a window's audio patches to mask, 0 to 1.", share=True
    )
    video_mask_ratio: float = flag(0.8, OBJECTIVES, "Fraction of a clip's video tubes to mask, 0 to 1.", share=True)
    vt_match_ratio: float = flag(
        0.5,
        OBJECTIVES,
        "Fraction of rows that keep their pair for matching, 0 to 1; the others get a negative clip.",
        share=True,
    )
    rerank_top_k: int | Literal["all"] | None = flag(
        None,
        EVALUATION,
        "Candidates per query that the matching head re-ranks in evaluation, a number or all; 0: none. Default: the "
        "number of a prepared benchmark's protocol, else 32; in infer none, unless the head beat the cosine on the "
        "validation split.",
        read=number_or_all,
        metavar="INT",
        at_least=0,
        remedy="give 0 (no re-ranking) or more",
        commands=("train", "infer"),
    )
    compare_rerank: bool = flag(
        False,
        EVALUATION,
        "Score all pairs, and report how re-ranking only the first --rerank_top_k changes every metric.",
        commands=("infer",),
    )
    dsl: bool = flag(False, EVALUATION, "Rank by dual softmax over all test queries.", commands=("infer",))
    pair_files: list[str] = flag(
        [],
        EVALUATION,
        "JSONL with ids a, b of evaluation rows that differ in one thing (audio_pairs.jsonl: in their audio).",
        names=Named.MANIFEST,
    )
    swapped_files: list[str] = flag(
        [],
        EVALUATION,
        "Manifest of the rows a_swapped, b_swapped for each pair file; choices that flip are counted.",
        names=Named.MANIFEST,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.swapped_files and len(self.swapped_files) != len(self.pair_files):
            raise InputError(
                f"--swapped_files names {len(self.swapped_files)} manifests for {len(self.pair_files)} --pair_files; "
                "give one for each, in the same order, or none."
            )
