"""Tests of the collator."""

import json
import os
import pickle

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from simple_multimodal.data.collator import MultimodalCollator, default_num_threads
from simple_multimodal.data.randomness import stable_hash
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.media import get_video_backend, index_video
from simple_multimodal.media.audio import read_audio
from simple_multimodal.media.errors import MediaError
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor, batch_memory
from simple_multimodal.tasks.retrieval.targets import PretrainingTargets
from tests.media.media_files import write_media

ROWS = [
    {"id": "a", "video": "sound0.mp4", "captions": ["a cat purrs", "one cat", "the cat"], "group": "cats"},
    {"id": "b", "video": "silent.mp4", "caption": "two dogs bark"},
    {"id": "c", "video": "sound2.mp4", "caption": "a long sentence about many dogs and a cat", "start_seconds": 1.0},
    {"id": "d", "video": "sound1.mp4", "start_seconds": 0.5, "end_seconds": 1.5},
    {"id": "e", "text": "caption.txt"},
    {"id": "f", "video": "one_frame.mp4", "caption": "still"},
]


@pytest.fixture(scope="module")
def processor() -> MultimodalProcessor:
    return MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=16, num_frames=120),
        video_processor=VideoClipProcessor(num_frames=4, size=16, random_crop=True, random_flip=True),
        tokenizer=train_tokenizer(["a cat purrs", "two dogs bark"], vocab_size=280),
    )


@pytest.fixture(scope="module")
def targets(processor) -> PretrainingTargets:
    return PretrainingTargets(
        processor,
        mlm_probability=0.3,
        audio_mask_ratio=0.3,
        audio_patches_per_window=20,
        video_mask_ratio=0.8,
        video_patch_grid=(2, 4, 4),
        vt_match_ratio=0.5,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, media_dir) -> RowDataset:
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return RowDataset.from_manifest(folder / "train.jsonl", cache_dir=folder, roots=media_dir)


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        if key == "audio_window_counts":  # for the host alone
            assert first[key] == second[key]
            continue
        assert first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]), key


def test_batch_has_the_agreed_entries(processor, dataset, targets):
    batch = MultimodalCollator(processor, targets=targets)(list(dataset))
    assert batch.pop("audio_window_counts") == (1, 0, 2, 1, 0, 0)
    assert batch.pop("audio_windows").tolist() == [[0, 0], [2, 0], [2, 1], [3, 0]]
    length = batch["input_ids"].shape[1]
    expected = {
        "input_ids": (torch.int64, (6, length)),
        "attention_mask": (torch.int64, (6, length)),
        "text_mask": (torch.bool, (6,)),
        "audio_values": (torch.float32, (6, 1, 16, 240)),
        "audio_attention_mask": (torch.bool, (6, 240)),
        "audio_seconds": (torch.float32, (6, 240)),
        "audio_mask": (torch.bool, (6,)),
        "pixel_values_videos": (torch.uint8, (6, 4, 3, 16, 16)),
        "video_seconds": (torch.float32, (6, 4)),
        "video_mask": (torch.bool, (6,)),
        "row_ids": (torch.int64, (6,)),
        "group_ids": (torch.int64, (6,)),
        "mlm_input_ids": (torch.int64, (6, length)),
        "mlm_labels": (torch.int64, (6, length)),
        "audio_masked_patches": (torch.int64, (6, 12)),
        "video_masked_patches": (torch.int64, (6, 26)),
        "match_aligned": (torch.bool, (6,)),
        "match_uniform": (torch.float32, (6,)),
        "text_ids": (torch.int64, (6,)),
    }
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == expected
    assert batch["text_mask"].tolist() == [True, True, True, False, True, True]
    assert batch["audio_mask"].tolist() == [True, False, True, True, False, False]
    assert batch["video_mask"].tolist() == [True, True, True, True, False, True]
    assert batch["row_ids"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["group_ids"].tolist()[:2] == [stable_hash("cats"), stable_hash("video=silent.mp4")]
    for name, (patches, masked) in {"audio": (20, 6), "video": (16, 13)}.items():
        positions = batch[f"{name}_masked_patches"]
        assert (positions // patches).tolist() == [[0] * masked + [1] * masked] * 6  # in each window, and at each time
        assert (positions.diff(dim=1) > 0).all()
    for key in ("audio_values", "audio_attention_mask", "audio_seconds"):
        assert not batch[key][~batch["audio_mask"]].any()
    for key in ("pixel_values_videos", "video_seconds"):
        assert not batch[key][~batch["video_mask"]].any()


def test_content_of_a_row(processor, dataset):
    row = dataset[3]  # [0.5, 1.5) of a video of two seconds at 10 frames per second
    batch = MultimodalCollator(processor)([row])
    index = index_video(row["video"])
    positions = [6, 8, 11, 13]  # centres of four parts of frames 5 to 14
    fit = processor.video_processor.fit(index.height, index.width)
    frames = get_video_backend("pyav").frames(row["video"], positions, index, (fit.height, fit.width))
    assert torch.equal(batch["pixel_values_videos"][0], processor.video_processor.transform(frames, fit))
    torch.testing.assert_close(batch["video_seconds"][0], torch.tensor([0.1, 0.3, 0.6, 0.8]))
    waveform = read_audio(row["video"], 16000, start_seconds=0.5, end_seconds=1.5)
    sound = processor.feature_extractor.extract(waveform)
    assert torch.equal(batch["audio_values"][0], sound.values)
    assert torch.equal(batch["audio_attention_mask"][0], sound.attention_mask)


def test_training_draws_a_stretch_of_long_audio(processor, dataset):
    """By seed, epoch and row; its times are those of the segment, as the frames' are; the middle in evaluation."""
    extractor = AudioFeatureExtractor(num_mel_bins=16, num_frames=60, max_windows=2, crop="random")
    cropping = MultimodalProcessor(extractor, processor.video_processor)
    row = dataset[2]  # from second 1 to the end, a little more than two seconds
    whole = AudioFeatureExtractor(num_mel_bins=16, num_frames=300).extract(
        read_audio(row["video"], 16000, start_seconds=1.0)
    )
    spare = int(whole.attention_mask.sum()) - 120

    def stretch(training: bool, seed: int = 0, epoch: int = 0) -> int:
        batch = MultimodalCollator(cropping, training=training, seed=seed)([dataset[(epoch, 2)]])
        assert batch["audio_values"].shape == (1, 1, 16, 120)
        first = round(float(batch["audio_seconds"][0, 0] - whole.seconds[0]) * 100)
        assert torch.equal(batch["audio_values"][0], whole.values[..., first : first + 120])
        torch.testing.assert_close(batch["audio_seconds"][0], whole.seconds[first : first + 120])
        return first

    drawn = [stretch(True, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(drawn)) > 5 and 0 <= min(drawn) and max(drawn) <= spare
    assert drawn == [stretch(True, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert [stretch(False, seed, seed) for seed in range(3)] == [spare // 2] * 3


def test_a_processor_may_ask_for_the_pixels_of_decord(processor, dataset):
    row = dataset[0]
    video_processor = VideoClipProcessor(num_frames=4, size=16, geometry="squash", resize_kernel="decord")
    like_decord = MultimodalProcessor(video_processor=video_processor)
    batch = MultimodalCollator(like_decord)([row])
    index = index_video(row["video"])
    backend = get_video_backend("pyav", is_like_decord=True)
    frames = backend.frames(row["video"], video_processor.sample(index), index, (16, 16))
    assert torch.equal(batch["pixel_values_videos"][0], torch.from_numpy(frames))
    with pytest.raises(ValueError, match="use the pyav backend"):
        MultimodalCollator(like_decord, video_backend="decord")


@pytest.mark.parametrize("training", [False, True])
def test_parallel_equals_sequential(processor, dataset, training, targets):
    arguments = {"training": training, "seed": 5, "targets": targets}
    sequential = MultimodalCollator(processor, parallel=False, **arguments)
    for num_threads in (None, 1, 5):
        parallel = MultimodalCollator(processor, num_threads=num_threads, **arguments)
        for epoch in range(2):
            rows = [dataset[(epoch, index)] for index in range(len(dataset))]
            assert_equal(parallel(rows), sequential(rows))


@pytest.mark.parametrize("training", [False, True])
def test_a_row_does_not_depend_on_its_neighbours(processor, dataset, training, targets):
    collator = MultimodalCollator(processor, training=training, targets=targets)
    together = collator(list(dataset))
    for number, row in enumerate(dataset):
        alone = collator([row])
        assert alone.pop("audio_window_counts") == together["audio_window_counts"][number : number + 1]
        assert len(alone.pop("audio_windows")) == max(together["audio_window_counts"][number], 1)
        for key, value in alone.items():
            padded = together[key][number]
            if (
                value.ndim > 1
            ):  # the last dimension is the one that is padded; masks of windows that are padding follow
                padded = padded[..., : value.shape[-1]]
            assert torch.equal(value[0], padded), key


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_batches_of_the_main_process(processor, dataset, workers, targets):
    collator = MultimodalCollator(processor, training=True, targets=targets)
    collator([dataset[0]])  # its pool does not survive the fork

    def batches(**kwargs):
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=2, sampler=EpochSampler(dataset, seed=1), collate_fn=collator, **kwargs
        )
        return list(loader)

    in_workers = batches(num_workers=workers, multiprocessing_context="fork")
    for first, second in zip(in_workers, batches(), strict=True):
        assert_equal(first, second)


def test_training_draws_depend_on_seed_and_epoch(processor, dataset, targets):
    collator = MultimodalCollator(processor, training=True, targets=targets)
    rows = [[dataset[(epoch, index)] for index in range(6)] for epoch in range(2)]
    first, second = collator(rows[0]), collator(rows[1])
    for key in ("pixel_values_videos", "mlm_labels", "audio_masked_patches", "video_masked_patches", "match_uniform"):
        assert first[key].shape != second[key].shape or not torch.equal(first[key], second[key]), key
    other = MultimodalCollator(processor, training=True, seed=1, targets=targets)(rows[0])
    assert not torch.equal(first["match_uniform"], other["match_uniform"])
    assert torch.equal(first["audio_values"], second["audio_values"])


def test_captions_are_drawn_in_training_only(processor, dataset):
    def texts(training: bool) -> set[str]:
        collator = MultimodalCollator(MultimodalProcessor(tokenizer=processor.tokenizer), training=training)
        batches = [collator([dataset[(epoch, 0)]]) for epoch in range(20)]
        return {processor.tokenizer.decode(b["input_ids"][0], skip_special_tokens=True).strip() for b in batches}

    assert texts(training=False) == {"a cat purrs"}
    assert texts(training=True) == {"a cat purrs", "one cat", "the cat"}


def test_evaluation_is_the_same_in_every_epoch(processor, dataset):
    collator = MultimodalCollator(processor)
    assert_equal(collator([dataset[(0, 0)], dataset[(0, 2)]]), collator([dataset[(7, 0)], dataset[(7, 2)]]))


def test_equal_texts_have_equal_ids_in_any_batch(processor, dataset):
    """Texts are those that the tokenizer makes the same tokens; the hash is the same whatever the padding."""
    collator = MultimodalCollator(
        processor, targets=PretrainingTargets(processor, vt_match_ratio=0.5), max_seq_length=8
    )
    rows = [dict(dataset[index]) for index in (1, 2, 2, 3, 3)]
    rows[0]["captions"] = ["a cat purrs"]
    rows[2]["captions"] = ["a long sentence about many dogs, of which the end is cut off"]
    together = collator([*rows, dataset[0]])["text_ids"].tolist()
    assert together[0] == together[5] and together[3] == together[4] and together[1] == together[2]
    assert len(set(together)) == 3
    alone = [collator([row])["text_ids"].item() for row in (*rows, dataset[0])]
    assert alone == together and min(alone) >= 0


def test_special_and_padding_tokens_are_never_masked(processor, dataset):
    batch = MultimodalCollator(processor, targets=PretrainingTargets(processor, mlm_probability=0.9))(list(dataset))
    specials = torch.isin(batch["input_ids"], torch.tensor(processor.tokenizer.all_special_ids))
    assert bool((batch["mlm_labels"][specials] == -100).all())
    assert torch.equal(batch["mlm_input_ids"][specials], batch["input_ids"][specials])
    maskable = (~specials).sum(1)
    assert (batch["mlm_labels"] != -100).sum(1).tolist() == [round(0.9 * int(count)) for count in maskable]
    assert int(maskable[3]) == 0  # no caption, nothing to predict


def test_share_of_aligned_rows(processor, dataset):
    collator = MultimodalCollator(
        MultimodalProcessor(tokenizer=processor.tokenizer), targets=PretrainingTargets(processor, vt_match_ratio=0.25)
    )
    rows = [{**dataset[1], "id": str(number)} for number in range(2000)]
    batch = collator(rows)
    assert abs(batch["match_aligned"].float().mean() - 0.25) < 0.03
    assert abs(batch["match_uniform"].mean() - 0.5) < 0.03
    assert float(batch["match_uniform"].max()) < 1


def test_entries_follow_the_processor(processor, dataset):
    audio_only = MultimodalCollator(MultimodalProcessor(feature_extractor=processor.feature_extractor))
    assert list(audio_only([dataset[1]])) == [
        "audio_values",
        "audio_attention_mask",
        "audio_seconds",
        "audio_mask",
        "audio_windows",
        "audio_window_counts",
        "row_ids",
        "group_ids",
    ]


def test_dropped_modalities_are_not_read(processor, dataset, media_dir, targets):
    row = {**dataset[0], "video": str(media_dir / "broken.mp4"), "audio": str(media_dir / "broken.mp4")}
    full = MultimodalCollator(processor, targets=targets)([dataset[0]])
    batch = MultimodalCollator(processor, targets=targets, drop_modalities=("audio", "video"))([row])
    assert batch.keys() == full.keys()
    assert [batch[f"{name}_mask"].item() for name in ("text", "audio", "video")] == [True, False, False]
    no_text = MultimodalCollator(processor, drop_modalities=("text",))([dataset[0]])
    assert not no_text["text_mask"].any() and bool(no_text["video_mask"].all())


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_rows_that_have_nothing_has_all_entries(processor, dataset, training, targets):
    collator = MultimodalCollator(processor, training=training, targets=targets)
    empty, batch = collator.empty_batch(3), collator([dataset[0], dataset[1], dataset[2]])
    assert empty.pop("audio_windows").tolist() == [[0, 0]] and empty.pop("audio_window_counts") == (0, 0, 0)
    assert len(batch.pop("audio_windows")) == sum(batch.pop("audio_window_counts"))
    assert {name: (len(values), values.dtype, values.ndim) for name, values in empty.items()} == {
        name: (3, values.dtype, values.ndim) for name, values in batch.items()
    }
    assert not any(empty[f"{modality}_mask"].any() for modality in ("text", "audio", "video"))
    assert collator.parallel  # the collator itself is as it was


def test_padding_of_text(processor, dataset):
    batch = MultimodalCollator(processor, max_seq_length=6, pad_to_max_length=True)([dataset[0], dataset[2]])
    assert batch["input_ids"].shape == (2, 6)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", ["broken.mp4", "empty.mp4", "caption.txt"])
def test_a_bad_file_is_named_with_its_row(processor, dataset, media_dir, parallel, name):
    path = str(media_dir / name)
    rows = [dataset[0], {**dataset[1], "video": path, "audio": path}]
    with pytest.raises(MediaError, match=rf"^row 1 \(id 'b'\): .*{name}"):
        MultimodalCollator(processor, parallel=parallel)(rows)


def test_a_bad_file_is_named_through_a_worker(processor, dataset, media_dir):
    bad = {**dataset[1], "video": str(media_dir / "empty.mp4"), "audio": None}
    loader = torch.utils.data.DataLoader([bad], collate_fn=MultimodalCollator(processor), num_workers=1)
    batches = iter(loader)
    with pytest.raises(MediaError, match=r"row 1 \(id 'b'\): .*empty.mp4"):
        next(batches)
    assert list(batches) == []  # else torch waits five seconds for the worker


def test_sound_of_an_audio_column_must_be_there(processor, dataset, media_dir):
    row = {**dataset[1], "audio": str(media_dir / "silent.mp4"), "audio_is_sound_track": False}
    with pytest.raises(MediaError, match="row 1"):
        MultimodalCollator(processor)([row])


@pytest.mark.parametrize(
    ("name", "audio_codec", "audio_seconds"),
    [
        ("early.mp4", "aac", 1.0),
        ("early.mkv", "libopus", 0.8),
        ("early.ts", "aac", 1.0),
        ("early.mov", "pcm_s16le", 0.5),
    ],
)
@pytest.mark.parametrize("start", [1.5, 130.0])  # from the start of the file, and by seeking
def test_a_sound_track_that_ends_before_the_segment_does_not_cost_the_row(
    processor, dataset, tmp_path, name, audio_codec, audio_seconds, start
):
    rate = 48000 if audio_codec == "libopus" else 16000
    path = write_media(
        tmp_path / name,
        num_frames=round(start + 1),
        rate=1,
        waveform=np.sin,
        audio_codec=audio_codec,
        audio_rate=rate,
        audio_seconds=audio_seconds,
    )
    row = {**dataset[1], "video": str(path), "audio": str(path), "start_seconds": start, "end_seconds": start + 1}
    batch = MultimodalCollator(processor)([row, {**row, "start_seconds": 0.0}])
    assert batch["video_mask"].tolist() == [True, True] and batch["audio_mask"].tolist() == [False, True]
    with pytest.raises(MediaError, match="no sound from"):  # a column of its own promises sound
        MultimodalCollator(processor)([{**row, "audio_is_sound_track": False}])


@pytest.mark.parametrize("name", ["empty.mkv", "empty.mov", "empty.avi"])
def test_a_sound_track_without_packets_does_not_cost_the_row(processor, dataset, tmp_path, name):
    path = write_media(tmp_path / name, num_frames=20, waveform=np.sin, audio_seconds=0.0)
    row = {**dataset[1], "video": str(path), "audio": str(path)}
    assert MultimodalCollator(processor)([row])["audio_mask"].tolist() == [False]
    with pytest.raises(MediaError, match="holds no samples|no sound track"):
        MultimodalCollator(processor)([{**row, "audio_is_sound_track": False}])


def test_a_sound_track_that_is_damaged_costs_the_row(processor, dataset, tmp_path):
    path = write_media(tmp_path / "noise.mkv", num_frames=20, waveform=np.sin, audio_codec="flac", audio_seconds=1.0)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for place, size in places:
        content[place + 8 : place + size - 8] = bytes(size - 16)
    path.write_bytes(content)
    row = {**dataset[1], "video": str(path), "audio": str(path)}
    with pytest.raises(MediaError, match="audio packets can be decoded"):
        MultimodalCollator(processor)([row])


def test_pool_is_made_once_and_not_pickled(processor, dataset):
    collator = MultimodalCollator(processor, num_threads=2)
    assert collator._pool is None
    collator([dataset[0]])
    pool = collator._pool
    collator([dataset[0]])
    assert collator._pool is pool
    copy = pickle.loads(pickle.dumps(collator))  # as for a worker that is spawned
    assert copy._pool is None
    assert_equal(copy([dataset[0]]), collator([dataset[0]]))


def test_bad_arguments_are_refused(processor):
    with pytest.raises(ValueError, match="num_threads"):
        MultimodalCollator(processor, num_threads=0)
    with pytest.raises(ValueError, match="pyav"):
        MultimodalCollator(processor, video_backend="opencv")
    with pytest.raises(ValueError, match="given together"):
        PretrainingTargets(processor, audio_mask_ratio=0.3)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        PretrainingTargets(MultimodalProcessor(video_processor=processor.video_processor), mlm_probability=0.3)


def test_threads_are_shared_among_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert default_num_threads() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_num_threads() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert default_num_threads() == 8


class CountingCollator:
    """Tells how many blocks of shared memory the worker has, and in which the large tensors lie."""

    def __init__(self, collator: MultimodalCollator):
        self.collator = collator

    def __call__(self, rows):
        batch = self.collator(rows)
        addresses = [batch["pixel_values_videos"].data_ptr(), batch["audio_values"].data_ptr()]
        batch["are_in_blocks"] = torch.tensor(set(addresses) <= set(batch_memory._loans))
        batch["num_blocks"] = torch.tensor(len(batch_memory._loans))
        return batch


def worker_batches(processor, dataset, **options) -> DataLoader:
    return DataLoader(
        [dataset[0, number % len(dataset)] for number in range(60)],
        batch_size=2,
        collate_fn=CountingCollator(MultimodalCollator(processor)),
        **options,
    )


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_worker_hands_large_tensors_over_in_blocks_and_uses_these_again(processor, dataset, start_method):
    expected = list(worker_batches(processor, dataset))
    assert not any(batch.pop("are_in_blocks") or batch.pop("num_blocks") for batch in expected)
    received = worker_batches(processor, dataset, num_workers=1, multiprocessing_context=start_method)
    for first, second in zip(received, expected, strict=True):
        assert first.pop("are_in_blocks") and first.pop("num_blocks") <= 12  # two in each batch
        assert type(first) is dict
        assert_equal(first, second)


def test_a_block_is_not_used_again_while_a_view_of_it_is_held(processor, dataset):
    expected = list(worker_batches(processor, dataset))
    views = [batch["pixel_values_videos"][1:, 0] for batch in worker_batches(processor, dataset, num_workers=1)]
    for view, batch in zip(views, expected, strict=True):
        assert torch.equal(view, batch["pixel_values_videos"][1:, 0])
