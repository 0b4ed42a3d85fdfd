"""What fusion buys, on the toy world: the crossformer's forms against late fusion and single modalities.

python benchmarks/fusion.py [--num_segments 6 12 24] [--seeds 0 1 2] [--work outputs/fusion]

All designs read the same tokens of the same frozen towers, trained once per seed: first text and audio with a
contrastive loss on captions that say when the beep sounds (from random weights: a tower that was trained on the
captions of the toy world does not represent the beep), then all three with contrastive losses on those and the world's
own captions. Longer worlds go through the towers in windows of 3.6 seconds. The fusion of a design, its head, and a
copy of the text tower are trained: with the same steps and batches for all, at the better of two learning rates on
held-back training clips, chosen for each design with the first seed and number of segments.

Questions: the toy world's three kinds, and one more for training, when the beep sounds. Training starts with that kind
and the joint one on parts of clips, which grow to whole clips; then come the three kinds on whole clips. Each video is
combined with the audio of other clips, new ones in every epoch, whose beep is well inside one background: with the
clips' own audio alone, a design memorises the few thousand clips before it learns to relate the two modalities.
Retrieval: captions, by contrastive loss and by matching.

- `merge`, `co_attention`, `cross_attention`: the crossformer, two layers.
- `late`: audio and video tokens, with the same embedding of time, each through a separate MLP and averaged; these
  and the averaged text through an MLP, wide enough for as many parameters as the largest form.
- `audio`, `video`: `cross_attention` without the other clip modality.

Finished runs stay in the work folder; the same command continues. `--num_processes` runs share the cores.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.evaluation.bootstrap import bootstrap_interval, resampled_mean
from simple_multimodal.modalities import AUDIO_WINDOW_KEYS
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.fusion.crossformer import Clip, Crossformer, Stream
from simple_multimodal.models.losses import contrastive_loss, masked_mean
from simple_multimodal.models.matching import matching_loss
from simple_multimodal.models.modeling import pool_time_steps
from simple_multimodal.prepare.toy import make_toy_world
from simple_multimodal.prepare.toy.clips import BEEP_MARGIN
from simple_multimodal.prepare.toy.world import SECONDS_PER_SEGMENT
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
WINDOW_SEGMENTS, WINDOW_FRAMES, WINDOW_MEL_FRAMES, MEL_BINS, SIZE = 6, 8, 368, 64, 64
WINDOW_SECONDS = WINDOW_SEGMENTS * SECONDS_PER_SEGMENT
NUM_TRAIN_CLIPS, NUM_HELD_BACK = 3000, 200
TOWER_BATCH, QUESTION_BATCH, RETRIEVAL_BATCH = 64, 64, 128  # clips
AUDIO_STEPS, CAPTION_STEPS, QUESTION_STEPS, RETRIEVAL_STEPS = 300, 600, 400, 200
EVENT_STEPS = {1: 400, 2: 300, 4: 300}  # by the number of windows shown; the last only for clips that are long enough
LEARNING_RATES = (1e-3, 2e-3)
KINDS = ("video", "audio", "joint")
DESIGNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "merge": ("merge", ("audio", "video")),
    "co_attention": ("co_attention", ("audio", "video")),
    "cross_attention": ("cross_attention", ("audio", "video")),
    "late": ("late", ("audio", "video")),
    "audio": ("cross_attention", ("audio",)),
    "video": ("cross_attention", ("video",)),
}
ORDINALS = [f"number {n}" for n in "one two three four five six seven eight nine ten eleven twelve".split()]
ORDINALS += [f"{name} of the second half" for name in ORDINALS]


# ---- The worlds ----
class World(NamedTuple):
    """A toy world: the truth about each clip, its index by name, and its inputs in windows of `WINDOW_SECONDS`."""

    clips: list[dict]
    number: dict[str, int]
    questions: dict[str, list[tuple[int, str, str, str]]]  # by split: (clip, question, answer, kind)
    captions: dict[int, list[str]]
    inputs: dict[str, torch.Tensor]
    num_windows: int


def make_world(work: Path, num_segments: int) -> Path:
    folder = work / f"world_{num_segments}"
    make_toy_world(folder, num_train_clips=NUM_TRAIN_CLIPS, num_segments=num_segments)
    path = folder / "inputs.pt"
    if not path.exists():
        audio = AudioFeatureExtractor(num_mel_bins=MEL_BINS, num_frames=WINDOW_MEL_FRAMES, max_windows=1)
        video = VideoClipProcessor(num_frames=WINDOW_FRAMES, size={"height": SIZE, "width": SIZE})
        collator = MultimodalCollator(MultimodalProcessor(audio, video))
        dataset = RowDataset.from_manifest(folder / "clips.jsonl", modalities=("audio", "video"))
        num_windows = num_segments // WINDOW_SEGMENTS
        parts = []
        for row in (dataset[number] for number in range(len(dataset))):
            windows = [
                {**row, "start_seconds": n * WINDOW_SECONDS, "end_seconds": (n + 1) * WINDOW_SECONDS}
                for n in range(num_windows)
            ]
            parts.append(collator(windows))  # type: ignore[arg-type]
        names = [key for key in parts[0] if key not in ("row_ids", *AUDIO_WINDOW_KEYS)]
        torch.save({key: torch.cat([part[key] for part in parts]) for key in names}, path)
    return folder


def load_world(folder: Path) -> World:
    def lines(name: str) -> list[dict]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    clips = lines("clips.jsonl")
    number = {clip["id"]: n for n, clip in enumerate(clips)}
    questions = {
        split: [
            (number[r["group"]], r["question"], r["answer"], r["answer_type"])
            for r in lines(f"{split}_questions.jsonl")
        ]
        for split in ("train", "validation")
    }
    captions = {number[row["id"]]: row["captions"] for row in lines("train.jsonl")}
    captions |= {number[row["id"]]: [row["caption"]] for row in lines("validation.jsonl")}
    inputs = torch.load(folder / "inputs.pt", mmap=True)
    return World(clips, number, questions, captions, inputs, len(inputs["video_mask"]) // len(clips))


def part_of(seconds: float) -> int:
    return int(seconds / SECONDS_PER_SEGMENT)


def audio_event(clip: dict) -> tuple[str, str, str]:
    """Return the question of when the beep sounds, its answer and its kind."""
    return "in which part does the beep sound?", ORDINALS[part_of(clip["beep_seconds"])], "sound event"


def background_at_beep(video: dict, audio: dict) -> str | None:
    """Return the background of the first clip when the second one's beep sounds, or None if it changes around then."""
    switches, beep = np.array(video["switch_seconds"]), audio["beep_seconds"]
    if np.abs(switches[1:] - beep).min() < BEEP_MARGIN:
        return None
    return video["backgrounds"][np.searchsorted(switches, beep, side="right") - 1]


# ---- The towers ----
def new_config(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> MultimodalConfig:
    def part(name: str, **changes: Any) -> Any:
        return AutoConfig.for_model(**{**json.loads((CONFIGS / name).read_text(encoding="utf-8")), **changes})

    return MultimodalConfig(
        text_config=part("text/debertv2_config_toy.json", vocab_size=len(tokenizer)),
        audio_config=part("audio/mae_config_toy.json", image_size=[MEL_BINS, WINDOW_MEL_FRAMES]),
        video_config=part("video/videomae_config_toy.json", num_frames=WINDOW_FRAMES, tubelet_size=1, image_size=SIZE),
        crossformer_config=part("crossformer/vit_config_toy.json"),
        fusion_pool="time",
        contrastive_dim=128,
        **settings,
    )


def make_tokenizer(world: World) -> PreTrainedTokenizerBase:
    texts = [text for own in world.captions.values() for text in own]
    texts += [question for _, question, _, _ in world.questions["train"]]
    texts += [f"a beep sounds in part {name}" for name in ORDINALS] * 20
    return train_tokenizer([*texts, "in which part does the beep sound?"])


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(list(texts), padding=True, return_tensors="pt"))


class Training:
    """AdamW with warm-up and cosine over a fixed number of steps."""

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float, num_steps: int):
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(1, (step + 1) / (0.1 * num_steps)) * 0.5 * (1 + np.cos(np.pi * step / num_steps)),
        )

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.scheduler.step()


def batches(clips: Sequence[int], num_steps: int, seed: int, size: int):
    """Yield batches of clips, each clip once per epoch, in an order determined by `seed`, and the generator."""
    generator, order = np.random.default_rng(seed), []
    for _ in range(num_steps):
        if len(order) < size:
            order += generator.permutation(clips).tolist()
        yield order[:size], generator
        order = order[size:]


def teach_towers(world: World, seed: int, path: Path) -> None:
    """Train the towers with contrastive losses on captions of sound events, then also on the world's captions, and
    save them with their tokenizer."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(world)
    model = MultimodalForRetrieval(new_config(tokenizer)).train()
    towers = model.multimodal

    def embed(modality: str, clips: Sequence[int]) -> torch.Tensor:
        return towers.embed_tokens(modality, towers.encode(modality, {k: v[clips] for k, v in world.inputs.items()}))

    def contrast(texts: Sequence[str], other: torch.Tensor, groups: Sequence[int], name: str) -> torch.Tensor:
        scale, bias = towers.scale_and_bias(name)
        embeds = towers.encode_text(tokens_of(tokenizer, texts))[0]
        present = torch.ones(len(groups), dtype=torch.bool)
        loss = contrastive_loss(
            embeds,
            other,
            present=present,
            group_ids=torch.tensor(groups),
            logit_scale=scale,
            logit_bias=bias,
            form="softmax",
        )
        return loss / len(groups)

    def audio_events(clips: Sequence[int], embeds: torch.Tensor) -> torch.Tensor:
        parts = [part_of(world.clips[clip]["beep_seconds"]) for clip in clips]
        return contrast([f"a beep sounds in part {ORDINALS[n]}" for n in parts], embeds, parts, "contrastive_ta")

    train = [n for n, clip in enumerate(world.clips) if clip["split"] == "train"][NUM_HELD_BACK:]
    training = Training(model.parameters(), 3e-3, AUDIO_STEPS)
    for clips, _ in batches(train, AUDIO_STEPS, seed, TOWER_BATCH):
        loss = audio_events(clips, embed("audio", clips))
        training.step(loss)
    print(f"towers {seed}: sound events {loss.item():.3f}", flush=True)
    training = Training(model.parameters(), 2e-3, CAPTION_STEPS)
    for step, (clips, generator) in enumerate(batches(train, CAPTION_STEPS, seed + 1000, TOWER_BATCH)):
        audio_embeds, video_embeds = embed("audio", clips), embed("video", clips)
        captions = [world.captions[clip][int(generator.integers(3))] for clip in clips]
        losses = [
            audio_events(clips, audio_embeds),
            contrast(captions, audio_embeds, clips, "contrastive_ta"),
            contrast(captions, video_embeds, clips, "contrastive_tv"),
        ]
        training.step(torch.stack(losses).sum())
        if step % 100 == 99:
            print(f"towers {seed}: step {step + 1} {[round(value.item(), 3) for value in losses]}", flush=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


@torch.no_grad()
def run_towers(world: World, path: Path) -> dict[str, list[torch.Tensor]]:
    """Return, for each clip modality, the tokens `(clips, steps, 96)` of all clips, one per moment, masks, times."""
    towers = MultimodalForRetrieval.from_pretrained(path).eval().multimodal
    result = {}
    for modality in ("audio", "video"):
        encoder, parts = towers.encoder(modality), []
        for begin in range(0, len(world.inputs["video_mask"]), 256):
            output = towers.encode(modality, {k: v[begin : begin + 256] for k, v in world.inputs.items()})
            num_tokens = output.mask.shape[1]
            steps = encoder.time_steps(num_tokens)
            parts.append(pool_time_steps(output, steps, num_tokens // encoder.tokens_per_step))
        tokens, mask, seconds = (torch.cat([part[n] for part in parts]) for n in range(3))  # windows, one by one
        seconds = seconds + WINDOW_SECONDS * (torch.arange(len(seconds)) % world.num_windows)[:, None]
        by_clip = (len(world.clips), -1)
        result[modality] = [
            tokens.reshape(*by_clip, tokens.shape[-1]),
            mask.reshape(by_clip),
            seconds.reshape(by_clip),
        ]
    return result


# ---- The designs ----
class LateFusion(Crossformer):
    """Pooled towers and an MLP instead of a crossformer, with the same inputs.

    Args:
        config (`PreTrainedConfig`): Configuration of the crossformer that it replaces.
        token_sizes (`dict`): As in [`Crossformer`].
        num_parameters (`int`): Approximate number of parameters; the MLP over the pooled tokens uses the rest.
    """

    def __init__(self, config: Any, *, token_sizes: dict, num_parameters: int):
        single = type(config)(**{**config.to_dict(), "num_hidden_layers": 0})
        super().__init__(single, form="merge", token_sizes=token_sizes)
        size = config.hidden_size
        self.token_mlps = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
                for m in ("audio", "video")
            }
        )
        width = (num_parameters - sum(p.numel() for p in self.parameters())) // (4 * size)
        self.mlp = nn.Sequential(nn.LayerNorm(3 * size), nn.Linear(3 * size, width), nn.GELU(), nn.Linear(width, size))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=config.initializer_range)
                nn.init.zeros_(layer.bias)

    def encode_clip(self, clip: Clip) -> Clip:
        return {m: Stream(self.token_mlps[m](stream.states), stream.mask) for m, stream in clip.items()}

    def clip_side(self, embedded: Clip, encoded: Clip) -> Clip:
        return {m: Stream(masked_mean(*stream)[:, None], stream.mask[:, :1]) for m, stream in encoded.items()}

    def fuse(self, text: Stream, clip: Clip, num_queries: int | None = None) -> torch.Tensor:
        pooled = [masked_mean(*text), *(clip[m].states[:, 0] for m in ("audio", "video"))]
        return self.mlp(torch.cat(pooled, dim=-1))[:, None]


class Data(NamedTuple):
    """The training data of a design: a world and its clips' tokens."""

    world: World
    tokens: dict[str, list[torch.Tensor]]
    tokenizer: PreTrainedTokenizerBase


def build(model_class: type, design: str, towers: Path, data: Data, **settings: Any) -> nn.Module:
    """Build a model with the trained text tower and a new fusion of the design, without clip towers."""
    form = DESIGNS[design][0]
    config = new_config(data.tokenizer, fusion_form="merge" if form == "late" else form, **settings)
    model = model_class(config)
    taught = MultimodalForRetrieval.from_pretrained(towers).multimodal
    model.multimodal.text_encoder.load_state_dict(taught.text_encoder.state_dict())
    if form == "late":
        sizes = dict.fromkeys(("text", "audio", "video"), config.crossformer_config.hidden_size)
        largest = Crossformer(config.crossformer_config, form="co_attention", token_sizes=sizes)
        budget = sum(p.numel() for p in largest.parameters())
        model.multimodal.fusion = LateFusion(config.crossformer_config, token_sizes=sizes, num_parameters=budget)
    model.multimodal.audio_encoder = model.multimodal.video_encoder = None
    return model.train()


class Shown(NamedTuple):
    """The audio of one clip combined with the video of one, in some windows."""

    audio: int
    video: int
    windows: range


def clip_side(model: nn.Module, design: str, data: Data, shown: Sequence[Shown]) -> tuple[torch.Tensor, Clip]:
    """Return embeddings of what is shown, with the same number of windows each, and the inputs of the fusion."""
    base = model.multimodal
    embedded = {}
    for modality in DESIGNS[design][1]:
        clips = torch.tensor([getattr(one, modality) for one in shown])[:, None]
        windows = torch.tensor([list(one.windows) for one in shown])
        parts = [part.unflatten(1, (data.world.num_windows, -1))[clips, windows] for part in data.tokens[modality]]
        embedded[modality] = base.fusion.embed(modality, *(part.flatten(1, 2) for part in parts))
    encoded = base.fusion.encode_clip(embedded)
    return base.embed_clip(encoded), base.fusion.clip_side(embedded, encoded)


def text_side(model: nn.Module, data: Data, texts: Sequence[str]) -> tuple[torch.Tensor, Stream]:
    """Return embeddings of texts and the inputs of the fusion; equal texts run once."""
    unique = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(unique)}
    rows = torch.tensor([place[text] for text in texts])
    embeds, stream = model.multimodal.encode_text(tokens_of(data.tokenizer, unique))
    return embeds[rows], stream.select(rows)


Question = tuple[Shown, str, str, str]


def learn_questions(design: str, towers: Path, data: Data, seed: int, learning_rate: float) -> dict[str, Any]:
    """Train a design on questions, and return whether each held-back and held-out question is answered, by kind."""
    torch.manual_seed(seed)
    world = data.world
    whole = range(world.num_windows)
    train: dict[int, dict[str, tuple[str, str, str]]] = defaultdict(dict)
    for clip, *question in world.questions["train"]:
        train[clip][question[2]] = tuple(question)
    for clip, own in train.items():
        own["sound event"] = audio_event(world.clips[clip])
    clips = sorted(train)
    held_back, clips = (
        [(Shown(clip, clip, whole), *question) for clip in clips[:NUM_HELD_BACK] for question in train[clip].values()],
        clips[NUM_HELD_BACK:],
    )
    answers = sorted({answer for own in train.values() for _, answer, _ in own.values()})
    label = {answer: number for number, answer in enumerate(answers)}
    model = build(
        MultimodalForQuestionAnswering, design, towers, data, label2id=label, id2label=dict(enumerate(answers))
    )

    def ask(video: int, num_windows: int, kinds: Sequence[str], generator: np.random.Generator) -> list[Question]:
        """Return questions about a video with matching audio, shown in windows, one of which contains the beep."""
        background = None
        while background is None:
            audio = clips[int(generator.integers(len(clips)))]
            background = background_at_beep(world.clips[video], world.clips[audio])
        window = int(world.clips[audio]["beep_seconds"] / WINDOW_SECONDS)
        first = generator.integers(max(0, window - num_windows + 1), min(window, len(whole) - num_windows) + 1)
        shown = Shown(audio, video, range(first, first + num_windows))
        own = {**train[audio], "video": train[video]["video"]}
        own["joint"] = (own["joint"][0], background, "joint")
        return [(shown, *own[kind]) for kind in kinds]

    def logits(questions: Sequence[Question]) -> torch.Tensor:
        shown = list(dict.fromkeys(one for one, *_ in questions))
        place = {one: number for number, one in enumerate(shown)}
        rows = torch.tensor([place[one] for one, *_ in questions])
        clip = clip_side(model, design, data, shown)[1]
        text = text_side(model, data, [question for _, question, *_ in questions])[1]
        return model.answer_logits(text, {m: stream.select(rows) for m, stream in clip.items()})

    @torch.no_grad()
    def right(questions: Sequence[Question]) -> list[bool]:
        model.eval()
        chosen = [
            n for b in range(0, len(questions), 512) for n in logits(questions[b : b + 512]).argmax(dim=1).tolist()
        ]
        model.train()
        return [answers[number] == answer for number, (_, _, answer, _) in zip(chosen, questions, strict=True)]

    def by_kind(questions: Sequence[Question]) -> dict[str, float]:
        results = defaultdict(list)
        for is_right, question in zip(right(questions), questions, strict=True):
            results[question[3]].append(is_right)
        return {kind: float(np.mean(values)) for kind, values in results.items()}

    parts = [min(n, len(whole)) for n, steps in EVENT_STEPS.items() if n <= max(2, len(whole)) for _ in range(steps)]
    stages = [[(n, ("joint", "sound event")) for n in parts], [(len(whole), KINDS)] * QUESTION_STEPS]
    curve = []
    for number, stage in enumerate(stages):
        training = Training([p for p in model.parameters() if p.requires_grad], learning_rate, len(stage))
        for step, (batch, generator) in enumerate(batches(clips, len(stage), seed + 1000 * number, QUESTION_BATCH)):
            questions = [question for clip in batch for question in ask(clip, *stage[step], generator)]
            loss = F.cross_entropy(logits(questions), torch.tensor([label[answer] for _, _, answer, _ in questions]))
            training.step(loss)
            if step % 100 == 99:
                curve.append({"stage": number, "step": step + 1, "loss": loss.item(), **by_kind(held_back)})
                print(design, world.num_windows, seed, learning_rate, curve[-1], flush=True)
    test = [(Shown(clip, clip, whole), *question) for clip, *question in world.questions["validation"]]
    return {
        "parameters": sum(p.numel() for p in model.multimodal.fusion.parameters()),
        "curve": curve,
        "held_back": by_kind(held_back),
        "right": right(test),
        "kinds": [kind for *_, kind in test],
        "families": [world.clips[shown.video]["id"].rsplit("_", 2)[0] for shown, *_ in test],
    }


def learn_retrieval(design: str, towers: Path, data: Data, seed: int, learning_rate: float) -> dict[str, Any]:
    """Train a design on retrieval, and return whether each caption of the 256 validation clips, 16 videos by 16 audio
    tracks, ranks its clip first: by cosine, and by matching among the first twenty."""
    torch.manual_seed(seed)
    world = data.world
    model = build(MultimodalForRetrieval, design, towers, data)
    base = model.multimodal
    clips = [number for number, clip in enumerate(world.clips) if clip["split"] == "train"]
    held_back, clips = clips[:NUM_HELD_BACK], clips[NUM_HELD_BACK:]

    def whole(chosen: Sequence[int]) -> list[Shown]:
        return [Shown(clip, clip, range(world.num_windows)) for clip in chosen]

    @torch.no_grad()
    def ranked_first(shown: Sequence[int]) -> dict[str, list[bool]]:
        model.eval()
        text_embeds, text = text_side(model, data, [world.captions[clip][0] for clip in shown])
        clip_embeds, clip = clip_side(model, design, data, whole(shown))
        scores = text_embeds @ clip_embeds.T
        candidates = scores.topk(min(20, len(shown)), dim=1).indices
        matching = []
        for row, chosen in enumerate(candidates):
            repeated = text.select(torch.full((len(chosen),), row))
            logits = model.matching_logits(repeated, {m: stream.select(chosen) for m, stream in clip.items()})
            matching.append(bool(chosen[logits.softmax(dim=1)[:, 1].argmax()] == row))
        model.train()
        return {"cosine": (scores.argmax(dim=1) == torch.arange(len(shown))).tolist(), "matching": matching}

    training = Training([p for p in model.parameters() if p.requires_grad], learning_rate, RETRIEVAL_STEPS)
    for batch, generator in batches(clips, RETRIEVAL_STEPS, seed, RETRIEVAL_BATCH):
        texts = [world.captions[clip][int(generator.integers(3))] for clip in batch]
        text_embeds, text = text_side(model, data, texts)
        clip_embeds, clip = clip_side(model, design, data, whole(batch))
        present, groups = torch.ones(len(batch), dtype=torch.bool), torch.tensor(batch)
        scale = base.scale_and_bias("contrastive_tav")[0]
        contrast = contrastive_loss(
            text_embeds,
            clip_embeds,
            present=present,
            group_ids=groups,
            logit_scale=scale,
            logit_bias=None,
            form="softmax",
        )
        matching = matching_loss(
            model.matching_logits,
            text,
            clip,
            text_embeds=text_embeds,
            clip_embeds=clip_embeds,
            has_text=present,
            has_clip=present,
            logit_scale=scale,
            hard_negative_ratio=model.config.hard_negative_ratio,
            batch={
                "group_ids": groups,
                "text_ids": groups,
                "match_aligned": torch.from_numpy(generator.random(len(batch)) < 0.5),
                "match_uniform": torch.from_numpy(generator.random(len(batch)).astype(np.float32)),
            },
        )[0]
        training.step((contrast + matching) / len(batch))
    shown = [number for number, clip in enumerate(world.clips) if clip["split"] == "validation"]
    test = ranked_first(shown)
    own = ranked_first(held_back)
    return {
        "parameters": sum(p.numel() for p in base.fusion.parameters()),
        "held_back": {name: float(np.mean(values)) for name, values in own.items()},
        "right": test["cosine"] + test["matching"],
        "kinds": ["cosine"] * len(shown) + ["matching"] * len(shown),
        "families": [world.clips[n]["id"].rpartition("_")[0] for n in shown] * 2,
    }


# ---- The study ----
TASKS = {"questions": learn_questions, "retrieval": learn_retrieval}


class Run(NamedTuple):
    task: str
    num_segments: int
    seed: int
    design: str
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.task}_{self.num_segments}_{self.seed}_{self.design}_{self.learning_rate:g}.json"


def do(run: Run, work: Path) -> dict[str, Any]:
    """Return the result of a run, from its file if it is finished."""
    path = work / "runs" / run.name
    if not path.exists():
        world = load_world(work / f"world_{run.num_segments}")
        towers = work / f"towers_{run.seed}"
        tokens = torch.load(work / f"tokens_{run.num_segments}_{run.seed}.pt")
        data = Data(world, tokens, AutoTokenizer.from_pretrained(towers))
        result = TASKS[run.task](run.design, towers, data, run.seed, run.learning_rate)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result), encoding="utf-8")
        temporary.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def make_towers(seed: int, num_segments: Sequence[int], work: Path) -> None:
    towers = work / f"towers_{seed}"
    if not (towers / "tokenizer.json").exists():  # written last
        teach_towers(load_world(work / f"world_{WINDOW_SEGMENTS}"), seed, towers)
    for number in num_segments:
        path = work / f"tokens_{number}_{seed}.pt"
        if not path.exists():
            torch.save(run_towers(load_world(work / f"world_{number}"), towers), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)


def best_rates(tuning: dict[Run, dict]) -> dict[tuple[str, str], float]:
    """Return, for each task and design, the learning rate with the best mean over the kinds of held-back questions."""

    def quality(run: Run) -> float:
        held_back = tuning[run]["held_back"]
        return float(np.mean([held_back[kind] for kind in held_back if kind != "sound event"]))

    best: dict[tuple[str, str], Run] = {}
    for run in tuning:
        key = run.task, run.design
        if key not in best or quality(run) > quality(best[key]):
            best[key] = run
    return {key: run.learning_rate for key, run in best.items()}


def summary(results: dict[Run, dict]) -> list[dict[str, Any]]:
    """Return, per task, number of segments, kind and design, each seed's accuracy, and the paired difference from late
    fusion with its 95 % interval, resampled by family of clips, averaged over seeds."""
    rows = []
    keys = sorted({(run.task, run.num_segments) for run in results})
    for task, num_segments in keys:
        of_design = defaultdict(dict)
        for run, result in results.items():
            if (run.task, run.num_segments) == (task, num_segments):
                of_design[run.design][run.seed] = result
        for kind in KINDS if task == "questions" else ("cosine", "matching"):
            right = {}
            for design, by_seed in of_design.items():
                some = next(iter(by_seed.values()))
                chosen = np.array(some["kinds"]) == kind
                families = np.array(some["families"])[chosen]
                right[design] = np.array([np.array(result["right"])[chosen] for _, result in sorted(by_seed.items())])
            for design in DESIGNS:
                if design not in right:
                    continue
                row = {"task": task, "segments": num_segments, "kind": kind, "design": design}
                row |= {"seeds": right[design].mean(axis=1).round(4).tolist(), "mean": float(right[design].mean())}
                row["parameters"] = next(iter(of_design[design].values()))["parameters"]
                if design != "late" and "late" in right and len(right["late"]) == len(right[design]):
                    change = right[design].mean(axis=0) - right["late"].mean(axis=0)
                    low, high = bootstrap_interval(change, resampled_mean, groups=families)
                    row |= {"over_late": float(change.mean()), "interval": [low, high]}
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_segments", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--work", type=Path, default=Path("outputs/fusion"))
    parser.add_argument("--num_processes", type=int, default=2)
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    for number in sorted({WINDOW_SEGMENTS, *options.num_segments}):
        make_world(work, number)
    with ProcessPoolExecutor(options.num_processes, mp_context=get_context("spawn")) as pool:
        towers = [pool.submit(make_towers, seed, options.num_segments, work) for seed in options.seeds]
        for future in towers:
            future.result()

        def do_all(runs: list[Run]) -> dict[Run, dict]:
            return dict(zip(runs, pool.map(do, runs, [work] * len(runs)), strict=True))

        first = options.num_segments[0]
        tuning = do_all(
            [
                Run(task, first, options.seeds[0], design, rate)
                for task in options.tasks
                for design in options.designs
                for rate in LEARNING_RATES
            ]
        )
        rates = best_rates(tuning)
        results = do_all(
            [
                Run(task, number, seed, design, rates[task, design])
                for task in options.tasks
                for seed in options.seeds
                for number in (options.num_segments if task == "questions" else [first])
                for design in options.designs
                if number == first or len(DESIGNS[design][1]) == 2
            ]
        )
    rows = summary(results)
    for row in rows:
        over = (
            f"{row['over_late']:+.3f} [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]"
            if "interval" in row
            else ""
        )
        print(
            f"{row['task']:9} {row['segments']:3} {row['kind']:9} {row['design']:15} {row['mean']:.3f} "
            f"{' '.join(f'{value:.3f}' for value in row['seeds'])}  {over}"
        )
    common.save(
        "fusion",
        {
            "rows": rows,
            "learning_rates": {" ".join(key): rate for key, rate in rates.items()},
            "held_back": {run.name: result["held_back"] for run, result in {**tuning, **results}.items()},
            "curves": {run.name: result["curve"] for run, result in results.items() if "curve" in result},
        },
    )


if __name__ == "__main__":
    main()
