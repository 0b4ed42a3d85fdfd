"""Commands that are killed before they keep a part of their work, each in a process of its own."""

import os
import signal
import sys

import torch.distributed as dist

from simple_multimodal.cli import main
from simple_multimodal.data.store import ClipStore
from simple_multimodal.inference import partial, pipeline


def infer_in_parts(argv: list[str], kill_at: str = "nowhere") -> None:
    """Run `simple-multimodal infer` in small parts, written at once; "pairs 5" kills it before that part is kept."""

    class KilledPartial(partial.Partial):
        def add(self, number, rows):
            if f"{self.stage} {number}" == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            super().add(number, rows)

    pipeline.PAIRS_PER_BATCH = 4
    pipeline.Partial = KilledPartial
    partial.SECONDS_BETWEEN_FILES = 0
    code = main(["infer", *argv])
    assert not dist.is_initialized()
    sys.exit(code)


def features_until_the_second_shard(argv: list[str]) -> None:
    """Run `simple-multimodal features`, and kill it before it writes its second shard."""
    plain = ClipStore.append

    def killed(store, number, clips):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(store, number, clips)

    ClipStore.append = killed
    main(["features", *argv])
