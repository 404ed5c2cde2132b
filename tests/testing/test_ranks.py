"""Functions on several processes: results by rank, exceptions of a rank in the parent, nothing hangs."""

import os
import time
from collections.abc import Callable

import pytest
import torch

from torchjepa import dist
from torchjepa.testing import run_on_ranks


class UnpicklableError(Exception):
    """An exception that cannot be rebuilt from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def name_yourself(greeting: str, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    return f"{greeting} from {dist.rank()} of {dist.world_size()}", dist.all_reduce_sum(x)


def fail_on_one() -> torch.Tensor:
    if dist.rank() == 1:
        raise KeyError("rank one has no such key")
    return dist.all_reduce_sum(torch.ones(1))


def fail_unpicklably() -> None:
    raise UnpicklableError("half ", "and half")


def return_a_lambda() -> Callable[[], int]:
    return lambda: 1


def die_on_one() -> torch.Tensor:
    if dist.rank() == 1:
        os._exit(7)
    return dist.all_reduce_sum(torch.ones(1))


def sleep_on_one() -> None:
    if dist.rank() == 1:
        time.sleep(600)


def test_results_come_by_rank() -> None:
    outcomes = run_on_ranks(name_yourself, 2, "hello", torch.ones(2))
    assert [text for text, _ in outcomes] == ["hello from 0 of 2", "hello from 1 of 2"]
    assert all(total.tolist() == [2.0, 2.0] for _, total in outcomes)
    assert run_on_ranks(name_yourself, 1, "alone", torch.ones(1))[0][1].item() == 1.0
    assert dist.world_size() == 1


def test_an_exception_is_raised_here_with_the_traceback_of_its_rank() -> None:
    with pytest.raises(KeyError, match="rank one has no such key") as caught:
        run_on_ranks(fail_on_one, 2)
    (note,) = caught.value.__notes__
    assert note.startswith("on rank 1 of 2:")
    assert "in fail_on_one" in note


def test_an_exception_that_cannot_be_pickled_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"in fail_unpicklably(.|\n)*UnpicklableError: half and half"):
        run_on_ranks(fail_unpicklably, 1)


def test_a_result_that_cannot_be_pickled() -> None:
    with pytest.raises(RuntimeError, match="the result cannot be pickled"):
        run_on_ranks(return_a_lambda, 1)


def test_a_rank_that_dies() -> None:
    with pytest.raises(RuntimeError, match="rank 1 died without an exception, exit code 7"):
        run_on_ranks(die_on_one, 2)


def test_a_rank_that_hangs_is_ended() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] still ran after 1.5 seconds"):
        run_on_ranks(sleep_on_one, 2, timeout=1.5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="world_size must be at least 1, got 0"):
        run_on_ranks(sleep_on_one, 0)
    with pytest.raises(ValueError, match="must be picklable, a function of a module"):
        run_on_ranks(lambda: 1, 2)
