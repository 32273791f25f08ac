"""Results computed ahead by threads: order, bounds, errors and an early end."""

import threading

import pytest

from fastcxr.io.threads import map_ahead


def test_results_are_in_order_and_few_are_computed_ahead():
    started, n_ahead, yielded = [], [], []

    def square(number):
        started.append(number)
        n_ahead.append(len(started) - len(yielded))
        return number**2

    for result in map_ahead(square, range(50), n_threads=4, n_ahead=3):
        yielded.append(result)
    assert yielded == [number**2 for number in range(50)]
    assert max(n_ahead) <= 4


def test_a_result_is_computed_while_the_caller_uses_the_one_before():
    is_second_done = threading.Event()
    results = map_ahead(lambda number: number or is_second_done.set(), [1, 0], n_threads=1, n_ahead=1)
    assert next(results) == 1
    assert is_second_done.wait(timeout=30)


def test_an_error_is_raised_at_its_item():
    results = map_ahead(lambda number: 6 / number, [1, 2, 0, 3], n_threads=2, n_ahead=2)
    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_further_item_is_started_after_the_caller_stops():
    started = []
    results = map_ahead(started.append, range(100), n_threads=1, n_ahead=2)
    next(results)
    results.close()
    assert len(started) <= 3
