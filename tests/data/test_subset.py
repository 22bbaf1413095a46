import pytest

from mien.data.subset import chosen, parse_group, write_subset
from mien.errors import UserError


def test_a_group_is_parsed_and_spaces_inside_names_stay():
    assert parse_group(" Has Hat = 1 , Male=0,") == {"Has Hat": 1, "Male": 0}
    assert parse_group(None) == parse_group(" ") == {}
    for wrong in ("Has Hat", "=1", "Male=2", " =1"):
        with pytest.raises(UserError, match="write NAME=1 or NAME=0"):
            parse_group(wrong)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_store_without_training_images_is_not_made(small_store, tmp_path, limit):
    with pytest.raises(UserError, match=f"--limit {limit} is not possible.*at least 1"):
        write_subset(small_store, tmp_path / "part", where={}, limit=limit)
    assert not (tmp_path / "part").exists()


def test_one_training_image_is_enough_and_the_others_stay_held_out(small_store):
    rows = chosen(small_store, where={"A": 1}, limit=1)
    assert rows.tolist() == [1, *range(81, 100, 2)]
