"""Report on this machine: versions, decoders, devices, threads, and how to install what is missing."""

import ctypes.util
import importlib
import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass

from packaging.requirements import Requirement

import simple_multimodal
from simple_multimodal.cores import available_cores

DISTRIBUTION = "simple-multimodal"

EXTRA_PURPOSES = {
    "torchcodec": "--video_backend torchcodec; also needs FFmpeg's shared libraries on the system",
    "decord": "--video_backend decord (wheels for x86-64 Linux and Windows only)",
    "torchaudio": "a second log-mel implementation, the reference of tests",
    "deberta": "tokenizers of DeBERTa-v2 repositories with only an spm.model",
    "lora": "--lora_rank",
    "timm": "backbones of timm, such as the image encoder of PE-AV",
    "serve": "simple-multimodal serve",
    "bleu": "BLEU and chrF of generated text",
    "track": "--report_to tensorboard",
    "dev": "run_scripts/test.sh: lint, types and tests",
}

MODULES = {"pillow": "PIL", "protobuf": "google.protobuf", "pytest-xdist": "xdist", "pyyaml": "yaml"}
"""Import names of distributions with a different name."""


@dataclass(frozen=True)
class Finding:
    """
    Result of one check.

    Args:
        name (`str`): Name of the checked item.
        is_ok (`bool`): Whether it works on this machine.
        detail (`str`): Version, or the reason why it does not work.
        remedy (`str`): Command to run; empty if there is nothing to do.
    """

    name: str
    is_ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """
    Findings of [`examine`]; `core_works` is whether training with the default settings works.

    Args:
        packages (`list[Finding]`): Required packages.
        video_backends (`list[Finding]`): `pyav`, `torchcodec` and `decord`.
        extras (`list[Finding]`): Optional dependencies, by extra.
        machine (`dict[str, str]`): Python, processor cores, memory, devices and FFmpeg.
    """

    packages: list[Finding]
    video_backends: list[Finding]
    extras: list[Finding]
    machine: dict[str, str]

    @property
    def core_works(self) -> bool:
        return all(finding.is_ok for finding in [*self.packages, self.video_backends[0]])


def examine() -> Report:
    """
    Check the packages, decoders and devices of this machine by using them.

    Returns:
        `Report`: Findings. Nothing is changed or downloaded, and no error is raised.
    """
    core, extras = _requirements()
    packages = [_examine_requirement(requirement) for requirement in core]
    if not packages:
        packages = [Finding(DISTRIBUTION, False, "is not installed", "pip install -e .")]
    return Report(
        packages=packages,
        video_backends=[
            _examine_backend("pyav", _use_pyav, "pip install av"),
            _examine_backend("torchcodec", _use_torchcodec, "pip install torchcodec"),
            _examine_backend("decord", _use_decord, "pip install decord"),
        ],
        extras=[_examine_extra(name, requirements) for name, requirements in extras.items()],
        machine=_examine_machine(),
    )


def to_text(report: Report) -> str:
    """Format a report as text: one line per finding, and the command that fixes it."""
    lines = [f"simple_multimodal {simple_multimodal.__version__}"]
    for title, findings in (
        ("Packages", report.packages),
        ("Video backends", report.video_backends),
        ("Extras", report.extras),
    ):
        lines += ["", title]
        for finding in findings:
            lines.append(f"  {'ok' if finding.is_ok else 'missing':8} {finding.name:12} {finding.detail}".rstrip())
            if finding.remedy:
                lines.append(f"  {'':8} {'':12} -> {finding.remedy}")
    lines += ["", "Machine"]
    lines += [f"  {name:21} {value}" for name, value in report.machine.items()]
    verdict = "The core works." if report.core_works else "The core does not work: see what is missing above."
    return "\n".join([*lines, "", verdict])


def to_dict(report: Report) -> dict[str, object]:
    """Return the report as plain values, for JSON."""
    return {"version": simple_multimodal.__version__, "core_works": report.core_works, **asdict(report)}


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """Return the requirements of the installed project: those of the core, and those of each extra."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return [], {}
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    core = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    extras = {}
    for name in metadata.get_all("Provides-Extra", []):
        with_extra = [item for item in requirements if item.marker is not None and f'"{name}"' in str(item.marker)]
        extras[name] = with_extra
    return core, extras


def _examine_requirement(requirement: Requirement) -> Finding:
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, False, "is not installed", install)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, False, f"{version} is not supported, needs {requirement.specifier}", install)
    try:
        importlib.import_module(MODULES.get(requirement.name, requirement.name))
    except Exception as error:  # an import may raise anything
        return Finding(requirement.name, False, f"{version} cannot be imported: {_reason(error)}", install)
    return Finding(requirement.name, True, version)


def _examine_extra(name: str, requirements: list[Requirement]) -> Finding:
    purpose = EXTRA_PURPOSES[name]
    needed = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": name})]
    if not needed:
        return Finding(name, False, f"not available on this platform; for {purpose}")
    missing = [item for item in needed if not _is_installed(item.name)]
    if missing:
        packages = " ".join(f"'{item.name}{item.specifier}'" for item in missing)
        return Finding(name, False, f"for {purpose}", f"pip install {packages}")
    return Finding(name, True, f"for {purpose}")


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _examine_backend(name: str, use: Callable[[], str], install: str) -> Finding:
    try:
        return Finding(name, True, use())
    except ModuleNotFoundError:
        return Finding(name, False, "is not installed", install)
    except Exception as error:  # a broken decoder may raise anything
        return Finding(name, False, _reason(error))


def _use_pyav() -> str:
    import av

    av.CodecContext.create("h264", "r")
    libraries = av.library_versions
    return f"av {av.__version__} with its own libavcodec {'.'.join(map(str, libraries['libavcodec']))}"


def _use_torchcodec() -> str:
    version = importlib.metadata.version("torchcodec") if _is_installed("torchcodec") else ""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"torchcodec {version} is installed, but does not find FFmpeg's shared libraries "
            "(install FFmpeg 4 to 8 with the system's package manager, or use another backend)"
        ) from error
    return f"torchcodec {version} with the system's FFmpeg"


def _use_decord() -> str:
    import decord

    return f"decord {decord.__version__} with its own FFmpeg"


def _examine_machine() -> dict[str, str]:
    machine = {
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cores": f"{available_cores()} usable",
        "FFmpeg on the system": _system_ffmpeg(),
    }
    try:
        import psutil
        import torch
    except Exception as error:  # reported in full among the packages
        return {**machine, "torch": _reason(error)}
    memory = psutil.virtual_memory()
    machine["memory"] = f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"
    machine["torch threads"] = f"{torch.get_num_threads()}"
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        devices.append(f"cuda:{index} {properties.name} ({properties.total_memory / 2**30:.0f} GiB, {precision})")
    if torch.backends.mps.is_available():
        devices.append("mps")
    machine["devices"] = ", ".join(devices)
    return machine


def _system_ffmpeg() -> str:
    program = shutil.which("ffmpeg")
    library = ctypes.util.find_library("avcodec")
    if program is None and library is None:
        return "none (only torchcodec needs it)"
    return f"program {program or 'none'}, shared library {library or 'none'}"


def _reason(error: Exception) -> str:
    """Return the type and the first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".removeprefix("RuntimeError: ")
