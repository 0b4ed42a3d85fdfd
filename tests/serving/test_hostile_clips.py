"""The media of the corpus of hostile inputs, each as a request among honest ones."""

import asyncio
import os
import sys
from itertools import chain

import pytest

from tests.faults.corpus import _media
from tests.faults.hostile import Listener
from tests.serving.asgi import refused
from tests.serving.test_app import run
from tests.serving.test_gate import FORM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs processes that may crash")
MAX_BYTES = 10**6  # others, with holes, are larger than any body
STATUSES = {"reads": {200}, "refused": {422}, "either": {200, 422}}


def test_hostile_clips_cost_their_own_request(client, service, files, clips, tmp_path, index_dir):
    """Refused with a reason without a path; no process is lost, nothing is written, and no URL is opened."""
    listener = Listener()
    media = _media(tmp_path / "media", f"127.0.0.1:{listener.port}", True)
    cases = [case for case in media if case.is_quick and case.path.is_file() and case.path.stat().st_size < MAX_BYTES]
    readers = service.models["actions"].readers
    honest = ("data", files["1.mp4"])
    before = readers.num_restarts, readers.num_lost, sorted(index_dir.rglob("*"))

    async def ask_all():
        room = asyncio.Semaphore(8)

        async def ask(content):
            async with room:
                return await client.form(FORM, ("data", content), ("text", "two dogs"))

        contents = chain.from_iterable((case.path.read_bytes(), honest[1]) for case in cases)
        return await asyncio.gather(*map(ask, contents))

    answers = run(ask_all())
    wrong = []
    for case, answer in zip(cases, answers[::2], strict=True):
        # Here a file without video is audio.
        if case.name != "media/audio_as_video" and answer.status not in STATUSES[case.expected]:
            wrong.append((case.name, answer.status, answer.body))
        if answer.status == 422:
            reason = refused(answer, 422)
            assert str(tmp_path) not in reason and str(service.uploads.path) not in reason
    assert wrong == []
    assert {answer.status for answer in answers[1::2]} == {200}
    assert len({answer.body for answer in answers[1::2]}) <= 16  # scores may differ in the last digit by batch
    assert (readers.num_restarts, readers.num_lost, sorted(index_dir.rglob("*"))) == before
    assert listener.connections == 0
    assert not os.listdir(service.uploads.path)
    assert len(cases) > 40
