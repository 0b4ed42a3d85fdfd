"""Flags and functions that several verbs share."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from simple_multimodal.defaults import (
    BATCH_SIZE,
    DECODE_DEVICE,
    LOADER_MEMORY_GIGABYTES,
    MAX_BAD_FRACTION,
    SAMPLE_TIMEOUT_SECONDS,
    VIDEO_BACKEND,
    DecodeDevice,
    Precision,
    VideoBackendName,
)
from simple_multimodal.errors import InputError
from simple_multimodal.missing import Named
from simple_multimodal.modalities import MODALITIES, Modality

Model = Annotated[str, "folder or hub name of a trained model", Named.MODEL]
Manifest = Annotated[str, "manifest (CSV, TSV or JSONL), as for train.py", Named.PATH]
Manifests = Annotated[Sequence[str], "manifests (CSV, TSV or JSONL), as for train.py", "MANIFEST", Named.PATH]
Clips = Annotated[Sequence[str], "a manifest, a folder (links to files are followed), or media files", Named.PATH]
FollowLinks = Annotated[bool, "follow symbolic links that lead out of the roots and the hub's cache"]
Recursive = Annotated[bool, "include the files in subfolders, except hidden and linked ones"]
IndexDir = Annotated[str | None, "folder of cached frame indices; default: one in the user's cache", "DIR"]
NumThreads = Annotated[int | None, "number of threads; default: one per core"]
Json = Annotated[bool, "print JSON"]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Locations of the files of a manifest."""

    video_root: Annotated[str | None, "folder of the `video` paths; default: the manifest's", "DIR", Named.PATH] = None
    audio_root: Annotated[str | None, "folder of the `audio` paths; default: the manifest's", "DIR", Named.PATH] = None
    text_root: Annotated[str | None, "folder of the `text` paths; default: the manifest's", "DIR", Named.PATH] = None
    pose_root: Annotated[str | None, "folder of the `pose` paths; default: the manifest's", "DIR", Named.PATH] = None
    follow_links: FollowLinks = False

    def open(self, manifest: str) -> Any:
        """Open a manifest, which needs a column of media, as a dataset whose rows may lack any modality."""
        from simple_multimodal.data.rows import RowDataset

        roots = {column: vars(self)[f"{column}_root"] for column in ("video", "audio", "text", "pose")}
        return RowDataset.from_manifest(manifest, modalities=None, roots=roots, follow_links=self.follow_links)

    def open_clips(self, clips: Sequence[str]) -> Any:
        """Open the CLIPS of a verb: a manifest as a dataset; folders and files are returned as they are."""
        from simple_multimodal.data.tables import is_table

        if len(clips) == 1 and is_table(clips[0]):
            return self.open(clips[0])
        roots = ("video_root", "audio_root", "text_root", "pose_root")
        if given := [f"--{name}" for name in roots if vars(self)[name] is not None]:
            raise InputError(f"{given[0]} only applies to manifests, not to files and folders. Leave it out.")
        return clips[0] if len(clips) == 1 else list(clips)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for loading and running a model and for reading clips."""

    batch_size: Annotated[int, "number of clips per batch"] = BATCH_SIZE
    num_workers: Annotated[int, "number of loader processes; 0: read in the main process"] = 0
    precision: Annotated[
        Precision | None,
        "precision of the model's computations; default: that of its training (run.json), else fp32",
    ] = None
    cache_dir: Annotated[str | None, "folder for files from the hub", "DIR"] = None
    index_dir: IndexDir = None
    video_backend: Annotated[VideoBackendName, "library that decodes video"] = VIDEO_BACKEND
    decode_device: Annotated[
        DecodeDevice, "device that decodes video; cuda: NVDEC, with --video_backend torchcodec"
    ] = DECODE_DEVICE
    sample_timeout_seconds: Annotated[
        float, "time limit for reading a file with --num_workers, in seconds; 0: no limit"
    ] = SAMPLE_TIMEOUT_SECONDS
    loader_memory_gigabytes: Annotated[
        float,
        "memory limit for reading a file with --num_workers, in GB; 0: no limit",
    ] = LOADER_MEMORY_GIGABYTES


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(ModelOptions):
    """Options for inference with a trained model."""

    features: Annotated[
        str | None, "folder that `features` wrote with this model; replaces decoding and its towers", "DIR", Named.PATH
    ] = None
    drop_modalities: Annotated[Sequence[Modality], "modalities to ignore; default: none", tuple(MODALITIES)] = ()
    max_bad_fraction: Annotated[
        float,
        "stop if more than this fraction of the clips cannot be read; fewer are left out of an index and count as "
        "wrong in an evaluation",
    ] = MAX_BAD_FRACTION

    def load(self, pipeline_class: Any, model: str, *, shows_progress: bool = False) -> Any:
        """Load a pipeline with a trained model."""
        return pipeline_class.from_pretrained(model, shows_progress=shows_progress, **vars(self))


def task_options() -> type:
    """Return a dataclass with the options of all registered tasks that `infer` takes."""
    from simple_multimodal.tasks.flags import flags_of_tasks

    found = []
    for item in fields(flags_of_tasks("infer")):
        extras = [item.metadata[key] for key in ("metavar", "read", "choices", "names") if key in item.metadata]
        default = item.default if item.default_factory is MISSING else tuple(item.default_factory())
        annotation = Annotated[item.type, item.metadata["help"].removesuffix("."), *extras]  # type: ignore[name-defined]
        found.append((item.name, annotation, field(default=default)))
    return make_dataclass("TaskOptions", found, frozen=True, kw_only=True)


def only_writer(folder: str | Path, verb: str, *, is_launched: bool = False) -> AbstractContextManager[None]:
    """Lock the folder that a verb writes into against other runs; processes of one launch share the lock."""
    from simple_multimodal.output_folder import writing_into

    if not is_launched:
        return writing_into(folder, command=f"simple-multimodal {verb}")
    from simple_multimodal.inference.partial import process_state
    from simple_multimodal.models.distributed import decide_in_first_process

    process_state()  # initialises communication between the processes
    return writing_into(folder, command=f"simple-multimodal {verb}", decide=decide_in_first_process)


def print_json_line(values: Any) -> None:
    """Print values as JSON on one line, fractional numbers with six significant digits."""
    print(json.dumps(json.loads(json.dumps(values), parse_float=lambda digits: float(f"{float(digits):.6g}"))))


def print_json(values: Any) -> None:
    """Print values as indented JSON."""
    print(json.dumps(values, indent=2))
