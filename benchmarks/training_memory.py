"""What the summary of a run says of memory, against what a process really takes: peak resident memory of three steps.

python benchmarks/training_memory.py
"""

import json
import resource
import subprocess
import sys

import common
import psutil
import torch

from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.fusion.crossformer import load_fusion_config
from simple_multimodal.models.loading import load_tower_config
from simple_multimodal.models.lora import add_lora
from simple_multimodal.models.modeling import MultimodalForRetrieval
from simple_multimodal.training.summary import SavedActivations, summarize

NAMES = {
    "text": "configs/text/bert_config_{}.json",
    "video": "configs/video/videomae_config_{}.json",
    "fusion": "configs/crossformer/vit_config_{}.json",
}
ROWS, WORDS = 8, 32
CASES = [(size, lora, checkpointed) for size in ("tiny", "small") for lora, checkpointed in
         ((False, False), (True, False), (True, True))]  # fmt: skip


def measure(size: str, *, lora: bool, checkpointed: bool) -> dict[str, float]:
    """Megabytes that the summary counts, and that this process grows by."""
    names = {tower: name.format(size) for tower, name in NAMES.items()}
    text, video = (load_tower_config(names[modality], modality) for modality in ("text", "video"))
    config = MultimodalConfig(
        text_config=text, video_config=video, crossformer_config=load_fusion_config(names["fusion"])
    )
    shape = (ROWS, video.num_frames, 3, video.image_size, video.image_size)
    batch = {
        "input_ids": torch.randint(5, text.vocab_size, (ROWS, WORDS)),
        "attention_mask": torch.ones(ROWS, WORDS, dtype=torch.long),
        "pixel_values_videos": torch.randint(0, 256, shape, dtype=torch.uint8),
        "video_seconds": torch.zeros(ROWS, video.num_frames),
        "text_mask": torch.ones(ROWS, dtype=torch.bool),
        "video_mask": torch.ones(ROWS, dtype=torch.bool),
        "group_ids": torch.arange(ROWS),
        "match_aligned": torch.zeros(ROWS, dtype=torch.bool),
        "match_uniform": torch.rand(ROWS),
    }
    if lora:
        import peft  # noqa: F401  # not counted as memory of the model
    before = psutil.Process().memory_info().rss
    model = MultimodalForRetrieval(config)
    if lora:
        add_lora(model, rank=8, alpha=16, towers=["text", "video"])
    if checkpointed:
        model.checkpoint_activations(["text", "video", "fusion"])
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    found = summarize(model, optimizer)["memory_bytes"]
    activations = SavedActivations(model)
    for step in range(3):
        if step == 0:
            with activations:
                loss = model(**batch).loss
        else:
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found["activations"] = activations.num_bytes
    found = {name: value / 1e6 for name, value in found.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {**found, "counted": sum(found.values()), "resident": (peak - before) / 1e6}


def main() -> None:
    if len(sys.argv) > 1:
        size, *choices = json.loads(sys.argv[1])
        print(json.dumps(measure(size, lora=choices[0], checkpointed=choices[1])))
        return
    results = {}
    for size, lora, checkpointed in CASES:
        command = [sys.executable, __file__, json.dumps([size, lora, checkpointed])]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        name = ", ".join([size, "LoRA" if lora else "all weights", *(["checkpoints"] if checkpointed else [])])
        results[name] = json.loads(output.splitlines()[-1])
        print(name, {key: round(value, 1) for key, value in results[name].items()})
    common.save("training_memory", results)


if __name__ == "__main__":
    main()
