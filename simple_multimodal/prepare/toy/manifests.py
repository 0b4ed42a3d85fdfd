"""The manifests of the toy world: captions, questions, pairs of clips, and the ground truth of each clip."""

from pathlib import Path

from simple_multimodal.prepare.toy.clips import ToyClip
from simple_multimodal.prepare.toy.folder import write_rows
from simple_multimodal.prepare.toy.media import FRAMES_PER_SECOND, toy_generator

WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "red": ("red", "scarlet"),
    "green": ("green", "lime"),
    "blue": ("blue", "cobalt"),
    "yellow": ("yellow", "golden"),
    "magenta": ("magenta", "pink"),
    "cyan": ("cyan", "turquoise"),
    "circle": ("circle", "disc"),
    "cross": ("cross", "plus sign"),
    "bar": ("bar", "beam"),
    "pillar": ("pillar", "column"),
    "left": ("moves left", "drifts leftwards", "goes to the left"),
    "right": ("moves right", "drifts rightwards", "goes to the right"),
    "up": ("moves up", "rises", "goes upwards"),
    "down": ("moves down", "sinks", "goes downwards"),
    "low": ("low", "deep"),
    "middle": ("middle", "medium"),
    "high": ("high", "shrill"),
    "slow": ("slow", "leisurely"),
    "steady": ("steady", "moderate"),
    "fast": ("fast", "rapid"),
    "pure": ("pure", "smooth"),
    "buzzing": ("buzzing", "rasping"),
    "noisy": ("noisy", "hissing"),
}
CAPTIONS = (
    "a {size} {colour} {shape} {motion} while {rhythm} {pitch} {timbre} notes play",
    "{rhythm} {timbre} notes, {pitch} in pitch, as a {size} {colour} {shape} {motion}",
    "a {colour} {shape}, {size}, {motion} to a {rhythm} melody of {pitch} {timbre} tones",
    "we hear {pitch} {timbre} tones at a {rhythm} pace and see a {size} {colour} {shape} that {motion}",
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "size": ("how big is the moving object?", "what size is the shape?"),
    "colour": ("what colour is the shape?", "what colour is the moving object?"),
    "shape": ("what shape is moving?", "what shape do you see?"),
    "motion": ("which way does the shape move?", "in what direction does the object go?"),
    "pitch": ("how high are the notes?", "what is the pitch of the melody?"),
    "rhythm": ("how fast are the notes?", "what is the pace of the melody?"),
    "timbre": ("what do the notes sound like?", "what timbre do the tones have?"),
    "background": ("what is the background when the beep sounds?", "which background do you see during the beep?"),
}


def write_manifests(output_dir: Path, clips: dict[str, list[ToyClip]], num_pairs: int, seed: int) -> None:
    """
    Write all manifests of a world, see `docs/toy_world.md`.

    Args:
        output_dir (`Path`): Folder of the world.
        clips (`dict[str, list[ToyClip]]`): Its clips by split, from [`draw_clips`].
        num_pairs (`int`): Maximum number of pairs of validation clips, of either kind.
        seed (`int`): Seed of the world.
    """
    train, validation, questions = clips["train"], clips["validation"], clips["questions"]
    write_rows(output_dir / "train.jsonl", [_row(clip, _captions(clip, 3, seed)) for clip in train])
    captions = {clip.id: _captions(clip, 1, seed) for clip in validation}
    write_rows(output_dir / "validation.jsonl", [_row(clip, captions[clip.id]) for clip in validation])
    for modality in ("audio", "video"):
        pairs = _pairs(validation, modality, num_pairs, seed)
        write_rows(
            output_dir / f"{modality}_pairs.jsonl",
            [
                {
                    "a": a.id,
                    "b": b.id,
                    "a_swapped": _swapped(a, b, modality)["id"],
                    "b_swapped": _swapped(b, a, modality)["id"],
                    "num_different_attributes": _num_different(a, b),
                }
                for a, b in pairs
            ],
        )
        both_ways = [clips for a, b in pairs for clips in ((a, b), (b, a))]
        write_rows(
            output_dir / f"validation_{modality}_swapped.jsonl",
            # The caption of b describes a with the audio (video) of b, since the rest is the same in both.
            [_swapped(a, b, modality) | {"caption": captions[b.id][0]} for a, b in both_ways],
        )
    for split, own in (("train", train), ("validation", validation)):
        write_rows(output_dir / f"{split}_actions.jsonl", [_label_row(clip) for clip in own])
    write_rows(output_dir / "train_questions.jsonl", _question_rows(train, seed))
    write_rows(output_dir / "validation_questions.jsonl", _question_rows(questions, seed))
    write_rows(output_dir / "clips.jsonl", [_truth(clip) for clip in train + validation + questions])


def _captions(clip: ToyClip, count: int, seed: int) -> list[str]:
    generator = toy_generator(seed, f"captions {clip.id}")
    captions = []
    for template in generator.permutation(CAPTIONS)[:count]:
        words = {name: str(generator.choice(WORDS[value])) for name, value in clip.attributes.items()}
        captions.append(str(template).format(**words))
    return captions


def _row(clip: ToyClip, captions: list[str]) -> dict[str, object]:
    text = {"captions": captions} if clip.split == "train" else {"caption": captions[0]}
    return {"id": clip.id, "video": clip.path, **text, "group": "-".join(clip.combination)}


def _label_row(clip: ToyClip) -> dict[str, object]:
    return {"id": clip.id, "video": clip.path, "labels": list(clip.combination), "group": "-".join(clip.combination)}


def _num_different(a: ToyClip, b: ToyClip) -> int:
    return sum(first != second for first, second in zip(a.combination, b.combination, strict=True))


def _pairs(clips: list[ToyClip], modality: str, count: int, seed: int) -> list[tuple[ToyClip, ToyClip]]:
    """Sample pairs of clips that differ only in the audio, or only in the video."""
    generator = toy_generator(seed, f"{modality} pairs")
    near: list[tuple[ToyClip, ToyClip]] = []
    far: list[tuple[ToyClip, ToyClip]] = []
    for n in generator.permutation(len(clips) ** 2):
        first, second = divmod(int(n), len(clips))
        if first < second:
            a, b = clips[first], clips[second]
            if a.video == b.video if modality == "audio" else a.audio == b.audio:
                pair = (a, b) if generator.random() < 0.5 else (b, a)
                (near if _num_different(a, b) == 1 else far).append(pair)
    num_near = max(count // 2, count - len(far))
    return [*near[:num_near], *far[: count - min(num_near, len(near))]]


def _swapped(clip: ToyClip, other: ToyClip, modality: str) -> dict[str, object]:
    """Return the manifest row of a clip with the audio (or the video) of another."""
    seen, heard = (clip, other) if modality == "audio" else (other, clip)
    combination = ToyClip("", "", seen.video, heard.audio).combination
    return {
        "id": f"{clip.id}+{modality}+{other.id}",
        "video": seen.path,
        "audio": heard.path,
        "group": "-".join(combination),
    }


def _question_rows(clips: list[ToyClip], seed: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for clip in clips:
        for kind, (attribute, answer) in clip.answers.items():
            question = str(toy_generator(seed, f"{kind} question {clip.id}").choice(QUESTIONS[attribute]))
            rows.append(
                {
                    "id": f"{clip.id}_{kind}",
                    "video": clip.path,
                    "question": question,
                    "answer": answer,
                    "answer_type": kind,
                    "group": clip.id,
                }
            )
    return rows


def _truth(clip: ToyClip) -> dict[str, object]:
    return {
        "id": clip.id,
        "split": clip.split,
        "video": clip.path,
        **clip.attributes,
        "backgrounds": list(clip.video.backgrounds),
        "switch_seconds": [frame / FRAMES_PER_SECOND for frame in clip.video.switches],
        "beep_seconds": clip.audio.beep_seconds,
    }
