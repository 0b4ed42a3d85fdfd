"""The program that puts the stock trainer beside ours, as small as it gets."""

from tests.faults.stock import Side, use_stock, with_nan_step
from tests.training.tiny_run import write_clips


def test_a_fault_meets_the_stock_trainer_and_ours(tmp_path):
    write_clips(tmp_path / "clips")
    stock, ours = Side("stock", tmp_path, use_stock), Side("ours", tmp_path, lambda: None)
    assert with_nan_step(ours, 1).startswith("exit code 0, 0 of ")
    assert ", 0 of " not in with_nan_step(stock, 1)  # nothing keeps it from taking the step
