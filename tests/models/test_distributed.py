"""One, two and three processes compute the same losses and gradients for the same global batch."""

import pytest
import torch

from simple_multimodal.models.distributed import (
    Ragged,
    RowExchange,
    first_row,
    gather_objects,
    gather_on_host,
    gather_rows,
    share_of,
    sum_over_processes,
)
from simple_multimodal.models.losses import contrastive_loss
from tests.closeness import assert_close
from tests.models.distributed_worker import (
    CASES,
    CHUNK_SIZES,
    CHUNKED_CASES,
    LOSSES_OF_SET,
    MATCHED,
    NUM_MATCHED,
    build,
    contrastive_set,
    gradients_of,
    host_columns,
    matched,
    run,
)
from tests.models.tiny import LACKING, ROWS, make_batch
from tests.processes import launch

worlds = pytest.mark.parametrize("world_size", [2, 3])
cases = pytest.mark.parametrize("case", [*CASES, *(f"{case}, lacking" for case in CASES)])


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[tuple[int, int], dict]:
    """Return the results of each process, by (number of processes, rank)."""
    folder = tmp_path_factory.mktemp("processes")
    ended = launch(3, run, folder)
    assert ended.returncode == 0, ended.stderr
    return {(size, rank): torch.load(folder / f"{size}_{rank}.pt") for size in (2, 3) for rank in range(size)}


@pytest.fixture(scope="module")
def expected() -> dict[str, dict]:
    """Return losses and gradients of one process that has all rows."""
    found = {}
    for case in CASES:
        for name, rows in ((case, ROWS), (f"{case}, lacking", LACKING)):
            model = build(case)
            output = model(**make_batch(rows))
            output.loss.backward()
            found[name] = {"loss": output.loss.detach(), "losses": output.losses, "gradients": gradients_of(model)}
            found[name]["logits"] = output.logits.detach()
    return found


def test_the_global_batch_covers_the_hard_cases():
    counts = build("merge").count_items(make_batch())
    assert counts["contrastive_av"] < counts["matching"] < len(ROWS)
    assert not make_batch()["match_aligned"].all()
    assert make_batch()["group_ids"].unique().numel() < len(ROWS)


def test_whole_processes_lack_modalities():
    shares = [make_batch(LACKING[begin : begin + 2]) for begin in (0, 2, 4)]
    has = [[bool(share[f"{name}_mask"].any()) for name in ("text", "audio", "video")] for share in shares]
    assert has == [[True, False, True], [True, True, False], [False, False, False]]


@worlds
@cases
def test_shares_of_the_losses_add_up(results, expected, world_size, case):
    ranks = [results[world_size, rank][case] for rank in range(world_size)]
    assert len({rank["windows"] for rank in ranks}) == 2  # unequal numbers of audio windows
    for name, value in expected[case]["losses"].items():
        assert_close(sum(rank["losses"][name] for rank in ranks), value)
    assert_close(sum(rank["loss"] for rank in ranks), expected[case]["loss"])
    batch = make_batch(LACKING if "lacking" in case else ROWS)
    counts = batch["text_mask"] & (batch["audio_mask"] | batch["video_mask"])  # others' logits depend on the padding
    logits = torch.cat([rank["logits"] for rank in ranks])
    assert_close(logits[counts], expected[case]["logits"][counts])  # the same hard negatives


@worlds
@cases
def test_gradients_add_up(results, expected, world_size, case):
    ranks = [results[world_size, rank][case]["gradients"] for rank in range(world_size)]
    assert_close({name: sum(rank[name] for rank in ranks) for name in ranks[0]}, expected[case]["gradients"])


@worlds
@cases
def test_gradients_under_distributed_data_parallel_equal_those_of_one_process(results, expected, world_size, case):
    for rank in range(world_size):
        assert_close(results[world_size, rank][case]["wrapped_gradients"], expected[case]["gradients"])


@worlds
def test_batch_normalisation_keeps_its_statistics(results, world_size):
    expected = dict(build("batch_norm").named_buffers())
    assert expected["multimodal.fusion.input_norm.running_mean"].abs().sum() > 1
    for rank in range(world_size):
        found = results[world_size, rank]["batch_norm"]["buffers"]
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.fixture(scope="module")
def whole() -> dict[str, dict]:
    """Return losses and gradients of one process that has both sets of rows in one batch."""
    found = {}
    for case in CHUNKED_CASES:
        model = build(case)
        output = model(**make_batch(ROWS + LACKING))
        output.loss.backward()
        found[case] = {"losses": output.losses, "metrics": output.metrics, "gradients": gradients_of(model)}
    return found


@worlds
@pytest.mark.parametrize("case", CHUNKED_CASES)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_chunks_of_every_process_give_the_gradient_of_one_large_batch(results, whole, world_size, case, chunk_size):
    ranks = [results[world_size, rank][f"{case}, chunks of {chunk_size}"] for rank in range(world_size)]
    for part in ("losses", "metrics"):
        for name, value in whole[case][part].items():
            assert_close(sum(rank[part][name] for rank in ranks), value)
    for rank, found in enumerate(ranks):
        assert_close(found["gradients"], whole[case]["gradients"])
        at_once = results[world_size, rank][f"{case}, chunks of None"]
        # Once for the batch and once for the two accumulated ones; this model fills one bucket.
        assert found["synchronised"] == at_once["synchronised"] == [0, 0]
        assert_close(found["accumulated"], at_once["accumulated"])


@worlds
def test_gathered_rows_are_in_the_order_of_ranks(results, world_size):
    for rank in range(world_size):
        found = results[world_size, rank]["gathering"]
        assert found["gathered"].tolist() == [
            [10 * owner + 2 * row, 10 * owner + 2 * row + 1] for owner in range(world_size) for row in range(2)
        ]
        assert found["first_row"] == 2 * rank
        assert found["mask"].dtype == torch.bool
        assert found["mask"].tolist() == [True, True] + [False, True] * (world_size - 1)
        assert found["ids"].tolist() == [2**62 + owner for owner in range(world_size)]
        assert found["sum"].tolist() == [world_size, sum(range(world_size))]
        assert found["mine"].tolist() == [1, rank]  # not changed in place


@worlds
def test_gradients_of_all_processes_flow_back_to_the_owner_of_a_row(results, world_size):
    total = sum(rank + 1 for rank in range(world_size))
    for rank in range(world_size):
        expected = [[total * (2 * rank + row + 1)] * 2 for row in range(2)]
        found = results[world_size, rank]["gathering"]
        assert found["gradient"].tolist() == expected
        assert found["bystander"].tolist() == [[(rank + 1) * (i + 1)] * 2 for i in range(2 * world_size)]


@worlds
def test_every_process_gets_the_rows_that_it_wants(results, world_size):
    for rank in range(world_size):
        found = results[world_size, rank]["exchange"]
        following, former = 10.0 * ((rank + 1) % world_size), (rank - 1) % world_size + 1
        other = [following + 2, following + 3]
        assert found["taken"].tolist() == [other, [10.0 * rank, 10.0 * rank + 1], other]
        assert found["gradient"].tolist() == [[10.0 * (rank + 1)] * 2, [101.0 * former] * 2, [0.0] * 2]
        assert found["largest"] == [world_size - 1, 7]


@worlds
@pytest.mark.parametrize("case", MATCHED)
def test_matching_takes_the_same_clips_in_any_number_of_processes(results, world_size, case):
    """Bit for bit, and so are their gradients: sampling uses the texts and groups of all processes."""
    expected = matched(0, 1, *MATCHED[case], num_lengths=world_size)
    ranks = [results[world_size, rank][case] for rank in range(world_size)]
    numbers = torch.cat([found["states"][:, 0, 0] for found in ranks]).int().tolist()
    for row, number in enumerate(numbers):
        assert (number == row) == (row % 5 == 0)
        if number != row:
            assert number // 2 != row // 2 and not {row, number} <= {0, 3, 5, 7, 9, 11}  # other clips, other texts
    share = NUM_MATCHED // world_size
    for rank, found in enumerate(ranks):
        own = slice(rank * share, (rank + 1) * share)
        assert torch.equal(found["states"][found["mask"]], expected["states"][own][found["mask"]])
        assert torch.equal(found["mask"], expected["mask"][own])
        assert torch.equal(found["gradient"], expected["gradient"][own, : 5 - rank])


@worlds
@pytest.mark.parametrize("case", MATCHED)
def test_matching_sends_the_rows_that_are_taken_and_no_others(results, world_size, case):
    ranks = [results[world_size, rank][case]["sent"] for rank in range(world_size)]
    size = 5 * 2 * MATCHED[case][1].itemsize  # of a row's states
    for there, mask, back in ranks:
        assert there % size == mask % 5 == back % size == 0
        assert there // size == mask // 5 and back // size == NUM_MATCHED // world_size  # one for each row of its own
    assert sum(there for there, _, _ in ranks) == NUM_MATCHED * size


def same_rows(found: tuple, ids: list[int]) -> None:
    """Check that rows gathered on the host are those of these ids, in ascending order."""
    row_ids, columns = found
    assert row_ids.tolist() == sorted(ids)
    expected = host_columns(sorted(ids))
    assert list(columns) == list(expected)
    for name, column in expected.items():
        pairs = zip(columns[name], column, strict=True) if isinstance(column, Ragged) else [(columns[name], column)]
        assert all(ours.dtype == other.dtype and torch.equal(ours, other) for ours, other in pairs), name


@worlds
def test_rows_are_gathered_on_the_host_in_the_order_of_their_ids(results, world_size):
    for rank in range(world_size):
        found = results[world_size, rank]["on_host"]
        same_rows(found["own"], found["ids"])
        assert found["none"][0].tolist() == [] and found["none"][1] == {}
        assert found["objects"] == [{"rank": other} for other in range(world_size)]
        assert found["share"] == list(range(rank, 5, world_size))
        assert found["group"] and found["of_group"] == list(range(world_size))


@pytest.mark.parametrize("ids", [[0, 1, 1, 2], [5, 2, 2, 0]])
def test_one_process_sorts_its_rows(ids):
    same_rows(gather_on_host(torch.tensor(ids), host_columns(ids)), ids)
    assert gather_objects("a") == ["a"] and share_of([1, 2]) == [1, 2]


@worlds
@pytest.mark.parametrize("name", LOSSES_OF_SET)
def test_the_loss_of_a_whole_set_does_not_depend_on_processes(results, world_size, name):
    rows = contrastive_set(LOSSES_OF_SET[name][0])
    present = torch.ones(len(rows["group_ids"]), dtype=torch.bool)
    expected = contrastive_loss(**rows, present=present, form=LOSSES_OF_SET[name][0], gather=False)
    sums = [results[size, rank][name] for size in (2, 3) for rank in range(size)]
    assert len({float(total) for total in sums}) == 1
    assert float(sums[0]) == pytest.approx(float(expected), rel=1e-6)


def test_one_process_gets_its_own_values_back():
    rows, mask = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    assert gather_rows(rows) is rows and sum_over_processes(rows) is rows
    assert first_row(5) == 0
    exchange = RowExchange(torch.tensor([1, 1]), [4])
    assert exchange.largest == [4] and torch.equal(exchange.take(mask, torch.uint8), mask)
    assert exchange.take(rows, torch.float32).tolist() == rows.tolist()
