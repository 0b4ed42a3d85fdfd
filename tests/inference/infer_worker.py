"""The command line with small parts, written at once; `KILL_AT="pairs 5"` kills it before part 5 is kept."""

import os
import signal
import sys

import torch.distributed as dist

from simple_multimodal.cli import main
from simple_multimodal.inference import partial, pipeline

KILL_AT = os.environ.get("KILL_AT", "nowhere 0").split()


class KilledPartial(partial.Partial):
    def add(self, number, rows):
        if [self.stage, str(number)] == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        super().add(number, rows)


pipeline.PAIRS_PER_BATCH = 4
pipeline.Partial = KilledPartial
partial.SECONDS_BETWEEN_FILES = 0

if __name__ == "__main__":
    code = main()
    assert not dist.is_initialized()
    sys.exit(code)
