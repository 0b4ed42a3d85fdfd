"""Preview of a row for people: frames that a model sees or a skeleton, and the first seconds of its audio."""

import numpy as np

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import Row
from simple_multimodal.data.skeletons import draw_skeletons
from simple_multimodal.media.audio import read_audio
from simple_multimodal.media.errors import NoAudioError
from simple_multimodal.modalities import INPUT_KEYS
from simple_multimodal.processing import MultimodalProcessor, PoseProcessor

PREVIEW_FRAMES = 4
PREVIEW_SECONDS = 3.0
PREVIEW_SAMPLING_RATE = 12_000  # in Hz; of the preview, not of the model input


class ClipPreview:
    """
    Reader of row previews.

    Args:
        collator ([`MultimodalCollator`]): Evaluation collator of the model. Modalities that it does not read, because
            the model lacks them or they are dropped, have no preview. It is not changed.
    """

    def __init__(self, collator: MultimodalCollator):
        modalities = set(collator.processor.modalities) - set(collator.drop_modalities)
        self.has_audio = "audio" in modalities
        self.index_dir = collator.index_dir
        self._poses: PoseProcessor | None = collator.processor.part("pose") if "pose" in modalities else None
        self._collator = None
        if "video" in modalities:
            # Read frames even if the model reads stored tokens instead.
            self._collator = MultimodalCollator(
                MultimodalProcessor(video_processor=collator.processor.video_processor),
                parallel=False,
                video_backend=collator.video_backend,
                decode_device=collator.decode_device,
                index_dir=collator.index_dir,
            )

    def frames(self, row: Row) -> np.ndarray | None:
        """Return a few frames as the model sees them, `uint8` of shape `(num_frames, height, width, 3)`; without video
        its skeleton at a few moments, see [`draw_skeletons`], or `None` if there is none either.
        """
        if self._collator is None or row["video"] is None:
            if self._poses is None:
                return None
            skeletons = draw_skeletons(row, num_moments=PREVIEW_FRAMES, person=self._poses.person)
            return None if skeletons is None else skeletons.frames
        frames = self._collator([row])[INPUT_KEYS["video"][0]][0]  # (frames, 3, height, width)
        places = np.linspace(0, len(frames) - 1, min(PREVIEW_FRAMES, len(frames))).astype(int)
        return frames[places].permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def audio(self, row: Row) -> np.ndarray | None:
        """Return the first seconds at `PREVIEW_SAMPLING_RATE`, `float32` of shape `(num_samples,)`, or `None` for a
        row without audio.
        """
        if not self.has_audio or row["audio"] is None:
            return None
        start, end = row["start_seconds"] or 0.0, row["end_seconds"]
        stop = start + PREVIEW_SECONDS if end is None else min(start + PREVIEW_SECONDS, end)
        try:
            return read_audio(
                row["audio"],
                PREVIEW_SAMPLING_RATE,
                start_seconds=start,
                end_seconds=stop,
                index_dir=self.index_dir,
            )
        except NoAudioError:
            return None
