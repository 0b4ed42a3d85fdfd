"""Turn a waveform into the normalised log-mel windows that the audio encoder reads."""

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import (
    BatchFeature,
    ClapFeatureExtractor,
    PeAudioFeatureExtractor,
    SequenceFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging

from simple_multimodal.errors import InputError
from simple_multimodal.processing.audio_windows import AudioCrop, plan_windows
from simple_multimodal.processing.batch_memory import batch_tensor

logger = logging.get_logger(__name__)

# Kaldi's constants, the same in `torchaudio.compliance.kaldi.fbank`.
FRAME_BLOCK = 256  # frames that are transformed together
PREEMPHASIS = 0.97
LOG_FLOOR = 1.1920928955078125e-07

POWER_FLOOR = 1e-10  # CLAP and Whisper: -100 dB
VARIANCE_FLOOR = 1e-7  # wav2vec 2.0: added to the variance of a waveform
WHISPER_RANGE = 8.0  # dynamic range below a window's maximum, in powers of ten

PADDINGS = {
    "kaldi": ("mean", "zero"),
    "clap": ("repeatpad", "repeat", "pad"),
    "whisper": ("pad",),
    "waveform": ("reflect", "pad"),
}
"""Allowed padding after the end of the audio, by front end."""


class AudioFeatures(NamedTuple):
    """Features of one waveform, with `num_windows * num_frames` frames in time.

    Args:
        values (`torch.FloatTensor` of shape `(1, num_mel_bins, num_windows * num_frames)`):
            Log-mel (natural log), normalised; exactly 0 in frames that are padding.
        attention_mask (`torch.BoolTensor` of shape `(num_windows * num_frames,)`):
            `True` for frames of the audio, `False` for padding.
        seconds (`torch.FloatTensor` of shape `(num_windows * num_frames,)`):
            Time of each frame's centre in seconds from the first sample of the uncropped waveform; continues through
            the padding.
    """

    values: torch.Tensor
    attention_mask: torch.Tensor
    seconds: torch.Tensor


class AudioFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel feature extractor with windows of fixed length, as many as the audio needs.

    The features are the filter banks of Kaldi as the Audio Spectrogram Transformer uses them
    ([paper](https://huggingface.co/papers/2104.01778)), because the default mean and deviation were measured on
    them: offset removed and pre-emphasis applied per frame, symmetric Hann window, power spectrum, triangular
    filters in Kaldi's mel scale, natural log with a floor, then `(x - mean) / (2 * std)`. Each frame is computed
    independently and in blocks of one fixed shape, so features depend neither on the rest of the batch nor on the
    number of threads.

    `front_end="clap"` gives the features of CLAP ([paper](https://huggingface.co/papers/2211.06687)) instead: centred
    frames over the mirrored waveform, periodic Hann window, power spectrum, mel filters, and unnormalised decibels.
    `front_end="whisper"` gives those of Whisper ([paper](https://huggingface.co/papers/2212.04356)): the same with
    powers of ten instead of decibels, `max(x, maximum of the window - 8) / 4 + 1`. `front_end="waveform"` gives the
    samples themselves, for towers that read audio through a codec: a frame has the samples of `hop_seconds`, and
    `num_mel_bins` is their number.

    Args:
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the waveforms in Hz.
        num_mel_bins (`int`, *optional*, defaults to 128):
            Number of mel filters.
        num_frames (`int`, *optional*, defaults to 1024):
            Number of frames per window; the default of 10.24 seconds is that of AST and Audio-MAE. Shorter audio is
            padded, longer audio is covered by several windows.
        hop_seconds (`float`, *optional*, defaults to 0.01):
            Time between the starts of two frames, in seconds.
        window_seconds (`float`, *optional*, defaults to 0.025):
            Length of a frame, in seconds.
        f_min (`float`, *optional*, defaults to 20.0):
            Lowest frequency of the filters, in Hz.
        f_max (`float`, *optional*):
            Highest frequency of the filters, in Hz; half of the sampling rate by default.
        mean (`float`, *optional*, defaults to -4.2677393):
            Mean of the log-mel values; the default is that of AudioSet.
        std (`float`, *optional*, defaults to 4.5689974):
            Standard deviation of the log-mel values; the default is that of AudioSet.
        max_windows (`int`, *optional*):
            Maximum number of windows, to which longer audio is cropped. By default nothing is cropped.
        min_window_frames (`int`, *optional*, defaults to 1):
            Smallest remainder, in frames, that gets a window of its own; see [`plan_windows`].
        crop (`str`, *optional*, defaults to `"start"`):
            Part that `max_windows` keeps: `"start"`, the first windows, or `"random"`, a random part in training and
            the middle otherwise.
        front_end (`str`, *optional*, defaults to `"kaldi"`):
            Kind of features: `"kaldi"`, `"clap"`, `"whisper"` or `"waveform"`, see above.
        mel_scale (`str`, *optional*, defaults to `"slaney"`):
            Mel filters of `"clap"` and `"whisper"`: `"slaney"` (scale and norm) or `"htk"` (without norm).
        padding (`str`, *optional*, defaults to `"mean"`):
            Padding after the end of the audio in its last window. With `"kaldi"`: `"mean"`, exactly 0 after
            normalisation, or `"zero"`, 0 before it, as in AST. With `"clap"`: the audio is repeated as often as it
            fits completely (`"repeatpad"`) or until the window is full (`"repeat"`), or followed by silence (`"pad"`),
            as with `"whisper"`. With `"waveform"`: the audio is mirrored up to a whole frame (`"reflect"`) or cut to
            whole frames (`"pad"`), followed by silence.
        do_normalize (`bool`, *optional*, defaults to `False`):
            With `"waveform"`, normalise the samples to mean 0 and deviation 1, as in wav2vec 2.0.
    """

    model_input_names = ["audio_values", "audio_attention_mask", "audio_seconds", "audio_mask"]

    def __init__(
        self,
        *,
        sampling_rate: int = 16000,
        num_mel_bins: int = 128,
        num_frames: int = 1024,
        hop_seconds: float = 0.01,
        window_seconds: float = 0.025,
        f_min: float = 20.0,
        f_max: float | None = None,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        max_windows: int | None = None,
        min_window_frames: int = 1,
        crop: AudioCrop = "start",
        front_end: Literal["kaldi", "clap", "whisper", "waveform"] = "kaldi",
        mel_scale: Literal["slaney", "htk"] = "slaney",
        padding: Literal["mean", "zero", "repeatpad", "repeat", "pad", "reflect"] = "mean",
        do_normalize: bool = False,
        **kwargs: Any,
    ):
        for key in ("feature_size", "padding_value"):  # the base class saves them; they are fixed here
            kwargs.pop(key, None)
        super().__init__(feature_size=num_mel_bins, sampling_rate=sampling_rate, padding_value=0.0, **kwargs)
        if num_frames < 1 or (max_windows is not None and max_windows < 1):
            raise InputError(f"`num_frames` and `max_windows` must be 1 or more, got {num_frames} and {max_windows}.")
        if min_window_frames < 1 or crop not in ("start", "random"):
            raise InputError(
                f"`min_window_frames` must be 1 or more and `crop` start or random, got {min_window_frames} and "
                f"{crop!r}."
            )
        if not 0 <= f_min < (f_max or sampling_rate / 2) <= sampling_rate / 2:
            raise InputError(
                f"Got {f_min=}, {f_max=} at {sampling_rate=}: 0 <= f_min < f_max <= sampling_rate / 2 is needed (Hz)."
            )
        if padding not in PADDINGS.get(front_end, ()) or mel_scale not in ("slaney", "htk"):
            allowed = "; ".join(f"for {name} {' or '.join(values)}" for name, values in PADDINGS.items())
            raise InputError(
                f"Got {front_end=}, {mel_scale=}, {padding=}: front_end must be one of {', '.join(PADDINGS)}, "
                f"mel_scale slaney or htk, and padding {allowed}."
            )
        if do_normalize and front_end != "waveform":
            raise InputError(
                f"`do_normalize` is for front_end='waveform', got {front_end=}; leave it out, set `mean` and `std`."
            )
        self.front_end = front_end
        self.do_normalize = do_normalize
        self.mel_scale = mel_scale
        self.padding = padding
        self.num_mel_bins = num_mel_bins
        self.num_frames = num_frames
        self.hop_seconds = hop_seconds
        self.window_seconds = window_seconds
        self.f_min = f_min
        self.f_max = f_max
        self.mean = mean
        self.std = std
        self.max_windows = max_windows
        self.min_window_frames = min_window_frames
        self.crop = crop
        if front_end == "waveform":
            if num_mel_bins != self.hop_length:
                raise InputError(
                    f"A frame of the waveform has {self.hop_length} samples ({hop_seconds=} at {sampling_rate} Hz), "
                    f"but `num_mel_bins` is {num_mel_bins}; it must be the same."
                )
            return
        # Computed once. transformers excludes attributes with these two names from the saved JSON.
        is_kaldi = front_end == "kaldi"
        self.window = torch.hann_window(
            self.frame_length, periodic=not is_kaldi, dtype=torch.float32 if is_kaldi else torch.float64
        )
        with warnings.catch_warnings():
            # With 128 filters on a 512-point spectrum, some of the lowest are empty, in Kaldi too.
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
            filters = mel_filter_bank(
                num_frequency_bins=self.fft_length // 2 + 1,
                num_mel_filters=num_mel_bins,
                min_frequency=f_min,
                max_frequency=f_max or sampling_rate / 2,
                sampling_rate=sampling_rate,
                mel_scale="kaldi" if is_kaldi else mel_scale,
                norm="slaney" if mel_scale == "slaney" and not is_kaldi else None,
                triangularize_in_mel_space=is_kaldi,
            )
        self.mel_filters = torch.from_numpy(filters.astype(np.float32 if is_kaldi else np.float64))

    @property
    def hop_length(self) -> int:
        """Number of samples between the starts of two frames."""
        return round(self.hop_seconds * self.sampling_rate)

    @property
    def frame_length(self) -> int:
        """Number of samples in a frame."""
        return round(self.window_seconds * self.sampling_rate)

    @property
    def fft_length(self) -> int:
        """Length of the Fourier transform: the next power of two for Kaldi, otherwise the length of a frame."""
        return 1 << (self.frame_length - 1).bit_length() if self.front_end == "kaldi" else self.frame_length

    @property
    def input_size(self) -> tuple[int, int]:
        """Mel bins and frames of a window: the input size of the tower."""
        return self.num_mel_bins, self.num_frames

    @property
    def crop_rule(self) -> str | None:
        """Description of the part of longer audio that is kept in evaluation; `None` if all of it is."""
        if self.max_windows is None:
            return None
        window_frames = self.num_frames - (self.front_end == "clap")
        seconds = self.max_windows * window_frames * self.hop_length / self.sampling_rate
        return f"of longer audio the {'first' if self.crop == 'start' else 'middle'} {seconds:g} seconds"

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> "AudioFeatureExtractor":
        """Build from the content of a `preprocessor_config.json`, including those of the stock extractors of AST, CLAP
        and Whisper and of stock image processors.

        An image processor (like the one that comes with ViT-MAE) does not describe audio: the defaults are used, with
        a warning.
        """
        values = dict(feature_extractor_dict)
        kind = values.pop("feature_extractor_type", None) or values.pop("image_processor_type", None)
        if kind not in (None, cls.__name__):
            windows = {key: values[key] for key in ("max_windows", "min_window_frames", "crop") if key in values}
            known: dict[str, Any] = {
                key: values[key]
                for key in ("sampling_rate", "num_mel_bins", "num_frames", "mean", "std")
                if key in values
            }
            if "num_mel_bins" in values and "max_length" in values:  # AST's name for frames per window
                known["num_frames"] = values["max_length"]
                known["padding"] = "zero"
                if not values.get("do_normalize", True):
                    known |= {"mean": 0.0, "std": 0.5}
            if "fft_window_size" in values:
                known = _from_clap(values)
            if "n_fft" in values:
                known = _from_whisper(values)
            if kind == Wav2Vec2FeatureExtractor.__name__:
                known = _from_wav2vec2(values)
            if kind == PeAudioFeatureExtractor.__name__:
                known = _from_pe_av(values)
            if not known:
                logger.warning_once(f"The configuration of {kind} does not describe audio: log-mel defaults are used.")
            values = known | windows
        # transformers (5.23) ignores arguments that are not in the file.
        own_names = inspect.signature(cls.__init__).parameters
        values |= {key: kwargs.pop(key) for key in own_names if key in kwargs}
        return super().from_dict(values, **kwargs)

    def extract(self, waveform: np.ndarray, generator: np.random.Generator | None = None) -> AudioFeatures:
        """Extract the features of one waveform.

        Args:
            waveform (`np.ndarray` of shape `(num_samples,)`):
                Mono waveform at `sampling_rate`, full scale at ±1. If it is empty, one window of padding is returned.
            generator (`np.random.Generator`, *optional*):
                Generator of the sample, in training: chooses the part to keep of audio longer than `max_windows`.

        Returns:
            [`AudioFeatures`].

        Raises:
            ValueError: If the waveform is not one-dimensional **or** contains values that are not finite.
        """
        samples = torch.as_tensor(np.ascontiguousarray(waveform, dtype=np.float32))
        if samples.ndim != 1:
            raise InputError(f"The waveform must be mono, of shape (num_samples,), got shape {tuple(samples.shape)}.")
        if not bool(torch.isfinite(samples).all()):
            raise InputError("The waveform contains values that are not finite (NaN or infinity).")

        # Frames are `hop_length` samples apart. The last one of a CLAP window is centred on its end.
        window_frames = self.num_frames - (self.front_end == "clap")
        if self.front_end != "kaldi":
            num_frames = math.ceil(len(samples) / self.hop_length)
        elif len(samples) > 0:  # frames completely inside the audio, as in Kaldi, but at least one
            num_frames = max(1 + (len(samples) - self.frame_length) // self.hop_length, 1)
        else:
            num_frames = 0
        first_frame, num_windows = plan_windows(
            num_frames,
            window_frames,
            min_window_frames=self.min_window_frames,
            max_windows=self.max_windows,
            crop=self.crop,
            generator=generator,
        )
        num_frames = min(num_frames - first_frame, num_windows * window_frames)
        samples = samples[first_frame * self.hop_length :]
        if self.front_end == "kaldi":
            values, mask, positions = self._extract_kaldi(samples, num_frames, num_windows)
        else:
            samples = samples[: num_windows * window_frames * self.hop_length]
            extract = self._extract_waveform if self.front_end == "waveform" else self._extract_centred
            values, mask, positions = extract(samples, num_windows)
        seconds = (positions + first_frame * self.hop_length) / self.sampling_rate
        return AudioFeatures(values, mask, seconds.float())

    def _extract_kaldi(
        self, samples: torch.Tensor, num_real_frames: int, num_windows: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the values and mask of [`AudioFeatures`], and the centres of frames in samples (`float64`)."""
        num_total_frames = num_windows * self.num_frames
        # Blocks of frames: the shapes are always the same, and intermediate results stay in the CPU's cache.
        padding = 0.0 if self.padding == "mean" else -self.mean / (2 * self.std)
        values = torch.full((self.num_mel_bins, num_total_frames), padding)
        if num_real_frames > 0:
            num_samples = (-(-num_real_frames // FRAME_BLOCK) * FRAME_BLOCK - 1) * self.hop_length + self.frame_length
            samples = torch.nn.functional.pad(samples[:num_samples], (0, max(num_samples - len(samples), 0)))
            frames = samples.unfold(0, self.frame_length, self.hop_length)  # (num_frames, frame_length), a view
            for begin in range(0, num_real_frames, FRAME_BLOCK):
                end = min(begin + FRAME_BLOCK, num_real_frames)
                log_mel = self._log_mel(frames[begin : begin + FRAME_BLOCK])[: end - begin]
                values[:, begin:end] = ((log_mel - self.mean) / (2 * self.std)).T
        positions = torch.arange(num_total_frames, dtype=torch.float64) * self.hop_length + self.frame_length / 2
        return values[None], torch.arange(num_total_frames) < num_real_frames, positions

    def _extract_centred(
        self, samples: torch.Tensor, num_windows: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Extract like [`_extract_kaldi`], with the front end of CLAP or Whisper and each window by itself."""
        length = self.num_frames * self.hop_length  # samples in a window
        if self.front_end == "clap":  # the last frame is centred on the end
            length -= self.hop_length
        values = torch.zeros(self.num_mel_bins, num_windows, self.num_frames)
        mask = torch.zeros(num_windows, self.num_frames, dtype=torch.bool)
        for number, part in enumerate(samples.split(length)):
            if len(part) == 0:
                break
            mask[number, : math.ceil(len(part) / self.hop_length) + (len(part) == length)] = True
            repeats = {"repeatpad": length // len(part), "repeat": -(-length // len(part)), "pad": 1}[self.padding]
            signal = part.double().repeat(repeats)[:length]
            signal = torch.nn.functional.pad(signal, (0, length - len(signal)))
            half = self.frame_length // 2
            signal = torch.nn.functional.pad(signal[None], (half, half), mode="reflect")[0]
            frames = signal.unfold(0, self.frame_length, self.hop_length)[: self.num_frames]  # a view
            spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window, n=self.fft_length))
            power = spectrum[..., 0].square() + spectrum[..., 1].square()
            logarithms = (power @ self.mel_filters).clamp(min=POWER_FLOOR).log10().T
            if self.front_end == "clap":
                values[:, number] = 10 * logarithms
            else:
                values[:, number] = logarithms.clamp(min=float(logarithms.max()) - WHISPER_RANGE) / 4 + 1
        positions = torch.arange(self.num_frames) * self.hop_length + torch.arange(num_windows)[:, None] * length
        return values.flatten(1)[None], mask.flatten(), positions.double().flatten()

    def _extract_waveform(
        self, samples: torch.Tensor, num_windows: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Extract like [`_extract_kaldi`], without a spectrum: consecutive frames of samples."""
        hop = self.hop_length
        if self.do_normalize and len(samples) > 0:
            waveform = samples.numpy()
            samples = torch.from_numpy((waveform - waveform.mean()) / np.sqrt(waveform.var() + VARIANCE_FLOOR))
        if self.padding == "pad":
            samples = samples[: len(samples) // hop * hop]
        num_real_frames = math.ceil(len(samples) / hop)
        num_total_frames = num_windows * self.num_frames
        values = torch.zeros(num_total_frames, hop)
        if num_real_frames > 0:
            whole = np.pad(samples.numpy(), (0, num_real_frames * hop - len(samples)), "reflect")
            values[:num_real_frames] = torch.from_numpy(whole).view(-1, hop)
        positions = (torch.arange(num_total_frames, dtype=torch.float64) + 0.5) * hop
        return values.T[None], torch.arange(num_total_frames) < num_real_frames, positions

    def _log_mel(self, frames: torch.Tensor) -> torch.Tensor:
        """Compute the log-mel of overlapping frames, `(num_frames, frame_length)` to `(num_frames, num_mel_bins)`."""
        frames = frames - frames.mean(dim=1, keepdim=True)
        previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = (frames - PREEMPHASIS * previous) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=self.fft_length))
        power = spectrum[..., 0].square() + spectrum[..., 1].square()  # (num_frames, fft_length // 2 + 1)
        return (power @ self.mel_filters).clamp(min=LOG_FLOOR).log()

    def collate(self, features: Sequence[AudioFeatures | None]) -> dict[str, torch.Tensor]:
        """Stack the features of a batch, padded to its largest number of windows.

        Args:
            features (`Sequence[AudioFeatures | None]`):
                One entry per row; `None` (or features without a real frame) for a row without audio.

        Returns:
            `dict[str, torch.Tensor]`: `audio_values` of shape `(batch_size, 1, num_mel_bins, num_windows *
            num_frames)`, `audio_attention_mask` and `audio_seconds` of shape `(batch_size, num_windows *
            num_frames)`, `audio_mask` of shape `(batch_size,)`. The entries of a row without audio are zeros and
            `False`.
        """
        lengths = [len(audio.seconds) for audio in features if audio is not None]
        num_frames = max(lengths, default=self.num_frames)
        batch = {
            "audio_values": batch_tensor(len(features), 1, self.num_mel_bins, num_frames, dtype=torch.float32),
            "audio_attention_mask": torch.zeros(len(features), num_frames, dtype=torch.bool),
            "audio_seconds": torch.zeros(len(features), num_frames),
            "audio_mask": torch.zeros(len(features), dtype=torch.bool),
        }
        for row, audio in enumerate(features):
            if audio is None or not bool(audio.attention_mask.any()):
                batch["audio_values"][row] = 0.0
                continue
            batch["audio_values"][row, :, :, : len(audio.seconds)] = audio.values
            batch["audio_values"][row, :, :, len(audio.seconds) :] = 0.0
            batch["audio_attention_mask"][row, : len(audio.seconds)] = audio.attention_mask
            batch["audio_seconds"][row, : len(audio.seconds)] = audio.seconds
            batch["audio_mask"][row] = True
        return batch

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | Sequence[float] | Sequence[np.ndarray | None],
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Extract the features of one waveform or of a list of waveforms.

        Args:
            raw_speech (`np.ndarray` of shape `(num_samples,)`, or a list of them):
                Mono waveforms; `None` for a row without audio.
            sampling_rate (`int`, *optional*):
                Sampling rate of `raw_speech` in Hz. Pass it to get an error instead of a wrong pitch if it differs.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with the entries of [`AudioFeatureExtractor.collate`].
        """
        if sampling_rate is None:
            logger.warning_once(f"`sampling_rate` was not given: {self.sampling_rate} Hz is assumed.")
        elif sampling_rate != self.sampling_rate:
            raise InputError(
                f"Got a waveform of {sampling_rate} Hz, but this extractor takes {self.sampling_rate} Hz; resample it."
            )
        is_batch = isinstance(raw_speech, (list, tuple)) and not isinstance(raw_speech[0], (int, float))
        is_batch = is_batch or (isinstance(raw_speech, (np.ndarray, torch.Tensor)) and raw_speech.ndim == 2)
        waveforms = raw_speech if is_batch else [raw_speech]
        features = [None if waveform is None else self.extract(np.asarray(waveform)) for waveform in waveforms]
        batch = self.collate(features)
        if return_tensors == "np":
            return BatchFeature({key: value.numpy() for key, value in batch.items()})
        return BatchFeature(batch, tensor_type=return_tensors)


def _from_clap(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the parameters of CLAP's feature extractor to ours."""
    values = ClapFeatureExtractor().to_dict() | values
    rate, hop = values["sampling_rate"], values["hop_length"]
    return {
        "front_end": "clap",
        "sampling_rate": rate,
        "num_mel_bins": values["feature_size"],
        "num_frames": values["max_length_s"] * rate // hop + 1,
        "hop_seconds": hop / rate,
        "window_seconds": values["fft_window_size"] / rate,
        "f_min": values["frequency_min"],
        "f_max": values["frequency_max"],
        "mel_scale": "htk" if values["truncation"] == "fusion" else "slaney",
        "padding": values["padding"],
    }


def _from_whisper(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the parameters of Whisper's feature extractor to ours."""
    values = WhisperFeatureExtractor().to_dict() | values
    rate, hop = values["sampling_rate"], values["hop_length"]
    return {
        "front_end": "whisper",
        "sampling_rate": rate,
        "num_mel_bins": values["feature_size"],
        "num_frames": values["chunk_length"] * rate // hop,
        "hop_seconds": hop / rate,
        "window_seconds": values["n_fft"] / rate,
        "f_min": 0.0,
        "f_max": 8000.0,  # at any sampling rate
        "padding": "pad",
    }


def _from_pe_av(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the parameters of PE-AV's feature extractor to ours; it does not define windows, so use 10 seconds."""
    values = PeAudioFeatureExtractor().to_dict() | values
    rate, hop = values["sampling_rate"], values["hop_length"]
    return {
        "front_end": "waveform",
        "sampling_rate": rate,
        "num_mel_bins": hop,
        "num_frames": 10 * rate // hop,
        "hop_seconds": hop / rate,
        "window_seconds": hop / rate,
        "padding": "reflect",
    }


def _from_wav2vec2(values: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the parameters of wav2vec 2.0's feature extractor to ours. It does not define frames and windows: use those
    from the tower's config, or else frames of 5 samples (the first stride of all published towers) in windows of 10
    seconds.
    """
    stock = Wav2Vec2FeatureExtractor().to_dict() | values
    rate, hop = stock["sampling_rate"], values.get("num_mel_bins", 5)
    return {
        "front_end": "waveform",
        "padding": "pad",
        "sampling_rate": rate,
        "num_mel_bins": hop,
        "num_frames": values.get("num_frames", 10 * rate // hop),
        "hop_seconds": hop / rate,
        "window_seconds": hop / rate,
        "do_normalize": stock["do_normalize"],
    }
