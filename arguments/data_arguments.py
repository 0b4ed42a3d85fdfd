"""Which samples are read, from where, and how a file becomes the model's input."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simple_multimodal.modalities import MODALITIES


@dataclass
class DataArguments:
    """
    Arguments about the data. A preprocessing value that is not given comes from the named processor or from the
    tower's config, so that nothing has to be said twice.
    """

    train_file: str = field(
        default="train.csv",
        metadata={"group": "Data", "help": "Manifest of the training samples: CSV, TSV or JSONL."},
    )
    validation_file: str = field(
        default="validation.csv",
        metadata={"group": "Data", "help": "Manifest of the evaluation samples: CSV, TSV or JSONL."},
    )
    data_root: str | None = field(
        default=None,
        metadata={
            "group": "Data",
            "help": "Folder of the manifests, and of the three roots below where those are relative.",
        },
    )
    video_root: str | None = field(
        default=None, metadata={"group": "Data", "help": "Folder that the manifest's `video` cells are relative to."}
    )
    audio_root: str | None = field(
        default=None, metadata={"group": "Data", "help": "Folder that the manifest's `audio` cells are relative to."}
    )
    text_root: str | None = field(
        default=None, metadata={"group": "Data", "help": "Folder that the manifest's `text` cells are relative to."}
    )
    follow_links: bool = field(
        default=False,
        metadata={
            "group": "Data",
            "help": "Follow symbolic links wherever they lead, not only within the roots and the hub's cache.",
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"group": "Data", "help": "Read only the first N training rows. Default: all."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"group": "Data", "help": "Read only the first N evaluation rows. Default: all."}
    )
    features: str | None = field(
        default=None,
        metadata={
            "group": "Data",
            "help": "Folder that `simple-multimodal features` wrote; used in place of its towers, which must be in "
            "--freeze, and of decoding.",
        },
    )
    collator_threads: int | None = field(
        default=None,
        metadata={
            "group": "Data",
            "help": "Threads that prepare one batch; 1: none. Default: this process's share of the cores, at most 8.",
        },
    )

    max_seq_length: int | None = field(
        default=None,
        metadata={"group": "Text", "help": "Longest caption in tokens; 512 or the tokenizer's limit when not given."},
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata={"group": "Text", "help": "Pad captions to max_seq_length tokens instead of the batch's longest."},
    )

    sampling_rate: int | None = field(
        default=None,
        metadata={
            "group": "Audio",
            "help": "Rate to resample the sound to, in Hz; the tower's, else 16000, when not given.",
        },
    )
    num_mel_bins: int | None = field(
        default=None,
        metadata={"group": "Audio", "help": "Frequency bins of the log-mel; the tower's, else 128, when not given."},
    )
    num_audio_frames: int | None = field(
        default=None,
        metadata={
            "group": "Audio",
            "help": "Frames in one window, 10 ms each (PE-AV: 40; wav2vec 2.0: 5 samples); the tower's own number, "
            "else 1024, when not given.",
        },
    )
    max_audio_windows: int | None = field(
        default=None,
        metadata={
            "group": "Audio",
            "help": "Most windows of a clip's audio: of more, a random stretch in training and the middle elsewhere. "
            "0: no limit. When not given: 6 in a new model, what it was saved with in another.",
        },
    )

    video_backend: Literal["pyav", "torchcodec", "decord"] = field(
        default="pyav", metadata={"group": "Video", "help": "Decoder of the pictures."}
    )
    decode_device: Literal["cpu", "cuda"] = field(
        default="cpu",
        metadata={
            "group": "Video",
            "help": "cuda: decode on the GPU (NVDEC), with --video_backend torchcodec; the frames stay there. Loader "
            "processes are spawned.",
        },
    )
    index_dir: str | None = field(
        default=None,
        metadata={"group": "Video", "help": "Folder for frame indices; one in the user's cache when not given."},
    )
    num_frames: int | None = field(
        default=None,
        metadata={"group": "Video", "help": "Frames sampled from a clip; from the config when not given."},
    )
    video_size: list[int] | None = field(
        default=None,
        metadata={
            "group": "Video",
            "help": "Height and width in pixels, or one number for both; else from the config.",
        },
    )
    frame_sampling: Literal["uniform", "jittered", "dense", "alpro"] | None = field(
        default=None,
        metadata={
            "group": "Video",
            "help": "Frames of a training clip. uniform: the middle of equal segments; jittered: anywhere in each "
            "segment (the default of a new model); dense: neighbours at frame_stride; alpro: ALPRO's. Evaluation "
            "never draws.",
        },
    )
    frame_stride: int | None = field(
        default=None,
        metadata={"group": "Video", "help": "Step between the frames of dense sampling, in frames; 4 when not given."},
    )
    geometry: Literal["short_side_center_crop", "squash", "pad"] | None = field(
        default=None,
        metadata={
            "group": "Video",
            "help": "How a picture is brought to video_size; from the processor when not given.",
        },
    )
    resize_kernel: Literal["fast", "antialias", "bicubic", "decord"] | None = field(
        default=None,
        metadata={
            "group": "Video",
            "help": "fast: scale while colours are converted; antialias: as Hugging Face's image processors do, "
            "bicubic: those of CLIP and SigLIP; decord: as decord does. Default: the processor's, else fast.",
        },
    )
    random_crop: bool = field(
        default=False, metadata={"group": "Video", "help": "Crop training clips at a random place."}
    )
    random_flip: bool = field(
        default=False, metadata={"group": "Video", "help": "Mirror every second training clip, drawn at random."}
    )

    drop_modality: list[str] = field(
        default_factory=list,
        metadata={
            "group": "Evaluation",
            "choices": MODALITIES,
            "help": "Evaluate as if the samples lacked these modalities; training is as ever. Default: none.",
        },
    )
    select_on_test: bool = field(
        default=False,
        metadata={
            "group": "Evaluation",
            "help": "Let test clips of a prepared benchmark choose the best checkpoint; every result then says so.",
        },
    )
    pair_files: list[str] = field(
        default_factory=list,
        metadata={
            "group": "Evaluation",
            "help": "JSONL of ids a, b of evaluation rows that differ in one thing; sound_pairs.jsonl: in sound.",
        },
    )
    swapped_files: list[str] = field(
        default_factory=list,
        metadata={
            "group": "Evaluation",
            "help": "For each pair file, the manifest of its rows a_swapped, b_swapped; to count choices that flip.",
        },
    )

    def __post_init__(self) -> None:
        if self.swapped_files and len(self.swapped_files) != len(self.pair_files):
            raise ValueError(
                f"--swapped_files names {len(self.swapped_files)} manifests for {len(self.pair_files)} --pair_files; "
                "give one for each, in the same order, or none."
            )
        self.drop_modality = [name for name in MODALITIES if name in self.drop_modality]
        counts = {
            "max_train_samples": self.max_train_samples,
            "max_eval_samples": self.max_eval_samples,
            "collator_threads": self.collator_threads,
            "max_seq_length": self.max_seq_length,
            "sampling_rate": self.sampling_rate,
            "num_mel_bins": self.num_mel_bins,
            "num_audio_frames": self.num_audio_frames,
            "num_frames": self.num_frames,
            "frame_stride": self.frame_stride,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; give a whole number from 1 upwards.")
        if self.max_audio_windows is not None and self.max_audio_windows < 0:
            raise ValueError(
                f"--max_audio_windows is {self.max_audio_windows}; give a whole number from 1 upwards, or 0 for no "
                "limit."
            )
        if self.video_size is not None:
            if len(self.video_size) > 2 or min(self.video_size) < 1:
                raise ValueError(
                    f"--video_size is {self.video_size}; give height and width in pixels, or one number for both."
                )
            self.video_size = [self.video_size[0], self.video_size[-1]]

    @property
    def train_path(self) -> Path:
        """The training manifest: in `data_root` if it lies there, else as seen from the working directory."""
        return self._manifest_path(self.train_file)

    @property
    def validation_path(self) -> Path:
        """The evaluation manifest, likewise."""
        return self._manifest_path(self.validation_file)

    @property
    def pair_paths(self) -> list[tuple[Path, Path | None]]:
        """Each pair file with the manifest of its swapped rows."""
        swapped: list[Path | None] = [self._manifest_path(name) for name in self.swapped_files]
        swapped = swapped or [None] * len(self.pair_files)
        return list(zip(map(self._manifest_path, self.pair_files), swapped, strict=True))

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
    def audio_settings(self) -> dict[str, int | str | None]:
        """What was given of the arguments of `AudioFeatureExtractor`."""
        settings = {
            "sampling_rate": self.sampling_rate,
            "num_mel_bins": self.num_mel_bins,
            "num_frames": self.num_audio_frames,
        }
        given: dict[str, int | str | None] = {name: value for name, value in settings.items() if value is not None}
        if self.max_audio_windows is not None:
            given |= {"max_windows": self.max_audio_windows or None, "crop": "random"}
        return given

    @property
    def video_settings(self) -> dict[str, int | str | bool | dict[str, int]]:
        """What was given of the arguments of `VideoClipProcessor`; where training jitters, evaluation is uniform."""
        settings: dict[str, int | str | bool | dict[str, int] | None] = {
            "num_frames": self.num_frames,
            "geometry": self.geometry,
            "resize_kernel": self.resize_kernel,
            "train_frame_sampling": self.frame_sampling,
            "frame_stride": self.frame_stride,
            "random_crop": self.random_crop or None,
            "random_flip": self.random_flip or None,
        }
        if self.video_size is not None:
            settings["size"] = {"height": self.video_size[0], "width": self.video_size[1]}
        if self.frame_sampling is not None:
            settings["frame_sampling"] = "uniform" if self.frame_sampling == "jittered" else self.frame_sampling
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def collator_settings(self) -> dict[str, int | str | bool | None]:
        """The arguments of `MultimodalCollator` that training and evaluation share."""
        return {
            "max_seq_length": self.max_seq_length,
            "pad_to_max_length": self.pad_to_max_length,
            "num_threads": self.collator_threads,
            "parallel": self.collator_threads != 1,
            "video_backend": self.video_backend,
            "decode_device": self.decode_device,
            "index_dir": self.index_dir,
        }

    @property
    def feature_settings(self) -> dict[str, str | None]:
        """Where features lie, and what would decode pictures."""
        decoder = {"video_backend": self.video_backend, "decode_device": self.decode_device}
        return {"folder": self.features, **decoder}

    def _manifest_path(self, name: str) -> Path:
        in_data_root = Path(self.data_root or "", name)
        return in_data_root if in_data_root.exists() or not Path(name).exists() else Path(name)
