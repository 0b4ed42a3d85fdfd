"""Which samples are read, from where, and how a file becomes the model's input."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from simple_multimodal.defaults import DECODE_DEVICE, VIDEO_BACKEND, DecodeDevice, VideoBackendName
from simple_multimodal.errors import InputError
from simple_multimodal.flags import AUDIO, DATA, EVALUATION, TEXT, VIDEO, check_bounds, flag, given
from simple_multimodal.missing import Named
from simple_multimodal.modalities import MODALITIES

MANIFEST_FLAGS = ("train_file", "validation_file", "test_file")
DATASET_FLAGS = ("dataset_config_name", "train_split", "validation_split", "test_split", "rename_columns")


@dataclass
class DataArguments:
    """
    Arguments about the data. A preprocessing value that is not given comes from the named processor or from the
    tower's config, so that nothing has to be said twice.
    """

    train_file: str = flag(
        "train.csv", DATA, "Manifest of the training samples: CSV, TSV or JSONL.", names=Named.MANIFEST
    )
    validation_file: str = flag(
        "validation.csv", DATA, "Manifest of the evaluation samples: CSV, TSV or JSONL.", names=Named.MANIFEST
    )
    test_file: str = flag(
        "test.csv", DATA, "Manifest of the test samples of --do_predict: CSV, TSV or JSONL.", names=Named.MANIFEST
    )
    dataset_name: str | None = flag(
        None,
        DATA,
        "Data set of the `datasets` library to read in place of the manifests: hub name or folder. Its columns are "
        "those of a manifest.",
        names=Named.MODEL,
    )
    dataset_config_name: str | None = flag(None, DATA, "Configuration of --dataset_name.")
    train_split: str | None = flag(
        None, DATA, "Split of --dataset_name to train on, such as 'train[:1000]'. Default: train."
    )
    validation_split: str | None = flag(None, DATA, "Split of --dataset_name to evaluate on. Default: validation.")
    test_split: str | None = flag(None, DATA, "Split of --dataset_name for --do_predict. Default: test.")
    rename_columns: list[str] | None = flag(
        None, DATA, "Columns of --dataset_name to rename, as OLD=NEW: clip=video sentence=caption."
    )
    data_root: str | None = flag(None, DATA, "Folder of the manifests, and of the three roots below if relative.")
    video_root: str | None = flag(None, DATA, "Folder that the manifest's `video` paths are relative to.")
    audio_root: str | None = flag(None, DATA, "Folder that the manifest's `audio` paths are relative to.")
    text_root: str | None = flag(None, DATA, "Folder that the manifest's `text` paths are relative to.")
    follow_links: bool = flag(
        False, DATA, "Follow symbolic links wherever they lead, not only within the roots and the hub's cache."
    )
    max_train_samples: int | None = flag(None, DATA, "Read only the first N training rows. Default: all.", at_least=1)
    max_eval_samples: int | None = flag(None, DATA, "Read only the first N evaluation rows. Default: all.", at_least=1)
    max_predict_samples: int | None = flag(None, DATA, "Read only the first N test rows. Default: all.", at_least=1)
    features: str | None = flag(
        None,
        DATA,
        "Folder written by `simple-multimodal features`; replaces its towers, which must be in --freeze, and "
        "decoding.",
        names=Named.PATH,
    )
    collator_threads: int | None = flag(
        None,
        DATA,
        "Threads that prepare one batch; 1: none. Default: this process's share of the cores, at most 8.",
        at_least=1,
    )

    max_seq_length: int | None = flag(
        None, TEXT, "Maximum caption length in tokens. Default: the tokenizer's limit, at most 512.", at_least=1
    )
    pad_to_max_length: bool = flag(
        False, TEXT, "Pad captions to --max_seq_length instead of to the longest one in the batch."
    )

    sampling_rate: int | None = flag(
        None, AUDIO, "Rate to resample audio to, in Hz. Default: the tower's, else 16000.", at_least=1
    )
    num_mel_bins: int | None = flag(
        None, AUDIO, "Mel bins of the log-mel spectrogram. Default: the tower's, else 128.", at_least=1
    )
    num_audio_frames: int | None = flag(
        None,
        AUDIO,
        "Frames per window, 10 ms each (PE-AV: 40 ms; wav2vec 2.0: 5 samples). Default: the tower's, else 1024.",
        at_least=1,
    )
    max_audio_windows: int | None = flag(
        None,
        AUDIO,
        "Maximum number of windows per clip; longer audio is cropped, at random in training and to its middle "
        "elsewhere. 0: no limit. Default: 6 in a new model, else what the model was saved with.",
        at_least=0,
        remedy="give a whole number from 1 upwards, or 0 for no limit",
    )

    video_backend: VideoBackendName = flag(VIDEO_BACKEND, VIDEO, "Video decoder.")
    decode_device: DecodeDevice = flag(
        DECODE_DEVICE,
        VIDEO,
        "cuda: decode on the GPU (NVDEC) with --video_backend torchcodec; frames stay there, and loader processes are "
        "spawned.",
    )
    index_dir: str | None = flag(None, VIDEO, "Folder for frame indices. Default: one in the user's cache.")
    num_frames: int | None = flag(None, VIDEO, "Frames sampled per clip. Default: from the config.", at_least=1)
    video_size: list[int] | None = flag(
        None, VIDEO, "Height and width in pixels, or one number for both. Default: from the config."
    )
    frame_sampling: Literal["uniform", "jittered", "dense", "alpro"] | None = flag(
        None,
        VIDEO,
        "How training frames are sampled. uniform: the middle of equal segments; jittered: at random within each "
        "segment (the default of a new model); dense: consecutive frames, --frame_stride apart; alpro: as ALPRO does. "
        "Evaluation is deterministic.",
    )
    frame_stride: int | None = flag(
        None, VIDEO, "Step between the frames of dense sampling, in frames. Default: 4.", at_least=1
    )
    resize_mode: Literal["short_side_center_crop", "squash", "pad"] | None = flag(
        None, VIDEO, "How frames are resized to --video_size. Default: the processor's."
    )
    resize_kernel: Literal["fast", "antialias", "bicubic", "decord"] | None = flag(
        None,
        VIDEO,
        "fast: resize during colour conversion; antialias: as Hugging Face's image processors do; bicubic: as those "
        "of CLIP and SigLIP do; decord: as decord does. Default: the processor's, else fast.",
    )
    random_crop: bool = flag(False, VIDEO, "Crop training clips at random.")
    random_flip: bool = flag(False, VIDEO, "Flip training clips horizontally with probability 0.5.")

    drop_modalities: list[str] = flag(
        [],
        EVALUATION,
        "Evaluate as if the samples lacked these modalities; training is unaffected. Default: none.",
        choices=tuple(MODALITIES),
    )
    select_on_test: bool = flag(
        False, EVALUATION, "Allow the test split to select the checkpoint; recorded in every result."
    )

    def __post_init__(self) -> None:
        self.drop_modalities = [name for name in MODALITIES if name in self.drop_modalities]
        check_bounds(self)
        self._check_dataset()
        if self.video_size is not None:
            if len(self.video_size) > 2 or min(self.video_size) < 1:
                raise InputError(
                    f"--video_size is {self.video_size}; give height and width in pixels, or one number for both."
                )
            self.video_size = [self.video_size[0], self.video_size[-1]]

    def _check_dataset(self) -> None:
        if wrong := [pair for pair in self.rename_columns or () if not all(pair.partition("="))]:
            raise InputError(f"--rename_columns is {' '.join(wrong)}; give OLD=NEW for each column.")
        changed = [field.name for field in fields(self) if vars(self)[field.name] != field.default]
        if self.dataset_name is None:
            if unused := [f"--{name}" for name in changed if name in DATASET_FLAGS]:
                raise InputError(f"{', '.join(unused)} can have no effect without --dataset_name; give that too.")
        elif both := [f"--{name}" for name in changed if name in MANIFEST_FLAGS]:
            raise InputError(f"--dataset_name and {', '.join(both)} both say what is read. Leave one of them out.")

    @property
    def renamed_columns(self) -> dict[str, str]:
        """New names of columns by their names in the data set."""
        return dict(pair.split("=", 1) for pair in self.rename_columns or ())

    def find_manifest(self, name: str) -> Path:
        """Return where a manifest is: in `data_root` if it exists there, else relative to the working directory."""
        in_data_root = Path(self.data_root or "", name)
        return in_data_root if in_data_root.exists() or not Path(name).exists() else Path(name)

    @property
    def processor_settings(self) -> dict[str, Any]:
        """The settings of the parts of a processor."""
        settings = {"audio_settings": self.audio_settings, "video_settings": self.video_settings}
        return {"max_seq_length": self.max_seq_length, **settings}

    @property
    def roots(self) -> dict[str, Path | None]:
        """Root folder of each column as `RowDataset` takes them; `None` is the manifest's own folder."""
        roots = {"video": self.video_root, "audio": self.audio_root, "text": self.text_root}
        return {
            name: None if root is None and self.data_root is None else Path(self.data_root or "", root or "")
            for name, root in roots.items()
        }

    @property
    def file_settings(self) -> dict[str, Any]:
        """How `RowDataset` finds files."""
        return {"roots": self.roots, "follow_links": self.follow_links}

    @property
    def audio_settings(self) -> dict[str, Any]:
        """What was given of the arguments of `AudioFeatureExtractor`."""
        settings = given(self, "sampling_rate", "num_mel_bins", num_frames="num_audio_frames")
        if self.max_audio_windows is not None:
            settings |= {"max_windows": self.max_audio_windows or None, "crop": "random"}
        return settings

    @property
    def video_settings(self) -> dict[str, Any]:
        """What was given of the arguments of `VideoClipProcessor`; where training jitters, evaluation is uniform."""
        settings = given(self, "num_frames", "resize_mode", "resize_kernel", "frame_stride")
        settings |= {name: True for name in ("random_crop", "random_flip") if vars(self)[name]}
        if self.video_size is not None:
            settings["size"] = {"height": self.video_size[0], "width": self.video_size[1]}
        if self.frame_sampling is not None:
            settings["train_frame_sampling"] = self.frame_sampling
            settings["frame_sampling"] = "uniform" if self.frame_sampling == "jittered" else self.frame_sampling
        return settings

    @property
    def collator_settings(self) -> dict[str, Any]:
        """The arguments of `MultimodalCollator` that training and evaluation share."""
        names = ("max_seq_length", "pad_to_max_length", "video_backend", "decode_device", "index_dir")
        return given(self, *names, num_threads="collator_threads") | {"parallel": self.collator_threads != 1}
