"""The checker of races between streams."""

from __future__ import annotations

import pytest
from happens_before import HappensBefore

ONE, OTHER, BUFFER = 0x10, 0x20, 7


@pytest.fixture
def order() -> HappensBefore:
    order = HappensBefore()
    order.use(ONE, writes=[BUFFER])
    return order


def test_the_order_of_one_stream(order) -> None:
    order.use(ONE, reads=[BUFFER])
    order.use(ONE, writes=[BUFFER])
    assert order.races == []


@pytest.mark.parametrize(
    ("use", "race"),
    [("reads", "read on 0x20, written on 0x10"), ("writes", "written on 0x20, written on 0x10")],
)
def test_streams_without_an_order(order, use, race) -> None:
    order.use(OTHER, **{use: [BUFFER]})
    assert order.races == [race]


def test_writing_what_another_stream_reads(order) -> None:
    order.wait(OTHER, order.record(ONE))
    order.use(OTHER, reads=[BUFFER])
    order.use(ONE, writes=[BUFFER])
    assert order.races == ["written on 0x10, read on 0x20"]


def test_an_event_orders_what_came_before_it(order) -> None:
    event = order.record(ONE)
    order.use(ONE, writes=[BUFFER + 1])
    order.wait(OTHER, event)
    order.use(OTHER, reads=[BUFFER])
    assert order.races == []
    order.use(OTHER, reads=[BUFFER + 1])
    assert order.races == ["read on 0x20, written on 0x10"]


def test_waits_are_transitive(order) -> None:
    order.wait(OTHER, order.record(ONE))
    order.wait(0x30, order.record(OTHER))
    order.use(0x30, reads=[BUFFER])
    assert order.races == []


def test_the_host_orders_everything_after_its_wait(order) -> None:
    order.wait_on_host(order.record(ONE))
    order.use(OTHER, reads=[BUFFER])
    assert order.races == []


def test_freed_memory_is_another_buffer(order) -> None:
    order.free(BUFFER, ONE)
    order.use(OTHER, writes=[BUFFER])
    assert order.races == []


def test_memory_freed_while_another_stream_reads_it(order) -> None:
    """The pool hands it out for work on the stream of its allocation, which does not wait."""
    order.wait(OTHER, order.record(ONE))
    order.use(OTHER, reads=[BUFFER])
    order.free(BUFFER, ONE)
    assert order.races == ["freed on 0x10, read on 0x20"]


def test_memory_freed_after_the_other_stream_is_waited_for(order) -> None:
    order.wait(OTHER, order.record(ONE))
    order.use(OTHER, reads=[BUFFER])
    order.wait(ONE, order.record(OTHER))
    order.free(BUFFER, ONE)
    assert order.races == []
