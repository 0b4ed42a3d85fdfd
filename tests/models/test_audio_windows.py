"""Audio towers run only on windows that hold audio, and no output of a model depends on that."""

import pytest
import torch

from simple_multimodal.models.audio.windows import encode_windows, put_windows, take_windows
from simple_multimodal.models.encoders import ENCODERS, Encoder
from simple_multimodal.processing.audio_windows import windows_with_audio
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.closeness import assert_close
from tests.models import tiny
from tests.models.distributed_worker import CASES, build
from tests.models.test_registry import audio_window, fitted_config

TOWERS = sorted({encoder.model_type for (modality, _), encoder in ENCODERS.items() if modality == "audio"})

BATCHES = {
    "one window each": [1, 1, 1],
    "one long row": [1, 1, 5, 1],
    "rows without audio": [0, 2, 0, 1],
    "every window": [3, 3],
    "one row": [4],
    "no audio at all": [0, 0],
}
"""Number of windows that hold audio, by row."""


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    found = {}
    for model_type in TOWERS:
        torch.manual_seed(0)
        found[model_type] = tiny.randomize(ENCODERS["audio", model_type](fitted_config("audio", model_type)))
    return found


def audio(counts: list[int], bins: int, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows whose last window is half full, padded to the longest."""
    width = max(*counts, 1) * frames
    real = torch.tensor([max(count * frames - frames // 2, 0) for count in counts])
    mask = torch.arange(width) < real[:, None]
    values = torch.randn(len(counts), 1, bins, width, generator=torch.Generator().manual_seed(0))
    return values * mask[:, None, None], mask, (torch.arange(width) * 0.01).expand(len(counts), -1)


@pytest.mark.parametrize("counts", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("model_type", TOWERS)
@torch.no_grad()
def test_windows_are_encoded_as_in_the_whole_batch(encoders, model_type, counts):
    encoder = encoders[model_type]
    size = audio_window(type(encoder), encoder.config)
    assert encoder.window_frames == size[1]
    inputs = audio(counts, *size)
    windows, found_counts = windows_with_audio(inputs[1], size[1])
    assert list(found_counts) == counts and len(windows) == max(sum(counts), 1)
    expected = encoder(*inputs)
    seen = []
    handle = encoder.register_forward_pre_hook(lambda module, arguments: seen.append(tuple(arguments[0].shape)))
    found = encode_windows(encoder, inputs, windows)
    handle.remove()
    assert seen == [(max(sum(counts), 1), 1, *size)]
    assert torch.equal(found.mask, expected.mask)
    assert_close(found.tokens[found.mask], expected.tokens[found.mask])
    torch.testing.assert_close(found.seconds[found.mask], expected.seconds[found.mask])
    assert found.tokens.shape == expected.tokens.shape and found.seconds.shape == expected.seconds.shape
    ran = put_windows(torch.ones(len(windows), 1), windows, len(counts), max(*counts, 1)).bool()
    tokens = found.tokens.unflatten(1, (ran.shape[1], -1))
    assert not tokens[~ran].any() and tokens[ran].any()
    assert (found.embedding is None) == (expected.embedding is None)
    if expected.embedding is not None:
        assert_close(found.embedding, expected.embedding)


def test_values_of_another_window_size_are_refused(encoders):
    values, mask, seconds = audio([2, 1], 8, 20)
    with pytest.raises(ValueError, match="audio_values has 39 frames, but a window of the audio tower has 20"):
        encode_windows(encoders["vit_mae"], (values[..., 1:], mask, seconds), torch.tensor([[0, 0]]))


def test_windows_are_taken_and_put_back():
    values = torch.arange(2 * 6 * 3).view(2, 6, 3)
    windows = torch.tensor([[0, 1], [1, 0], [1, 2]])
    taken = take_windows(values, windows, 3)
    assert taken.tolist() == [values[0, 2:4].tolist(), values[1, :2].tolist(), values[1, 4:].tolist()]
    back = put_windows(taken, windows, 2, 3)
    assert torch.equal(back[1, [0, 1, 4, 5]], values[1, [0, 1, 4, 5]]) and not back[1, 2:4].any()
    assert take_windows(values.transpose(1, 2), windows, 3, dim=2).tolist() == taken.transpose(1, 2).tolist()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_outputs_do_not_depend_on_padding_windows(case):
    model = build(case)
    batch = tiny.make_batch(tiny.ROWS + tiny.LACKING, num_windows=4)
    expected, found = model(**batch), model(**tiny.naming_windows(batch))
    for part in ("losses", "metrics", "text_embeds", "audio_embeds", "video_embeds", "clip_embeds", "logits"):
        assert_close(found[part], expected[part])


def test_a_long_row_adds_no_windows_to_others():
    """31 tracks of one window and one of six: 37 windows through the tower and the decoder, not 192."""
    model = MultimodalForPreTraining(tiny.tiny_config()).train()
    batch = tiny.make_batch([*(tiny.Row(seed) for seed in range(31)), tiny.Row(31, num_windows=6)])
    seen: list[int] = []
    for layer in (model.multimodal.audio_encoder.layers[0], model.audio_decoder.decoder_layers[0]):
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    model(**batch)
    assert seen == [192] * 3  # masked and whole, and the decoder
    seen.clear()
    model(**tiny.naming_windows(batch)).loss.backward()
    assert seen == [37] * 3


def test_an_audio_tower_gets_gradients_without_any_audio():
    model = MultimodalForPreTraining(tiny.tiny_config()).train()
    batch = tiny.naming_windows(tiny.make_batch([tiny.Row(0, audio=False), tiny.Row(1, audio=False)]))
    assert batch["audio_windows"].tolist() == [[0, 0]] and batch["audio_window_counts"] == (0, 0)
    output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    for name, parameter in model.named_parameters():
        if "audio_encoder" in name or "audio_decoder" in name:
            assert parameter.grad is not None and not parameter.grad.any(), name
