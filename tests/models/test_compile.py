"""`torch.compile` makes one graph of a model, and no new one for every text length."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.models.alpro import tiny as alpro
from tests.models.distributed_worker import CASES, gradients_of
from tests.models.tiny import ROWS, Row, make_batch, naming_windows, tiny_config


@pytest.fixture(autouse=True)
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(model, forward, batch: dict[str, torch.Tensor], **settings) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = forward(**batch, **settings).loss
    loss.backward()
    return loss.detach(), gradients_of(model)


@pytest.mark.parametrize(
    ("case", "text"),
    [("merge", "deberta"), *(pytest.param(case, "bert", marks=pytest.mark.slow) for case in ("pooled", "shared"))],
)
def test_all_objectives_compile_to_one_graph(case, text):
    torch.manual_seed(0)
    model = MultimodalForPreTraining(tiny_config(**CASES[case], text=text)).train()
    batch = naming_windows(make_batch())
    settings = {"num_items": model.count_items(batch)}
    expected = step(model, model, batch, **settings)
    counter = CompileCounter()
    found = step(model, torch.compile(model, backend=counter, fullgraph=True), batch, **settings)
    torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("left_out", [("mam", "mvm"), pytest.param((), marks=pytest.mark.slow)])
def test_other_text_lengths_and_window_counts_do_not_recompile(left_out):
    off = {f"{name}_loss_weight": 0.0 for name in left_out}
    model = MultimodalForPreTraining(tiny_config(**CASES["cross_attention"], **off)).train()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for words, windows in ((9, 2), (12, 3), (15, 4), (20, 5)):
        rows = [*ROWS, Row(9, num_windows=windows)]
        compiled(**naming_windows(make_batch(rows, num_words=words)))
    assert counter.frame_count == 2  # one for the sizes of the first batch, and one for all others


def test_question_answering_compiles_to_one_graph():
    model = MultimodalForQuestionAnswering(tiny_config(num_labels=3)).train()
    batch = {**naming_windows(make_batch()), "labels": torch.tensor([0, 1, -1, 2, 0, 1])}
    torch.compile(model, backend="eager", fullgraph=True)(**batch).loss.backward()


def test_alpro_compiles_to_one_graph():
    torch.compile(alpro.build().train(), backend="eager", fullgraph=True)(**alpro.make_batch()).loss.backward()
