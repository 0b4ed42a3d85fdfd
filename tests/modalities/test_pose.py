"""Poses as a modality: batches, runs of tasks, rows without a pose, search, frozen towers and bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import simple_multimodal as smm
from simple_multimodal import cli
from simple_multimodal.data.batch_reader import BatchReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.preview import ClipPreview
from simple_multimodal.data.records import CLIP_FILES
from simple_multimodal.data.rows import RowDataset, clip_file
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.inference.encoded import ClipVersion
from simple_multimodal.inference.requests import ClipKey
from simple_multimodal.media import index_video
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.pose import read_pose
from simple_multimodal.modalities import BUILT_IN_MODALITIES, DEFAULT_MODALITIES, MODALITIES
from simple_multimodal.processing import MultimodalProcessor, PoseProcessor, VideoClipProcessor
from tests.media.pose_files import COCO, SMALL, points_of, write_pose
from tests.modalities.pose_rows import NUM_FEATURES, write_pose_rows, write_small_pose
from tests.models.tiny import tiny_config
from tests.processes import FORKSERVER
from tests.training.tiny_run import flags, run

KEYS = ("pose_values", "pose_attention_mask", "pose_seconds", "pose_mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pose_rows(tmp_path_factory.mktemp("poses"))


def open_rows(folder, **settings) -> RowDataset:
    roots = {"video": folder / "video", "pose": folder / "pose"}
    return RowDataset.from_manifest(folder / "rows.jsonl", roots=roots, **({"modalities": ("pose",)} | settings))


def run_flags(folder, output_dir, modalities, *, task="retrieval", **values) -> list[str]:
    names = {f"{m}_config_name": folder / f"{m}.json" for m in (*modalities, "fusion")}
    settings = {
        "train_file": folder / "rows.jsonl", "validation_file": folder / "rows.jsonl", "video_root": folder / "video",
        "pose_root": folder / "pose", "cache_dir": folder / "cache", "dataloader_num_workers": 0, "max_steps": 2,
        "contrastive_dim": 8, "task": task, "modalities": list(modalities), "output_dir": output_dir,
    }  # fmt: skip
    return flags("--use_cpu", "--disable_tqdm", **(settings | names | values))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A retrieval model over text, video and poses after two steps."""
    output = tmp_path_factory.mktemp("run") / "model"
    metrics = run(*run_flags(folder, output, ("text", "video", "pose")))
    return output, metrics


def test_pose_is_the_last_modality_but_not_a_default():
    assert tuple(MODALITIES) == BUILT_IN_MODALITIES == (*DEFAULT_MODALITIES, "pose")
    assert DEFAULT_MODALITIES == ("text", "audio", "video")


# Batches


@pytest.fixture(scope="module")
def processor() -> MultimodalProcessor:
    augmentation = {"rotation_std": 0.3, "shear_std": 0.1, "scale_std": 0.1, "rate_std": 0.3, "frame_dropout": 0.3}
    return MultimodalProcessor(pose_processor=PoseProcessor(num_features=NUM_FEATURES, **augmentation))


def test_a_batch_has_the_poses_of_its_rows(folder, processor):
    rows = open_rows(folder)
    batch = MultimodalCollator(processor)(list(rows))
    assert batch["pose_mask"].tolist() == [True, False, True, False, True, True, True]
    assert batch["pose_values"].shape == (7, 13, NUM_FEATURES)  # row 4 is the longest
    assert batch["pose_attention_mask"].sum(dim=1).tolist() == [5, 0, 9, 0, 13, 9, 8]
    part = processor.part("pose")
    expected = part.extract(read_pose(folder / "pose/6.pose", start_seconds=0.1, end_seconds=0.4))
    assert torch.equal(batch["pose_values"][6, :8], expected.values)
    assert batch["pose_seconds"][6, :3].tolist() == pytest.approx([0.0, 0.02, 0.06])  # the first begins before
    np.testing.assert_array_equal(batch["pose_values"][5, :9].numpy(), np.load(folder / "pose/5.npy"))
    assert not batch["pose_values"][~batch["pose_attention_mask"]].any()


def loaded(folder, processor, *, num_workers=0, parallel=True, num_threads=None, first=0) -> list[dict]:
    """Return the batches of two epochs of training from batch `first` on."""
    rows = open_rows(folder)
    collator = MultimodalCollator(processor, training=True, seed=3, parallel=parallel, num_threads=num_threads)
    sampler = EpochSampler(rows, seed=3)
    keys = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        keys += list(sampler)
    batches = [keys[start : start + 3] for start in range(0, len(keys), 3)][first:]
    loader = DataLoader(
        _Keys(keys),
        batch_sampler=batches,
        collate_fn=BatchReader(rows, collator),
        num_workers=num_workers,
        multiprocessing_context=FORKSERVER if num_workers else None,
    )
    return [{name: batch[name].clone() for name in (*KEYS, "row_ids")} for batch in loader]


class _Keys:
    """A data set whose items are their keys, as the trainer's loader has them."""

    def __init__(self, keys):
        self.keys = keys

    def __getitem__(self, key):
        return key


def assert_equal(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_do_not_depend_on_threads_or_workers_and_continue_after_a_resume(folder, processor):
    expected = loaded(folder, processor)
    assert_equal(loaded(folder, processor, parallel=False), expected)
    assert_equal(loaded(folder, processor, num_threads=3), expected)
    assert_equal(loaded(folder, processor, num_workers=4), expected)
    assert_equal(loaded(folder, processor, first=2), expected[2:])
    first, later = ({int(row): batch["pose_values"][n] for batch in half for n, row in enumerate(batch["row_ids"])}
                    for half in (expected[:2], expected[-2:]))  # fmt: skip
    drawn_anew = [row for row in first.keys() & later.keys() if first[row].any()]
    assert drawn_anew and not all(
        first[row].shape == later[row].shape and torch.equal(first[row], later[row]) for row in drawn_anew
    )


# Rows


def test_a_pose_is_a_file_of_a_clip(folder):
    rows = open_rows(folder, modalities=None)
    assert rows[4]["pose"] == str(folder / "pose/4.pose") and rows[1]["pose"] is None
    assert rows[4]["group"] == "pose=4.pose" and rows[0]["group"] == "video=0.mp4 pose=0.pose"
    assert rows[3]["group"] == "id=r3"
    assert rows.relative_path(rows[4], "pose") == "4.pose"
    assert rows.clip_names() == ["0", "1", "2", "4", "5", "6"]
    assert (folder / "pose/4.pose").as_posix() in [clip.path for clip in rows.clip_files()]
    assert rows.column("pose")[4:6] == ["4.pose", "5.npy"]
    assert [clip_file(row) and clip_file(row).rpartition("/")[2] for row in rows][3:5] == [None, "4.pose"]
    assert CLIP_FILES == ("video", "audio", "pose")


def test_the_identity_of_a_clip_includes_its_pose(folder, tmp_path):
    """That of a clip without one is what it was before there were poses."""
    row = open_rows(folder)[0]
    other = {**row, "pose": str(shutil.copy(folder / "pose/2.pose", tmp_path / "2.pose"))}
    assert ClipKey.of(row) != ClipKey.of(other) and ClipVersion.of(row) != ClipVersion.of(other)
    before = ClipVersion.of(other)
    write_small_pose(tmp_path / "2.pose", seed=9, num_frames=30)
    assert ClipVersion.of(other) != before
    without = {**row, "pose": None}
    assert ClipVersion.of(without).further == "{}" and ClipVersion.of(without).file == row["video"]
    assert ClipVersion.of({**other, "video": None, "audio": None}).file == other["pose"]


def test_rows_without_poses_keep_their_fingerprint():
    """Saved runs name the rows that they were trained on by it; the value is from before there were poses."""
    rows = [
        {"video": "a.mp4", "caption": "x"},
        {"audio": "b.wav", "text": "t.txt", "start_seconds": 1},
        {"video": "c.mp4", "captions": ["p", "q"], "label": 3},
    ]
    fingerprint = RowDataset(rows).fingerprint
    assert fingerprint == "8e804e39bcd874d2c6eebc360d9936129ff8b9cf92e3c7c8dc26ccb90ea43b14"
    assert RowDataset([*rows[:2], rows[2] | {"pose": "c.pose"}]).fingerprint != fingerprint


def test_pose_files_are_found_without_a_manifest(folder, tmp_path):
    assert [row["pose"] for row in RowDataset.from_files(folder / "pose")] == [
        str(folder / f"pose/{number}.pose") for number in range(7)
    ]
    (named,) = RowDataset.from_files([folder / "pose/5.npy"])
    assert named["pose"] == str(folder / "pose/5.npy") and named["video"] is None and not named["audio_from_video"]
    shutil.copy(folder / "pose/0.pose", tmp_path / "0.pose")
    shutil.copy(folder / "video/0.mp4", tmp_path / "0.mp4")
    assert [row["video"] for row in RowDataset.from_files(tmp_path)] == [str(tmp_path / "0.mp4")]


# Runs


def test_a_retrieval_run_over_text_video_and_poses(trained, folder):
    output, metrics = trained
    assert np.isfinite(metrics["eval_loss"]) and "eval_text_to_video_R@1" in metrics
    model, processor = smm.load(output)
    assert model.config.modalities == processor.modalities == ("text", "video", "pose")
    assert list(model.towers) == ["text", "video", "pose", "fusion"]
    assert processor.part("pose").num_features == model.config.pose_config.num_features == NUM_FEATURES
    assert "numbers per frame" in (output / "README.md").read_text()


@pytest.mark.parametrize("modalities", [("pose",), ("video", "pose")])
def test_a_classification_run(folder, tmp_path, modalities):
    metrics = run(*run_flags(folder, tmp_path / "out", modalities, task="video_classification"))
    assert np.isfinite(metrics["eval_loss"])
    classifier = smm.VideoClassifier.from_pretrained(tmp_path / "out")
    by_file, by_row = classifier([folder / "pose/0.pose", {"pose": str(folder / "pose/0.pose")}])
    assert {label["label"] for label in by_file} == {"a", "b"} and by_file == by_row


@torch.no_grad()
def test_what_stands_in_place_of_a_missing_pose_has_no_effect(trained, folder):
    model, processor = smm.load(trained[0])
    model.eval()
    batch = MultimodalCollator(processor)(list(open_rows(folder)))
    garbage = {**batch, "pose_values": batch["pose_values"].masked_fill(~batch["pose_mask"][:, None, None], 1e4)}
    other = {**batch, "pose_values": batch["pose_values"] + 0.5}
    first, same, changed = (model.encode_clip(rows)[0] for rows in (batch, garbage, other))
    assert first.isfinite().all() and torch.equal(first, same)
    has = batch["pose_mask"]
    assert torch.equal(first[~has], changed[~has]) and not torch.isclose(first[has], changed[has]).all(dim=1).any()


def test_flags_of_poses_reach_the_processor(folder, tmp_path):
    values = {
        "pose_points": "all", "pose_depth": "drop", "pose_features": 20, "pose_person": 0, "pose_rate": 12.5,
        "pose_features_rate": 50, "pose_frame_stride": 2, "max_pose_frames": 40, "pose_rotation_std": 0.2,
        "pose_shear_std": 0.1, "pose_scale_std": 0.3, "pose_rate_std": 0.4, "pose_frame_dropout": 0.25,
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"pose": f"{n}.pose", "caption": "a cat purrs", "id": n}) + "\n" for n in (0, 2, 4))
    )
    rows = {"train_file": tmp_path / "rows.jsonl", "validation_file": tmp_path / "rows.jsonl"}
    run(*run_flags(folder, tmp_path / "out", ("text", "pose"), **values, **rows))
    assert smm.load(tmp_path / "out")[1].part("pose").to_dict() == {
        "points": "all", "depth": "drop", "num_features": 20, "person": 0, "target_rate": 12.5, "features_rate": 50,
        "frame_stride": 2, "max_frames": 40, "rotation_std": 0.2, "shear_std": 0.1, "scale_std": 0.3, "rate_std": 0.4,
        "frame_dropout": 0.25,
    }  # fmt: skip


def test_a_frozen_tower_with_its_own_rate_and_adapters(folder, tmp_path):
    pytest.importorskip("peft")
    before, _ = smm.load(_trained_pose(folder, tmp_path / "first"))
    frozen = run_flags(folder, tmp_path / "frozen", ("text", "pose"), freeze="pose", text_learning_rate=1e-3)
    run(*frozen, *flags(model_name_or_path=tmp_path / "first"))
    after, _ = smm.load(tmp_path / "frozen")
    for name, tensor in before.towers["pose"].state_dict().items():
        assert torch.equal(tensor, after.towers["pose"].state_dict()[name])
    run(
        *run_flags(
            folder, tmp_path / "lora", ("text", "pose"), lora_rank=2, lora_towers="pose", pose_learning_rate=0.1
        ),
        *flags(model_name_or_path=tmp_path / "first"),
    )
    adapters = list((tmp_path / "lora/adapter").glob("*.safetensors"))
    assert adapters


def _trained_pose(folder, output):
    run(*run_flags(folder, output, ("text", "pose")))
    return output


def test_a_model_is_built_in_python(folder):
    model, processor = smm.from_towers(
        pose=str(folder / "pose.json"), video=str(folder / "video.json"), fusion=str(folder / "fusion.json"),
        task="video_classification", train_dataset=open_rows(folder),
        processor_settings={"pose_settings": {"frame_stride": 2}},
    )  # fmt: skip
    assert model.config.modalities == processor.modalities == ("video", "pose")
    assert processor.part("pose").frame_stride == 2
    with pytest.raises(ValueError, match="Pass `text`, `audio`, `video` or `pose`"):
        smm.from_towers()


# Uses


def test_clips_are_searched_by_their_pose(trained, folder, capsys):
    retriever = smm.Retriever.from_pretrained(trained[0])
    index = retriever.index(open_rows(folder))
    assert index.ids == ["r0", "r1", "r2", "r4", "r5", "r6"]
    assert index.files[3] == str(folder / "pose/4.pose")
    dropped = smm.Retriever.from_pretrained(trained[0], drop_modalities=("pose",)).index(open_rows(folder))
    same = [torch.allclose(a, b) for a, b in zip(index.embeds, dropped.embeds, strict=True)]
    assert same == [False, True, False, False, False, False]  # row 1 has no pose
    argv = ["search", str(trained[0]), "a cat", str(folder / "rows.jsonl"), "--video_root", str(folder / "video")]
    assert cli.main([*argv, "--pose_root", str(folder / "pose"), "--top_k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_features_of_a_frozen_pose_tower_give_its_tokens(trained, folder, tmp_path):
    from simple_multimodal.inference.features import TowerFeatures

    report = TowerFeatures.from_pretrained(trained[0]).write("pose", [open_rows(folder)], tmp_path)
    assert (report.num_clips, report.unreadable) == (5, [])
    retriever = smm.Retriever.from_pretrained(trained[0])
    stored = smm.Retriever.from_pretrained(trained[0], features=str(tmp_path))
    for own, other in zip(
        retriever.index(open_rows(folder)).embeds, stored.index(open_rows(folder)).embeds, strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="these features were made with other settings"):
        model, processor = smm.load(trained[0], processor_settings={"pose_settings": {"frame_stride": 2}})
        processor.save_pretrained(trained[0].parent / "other")
        model.save_pretrained(trained[0].parent / "other")
        smm.Retriever.from_pretrained(trained[0].parent / "other", features=str(tmp_path))


def test_the_report_shows_the_skeleton_of_a_clip_without_video(trained, folder):
    _, processor = smm.load(trained[0])
    preview, rows = ClipPreview(MultimodalCollator(processor)), open_rows(folder)
    frames = preview.frames(rows[4])
    assert frames.shape == (4, 240, 320, 3) and frames.dtype == np.uint8 and len(np.unique(frames)) > 3
    assert preview.frames(rows[0]).shape[1:] == (32, 32, 3)  # of its video
    assert preview.frames(rows[3]) is None
    features = {**rows[5], "video": None}
    assert preview.frames(features) is None


# Bad input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("video.pose", r"video.pose': is not a pose file .*; videos belong in the column `video`"),
        ("unknown.pose", r"unknown.pose': its components are ELBOWS.* or save features of its frames as .npy"),
        ("wide.pose", r"wide.pose': has \d+ numbers per frame, but 27 are expected; set `num_features`"),
        ("objects.npy", r"objects.npy': holds Python objects, which are never loaded"),
        ("wide.npy", r"wide.npy': has 5 numbers per frame, but 27 are expected; .*\(`pose_features`\) to 5"),
        ("late.pose", r"late.pose': the segment starts at 9.0 s, after the end at 0.240 s"),
        ("milliseconds.pose", r"milliseconds.pose': the segment ends at 240.0 s, .* give seconds instead of millisec"),
    ],
)
def test_a_pose_that_cannot_be_used_is_named(processor, folder, tmp_path, name, message):
    shutil.copy(folder / "video/0.mp4", tmp_path / "video.pose")
    write_pose(
        tmp_path / "unknown.pose", *points_of(components={"ELBOWS": ("a", "b")}), components={"ELBOWS": ("a", "b")}
    )
    write_pose(tmp_path / "wide.pose", *points_of(components=COCO), components=COCO)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "wide.npy", np.zeros((3, 5), dtype=np.float32))
    for other in ("late", "milliseconds"):
        write_small_pose(tmp_path / f"{other}.pose")
    segment = {"late.pose": {"start_seconds": 9}, "milliseconds.pose": {"end_seconds": 240}}.get(name, {})
    rows = RowDataset([{"pose": name, "id": "x", **segment}], roots=tmp_path, modalities=("pose",))
    with pytest.raises(MediaError, match=r"row 0 \(id 'x'\): .*" + message) as caught:
        MultimodalCollator(processor)([rows[0]])
    assert "\n" not in str(caught.value)


def test_missing_pose_files_and_poses_in_place_of_videos_are_named(folder, tmp_path):
    rows = RowDataset([{"pose": "absent.pose"}], roots=tmp_path, modalities=("pose",))
    with pytest.raises(MediaError, match=r"column 'pose': .*absent.pose does not exist.*\(`pose_root`\)"):
        rows[0]
    with pytest.raises(ValueError, match=r"0.pose': cannot be read as media: .* belong in the column `pose`"):
        index_video(folder / "pose/0.pose")


def test_a_run_whose_poses_have_another_width_stops_before_it_trains(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"has 27 numbers per frame, but 30 are expected; .* to 27, .*None of the 4 poses"
    ):
        (tmp_path / "rows.jsonl").write_text(
            "".join(json.dumps({"pose": f"{n}.pose", "caption": "a"}) + "\n" for n in (0, 2, 4, 6))
        )
        run(
            *run_flags(
                folder, tmp_path / "out", ("text", "pose"), pose_features=30, train_file=tmp_path / "rows.jsonl"
            )
        )


def test_the_index_names_what_is_wrong_with_poses_without_reading_their_points(folder, tmp_path, capsys, monkeypatch):
    write_small_pose(tmp_path / "good.pose")
    (tmp_path / "trailing.pose").write_bytes((tmp_path / "good.pose").read_bytes() + b"12345")
    write_pose(tmp_path / "unknown.pose", *points_of(components={"A": ("b",)}), components={"A": ("b",)})
    (tmp_path / "cut.pose").write_bytes((tmp_path / "good.pose").read_bytes()[:-4])
    np.save(tmp_path / "a.npy", np.zeros((50, 3), dtype=np.float32))
    no_face = {**SMALL, "FACE_LANDMARKS": ("0",)}
    write_pose(tmp_path / "face.pose", *points_of(components=no_face), components=no_face)
    lines = ["pose,start_seconds,end_seconds", "good.pose,,", "good.pose,2,3", "good.pose,0,240", "trailing.pose,,"]
    lines += ["unknown.pose,,", "cut.pose,,", "a.npy,,", "absent.pose,,", "face.pose,,"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    monkeypatch.setattr("simple_multimodal.media.pose.read_numbers", None)
    assert cli.main(["index", str(tmp_path / "rows.csv")]) == 1
    text = capsys.readouterr().out
    assert "6 of the files are poses" not in text  # those that cannot be read are not counted
    assert "4 of the files are poses; 0.00 hours, 68 frames" in text
    for expected in (
        "trailing.pose': 5 bytes at its end are ignored",
        "unknown.pose': its components are A",
        "cut.pose': promises 6 frames",
        "the segment starts at 2.0 s, after the end",
        "the segment ends at 240.0 s, but the file at 0.240 s; give seconds",
        "absent.pose does not exist",
        "face.pose': its component FACE_LANDMARKS lacks the points",
    ):
        assert sum(expected in line for line in text.splitlines()) == 1, expected
    monkeypatch.undo()
    assert cli.main(["index", str(tmp_path / "rows.csv"), "--json", "--decodes"]) == 1
    files = {file["path"].rpartition("/")[2]: file for file in json.loads(capsys.readouterr().out)["files"]}
    assert files["good.pose"]["streams"] == "pose 0.2, 10 points, 320x240" and files["good.pose"]["is_pose"]
    assert files["a.npy"]["duration_seconds"] == 2.0


def test_the_skeleton_of_a_row_is_drawn(folder, trained, tmp_path, capsys):
    from PIL import Image

    roots = ["--video_root", str(folder / "video"), "--pose_root", str(folder / "pose")]
    for number, settings in enumerate(
        ([], ["--model", str(trained[0])], ["--model", str(trained[0]), "--epoch", "1"])
    ):
        out = tmp_path / f"{number}.png"
        assert cli.main(["show", str(folder / "rows.jsonl"), "--row", "4", *roots, "--out", str(out), *settings]) == 0
        assert (24, 26, 30) in [colour for _, colour in Image.open(out).getcolors(10**6)]
    out = tmp_path / "features.png"
    assert cli.main(["show", str(folder / "pose/5.npy"), "--out", str(out)]) == 0
    assert out.is_file()


def test_packing_copies_poses(folder, tmp_path):
    from simple_multimodal.prepare.pack import pack_manifest

    report = pack_manifest(folder / "rows.jsonl", tmp_path, video_root=folder / "video", pose_root=folder / "pose")
    assert report.errors == []
    copies, originals = RowDataset.from_manifest(report.manifest, modalities=None), open_rows(folder)
    for copy, original in zip(copies, originals, strict=True):
        assert (copy["pose"] is None) == (original["pose"] is None)
        if copy["pose"] is not None:
            assert Path(copy["pose"]).is_relative_to(tmp_path)
            assert Path(copy["pose"]).suffix == Path(original["pose"]).suffix
            assert Path(copy["pose"]).read_bytes() == Path(original["pose"]).read_bytes()


def test_models_without_poses_and_texts_are_described_as_before_there_were_any():
    """What is stored with the fingerprint of a model, such as a search index, stays valid."""
    processor = MultimodalProcessor(video_processor=VideoClipProcessor(num_frames=4, size=16))
    config = tiny_config()
    for text in (processor.to_json_string(), config.to_json_string()):
        assert not any(word in text for word in ("pose", "backbone", "mapper", "prompt", "target"))
    assert json.loads(processor.to_json_string())["tokenizer"] is None
    assert "max_target_length" in tiny_config(text_backbone_config={"model_type": "t5"}).to_json_string()
