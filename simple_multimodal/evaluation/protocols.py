"""The named protocols of the benchmarks: their training and test clips, and how many of them there must be."""

import difflib
import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from simple_multimodal.errors import InputError

Task = Literal["retrieval", "question_answering", "video_classification", "translation", "captioning"]

SPLITS = ("train", "validation", "test")

ANSWER_TYPES = ("what", "who", "how", "where", "when")
"""Types of question, by first word."""


class SplitSize(NamedTuple):
    """Numbers of clips and of texts (captions, questions or scripts) of a split."""

    clips: int
    texts: int


@dataclass(frozen=True)
class Protocol:
    """
    A training list, a test list and a way of counting. Numbers of different protocols are not comparable.

    Args:
        name (`str`): Name of the protocol in results.
        benchmark (`str`): Name of the data set for `simple-multimodal prepare`.
        task (`str`): `"retrieval"`, `"question_answering"`, `"video_classification"`, `"translation"` or
            `"captioning"`.
        primary_metric (`str`): The metric that models are compared by.
        training_list (`str`): Description of the training list.
        test_list (`str`): Description of the test list.
        sizes (`Mapping[str, SplitSize | None]`): Published sizes of `train`, `validation` and `test`; `None` for an
            unpublished size. A missing split has no list.
        has_several_captions (`bool`): Whether a test clip has several captions, each of which is a query, or which
            together are the references of a generated caption.
        rerank_top_k (`int`, *optional*): Number of candidates that a matching head re-ranks by default; `None` for
            all pairs.
        answer_types (`Mapping[str, int]`): Number of test questions of each type; empty for other tasks.
        num_labels (`int`, *optional*): Published number of classes, for video classification.
    """

    name: str
    benchmark: str
    task: Task
    primary_metric: str
    training_list: str
    test_list: str
    sizes: Mapping[str, SplitSize | None]
    has_several_captions: bool = False
    rerank_top_k: int | None = None
    answer_types: Mapping[str, int] = field(default_factory=dict)
    num_labels: int | None = None


def _retrieval(name: str, benchmark: str, training_list: str, test_list: str, **further) -> Protocol:
    return Protocol(name, benchmark, "retrieval", "text_to_video_R@1", training_list, test_list, **further)


def _question_answering(name: str, training_list: str, test_list: str, **further) -> Protocol:
    benchmark = name.replace("-", "_")
    return Protocol(name, benchmark, "question_answering", "accuracy", training_list, test_list, **further)


def _video_classification(
    name: str, benchmark: str, primary_metric: str, training_list: str, test_list: str, **further
) -> Protocol:
    return Protocol(name, benchmark, "video_classification", primary_metric, training_list, test_list, **further)


def _captioning(name: str, benchmark: str, training_list: str, test_list: str, **further) -> Protocol:
    return Protocol(
        name, benchmark, "captioning", "CIDEr-D", training_list, test_list, has_several_captions=True, **further
    )


def _translation(name: str, training_list: str, test_list: str, **further) -> Protocol:
    return Protocol(name, name, "translation", "BLEU", training_list, test_list, **further)


_TABLE = (
    _retrieval(
        "msrvtt-1ka-9k",
        "msrvtt",
        "the 9,000 clips that are not tested",
        "1k-A (JSFusion): 1,000 clips, one caption each",
        sizes={"train": SplitSize(9000, 180_000), "test": SplitSize(1000, 1000)},
    ),
    _retrieval(
        "msrvtt-1ka-7k",
        "msrvtt",
        "the 7,010 clips of the official training and validation splits",
        "1k-A (JSFusion): 1,000 clips, one caption each",
        sizes={"train": SplitSize(7010, 140_200), "test": SplitSize(1000, 1000)},
    ),
    _retrieval(
        "msrvtt-full",
        "msrvtt",
        "the official training split",
        "the official test split, every caption a query",
        sizes={
            "train": SplitSize(6513, 130_260),
            "validation": SplitSize(497, 9940),
            "test": SplitSize(2990, 59_800),
        },
        has_several_captions=True,
        rerank_top_k=100,  # else 179 million pairs
    ),
    _retrieval(
        "didemo-paragraph",
        "didemo",
        "the official training split, one paragraph per video",
        "the official test split, one paragraph per video",
        sizes={"train": SplitSize(8395, 8395), "validation": SplitSize(1065, 1065), "test": SplitSize(1004, 1004)},
    ),
    _retrieval(
        "didemo-paragraph-1000",
        "didemo",
        "train.jsonl of ClipBERT and ALPRO, one paragraph per video",
        "test.jsonl of ClipBERT and ALPRO: 1,000 videos, one paragraph each",
        sizes={"train": None, "validation": None, "test": SplitSize(1000, 1000)},
    ),
    _retrieval(
        "msvd",
        "msvd",
        "the usual list of 1,200 clips",
        "the usual list of 670 clips, every caption a query",
        sizes={"train": SplitSize(1200, 48_774), "validation": SplitSize(100, 4290), "test": SplitSize(670, 27_763)},
        has_several_captions=True,
        rerank_top_k=100,  # else 18.6 million pairs
    ),
    _question_answering(
        "msrvtt-qa",
        "the official training split of MSR-VTT",
        "the official test split of MSR-VTT",
        sizes={
            "train": SplitSize(6513, 158_581),
            "validation": SplitSize(497, 12_278),
            "test": SplitSize(2990, 72_821),
        },
        answer_types={"what": 49_869, "who": 20_385, "how": 1640, "where": 250, "when": 677},
    ),
    _question_answering(
        "msvd-qa",
        "clips 1 to 1,200 of MSVD, as far as they have questions",
        "clips 1,451 to 1,970 of MSVD, as far as they have questions",
        sizes={"train": SplitSize(1161, 30_933), "validation": SplitSize(245, 6415), "test": SplitSize(504, 13_157)},
        answer_types={"what": 8149, "who": 4552, "how": 370, "where": 28, "when": 58},
    ),
    _video_classification(
        "charades",
        "charades",
        "mAP",
        "Charades_v1_train.csv, without any text",
        "Charades_v1_test.csv, without any text",
        sizes={"train": SplitSize(7985, 0), "test": SplitSize(1863, 0)},
        num_labels=157,
    ),
    _video_classification(
        "charades+script",
        "charades",
        "mAP",
        "Charades_v1_train.csv, each clip with its script",
        "Charades_v1_test.csv, each clip with its script",
        sizes={"train": SplitSize(7985, 7985), "test": SplitSize(1863, 1863)},
        num_labels=157,
    ),
    _video_classification(
        "class_folders",
        "class_folders",
        "top1_accuracy",
        "the clips in train/<class>/",
        "the clips in test/<class>/",
        sizes={"train": None, "test": None},
    ),
    _video_classification(
        "path_lists",
        "path_lists",
        "top1_accuracy",
        "a list of clips with one label each",
        "a list of clips with one label each",
        sizes={"train": None, "test": None},
    ),
    _captioning(
        "msrvtt-caption",
        "msrvtt_caption",
        "the official training split",
        "the official test split, all 20 captions of a clip its references",
        sizes={
            "train": SplitSize(6513, 130_260),
            "validation": SplitSize(497, 9940),
            "test": SplitSize(2990, 59_800),
        },
    ),
    _captioning(
        "msvd-caption",
        "msvd_caption",
        "the usual list of 1,200 clips",
        "the usual list of 670 clips, all captions of a clip its references",
        sizes={"train": SplitSize(1200, 48_774), "validation": SplitSize(100, 4290), "test": SplitSize(670, 27_763)},
    ),
    _translation(
        "phoenix2014t",
        "PHOENIX-2014-T.train.corpus.csv",
        "PHOENIX-2014-T.test.corpus.csv, one sentence per clip",
        sizes={"train": SplitSize(7096, 7096), "validation": SplitSize(519, 519), "test": SplitSize(642, 642)},
    ),
    _translation(
        "multimodalhugs",
        "a table of multimodalhugs",
        "a table of multimodalhugs",
        sizes={"train": None, "test": None},
    ),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _TABLE}
"""All known protocols by name; [`register_protocol`] adds further ones."""

BENCHMARKS = tuple(dict.fromkeys(protocol.benchmark for protocol in _TABLE))
"""Names of the benchmarks of this package. The first protocol of each is its default."""


def known_benchmarks() -> tuple[str, ...]:
    """Return the names of all data sets that have a protocol, registered ones included."""
    return tuple(dict.fromkeys(protocol.benchmark for protocol in PROTOCOLS.values()))


def register_protocol(protocol: Protocol) -> None:
    """
    Register a protocol under its name.

    Args:
        protocol ([`Protocol`]): Protocol of a data set outside this package.

    Raises:
        ValueError: If the name is taken, **or** contains a `+`, which starts the suffixes of [`protocol_name`]: a name
            such as `street+train` would be that of a result of `street`.
    """
    if protocol.name in PROTOCOLS or "+" in protocol.name:
        raise InputError(f"{protocol.name!r} cannot name a protocol: use a name without '+' that is not taken.")
    PROTOCOLS[protocol.name] = protocol


def get_protocol(name: str | None = None, *, benchmark: str | None = None) -> Protocol:
    """
    Return a protocol by name, or the default one of a benchmark.

    Args:
        name (`str`, *optional*): Name of the protocol; suffixes added by [`protocol_name`] are ignored. A name may
            contain a `+` itself (`charades+script`): of several known names that it begins with, the longest counts.
        benchmark (`str`, *optional*): Benchmark that it must belong to. At least one of the two is required.

    Returns:
        `Protocol`: The protocol.

    Raises:
        ValueError: If there is no such protocol, or none for that benchmark.
    """
    known = {key: protocol for key, protocol in PROTOCOLS.items() if benchmark in (None, protocol.benchmark)}
    if not known:
        raise InputError(f"{benchmark!r} is not a known benchmark; known are {', '.join(known_benchmarks())}.")
    if name is None:
        assert benchmark is not None, "one of name and benchmark is needed"
        return next(iter(known.values()))
    base = name
    while base not in known and "+" in base:
        base = base.rpartition("+")[0]
    if base not in known:
        close = difflib.get_close_matches(base, known, 1)
        raise InputError(
            f"{name!r} is not a protocol{f' of {benchmark}' if benchmark else ''}; known are {', '.join(known)}."
            + (f" Did you mean {close[0]!r}?" if close else "")
        )
    return known[base]


def protocol_name(
    protocol: str,
    *,
    num_missing: int = 0,
    deviates: bool = False,
    rerank_top_k: int | None = None,
    dual_softmax: bool = False,
    decodes_on_gpu: bool = False,
    views: str | None = None,
    split: str = "test",
    drop_modalities: Sequence[str] = (),
) -> str:
    """
    Return the name to publish a result under, which includes everything that changes its meaning.

    Args:
        protocol (`str`): Name of a protocol, without suffix.
        num_missing (`int`, *optional*, defaults to 0): Number of test clips that were left out.
        deviates (`bool`, *optional*, defaults to `False`): Whether the lists differ from the protocol's.
        rerank_top_k (`int`, *optional*): Number of candidates of each query that the matching head re-ranked; `None`
            if it scored all pairs, or none.
        dual_softmax (`bool`, *optional*, defaults to `False`): Whether scores were normalized over all queries of the
            test set, which are not available to a single query.
        decodes_on_gpu (`bool`, *optional*, defaults to `False`): Whether frames were decoded on a GPU, whose pixels
            are not bit-identical to those decoded on a CPU.
        views (`str`, *optional*): Name of several views of each clip, such as `"views10x3max"`, see [`Views`].
        split (`str`, *optional*, defaults to `"test"`): Split that was measured.
        drop_modalities (`Sequence[str]`, *optional*): Modalities of the model that were left out.

    Returns:
        `str`: Name with suffixes, e.g. `"msrvtt-1ka-9k+rerank100+dsl"`.

    Raises:
        ValueError: If the protocol is unknown, already has a suffix, **or** a number is out of range.
    """
    if get_protocol(protocol).name != protocol:
        raise InputError(f"{protocol!r} already has a suffix; pass the plain name {get_protocol(protocol).name!r}.")
    if num_missing < 0 or (rerank_top_k is not None and rerank_top_k < 1):
        raise InputError(
            f"num_missing must be 0 or more and rerank_top_k 1 or more, got {num_missing=}, {rerank_top_k=}."
        )
    suffixes = {
        f"missing{num_missing}": num_missing > 0,
        "deviating": deviates,
        f"rerank{rerank_top_k}": rerank_top_k is not None,
        "dsl": dual_softmax,
        "nvdec": decodes_on_gpu,
        str(views): views is not None,
        split: split != "test",
        **{f"without_{modality}": True for modality in drop_modalities},
    }
    return "+".join([protocol, *(suffix for suffix, applies in suffixes.items() if applies)])


def check_overlap(
    train_clips: Collection[str] | Mapping[str, str], test_clips: Collection[str], protocol: str
) -> None:
    """
    Refuse to test a model on clips that it was trained or selected on.

    Args:
        train_clips (`Collection[str]` or `Mapping[str, str]`): Names of the clips that were trained on, without folder
            and extension; a mapping has their files, for the message.
        test_clips (`Collection[str]`): Names of the test clips.
        protocol (`str`): Name of the protocol of the test, for the message.

    Raises:
        ValueError: If a clip is in both; the message has their number and some names.
    """
    test = set(test_clips)
    both = sorted(test & set(train_clips))
    if both:
        files = train_clips if isinstance(train_clips, Mapping) else {}
        named = [f"{clip} ({files[clip]})" if files.get(clip) else clip for clip in both[:3]]
        raise InputError(
            f"{len(both)} of the {len(test)} test clips of {protocol} are also training or validation clips: "
            f"{', '.join(named)}{', ...' * (len(both) > 3)}. Results on them would be meaningless: test under the "
            "protocol that the training list belongs to, or train without these clips."
        )


def prepared_protocol(manifest_file: str | os.PathLike[str] | None) -> Protocol | None:
    """
    Return the protocol of the benchmark that a manifest belongs to, if a `protocol.json` beside it names one. If that
    is not registered, a warning is logged.
    """
    path = Path(manifest_file or "").parent / "protocol.json"
    if manifest_file is None or not path.is_file():
        return None
    name = json.loads(path.read_text(encoding="utf-8")).get("protocol")
    if name is not None and name not in PROTOCOLS:
        from transformers.utils import logging  # importing it takes a second

        logging.get_logger(__name__).warning_once(
            f"{path}: the protocol {name!r} is not registered. Its number of re-ranked candidates is not used, and "
            "test clips are not checked against training clips. Run a script that first imports the file that "
            "registers it; see docs/adding_datasets.md."
        )
    return PROTOCOLS.get(name)


def prepared_split(manifest_file: str | os.PathLike[str] | None, files: Iterable[str]) -> str | None:
    """
    Return the split of a benchmark that rows belong to, according to the `protocol.json` beside their manifest.

    Args:
        manifest_file (`str` or `os.PathLike`, *optional*): The manifest, which may have been edited since it was
            written; rows without one do not belong to a prepared benchmark.
        files (`Iterable[str]`): Files of the rows' clips, as in the manifest. Folder and extension are ignored, but
            for data sets whose clips are named by their paths, which may have a clip `1` in each folder.

    Returns:
        `str`, *optional*: `"test"` if any clip is a test clip, else `"validation"` or `"train"`; `None` if the clips
        do not belong to a prepared benchmark.
    """
    path = Path(manifest_file or "").parent / "protocol.json"
    if manifest_file is None or not path.is_file():
        return None
    splits = json.loads(path.read_text(encoding="utf-8")).get("splits", {})
    clips_of = {name: splits.get(name, {}).get("clips", []) for name in SPLITS}
    by_path = any("/" in clip for clips in clips_of.values() for clip in clips)
    paths = map(PurePosixPath, map(str.strip, files))
    own = {unicodedata.normalize("NFC", str(path.with_suffix(""))) if by_path else path.stem for path in paths}
    return next((name for name in reversed(SPLITS) if not own.isdisjoint(clips_of[name])), None)
