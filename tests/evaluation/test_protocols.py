"""The named protocols: their table, their names, and the check for overlap between training and test clips."""

from pathlib import Path

import pytest

from simple_multimodal.evaluation.protocols import (
    ANSWER_TYPES,
    BENCHMARKS,
    PROTOCOLS,
    SPLITS,
    check_overlap,
    get_protocol,
    protocol_name,
)
from simple_multimodal.prepare.benchmarks import read_annotations
from simple_multimodal.tasks.generation.evaluate import PRIMARY_METRICS


def test_the_table_contains_the_named_protocols():
    assert list(PROTOCOLS) == [
        "msrvtt-1ka-9k",
        "msrvtt-1ka-7k",
        "msrvtt-full",
        "didemo-paragraph",
        "didemo-paragraph-1000",
        "msvd",
        "msrvtt-qa",
        "msvd-qa",
        "charades",
        "charades+script",
        "class_folders",
        "path_lists",
        "msrvtt-caption",
        "msvd-caption",
        "phoenix2014t",
        "multimodalhugs",
    ]
    assert BENCHMARKS == (
        "msrvtt",
        "didemo",
        "msvd",
        "msrvtt_qa",
        "msvd_qa",
        "charades",
        "class_folders",
        "path_lists",
        "msrvtt_caption",
        "msvd_caption",
        "phoenix2014t",
        "multimodalhugs",
    )


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_table_is_consistent(protocol):
    test = protocol.sizes["test"]
    if protocol.task == "question_answering":
        assert set(protocol.answer_types) == set(ANSWER_TYPES)
        assert sum(protocol.answer_types.values()) == test.texts
        assert protocol.rerank_top_k is None
    elif protocol.task == "video_classification":
        assert not protocol.answer_types and protocol.rerank_top_k is None
        assert (test is None) == (protocol.num_labels is None)
    elif protocol.task in ("translation", "captioning"):
        assert protocol.primary_metric == PRIMARY_METRICS[protocol.task]  # that of its evaluation
        assert not protocol.answer_types and protocol.rerank_top_k is None
        assert protocol.has_several_captions == (test is not None and test.texts > test.clips)
    else:
        assert not protocol.answer_types
        assert protocol.has_several_captions == (test.texts > test.clips)
        assert (protocol.rerank_top_k is None) == (test.texts * test.clips < 10_000_000)


def test_the_splits_of_msr_vtt_cover_all_clips():
    full = PROTOCOLS["msrvtt-full"].sizes
    assert sum(size.clips for size in full.values()) == 10_000
    assert all(size.texts == 20 * size.clips for size in full.values())
    assert PROTOCOLS["msrvtt-1ka-7k"].sizes["train"].clips == full["train"].clips + full["validation"].clips
    assert sum(size.clips for size in PROTOCOLS["msrvtt-1ka-9k"].sizes.values()) == 10_000
    assert [size.clips for size in PROTOCOLS["msrvtt-qa"].sizes.values()] == [size.clips for size in full.values()]
    assert PROTOCOLS["msrvtt-caption"].sizes == full
    msvd = PROTOCOLS["msvd"].sizes
    assert PROTOCOLS["msvd-caption"].sizes == msvd
    assert sum(size.clips for size in msvd.values()) == 1970
    assert msvd["test"].clips * msvd["test"].texts == 18_601_210


def test_get_protocol_accepts_names_with_suffixes_and_knows_defaults():
    assert get_protocol("msrvtt-full+rerank100+dsl").name == "msrvtt-full"
    assert get_protocol(benchmark="msrvtt").name == "msrvtt-1ka-9k"
    assert get_protocol("msrvtt-1ka-7k", benchmark="msrvtt").name == "msrvtt-1ka-7k"
    with pytest.raises(ValueError, match="'msrvtt-1ka' is not a protocol; known are .* Did you mean 'msrvtt-1ka-"):
        get_protocol("msrvtt-1ka")
    with pytest.raises(ValueError, match="'msvd' is not a protocol of msvd_qa; known are msvd-qa"):
        get_protocol("msvd", benchmark="msvd_qa")
    with pytest.raises(ValueError, match="'youcook' is not a known benchmark; known are msrvtt, didemo"):
        get_protocol(benchmark="youcook")


def test_a_name_with_a_plus_is_told_from_a_suffix():
    assert get_protocol("charades+script").name == "charades+script"
    assert get_protocol("charades+script+missing3+without_audio").name == "charades+script"
    assert get_protocol("charades+missing3").name == "charades"
    assert get_protocol("charades+scripts").name == "charades"  # an unknown suffix, as before
    assert get_protocol(benchmark="charades").name == "charades"
    name = protocol_name("charades+script", num_missing=3, split="train", drop_modalities=["text"])
    assert name == "charades+script+missing3+train+without_text" and get_protocol(name).name == "charades+script"
    with pytest.raises(ValueError, match=r"'charades\+script\+dsl' already has a suffix; .* name 'charades\+script'"):
        protocol_name("charades+script+dsl")
    with pytest.raises(ValueError, match=r"'charade\+script' is not a protocol.* Did you mean 'charades'"):
        get_protocol("charade+script")
    with pytest.raises(ValueError, match=r"'charades\+script' is not a protocol of msvd; known are msvd"):
        get_protocol("charades+script", benchmark="msvd")


def test_names_include_everything_that_changes_the_meaning():
    assert protocol_name("msvd") == "msvd"
    assert protocol_name("msvd", rerank_top_k=100) == "msvd+rerank100"
    assert protocol_name("msvd", split="train", drop_modalities=["audio"]) == "msvd+train+without_audio"
    assert protocol_name("charades+script", views="views10x3max") == "charades+script+views10x3max"
    name = protocol_name("msrvtt-1ka-9k", dual_softmax=True, rerank_top_k=128, num_missing=3)
    assert name == "msrvtt-1ka-9k+missing3+rerank128+dsl"
    with pytest.raises(ValueError, match="'msvd\\+dsl' already has a suffix; pass the plain name 'msvd'"):
        protocol_name("msvd+dsl", rerank_top_k=100)
    with pytest.raises(ValueError, match="is not a protocol"):
        protocol_name("mine")
    with pytest.raises(ValueError, match="rerank_top_k=0"):
        protocol_name("msvd", rerank_top_k=0)
    with pytest.raises(ValueError, match="num_missing=-1"):
        protocol_name("msvd", num_missing=-1)


def test_check_overlap_reports_a_number_and_examples():
    check_overlap(["a", "b"], ["c"], "msvd")
    check_overlap([], [], "msvd")
    with pytest.raises(ValueError, match="1 of the 2 test clips of msvd are also training or validation clips: b\\."):
        check_overlap(["a", "b", "b"], ["b", "c"], "msvd")
    with pytest.raises(ValueError, match="4 of the 4 .* clips: a, b, c, \\.\\.\\."):
        check_overlap("abcd", "dcba", "msvd")


@pytest.fixture(scope="session")
def msrvtt_lists(shared_dir) -> dict[str, list[str]]:
    """The published lists, and the official test split, which starts at clip 7010."""
    folder = shared_dir / "data/annotations/msrvtt"
    lists = {name: (folder / f"MSRVTT_train.{name}.csv").read_text().split()[1:] for name in ("9k", "7k")}
    test = read_annotations(folder, "msrvtt", "msrvtt-1ka-9k", splits=["test"]).rows["test"]
    return lists | {"1ka": [row["clip"] for row in test], "full": [f"video{i}" for i in range(7010, 10_000)]}


def test_the_9k_list_contains_1990_clips_of_the_official_test_split(msrvtt_lists):
    with pytest.raises(ValueError, match="1990 of the 2990 test clips of msrvtt-full are also training") as error:
        check_overlap(msrvtt_lists["9k"], msrvtt_lists["full"], "msrvtt-full")
    assert "video7010, video7011, video7012, ..." in str(error.value)
    with pytest.raises(ValueError, match="1990 of the 2990 test clips of msrvtt-qa"):  # the same clips
        check_overlap(msrvtt_lists["9k"], msrvtt_lists["full"], "msrvtt-qa")


def test_the_lists_of_a_protocol_do_not_overlap(msrvtt_lists):
    check_overlap(msrvtt_lists["9k"], msrvtt_lists["1ka"], "msrvtt-1ka-9k")
    check_overlap(msrvtt_lists["7k"], msrvtt_lists["1ka"], "msrvtt-1ka-7k")
    check_overlap(msrvtt_lists["7k"], msrvtt_lists["full"], "msrvtt-full")
    for name, protocol in (("9k", "msrvtt-1ka-9k"), ("7k", "msrvtt-1ka-7k")):
        assert len(set(msrvtt_lists[name])) == PROTOCOLS[protocol].sizes["train"].clips


def test_models_selected_on_msvd_qa_cannot_be_tested_on_msvd(shared_dir):
    """Clips 1301 to 1450 are validation clips of one and test clips of the other."""
    folder = shared_dir / "data/annotations"
    qa = read_annotations(folder / "msvd_qa", "msvd_qa", "msvd-qa", splits=["train", "validation"]).rows
    test = read_annotations(folder / "msvd", "msvd", "msvd", splits=["test"]).rows["test"]
    check_overlap({row["clip"] for row in qa["train"]}, [row["clip"] for row in test], "msvd")
    with pytest.raises(ValueError, match="147 of the 670 test clips of msvd are also training or validation clips"):
        check_overlap({row["clip"] for row in qa["validation"]}, [row["clip"] for row in test], "msvd")


def test_the_documentation_contains_the_table():
    text = (Path(__file__).resolve().parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
    for name, protocol in PROTOCOLS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        clips = [
            "–"
            if split not in protocol.sizes
            else "?"
            if (size := protocol.sizes[split]) is None
            else f"{size.clips:,}"
            for split in SPLITS
        ]
        test = protocol.sizes["test"]
        assert cells[1:5] == [*clips, "?" if test is None else f"{test.texts:,}"]
        assert all(f"{answer_type} {count:,}" in cells[5] for answer_type, count in protocol.answer_types.items())
