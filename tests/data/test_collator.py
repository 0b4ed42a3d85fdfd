"""Content of a batch, which does not depend on threads, workers or neighbouring rows."""

import pytest
import torch

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.randomness import stable_hash
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.media import get_video_backend, index_video
from simple_multimodal.media.audio import read_audio
from simple_multimodal.media.errors import MediaError
from simple_multimodal.processing import MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.retrieval.targets import PretrainingTargets
from tests.data.conftest import assert_equal

NUM_PATCHES = {"audio": 20, "video": 16}  # per audio window, and per time step of a video
NUM_MASKED = {"audio": 6, "video": 13}  # 0.3 and 0.8 of them


def test_a_batch_has_entries_of_fixed_types_and_shapes(processor, dataset, targets):
    batch = MultimodalCollator(processor, targets=targets)(list(dataset))
    length = batch["input_ids"].shape[1]
    del batch["audio_window_counts"]  # a tuple, see the next test
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "input_ids": (torch.int64, (6, length)),
        "attention_mask": (torch.int64, (6, length)),
        "text_mask": (torch.bool, (6,)),
        "audio_values": (torch.float32, (6, 1, 16, 240)),
        "audio_attention_mask": (torch.bool, (6, 240)),
        "audio_seconds": (torch.float32, (6, 240)),
        "audio_mask": (torch.bool, (6,)),
        "audio_windows": (torch.int64, (4, 2)),
        "pixel_values_videos": (torch.uint8, (6, 4, 3, 16, 16)),
        "video_seconds": (torch.float32, (6, 4)),
        "video_mask": (torch.bool, (6,)),
        "row_ids": (torch.int64, (6,)),
        "group_ids": (torch.int64, (6,)),
        "mlm_input_ids": (torch.int64, (6, length)),
        "mlm_labels": (torch.int64, (6, length)),
        "audio_masked_patches": (torch.int64, (6, 2 * NUM_MASKED["audio"])),
        "video_masked_patches": (torch.int64, (6, 2 * NUM_MASKED["video"])),
        "match_aligned": (torch.bool, (6,)),
        "match_uniform": (torch.float32, (6,)),
        "text_ids": (torch.int64, (6,)),
    }


def test_windows_that_contain_audio_are_listed(processor, dataset):
    batch = MultimodalCollator(processor)(list(dataset))
    assert batch["audio_window_counts"] == (1, 0, 2, 1, 0, 0)  # windows of 1.2 s; row c has 2 s of audio
    assert batch["audio_windows"].tolist() == [[0, 0], [2, 0], [2, 1], [3, 0]]


def test_a_modality_that_a_row_lacks_is_zero_and_masked(processor, dataset):
    batch = MultimodalCollator(processor)(list(dataset))
    assert batch["text_mask"].tolist() == [True, True, True, False, True, True]
    assert batch["audio_mask"].tolist() == [True, False, True, True, False, False]
    assert batch["video_mask"].tolist() == [True, True, True, True, False, True]
    for key in ("audio_values", "audio_attention_mask", "audio_seconds"):
        assert not batch[key][~batch["audio_mask"]].any()
    for key in ("pixel_values_videos", "video_seconds"):
        assert not batch[key][~batch["video_mask"]].any()


def test_batches_have_the_numbers_of_rows_and_groups(processor, dataset):
    batch = MultimodalCollator(processor)(list(dataset))
    assert batch["row_ids"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["group_ids"].tolist()[:2] == [stable_hash("cats"), stable_hash("video=silent.mp4")]


@pytest.mark.parametrize("name", ["audio", "video"])
def test_each_window_and_time_step_has_the_same_number_of_masked_patches(processor, dataset, targets, name):
    positions = MultimodalCollator(processor, targets=targets)(list(dataset))[f"{name}_masked_patches"]
    windows = (positions // NUM_PATCHES[name]).tolist()
    assert windows == [[0] * NUM_MASKED[name] + [1] * NUM_MASKED[name]] * 6
    assert (positions.diff(dim=1) > 0).all()


def test_a_row_is_read_completely(processor, dataset):
    row = dataset[3]  # [0.5, 1.5) of a video of two seconds at 10 frames per second
    batch = MultimodalCollator(processor)([row])
    index = index_video(row["video"])
    positions = [6, 8, 11, 13]  # centres of four parts of frames 5 to 14
    fit = processor.video_processor.fit(index.height, index.width)
    frames = get_video_backend("pyav").frames(row["video"], positions, index, (fit.height, fit.width))
    assert torch.equal(batch["pixel_values_videos"][0], processor.video_processor.transform(frames, fit))
    torch.testing.assert_close(batch["video_seconds"][0], torch.tensor([0.1, 0.3, 0.6, 0.8]))
    waveform = read_audio(row["video"], 16000, start_seconds=0.5, end_seconds=1.5)
    audio = processor.feature_extractor.extract(waveform)
    assert torch.equal(batch["audio_values"][0], audio.values)
    assert torch.equal(batch["audio_attention_mask"][0], audio.attention_mask)


def test_a_processor_may_request_the_pixels_of_decord(processor, dataset):
    row = dataset[0]
    video_processor = VideoClipProcessor(num_frames=4, size=16, resize_mode="squash", resize_kernel="decord")
    like_decord = MultimodalProcessor(video_processor=video_processor)
    batch = MultimodalCollator(like_decord)([row])
    index = index_video(row["video"])
    backend = get_video_backend("pyav", is_like_decord=True)
    frames = backend.frames(row["video"], video_processor.sample(index), index, (16, 16))
    assert torch.equal(batch["pixel_values_videos"][0], torch.from_numpy(frames))
    with pytest.raises(ValueError, match="use the pyav backend"):
        MultimodalCollator(like_decord, video_backend="decord")


@pytest.mark.parametrize("training", [False, True])
def test_parallel_reading_equals_sequential_reading(processor, dataset, training, targets):
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
            if value.ndim > 1:  # only the last dimension is padded
                padded = padded[..., : value.shape[-1]]
            assert torch.equal(value[0], padded), key


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_return_the_batches_of_the_main_process(processor, dataset, workers, targets):
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


def test_random_choices_in_training_depend_on_seed_and_epoch(processor, dataset, targets):
    collator = MultimodalCollator(processor, training=True, targets=targets)
    rows = [[dataset[(epoch, index)] for index in range(6)] for epoch in range(2)]
    first, second = collator(rows[0]), collator(rows[1])
    for key in ("pixel_values_videos", "mlm_labels", "audio_masked_patches", "video_masked_patches", "match_uniform"):
        assert first[key].shape != second[key].shape or not torch.equal(first[key], second[key]), key
    other = MultimodalCollator(processor, training=True, seed=1, targets=targets)(rows[0])
    assert not torch.equal(first["match_uniform"], other["match_uniform"])
    assert torch.equal(first["audio_values"], second["audio_values"])


def test_captions_are_random_in_training_only(processor, dataset):
    def texts(training: bool) -> set[str]:
        collator = MultimodalCollator(MultimodalProcessor(tokenizer=processor.tokenizer), training=training)
        batches = [collator([dataset[(epoch, 0)]]) for epoch in range(20)]
        return {processor.tokenizer.decode(b["input_ids"][0], skip_special_tokens=True).strip() for b in batches}

    assert texts(training=False) == {"a cat purrs"}
    assert texts(training=True) == {"a cat purrs", "one cat", "the cat"}


def test_evaluation_is_the_same_in_every_epoch(processor, dataset):
    collator = MultimodalCollator(processor)
    assert_equal(collator([dataset[(0, 0)], dataset[(0, 2)]]), collator([dataset[(7, 0)], dataset[(7, 2)]]))


def test_a_batch_has_the_modalities_of_the_processor(processor, dataset):
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
def test_an_empty_batch_has_all_entries(processor, dataset, training, targets):
    collator = MultimodalCollator(processor, training=training, targets=targets)
    empty, batch = collator.empty_batch(3), collator([dataset[0], dataset[1], dataset[2]])
    assert empty.pop("audio_windows").tolist() == [[0, 0]] and empty.pop("audio_window_counts") == (0, 0, 0)
    assert len(batch.pop("audio_windows")) == sum(batch.pop("audio_window_counts"))
    assert {name: (len(values), values.dtype, values.ndim) for name, values in empty.items()} == {
        name: (3, values.dtype, values.ndim) for name, values in batch.items()
    }
    assert not any(empty[f"{modality}_mask"].any() for modality in ("text", "audio", "video"))
    assert collator.parallel  # the collator itself is unchanged


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


def test_a_bad_file_is_named_in_a_worker(processor, dataset, media_dir):
    bad = {**dataset[1], "video": str(media_dir / "empty.mp4"), "audio": None}
    loader = torch.utils.data.DataLoader([bad], collate_fn=MultimodalCollator(processor), num_workers=1)
    batches = iter(loader)
    with pytest.raises(MediaError, match=r"row 1 \(id 'b'\): .*empty.mp4"):
        next(batches)
    assert list(batches) == []  # otherwise torch waits five seconds for the worker


def test_bad_arguments_are_refused(processor):
    with pytest.raises(ValueError, match="num_threads"):
        MultimodalCollator(processor, num_threads=0)
    with pytest.raises(ValueError, match="pyav"):
        MultimodalCollator(processor, video_backend="opencv")
    with pytest.raises(ValueError, match="together, or neither"):
        PretrainingTargets(processor, audio_mask_ratio=0.3)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        PretrainingTargets(MultimodalProcessor(video_processor=processor.video_processor), mlm_probability=0.3)
