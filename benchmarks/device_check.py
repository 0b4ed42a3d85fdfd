"""Check everything that a GPU changes in one run: a table with values and pass or fail, and a failing exit code.

python benchmarks/device_check.py [--device cuda|cpu] [--minutes 8] [--peak_teraflops T] [--checks NAME ...]
    [--output FILE]

It uses one GPU for at most `--minutes` minutes and needs only the core dependencies; it makes its own models and
media. If the package is not installed, put `PYTHONPATH=.` before the command, in the repository's folder. A check
whose packages are missing, or for which no time is left, is listed as left out, with the reason. Checks of computation
come first and need torch, transformers and accelerate; those that read files also need `av` and `datasets`.

- A step in float32, bf16 and fp16 against the CPU's in float32: for each task and form of fusion the relative error of
  the loss, and of all gradients together, relative to their norm. Dropout is off, and hard negatives do not depend on
  small errors. The limits: float32 rounds to 2^-24, and sums of some thousand terms in another order differ by far
  less than 1e-4; bf16 rounds each product's factors to 2^-9, fp16 to 2^-12, and the errors of a few dozen layers add
  up.
- SDPA against eager attention, on the device, in float32.
- Two runs with the settings of `--full_determinism True`, dropout on: equal bit for bit.
- DDP with one process, and contrastive losses in chunks, against the plain step.
- The memory guide's estimate against the measured peak, at three settings of the base size (on a CPU: the toy size).
  The guide assumes that a batch fits if its estimate is 0.85 of the memory, so the peak must be at most
  estimate / 0.85.
- Tokens per second and MFU of each base tower in bf16, relative to the peak of a matrix product of 8192 here, or to
  `--peak_teraflops`.
- The towers' outputs and pairs' scores in inference (`infer`) against the CPU's; also from files through `Retriever`.
- How long a training step waits for packed clips (stall), and frames decoded by the GPU against PyAV's.

`--device cpu` runs all of it on toy models: it checks the script, and that the limits hold for other kernels.
"""

import argparse
import contextlib
import copy
import functools
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Read when cuBLAS starts: without it deterministic algorithms are refused.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import common
import stand_ins
import torch
from accelerate.utils import send_to_device
from transformers import enable_full_determinism, set_seed

from simple_multimodal.evaluation.precision import PRECISIONS, Precision, autocast
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.pairs import encode_clips, encode_texts, score_pairs
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining, MultimodalForRetrieval
from simple_multimodal.training.summary import summarize

TASKS: dict[str, type[TowerModel]] = {
    "pre-training": MultimodalForPreTraining,
    "retrieval": MultimodalForRetrieval,
    "questions": MultimodalForQuestionAnswering,
}
CHECKED_TASKS = tuple(TASKS)
FORMS = ("cross_attention", "co_attention", "merge")
NUM_ANSWERS = 5
WORDS = 16
LIMITS: dict[Precision, tuple[float, float]] = {"fp32": (1e-4, 1e-3), "bf16": (1e-2, 5e-2), "fp16": (2e-3, 1e-2)}
"""By precision, how far the loss and the gradients may be from float32 on a CPU, relative."""
LOSS_SCALE = 2.0**10  # for fp16, whose smallest gradients would vanish otherwise
MEMORY_SETTINGS: tuple[tuple[str, int, Precision], ...] = (
    ("all weights", 4, "bf16"),
    ("all weights, checkpoints", 8, "bf16"),
    ("frozen towers", 8, "fp32"),
)
USABLE = 0.85  # share of the memory, as in the guide
MAX_STALL = 0.1
FRAME_ERROR = 2.0  # of 255, on average: two colour conversions differ by less


@dataclass
class Row:
    """A line of the table: the measured value, its upper limit (`None`: no limit), and the outcome."""

    check: str
    case: str
    figure: float | None
    limit: float | None
    unit: str
    status: str
    note: str = ""


class Report:
    """Collects the rows of the checks; each is judged and printed when it is added."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.check = ""

    def add(self, case: str, figure: float, limit: float | None = None, *, unit: str = "", note: str = "") -> None:
        """Add a value, which fails if it is above its limit or not a number."""
        is_good = figure == figure and (limit is None or figure <= limit)
        self._row(Row(self.check, case, figure, limit, unit, "pass" if is_good else "FAIL", note))

    def fail(self, note: str) -> None:
        """Add a check that could not be completed."""
        self._row(Row(self.check, "", None, None, "", "FAIL", note))

    def leave_out(self, reason: str) -> None:
        """Add a check, or a part of one, that is not possible on this machine."""
        self._row(Row(self.check, "", None, None, "", "left out", reason))

    def _row(self, row: Row) -> None:
        self.rows.append(row)
        figure = "" if row.figure is None else f"{row.figure:.4g} {row.unit}".strip()
        limit = "" if row.limit is None else f"<= {row.limit:g}"
        print(f"{row.check:14s} {row.case:44s} {figure:>16s} {limit:>10s}  {row.status:8s} {row.note}", flush=True)


# ---- Models and steps ----
def make_model(task: str, size: str, *, dropout: bool = False, **settings: Any) -> TowerModel:
    """Build a model of a task with random weights."""
    if task == "questions":
        settings["id2label"] = {number: str(number) for number in range(NUM_ANSWERS)}
    config = stand_ins.model_config(size, **settings)
    for name in ("text", "audio", "video", "crossformer"):
        part = getattr(config, f"{name}_config")
        if part is None:
            continue
        part.hidden_dropout_prob = part.attention_probs_dropout_prob = 0.1 if dropout else 0.0
    model = TASKS[task](config).train()
    if task == "questions":  # keep the head's hidden units away from the kink of ReLU
        hidden = model.classifier[0].bias
        torch.nn.init.constant_(hidden[::2], 4.0)
        torch.nn.init.constant_(hidden[1::2], -4.0)
    return model


def make_batch(task: str, model: TowerModel, num_rows: int) -> dict[str, torch.Tensor]:
    """Make a batch for a task, on the CPU, whose hard negatives do not depend on the last bits of a cosine."""
    batch = stand_ins.make_batch(model.config, num_rows, num_words=WORDS)
    batch["match_uniform"] = torch.full((num_rows,), 0.5)
    if task == "questions":
        names = ("mlm_", "match_", "audio_masked", "video_masked")
        batch = {name: value for name, value in batch.items() if not name.startswith(names)}
        batch["labels"] = torch.arange(num_rows) % NUM_ANSWERS
    return batch


def moved(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return send_to_device(batch, device)


def step(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], precision: Precision = "fp32", **settings: Any
) -> tuple[float, torch.Tensor]:
    """Return the loss and all gradients, as one float32 vector on the CPU, of a forward and a backward pass."""
    device = next(model.parameters()).device
    with autocast(precision, device.type):
        loss = model(**moved(batch, device), **settings).loss
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    (loss * scale).backward()
    gradients = [p.grad.float().flatten().cpu() / scale for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return float(loss.detach()), torch.cat(gradients)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference, relative to the norm of the expected values."""
    return float((found - expected).norm() / expected.norm())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the seconds of a call, after a warm-up call."""
    call()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


# ---- Checks of computation ----
def check_steps(report: Report, device: torch.device) -> None:
    """Compare a step in each precision with the CPU's."""
    for task in CHECKED_TASKS:
        for form in FORMS:
            torch.manual_seed(0)
            model = make_model(task, "toy", fusion_form=form)
            batch = make_batch(task, model, 4)
            loss, gradients = step(model, batch)
            model.to(device)
            for precision in PRECISIONS:
                found_loss, found = step(model, batch, precision)
                loss_limit, gradient_limit = LIMITS[precision]
                case = f"{task}, {form}, {precision}"
                report.add(f"{case}: loss", abs(found_loss - loss) / abs(loss), loss_limit)
                report.add(f"{case}: gradients", distance(found, gradients), gradient_limit)


def check_attention(report: Report, device: torch.device) -> None:
    """Compare SDPA with eager attention, in parts that have both."""
    for task in CHECKED_TASKS:
        torch.manual_seed(0)
        model = make_model(task, "toy").to(device)
        batch = make_batch(task, model, 4)
        gradients = {}
        for kind in ("sdpa", "eager"):
            parts = [part for part in model.modules() if _has_sdpa(part)]
            for part in parts:
                part.config._attn_implementation = kind
            assert parts, "no part supports SDPA"
            gradients[kind] = step(model, batch)[1]
        report.add(f"{task}: gradients, SDPA on and off", distance(gradients["sdpa"], gradients["eager"]), 1e-3)


def _has_sdpa(module: torch.nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel) and module._supports_sdpa


def check_determinism(report: Report, device: torch.device) -> None:
    """Run three steps with full determinism, twice."""
    was_deterministic = torch.backends.cudnn.deterministic
    try:
        for task in CHECKED_TASKS:
            for form in FORMS:
                weights = []
                for _ in range(2):
                    enable_full_determinism(0)
                    model = make_model(task, "toy", dropout=True, fusion_form=form).to(device)
                    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
                    batch = moved(make_batch(task, model, 4), device)
                    for _ in range(3):
                        model(**batch).loss.backward()
                        optimizer.step()
                        optimizer.zero_grad()
                    weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
                different = int((weights[0] != weights[1]).sum())
                report.add(f"{task}, {form}: weights that differ", different, 0)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = was_deterministic


def check_ddp(report: Report, device: torch.device) -> None:
    """Compare DDP with one process with the model alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        for task in CHECKED_TASKS:
            torch.manual_seed(0)
            model = make_model(task, "toy").to(device)
            batch = make_batch(task, model, 4)
            loss, gradients = step(model, batch)
            wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
            found_loss, found = step(wrapped, batch)
            report.add(f"{task}: loss", abs(found_loss - loss) / abs(loss), 1e-6)
            report.add(f"{task}: gradients", distance(found, gradients), 1e-5)
    finally:
        torch.distributed.destroy_process_group()


def check_chunks(report: Report, device: torch.device) -> None:
    """Compare a contrastive batch in chunks with the whole one."""
    for task in [task for task in CHECKED_TASKS if task != "questions"]:
        torch.manual_seed(0)
        model = make_model(task, "toy").to(device)
        batch = make_batch(task, model, 8)
        loss, gradients = step(model, batch)
        found_loss, found = step(model, batch, chunk_size=2)
        report.add(f"{task}, 8 rows by 2: loss", abs(found_loss - loss) / abs(loss), 1e-5)
        report.add(f"{task}, 8 rows by 2: gradients", distance(found, gradients), 1e-3)


def check_use(report: Report, device: torch.device) -> None:
    """Compare embeddings and matching scores in inference with the CPU's."""
    torch.manual_seed(0)
    model = make_model("retrieval", "toy").eval()
    batch = make_batch("retrieval", model, 4)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4)).numpy()

    def use(where: torch.device, precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
        model.to(where)
        with autocast(precision, where.type):
            clips = encode_clips(model, moved(batch, where))
            texts = encode_texts(model, moved(batch, where))
        context = functools.partial(autocast, precision, where.type)
        scores = score_pairs(model, model.matching_logits, texts, clips, pairs, autocast=context)
        return torch.stack([clip.embed for clip in clips if clip.embed is not None]), scores

    embeds, scores = use(torch.device("cpu"), "fp32")
    for precision in PRECISIONS:
        found = use(device, precision)
        report.add(f"embeddings of clips, {precision}", distance(found[0], embeds), LIMITS[precision][1])
        report.add(f"matching logits, {precision}", distance(found[1], scores), LIMITS[precision][1])


def check_memory(report: Report, device: torch.device) -> None:
    """Compare the guide's estimate with the measured peak of a training step."""
    import memory_guide
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.profiler import ProfilerActivity, profile
    from training_memory import most_allocated

    on_gpu = device.type == "cuda"
    size = "base" if on_gpu else "toy"
    for setting, num_rows, precision in MEMORY_SETTINGS:
        mode = FakeTensorMode()
        counted_model = memory_guide.build("pre-training", size, setting, mode)
        with mode:
            state = memory_guide.count_state(counted_model)
            count = state + memory_guide.count_activations(counted_model, precision, num_rows)
        torch.manual_seed(0)
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        with device:  # random weights of the base size are generated faster there
            model = make_model("pre-training", size, dropout=True).to(device)
        stand_ins.apply_setting(model, setting)
        batch = moved(stand_ins.make_batch(model.config, num_rows, num_words=memory_guide.WORDS), device)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

        def train(
            model: TowerModel = model,
            batch: dict[str, torch.Tensor] = batch,
            optimizer: torch.optim.Optimizer = optimizer,
            precision: Precision = precision,
        ) -> None:
            with autocast(precision, device.type):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        train()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            train()
            peak = torch.cuda.max_memory_allocated(device) - before
        else:
            kept = summarize(model, optimizer)["memory_bytes"]
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                train()
            peak = kept["weights"] + kept["optimizer_state"] + most_allocated(profiled)
        note = f"{peak / 2**30:.2f} GiB at the peak, {count / 2**30:.2f} counted"
        report.add(f"{setting}, {num_rows} rows, {precision}: peak / count", peak / count, 1 / USABLE, note=note)
        del model, optimizer, train, batch


def check_towers(report: Report, device: torch.device, peak_teraflops: float | None) -> None:
    """Measure tokens per second and MFU of each tower, forward and backward in bf16."""
    on_gpu = device.type == "cuda"
    side, repeats = (8192, 20) if on_gpu else (512, 2)
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    measured = 2 * side**3 / seconds_of(lambda: factor @ factor, device, repeats)
    report.add("bf16 matrix product", measured / 1e12, unit="TFLOP/s")
    peak = peak_teraflops * 1e12 if peak_teraflops else measured
    with device:
        model = make_model("pre-training", "base" if on_gpu else "toy").multimodal.to(device)
    batch = moved(stand_ins.make_batch(model.config, 32 if on_gpu else 2, num_words=32), device)
    for tower in ("text", "audio", "video"):

        def run(tower: str = tower) -> int:
            with autocast("bf16", device.type):
                output = model.encode(tower, batch)
            output.tokens.float().square().mean().backward()
            model.zero_grad()
            return output.mask.numel()

        with common.operation_counter() as counter:
            num_tokens = run()
        seconds = seconds_of(run, device, 10 if on_gpu else 1)
        note = f"MFU {counter.get_total_flops() / seconds / peak:.2f}"
        report.add(f"{tower}, {num_tokens} tokens", num_tokens / seconds, unit="tokens/s", note=note)


# ---- Checks that read files ----
def check_infer(report: Report, device: torch.device) -> None:
    """Compare clips from files through `Retriever` with the CPU's towers."""
    from step_profile import write_rows

    from simple_multimodal.data.collator import MultimodalCollator
    from simple_multimodal.data.rows import RowDataset
    from simple_multimodal.tasks.retrieval.retriever import Retriever

    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), 1, 64, 2.0)
        torch.manual_seed(0)
        model = make_model("retrieval", "toy").eval()
        processor = _processor(model)
        files = sorted(str(path) for path in Path(name, "video").iterdir())[:4]
        batch = MultimodalCollator(processor, index_dir=name)(list(RowDataset.from_files(files)))
        expected = torch.stack([clip.embed for clip in encode_clips(model, batch)])  # type: ignore[misc]
        for precision in PRECISIONS if device.type == "cuda" else ("fp32", "bf16"):
            retriever = Retriever(copy.deepcopy(model), processor, precision=precision, index_dir=name)
            found = retriever.index(files).embeds
            report.add(f"Retriever.index, {precision}", distance(found, expected), LIMITS[precision][1])


def _processor(model: TowerModel) -> Any:
    from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor

    mel_bins, num_frames = model.config.audio_config.image_size
    video = model.config.video_config
    return MultimodalProcessor(
        AudioFeatureExtractor(num_mel_bins=mel_bins, num_frames=num_frames, max_windows=1),
        VideoClipProcessor(num_frames=video.num_frames, size=video.image_size),
    )


def check_loader(report: Report, device: torch.device) -> None:
    """Measure how long the trainer waits for packed clips: 1 - (step on a cached batch) / (step on loaded ones)."""
    from packed import Cached, Marks
    from step_profile import write_rows
    from torch.utils.data import DataLoader

    from simple_multimodal.data.collator import MultimodalCollator
    from simple_multimodal.data.rows import RowDataset
    from simple_multimodal.prepare.pack import PackSettings, pack_manifest
    from simple_multimodal.training.arguments import MultimodalTrainingArguments
    from simple_multimodal.training.trainer import MultimodalTrainer

    on_gpu = device.type == "cuda"
    num_rows, num_steps = (32, 24) if on_gpu else (2, 4)
    with device:  # only towers of audio and video, which read files
        model = make_model("retrieval", "base" if on_gpu else "toy", text_config=None).to(device)
    with tempfile.TemporaryDirectory() as name:
        manifest = write_rows(Path(name), num_rows * num_steps, model.config.video_config.image_size, 10.0)
        pack_manifest(manifest, Path(name, "packed"), video_root=Path(name, "video"), settings=PackSettings())
        dataset = RowDataset.from_manifest(Path(name, "packed/train.jsonl"), modalities=("audio", "video"))
        collator = MultimodalCollator(_processor(model), training=True, index_dir=name)
        seconds = {}
        for kind in ("loaded", "cached"):
            marks = Marks()
            args = MultimodalTrainingArguments(
                str(Path(name, kind)), max_steps=num_steps, per_device_train_batch_size=num_rows, bf16=True,
                use_cpu=not on_gpu, disable_tqdm=True, save_strategy="no", logging_strategy="no", do_eval=False,
                dataloader_prefetch_factor=4,
            )  # fmt: skip
            trainer = MultimodalTrainer(
                copy.deepcopy(model), args, processor=collator.processor, train_dataset=dataset,
                collator_settings={"index_dir": name}, callbacks=[marks.callback],
            )  # fmt: skip
            if kind == "cached":
                batch = moved(collator([dataset[(0, row)] for row in range(num_rows)]), device)
                trainer.get_train_dataloader = lambda batch=batch: DataLoader(Cached(batch), batch_size=None)
            trainer.train()
            seconds[kind] = marks.step_seconds()
        stall = 1 - seconds["cached"] / seconds["loaded"]
        note = f"{num_rows} rows per step, {1000 * seconds['loaded']:.0f} ms loaded, "
        note += f"{1000 * seconds['cached']:.0f} ms cached, {args.dataloader_num_workers} loader processes"
        # On a CPU, model and loader share the cores, so the value means nothing.
        report.add("stall on packed clips", stall, MAX_STALL if on_gpu else None, note=note)


def check_decoding(report: Report, device: torch.device) -> None:
    """Compare frames decoded by the GPU with PyAV's; without a GPU, report the reason."""
    from step_profile import write_rows

    from simple_multimodal.media import get_video_backend, index_video, sample_positions

    try:
        backend = get_video_backend("torchcodec", decode_device="cuda")
    except (ValueError, ImportError) as error:
        report.leave_out(str(error))
        return
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), 1, 720, 4.0)
        path = str(sorted(Path(name, "video").iterdir())[0])
        index = index_video(path, index_dir=name)
        ours = get_video_backend("pyav")
        positions = sample_positions(index, 16)
        frames = backend.frames(path, positions, index)
        expected = torch.as_tensor(ours.frames(path, positions, index))
        error = float((frames.cpu().float() - expected.float()).abs().mean())
        report.add("mean difference of pixels from PyAV's", error, FRAME_ERROR)
        again = backend.frames(path, positions, index)
        report.add("pixels that differ the second time", int((frames != again).sum()), 0)
        for what, reader in (("GPU", backend), ("PyAV, one thread", ours)):
            seconds = seconds_of(lambda reader=reader: reader.frames(path, positions, index, (224, 224)), device, 5)
            report.add(f"16 frames of 720 x 720 at 224, {what}", len(positions) / seconds, unit="frames/s")


CHECKS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "steps": (check_steps, ()),
    "attention": (check_attention, ()),
    "determinism": (check_determinism, ()),
    "ddp": (check_ddp, ()),
    "chunks": (check_chunks, ()),
    "use": (check_use, ()),
    "towers": (check_towers, ()),
    "memory": (check_memory, ()),
    "infer": (check_infer, ("av", "datasets")),
    "decoding": (check_decoding, ("av", "torchcodec")),
    "loader": (check_loader, ("av", "datasets")),
}
"""The checks, in this order, and the packages that each needs in addition to torch, transformers and accelerate."""


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Return a context without TF32, whose products round to 2^-11."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def run_checks(names: Sequence[str], device: torch.device, minutes: float, peak_teraflops: float | None) -> list[Row]:
    """Run checks one after the other; an exception in one of them only fails that one."""
    report = Report()
    end = time.monotonic() + 60 * minutes
    for name in names:
        check, packages = CHECKS[name]
        report.check = name
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if time.monotonic() > end:
            report.leave_out(f"no time left of {minutes:g} minutes")
            continue
        if missing:
            report.leave_out(f"needs {', '.join(missing)}")
            continue
        set_seed(0)
        try:
            with full_precision():
                check(report, device, **({"peak_teraflops": peak_teraflops} if name == "towers" else {}))
        except Exception as error:
            report.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return report.rows


def main(argv: list[str] | None = None) -> int:
    """Run the checks, write the results, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="no check begins after this time; default: 8")
    parser.add_argument("--peak_teraflops", type=float, help="peak of the GPU in bf16, for MFU")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="default: all")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/device_check_DEVICE.json")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; use --device cpu to check the script on toy models")
    device = torch.device(options.device)
    started = time.monotonic()
    rows = run_checks(options.checks, device, options.minutes, options.peak_teraflops)
    counts = {status: sum(row.status == status for row in rows) for status in ("pass", "FAIL", "left out")}
    seconds = time.monotonic() - started
    print(f"{counts['pass']} passed, {counts['FAIL']} failed, {counts['left out']} left out, in {seconds:.0f} seconds")
    results = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "seconds": seconds,
        "counts": counts,
        "rows": [asdict(row) for row in rows],
    }
    if options.output is None:
        common.save(f"device_check_{options.device}", results)
    else:
        options.output.write_text(json.dumps({"machine": common.machine(), **results}, indent=1) + "\n")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
