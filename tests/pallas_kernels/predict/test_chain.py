"""Launches that are set up before their turn: what is saved, and what is not."""

import pytest

from pallas_kernels.predict.chain import ROOM, TURN, Link, ends
from pallas_kernels.predict.chip import CHIPS

CHIP = CHIPS["h200"]
US = 1e-6


def took(links, **options):
    """Microseconds of each launch."""
    done = ends(links, CHIP, **options)
    return [1e6 * (b - a) for a, b in zip([0.0, *done], done, strict=False)]


def test_launches_that_are_not_chained_are_added_up():
    links = [Link(seconds * US, 1 * US, early=5 * US, chained=False) for seconds in (4, 9, 3)]
    assert took(links) == pytest.approx([4, 9, 3])


def test_of_a_chained_launch_the_turn_is_left_of_the_launch():
    launch, begins = 1e6 * CHIP.launch, 1e6 * CHIP.start * CHIP.cycle
    first, second = took([Link(9 * US, 1 * US), Link(9 * US, 1 * US)])
    assert first == pytest.approx(9) and second == pytest.approx(9 - launch - begins + 1e6 * TURN)
    assert took([Link(9 * US, 1 * US)] * 2, turn=0.0)[1] < second


def test_what_is_read_early_is_not_read_later():
    """While the launch before takes its time, and no longer."""
    taken = {early: took([Link(8 * US, 0.0), Link(20 * US, 15 * US, early=early * US)])[1] for early in (0, 1, 2, 100)}
    latency = 1e6 * (CHIP.memory_latency + CHIP.tma) * CHIP.cycle
    assert taken[0] - taken[1] == pytest.approx(1 + latency) and taken[0] - taken[2] == pytest.approx(2 + latency)
    assert 2 + latency < taken[0] - taken[100] < 8


def test_without_room_a_launch_begins_where_the_one_before_ends():
    reader = Link(20 * US, 15 * US, early=5 * US, blocks=132, shared_memory=200_000)
    beside, after = (took([Link(8 * US, 0.0, blocks=132, shared_memory=size), reader])[1] for size in (10_000, ROOM - 100_000))
    assert beside < after


def test_memory_serves_one_after_the_other():
    busy, idle = (took([Link(8 * US, reading * US), Link(20 * US, 15 * US, early=5 * US)])[1] for reading in (6, 0))
    assert idle < busy


def test_a_launch_that_waits_lets_the_next_one_be_set_up_later():
    links = lambda waits: [Link(8 * US, 0.0), Link(3.5 * US, 0.0, waits=waits), Link(20 * US, 15 * US, early=15 * US)]
    assert took(links(False))[2] < took(links(True))[2]
