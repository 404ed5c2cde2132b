import json

import pytest

from torchjepa.data import DataError, ErrorLog


def test_each_sample_is_counted_and_listed_once(tmp_path):
    path = tmp_path / "data_errors.jsonl"
    log = ErrorLog(path, 1000)
    for _ in range(3):
        log.add(7, "cat/7.jpg", "truncated")
    log.add(9, "cat/ü.jpg", "empty")
    assert len(log) == 2
    assert 7 in log
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"part": "train", "id": 7, "name": "cat/7.jpg", "error": "truncated"},
        {"part": "train", "id": 9, "name": "cat/ü.jpg", "error": "empty"},
    ]


def test_a_run_that_goes_on_knows_what_failed_before(tmp_path):
    path = tmp_path / "data_errors.jsonl"
    ErrorLog(path, 1000).add(7, "a", "b")
    ErrorLog(path, 1000, part="test").add(8, "a", "b")
    with path.open("a") as file:
        file.write('{"part": "train", "id": 9, "na')  # killed while it wrote
    log = ErrorLog(path, 1000)
    log.add(7, "a", "b")
    assert len(log) == 1
    assert len(path.read_text().splitlines()) == 3


def test_too_many_show_the_first_five(tmp_path):
    log = ErrorLog(tmp_path / "data_errors.jsonl", 600)
    for index in range(6):
        log.add(index, f"{index}.jpg", "broken")
    with pytest.raises(DataError) as caught:
        log.add(6, "6.jpg", "broken")
    message = str(caught.value)
    assert message.startswith(
        "7 of the 600 samples cannot be decoded, more than the 1.00% allowed: 0.jpg (broken), "
    )
    assert "4.jpg" in message
    assert "5.jpg" not in message
    assert str(tmp_path / "data_errors.jsonl") in message
    assert "\n" not in message


def test_the_share_is_configurable():
    log = ErrorLog(None, 10, max_fraction=0.5)
    for index in range(5):
        log.add(index, "x", "y")
    with pytest.raises(DataError, match="6 of the 10"):
        log.add(5, "x", "y")
    with pytest.raises(ValueError, match=r"max_fraction must be in \[0, 1\], got 2"):
        ErrorLog(None, 10, max_fraction=2)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        ErrorLog(None, 0)
