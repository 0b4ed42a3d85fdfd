"""Profile of a training step: time by part and by operator, tokens per second, operations and utilization.

python benchmarks/step_profile.py [--size toy|small|base] [--batch N] [--precision fp32|bf16|fp16] [--threads N]
    [--setting "LoRA, checkpoints"] [--compile] [--train_file FILE --video_root FOLDER]
    [--device cpu|cuda --peak_teraflops T]

`MultimodalTrainer` trains a model with all objectives and random weights, with the towers of `stand_ins.py`, on clips
written for it (blocks of noise with noise as audio) or on those of a manifest. Warm-up steps are followed by timed
steps, steps in `torch.profiler`, and one in which operations are counted.

- Shares of time: on a device, of its kernels; on a CPU, of the wall time of operators; both forward and backward, by
  the part whose forward pass called them. `data` is the time that the step waits for its batch. The rest is the
  trainer, and Python between operators.
- Rates and utilization are measured in the timed steps, which the profiler does not slow down: CPU seconds on a CPU,
  seconds on a device.
- Operations are matrix products, convolutions and attention, where a multiplication and an addition are two, including
  recomputation in checkpointed layers. The peak of a CPU is measured with a matrix product; that of a device is its
  maker's figure (`--peak_teraflops`, for this precision, without sparsity: 989 for bf16 on an H100 SXM, for example).

The paths for devices only use documented settings of torch, and have not been run.
"""

import argparse
import contextlib
import json
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import stand_ins
import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, set_seed

from simple_multimodal import assembly
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.prepare.toy.media import write_clip
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.tasks.retrieval.task import PreTraining, RetrievalOptions
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.trainer import MultimodalTrainer

NUM_CLIPS, SECONDS, FRAME_RATE = 8, 10, 10
WORDS = (
    "a small red square moves to the left while a low tone is heard and then it turns and a bell rings twice".split()
)
PART = "part: "
HEADS, OPTIMIZER, DATA, SUMS = "losses and heads", "optimizer", "data", "gradients added up"


# ---- What is trained ----
def write_rows(folder: Path, num_rows: int, side: int, seconds: float) -> Path:
    """Write clips of noise in blocks, and a manifest of `num_rows` rows with them, and return its path."""
    generator = np.random.default_rng(0)
    (folder / "video").mkdir()
    for clip in range(NUM_CLIPS):
        blocks = generator.integers(0, 256, (round(seconds * FRAME_RATE), side // 16, side // 16, 3), dtype=np.uint8)
        frames = blocks.repeat(16, axis=1).repeat(16, axis=2)
        waveform = generator.normal(0, 0.1, round(16000 * seconds)).astype(np.float32)
        write_clip(folder / f"video/{clip}.mp4", frames, waveform)
    lines = ["id,video,caption"]
    for row in range(num_rows):
        lines.append(f"row{row},{row % NUM_CLIPS}.mp4,{' '.join(generator.permutation(WORDS))}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder / "train.csv"


class ProfiledTrainer(MultimodalTrainer):
    """Labels the trainer's work for the profiler."""

    def get_batch_samples(self, *args):
        with record_function(PART + DATA):
            return super().get_batch_samples(*args)

    def compute_loss(self, *args, **kwargs):
        with record_function(PART + HEADS):
            return super().compute_loss(*args, **kwargs)

    def _clip_grad_norm(self, model):
        with record_function(PART + OPTIMIZER):
            return super()._clip_grad_norm(model)


def make_trainer(options: argparse.Namespace, folder: Path, callback: TrainerCallback) -> ProfiledTrainer:
    """Build a trainer of the model, on a manifest or on clips that are written into the folder."""
    parts = stand_ins.part_configs(options.size)
    towers = {name: parts[name] for name in ("text", "audio", "video")}
    steps = options.warm_steps + 2 * options.steps
    args = MultimodalTrainingArguments(
        output_dir=str(folder / "out"),
        use_cpu=options.device == "cpu",
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        torch_compile=options.compile,
        max_steps=steps,
        per_device_train_batch_size=options.batch,
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
    )
    set_seed(0)
    if options.train_file is None:
        side = towers["video"].image_size + 32
        manifest = write_rows(folder, steps * options.batch, side, SECONDS if options.size != "toy" else 3.7)
        video_root = folder / "video"
    else:
        manifest, video_root = options.train_file, options.video_root
    dataset = RowDataset.from_manifest(manifest, roots={"video": video_root})
    processor = assembly.build_processor(towers, captions=dataset.captions)
    config = stand_ins.model_config(options.size)
    model = MultimodalForPreTraining(config)
    stand_ins.apply_setting(model, options.setting)
    ratios = {f"{name}_mask_ratio": ratio for name, ratio in stand_ins.MASK_RATIOS.items()}
    ratios |= {"mlm_probability": 0.3, "vt_match_ratio": 0.5}
    task = PreTraining(RetrievalOptions(**ratios))
    return ProfiledTrainer(model, args, processor=processor, train_dataset=dataset, task=task, callbacks=[callback])


def modules_of(model: MultimodalForPreTraining) -> dict[str, list[torch.nn.Module]]:
    """Return the modules of each part whose time is measured."""
    fusion = model.multimodal.fusion
    layers = [layer for stack in fusion.stacks.values() for layer in stack]
    return {
        **{f"{name} tower": [tower] for name, tower in model.towers.items() if name != "fusion"},
        "fusion": [*fusion.projections.values(), fusion.input_norm, *layers, *fusion.output_norms.values()],
        "decoders": [model.text_decoder, model.audio_decoder, model.video_decoder, model.fusion_to_text],
    }


@contextlib.contextmanager
def named_parts(model: MultimodalForPreTraining) -> Iterator[None]:
    """Return a context in which the profiler labels forward passes with the names of their parts."""
    running: list[record_function] = []

    def enter(part: str) -> Callable[..., None]:
        def hook(*_) -> None:
            running.append(record_function(PART + part))
            running[-1].__enter__()

        return hook

    def leave(*_) -> None:
        running.pop().__exit__(None, None, None)

    handles = []
    for part, modules in modules_of(model).items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(enter(part)))
            handles.append(module.register_forward_hook(leave))
    yield
    for handle in handles:
        handle.remove()


# ---- Measuring ----
class Clock(TrainerCallback):
    """Times some steps after the first ones, and profiles the same number of steps after these."""

    def __init__(self, warm_steps: int, steps: int, device: str):
        self.begin, self.middle = warm_steps, warm_steps + steps
        self.device = device
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        self.profile = profile(activities=activities, acc_events=True)
        self.contexts = contextlib.ExitStack()
        self.optimizing = contextlib.ExitStack()

    def now(self) -> dict[str, float]:
        if self.device != "cpu":
            torch.accelerator.synchronize()
        return {"wall_seconds": time.perf_counter(), "cpu_seconds": time.process_time()}

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.begin:
            self.started = self.now()
        elif state.global_step == self.middle:
            ended, steps = self.now(), self.middle - self.begin
            self.seconds = {name: (ended[name] - self.started[name]) / steps for name in ended}
            if not args.torch_compile:  # hooks would trigger recompilation
                self.contexts.enter_context(named_parts(model))
            self.contexts.enter_context(self.profile)
            self.profile_begin = self.now()["wall_seconds"]
        elif state.global_step == state.max_steps:
            self.profiled_seconds = self.now()["wall_seconds"] - self.profile_begin
            self.contexts.close()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.optimizing.enter_context(record_function(PART + OPTIMIZER))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.optimizing.close()


def shares_of_parts(events: list[Any], seconds: float, *, on_device: bool) -> dict[str, dict[str, float]]:
    """
    Return the shares of `seconds` by part, of the forward and of the backward pass.

    The profiler numbers the operators that autograd records, and a node of the backward pass has the number of the
    operator that it belongs to: the last one called with that number.
    """
    by_number: dict[int, str] = {}

    def find(event: Any) -> tuple[str | None, bool]:
        while event is not None:
            if event.name.startswith("autograd::engine::evaluate_function"):
                is_sum = event.name.endswith("AccumulateGrad")
                return (SUMS if is_sum else by_number.get(event.sequence_nr, HEADS)), True
            if event.name.startswith(PART):
                return event.name.removeprefix(PART), False
            event = event.cpu_parent
        return None, False

    for event in events:
        part, is_backward = find(event)
        if event.sequence_nr >= 0 and part is not None and not is_backward:
            by_number[event.sequence_nr] = part
    shares: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    for event in events:
        part, is_backward = find(event)
        if part is not None:
            spent = event.self_device_time_total if on_device else event.self_cpu_time_total
            shares[part]["backward" if is_backward else "forward"] += spent / 1e6 / seconds
    rest = 1 - sum(share for part in shares.values() for share in part.values())
    return {**shares, "rest": {"forward": rest, "backward": 0.0}}


def count_operations(model: MultimodalForPreTraining, batch: dict[str, torch.Tensor]) -> float:
    """Count the floating-point operations of a forward and a backward pass."""
    with common.operation_counter() as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return float(counter.get_total_flops())


def measured_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Measure the operations per CPU second of a matrix product, the best of five."""
    first, second = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        first @ second
        seconds.append(time.process_time() - begin)
    return 2 * size**3 / min(seconds)


def num_tokens(model: MultimodalForPreTraining, batch: dict[str, torch.Tensor]) -> dict[str, int]:
    """Count the tokens of a batch that stand for real input, by modality."""
    with torch.no_grad():
        return {m: int(model.multimodal.encode(m, batch).mask.sum()) for m in model.config.modalities}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all numbers of one configuration."""
    clock = Clock(options.warm_steps, options.steps, options.device)
    trainer = make_trainer(options, folder, clock)
    trainer.train()
    on_device = options.device != "cpu"
    events, steps = clock.profile.events(), options.steps
    operators = [
        {
            "name": average.key,
            "share": (average.self_device_time_total if on_device else average.self_cpu_time_total)
            / 1e6
            / clock.profiled_seconds,
            "calls_per_step": average.count / steps,
        }
        for average in clock.profile.key_averages()
        if not average.key.startswith(PART)
    ]
    operators.sort(key=lambda operator: -operator["share"])
    memory = (
        torch.cuda.max_memory_allocated() if on_device else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    batch = next(iter(trainer.get_train_dataloader()))
    batch.pop("bad_samples", None)
    with trainer.accelerator.autocast():
        tokens, operations = num_tokens(model, batch), count_operations(model, batch)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    peak = options.peak_teraflops * 1e12 if options.peak_teraflops else (None if on_device else measured_peak(dtype))
    seconds = clock.seconds["wall_seconds" if on_device else "cpu_seconds"]
    return {
        "device": torch.cuda.get_device_name() if on_device else "cpu",
        **{name: getattr(options, name) for name in ("size", "setting", "batch", "precision", "compile", "threads")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{f"{name}_per_step": value for name, value in clock.seconds.items()},
        "samples_per_second": options.batch / seconds,
        "tokens_per_step": tokens,
        "tokens_per_second": sum(tokens.values()) / seconds,
        "operations_per_step": operations,
        "peak_operations_per_second": peak,
        "used": None if peak is None else operations / seconds / peak,
        "peak_memory_gigabytes": memory / 1e9,
        "shares": {} if options.compile else shares_of_parts(events, clock.profiled_seconds, on_device=on_device),
        "operators": operators[:12],
    }


def show(result: dict[str, Any]) -> None:
    """Print the rates, and a table of the parts and of the operators."""
    print(json.dumps({name: value for name, value in result.items() if name not in ("shares", "operators")}, indent=1))
    for part, shares in sorted(result["shares"].items(), key=lambda item: -sum(item[1].values())):
        print(f"{part:20} {sum(shares.values()):6.1%}", {name: f"{share:.1%}" for name, share in shares.items()})
    for operator in result["operators"]:
        print(f"{operator['name']:60} {operator['share']:6.1%} {operator['calls_per_step']:8.0f} calls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["toy", "small", "base"], default="toy")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm_steps", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--setting", choices=stand_ins.SETTINGS, default="all weights")
    parser.add_argument("--compile", action="store_true", help="use torch.compile; parts are not reported then")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak_teraflops", type=float, help="peak of the device in this precision")
    parser.add_argument("--train_file", type=Path, help="manifest to use instead of written clips")
    parser.add_argument("--video_root", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(tempfile.mkdtemp())
    try:
        result = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    show(result)
    names = [options.device, options.size, f"batch{options.batch}", options.precision]
    names += ["compiled"] if options.compile else []
    common.save("_".join(["step_profile", *names]), {"command": sys.argv[1:], **result})


if __name__ == "__main__":
    main()
