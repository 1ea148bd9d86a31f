"""The connection between parent and child: what is sent arrives whole, or the connection ends."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from shardmerge.phase1_dump.background.messages import Channel, Failed

LARGE = 64 << 20  # no socket holds so many bytes


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a connection. Reading waits for a few seconds at most."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        yield Channel(ours), Channel(theirs)


def test_a_message_that_is_interrupted_ends_the_connection(channels: tuple[Channel, Channel]) -> None:
    """What is sent after half a message would be taken for the rest of it."""
    ours, theirs = channels

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            ours.send(Failed(ValueError("x" * LARGE)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(EOFError):
        theirs.receive()
    with pytest.raises(BrokenPipeError):
        ours.send(Failed(ValueError("more")))


def test_messages_arrive_one_after_the_other(channels: tuple[Channel, Channel]) -> None:
    ours, theirs = channels
    for text in ("one", "two"):
        ours.send(Failed(ValueError(text)))
    found = [theirs.receive()[0] for _ in range(2)]
    assert [str(one.error) for one in found] == ["one", "two"]
