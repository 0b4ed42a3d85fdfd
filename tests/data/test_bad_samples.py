"""The check that files of a data set exist."""

import pytest

from simple_multimodal.data.bad_samples import MAX_ROWS_CHECKED, check_files
from simple_multimodal.data.rows import RowDataset


def rows(folder, *names: str) -> RowDataset:
    return RowDataset([{"video": name, "caption": "a cat"} for name in names], roots={"video": folder}, modalities=())


def test_a_data_set_without_any_of_its_files_is_an_error_that_names_the_first_one_and_the_root(tmp_path):
    looked_up = []

    class Counted(RowDataset):
        def row(self, index, *args, **kwargs):
            looked_up.append(index)
            return super().row(index, *args, **kwargs)

    records = [{"video": f"{number}.mp4", "caption": "a cat"} for number in range(1000)]
    message = rf"row 0 .*0\.mp4 does not exist\..*`video_root`\)\. None of the {MAX_ROWS_CHECKED} rows"
    with pytest.raises(ValueError, match=message):
        check_files(Counted(records, roots={"video": tmp_path}, modalities=()))
    assert len(set(looked_up)) == MAX_ROWS_CHECKED and looked_up[-1] == 968  # few, and spread over the set
    with pytest.raises(ValueError, match=r"0\.mp4 does not exist.*`video_root`\)\.$"):
        check_files(rows(tmp_path, "0.mp4"))


def test_a_data_set_with_some_of_its_files_is_accepted(tmp_path):
    (tmp_path / "there.mp4").touch()
    check_files(rows(tmp_path, "absent.mp4", "absent too.mp4", "there.mp4"))
    check_files(RowDataset([{"caption": "no file"}], modalities=()))
