"""Every task, with its objectives on and off, plain and adapted, trains on several processes as it does on one."""

import pytest
import torch

from tests.models.grid_worker import (
    ADAPTATIONS,
    CELLS,
    GRID,
    IMPOSSIBLE,
    NUM_PROCESSES,
    TASKS,
    Cell,
    build,
    gradients_of,
    run,
)
from tests.processes import launch


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """Return the gradients of each of two processes after two steps of every cell."""
    folder = tmp_path_factory.mktemp("grid")
    ended = launch(NUM_PROCESSES, run, folder)
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(NUM_PROCESSES)]


def test_only_reconstruction_of_features_is_impossible():
    impossible = {str(cell) for cell in GRID if cell not in CELLS}
    assert impossible == {
        f"{task}; features; {checkpoints}"
        for task in ("pre-training, all", "pre-training, some", "pre-training, audio")
        for checkpoints in ("checkpoints", "no checkpoints")
    }
    assert set(IMPOSSIBLE) < set(TASKS) and len(GRID) == len(TASKS) * len(ADAPTATIONS) * 2


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_two_processes_have_the_gradients_of_one(results, cell):
    model, batch = build(cell)
    model(**batch).loss.backward()
    expected = gradients_of(model)
    assert expected.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for found in results:
        assert not isinstance(found[str(cell)], str), found[str(cell)]
        assert found[str(cell)].keys() == expected.keys()
        for name, gradient in expected.items():
            # Sums over halves of a batch round differently than those over all of it, by some units in the last place.
            torch.testing.assert_close(found[str(cell)][name], gradient, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("task", "unreached"),
    [
        ("pre-training, all", set()),
        ("ALPRO retrieval, all", set()),
        ("ALPRO question answering", set()),
        ("ALPRO retrieval, matching", {"temperature", "text_projection", "video_projection"}),
        ("question answering", {"embedding_projections", "logit_scale", "fusion"}),
        ("classification, one label", {"embedding_projections", "logit_scale"}),
        ("retrieval, contrast", {"embedding_projections", "audio_encoder", "fusion"}),
    ],
)
def test_parameters_that_no_gradient_reaches_are_frozen(task, unreached):
    model, _ = build(Cell(task, "plain", checkpointing=False))
    frozen = {name.removeprefix("multimodal.") for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == unreached
    if task == "question answering":  # its last layer only computes the text
        stacks = {tuple(name.split(".")[1:4]) for name in frozen if name.startswith("fusion.stacks")}
        assert stacks == {("stacks", "audio", "1"), ("stacks", "video", "1")}


def test_freezing_unreached_parameters_changes_nothing_else():
    cell = Cell("retrieval, some", "plain", checkpointing=False)
    model, batch = build(cell)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    assert model.freeze_unreached(batch) == []  # `build` has frozen them
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_model_without_any_reached_parameter_is_refused():
    model, batch = build(Cell("retrieval, matching", "plain", checkpointing=False))
    model.requires_grad_(False)
    model.multimodal.logit_scale.requires_grad_()
    with pytest.raises(ValueError, match="nothing to train"):
        model.freeze_unreached(batch)
