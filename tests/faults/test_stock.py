"""The program that compares the stock trainer with ours, at its smallest."""

from tests.faults.stock import Side, use_stock, with_nan_step
from tests.training.tiny_run import write_clips


def test_the_stock_trainer_and_ours_meet_the_same_fault(tmp_path):
    write_clips(tmp_path / "clips")
    stock, ours = Side("stock", tmp_path, use_stock), Side("ours", tmp_path, lambda: None)
    assert with_nan_step(ours, 1).startswith("exit code 0, 0 of ")
    assert ", 0 of " not in with_nan_step(stock, 1)  # nothing stops it from taking the step
