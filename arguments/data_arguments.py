"""Arguments about the data: which samples are read, where they are, and how files are preprocessed."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from simple_multimodal.defaults import DECODE_DEVICE, VIDEO_BACKEND, DecodeDevice, VideoBackendName
from simple_multimodal.errors import InputError
from simple_multimodal.flags import AUDIO, DATA, EVALUATION, POSE, TEXT, VIDEO, check_bounds, flag, given
from simple_multimodal.missing import Named
from simple_multimodal.modalities import MODALITIES

MANIFEST_FLAGS = ("train_file", "validation_file", "test_file")
DATASET_FLAGS = ("dataset_config_name", "train_split", "validation_split", "test_split", "rename_columns")


def augmentation(what: str) -> Any:
    """Return the flag for the strength of an augmentation of poses."""
    remedy = "give a number from 0 (off) upwards"
    return flag(None, POSE, f"Standard deviation of {what} in training. Default: 0.", at_least=0, remedy=remedy)


@dataclass
class DataArguments:
    """
    Arguments about the data. Preprocessing values that are not given come from the named processor or the tower's
    config.
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
        "Dataset of the `datasets` library to read instead of the manifests: hub name or folder. It needs the columns "
        "of a manifest.",
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
    data_root: str | None = flag(None, DATA, "Folder that the manifests and the four roots below are relative to.")
    video_root: str | None = flag(None, DATA, "Folder that the manifest's `video` paths are relative to.")
    audio_root: str | None = flag(None, DATA, "Folder that the manifest's `audio` paths are relative to.")
    text_root: str | None = flag(None, DATA, "Folder that the manifest's `text` paths are relative to.")
    pose_root: str | None = flag(None, DATA, "Folder that the manifest's `pose` paths are relative to.")
    follow_links: bool = flag(False, DATA, "Follow symbolic links that lead out of the roots and the hub's cache.")
    max_train_samples: int | None = flag(None, DATA, "Use only the first N training rows. Default: all.", at_least=1)
    max_eval_samples: int | None = flag(None, DATA, "Use only the first N evaluation rows. Default: all.", at_least=1)
    max_predict_samples: int | None = flag(None, DATA, "Use only the first N test rows. Default: all.", at_least=1)
    features: str | None = flag(
        None,
        DATA,
        "Folder of precomputed features, written by `simple-multimodal features`. They replace decoding and the "
        "towers that computed them, which must be in --freeze.",
        names=Named.PATH,
    )
    collator_threads: int | None = flag(
        None,
        DATA,
        "Number of threads that prepare a batch; 1: no threading. Default: this process's share of the cores, at "
        "most 8.",
        at_least=1,
    )

    max_seq_length: int | None = flag(
        None, TEXT, "Maximum caption length in tokens. Default: the tokenizer's limit, at most 512.", at_least=1
    )
    pad_to_max_length: bool = flag(
        False, TEXT, "Pad captions to --max_seq_length instead of to the longest one in the batch."
    )

    sampling_rate: int | None = flag(
        None, AUDIO, "Sampling rate to resample audio to, in Hz. Default: the tower's, else 16000.", at_least=1
    )
    num_mel_bins: int | None = flag(
        None, AUDIO, "Mel bins of the log-mel spectrogram. Default: the tower's, else 128.", at_least=1
    )
    num_audio_frames: int | None = flag(
        None,
        AUDIO,
        "Frames per audio window, 10 ms each (PE-AV: 40 ms; wav2vec 2.0: 5 samples). Default: the tower's, else 1024.",
        at_least=1,
    )
    max_audio_windows: int | None = flag(
        None,
        AUDIO,
        "Maximum number of windows per clip; longer audio is cropped: at random in training, to the middle "
        "otherwise. 0: no limit. Default: 6 for a new model, else the value saved with the model.",
        at_least=0,
        remedy="give a whole number from 1 upwards, or 0 for no limit",
    )

    video_backend: VideoBackendName = flag(VIDEO_BACKEND, VIDEO, "Library that decodes video.")
    decode_device: DecodeDevice = flag(
        DECODE_DEVICE,
        VIDEO,
        "Device that decodes video. cuda: NVDEC, with --video_backend torchcodec; frames stay on the GPU, and loader "
        "processes are spawned.",
    )
    index_dir: str | None = flag(None, VIDEO, "Folder of cached frame indices. Default: one in the user's cache.")
    num_frames: int | None = flag(None, VIDEO, "Frames sampled per clip. Default: from the config.", at_least=1)
    video_size: list[int] | None = flag(
        None, VIDEO, "Height and width in pixels, or one number for both. Default: from the config."
    )
    frame_sampling: Literal["uniform", "jittered", "dense", "alpro"] | None = flag(
        None,
        VIDEO,
        "How training frames are sampled. uniform: the middle frame of equal segments; jittered: a random frame of "
        "each segment (the default of a new model); dense: frames that are --frame_stride apart; alpro: as in ALPRO. "
        "Evaluation is deterministic.",
    )
    frame_stride: int | None = flag(
        None, VIDEO, "Distance between the sampled frames of dense sampling, in frames. Default: 4.", at_least=1
    )
    resize_mode: Literal["short_side_center_crop", "squash", "pad"] | None = flag(
        None, VIDEO, "How frames are resized to --video_size. Default: the processor's."
    )
    resize_kernel: Literal["fast", "antialias", "bicubic", "decord"] | None = flag(
        None,
        VIDEO,
        "How frames are interpolated. fast: resize during colour conversion; antialias: as in Hugging Face's image "
        "processors; bicubic: as in those of CLIP and SigLIP; decord: as in decord. Default: the processor's, else "
        "fast.",
    )
    random_crop: bool = flag(False, VIDEO, "Crop training clips at random.")
    random_flip: bool = flag(False, VIDEO, "Flip training clips horizontally with probability 0.5.")

    pose_features: int | None = flag(
        None,
        POSE,
        "Numbers per frame: points times coordinates, or the size of `.npy` features. Default: the tower's, 534 in "
        "the default config (MediaPipe Holistic, reduced); files with another number are refused.",
        at_least=1,
    )
    pose_points: Literal["reduced", "all"] | None = flag(
        None,
        POSE,
        "Points of MediaPipe Holistic. reduced: hands, arms, hips and the outlines of the face; all: every point. "
        "Other estimators: every point. Default: reduced.",
    )
    pose_depth: Literal["as_is", "scaled", "drop"] | None = flag(
        None,
        POSE,
        "Third coordinate of points. as_is: as in the file; scaled: multiplied by the width of the frame, like "
        "the others in pixels; drop: left out. Default: as_is.",
    )
    pose_person: int | None = flag(
        None, POSE, "Person to use of files with several, counted from 0. Default: 0.", at_least=0
    )
    pose_rate: float | None = flag(
        None,
        POSE,
        "Rate to resample frames to, in frames per second. Default: each file's own.",
        above=0,
        remedy="give a number above 0, such as 25",
    )
    pose_features_rate: float | None = flag(
        None,
        POSE,
        "Rate of `.npy` features, which do not contain it, in frames per second. Default: 25.",
        above=0,
        remedy="give a number above 0, such as 25",
    )
    pose_frame_stride: int | None = flag(None, POSE, "Use every so many-th frame. Default: 1.", at_least=1)
    max_pose_frames: int | None = flag(
        None,
        POSE,
        "Maximum number of frames; rows with more cannot be read. 0: no limit. Default: none.",
        at_least=0,
        remedy="give a whole number from 1 upwards, or 0 for no limit",
    )
    pose_rotation_std: float | None = augmentation("a random rotation, in radians")
    pose_shear_std: float | None = augmentation("a random shear")
    pose_scale_std: float | None = augmentation("a random vertical scale around 1")
    pose_rate_std: float | None = augmentation("a random speed around 1")
    pose_frame_dropout: float | None = flag(
        None,
        POSE,
        "Largest fraction of frames that training leaves out at random. Default: 0.",
        at_least=0,
        below=1,
        remedy="give a number from 0 to below 1",
    )

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
            raise InputError(f"--rename_columns is {' '.join(wrong)}; give each column as OLD=NEW.")
        changed = [field.name for field in fields(self) if vars(self)[field.name] != field.default]
        if self.dataset_name is None:
            if unused := [f"--{name}" for name in changed if name in DATASET_FLAGS]:
                raise InputError(f"{', '.join(unused)} would have no effect without --dataset_name; set it too.")
        elif both := [f"--{name}" for name in changed if name in MANIFEST_FLAGS]:
            raise InputError(f"--dataset_name cannot be combined with {', '.join(both)}; leave one of them out.")

    @property
    def renamed_columns(self) -> dict[str, str]:
        """Maps names of columns in the dataset to their new names."""
        return dict(pair.split("=", 1) for pair in self.rename_columns or ())

    def find_manifest(self, name: str) -> Path:
        """Return the path of a manifest: in `data_root` if it exists there, else relative to the working directory."""
        in_data_root = Path(self.data_root or "", name)
        return in_data_root if in_data_root.exists() or not Path(name).exists() else Path(name)

    @property
    def processor_settings(self) -> dict[str, Any]:
        """Settings of the processor, by part."""
        return {
            "max_seq_length": self.max_seq_length,
            "audio_settings": self.audio_settings,
            "video_settings": self.video_settings,
            "pose_settings": self.pose_settings,
        }

    @property
    def roots(self) -> dict[str, Path | None]:
        """Root folder of each column as `RowDataset` takes them; `None` is the manifest's own folder."""
        roots = {name: vars(self)[f"{name}_root"] for name in ("video", "audio", "text", "pose")}
        return {
            name: None if root is None and self.data_root is None else Path(self.data_root or "", root or "")
            for name, root in roots.items()
        }

    @property
    def file_settings(self) -> dict[str, Any]:
        """Arguments of `RowDataset` about where files are found."""
        return {"roots": self.roots, "follow_links": self.follow_links}

    @property
    def audio_settings(self) -> dict[str, Any]:
        """Arguments of `AudioFeatureExtractor` that were given."""
        settings = given(self, "sampling_rate", "num_mel_bins", num_frames="num_audio_frames")
        if self.max_audio_windows is not None:
            settings |= {"max_windows": self.max_audio_windows or None, "crop": "random"}
        return settings

    @property
    def video_settings(self) -> dict[str, Any]:
        """Arguments of `VideoClipProcessor` that were given; evaluation is uniform if training is jittered."""
        settings = given(self, "num_frames", "resize_mode", "resize_kernel", "frame_stride")
        settings |= {name: True for name in ("random_crop", "random_flip") if vars(self)[name]}
        if self.video_size is not None:
            settings["size"] = {"height": self.video_size[0], "width": self.video_size[1]}
        if self.frame_sampling is not None:
            settings["train_frame_sampling"] = self.frame_sampling
            settings["frame_sampling"] = "uniform" if self.frame_sampling == "jittered" else self.frame_sampling
        return settings

    @property
    def pose_settings(self) -> dict[str, Any]:
        """Arguments of `PoseProcessor` that were given."""
        own = ("points", "depth", "person", "frame_stride", "features_rate", "frame_dropout")
        deviations = ("rotation_std", "shear_std", "scale_std", "rate_std")
        names = {name: f"pose_{name}" for name in (*own, *deviations)}
        settings = given(self, num_features="pose_features", target_rate="pose_rate", **names)
        if self.max_pose_frames is not None:
            settings["max_frames"] = self.max_pose_frames or None
        return settings

    @property
    def collator_settings(self) -> dict[str, Any]:
        """Arguments of `MultimodalCollator` that training and evaluation share."""
        names = ("max_seq_length", "pad_to_max_length", "video_backend", "decode_device", "index_dir")
        return given(self, *names, num_threads="collator_threads") | {"parallel": self.collator_threads != 1}
