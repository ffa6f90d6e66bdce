"""SIGTERM and Ctrl-C: a training ends after its step, with a checkpoint; everything else ends at once, in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to end, and ends in order.

    Args:
        message: how far it came, and what to do next.
        number: the signal.

    Example:
        >>> Stopped("stopped at step 17 of 60", signal.SIGTERM).exit_code
        143
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = int(number)

    @property
    def exit_code(self) -> int:
        """As shells have it: 128 and the signal's number."""
        return 128 + self.number


def reworded(stop: KeyboardInterrupt, message: str) -> KeyboardInterrupt:
    """The same interruption with another message."""
    return Stopped(message, stop.number) if isinstance(stop, Stopped) else KeyboardInterrupt(message)


class StopRequest:
    """Whether the process has been asked to end, and by which signal."""

    def __init__(self) -> None:
        self.number = 0
        self.noted = False
        self.former: dict[int, Any] = {}

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler: the first is noted, a second acts as it did before."""
        if self.noted:
            for one, handler in self.former.items():
                signal.signal(one, handler)
            signal.raise_signal(number)
        self.number, self.noted = number, True


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block SIGTERM and Ctrl-C are noted, and do not act.

    Elsewhere than in the main thread, where Python handles signals, nothing is ever noted; nor is a signal that is
    ignored already, as nohup and shells do in the background.
    """
    request = StopRequest()
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        request.former = {number: h for number, h in handlers.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in request.former:
            signal.signal(number, request.note)
        yield request
    finally:
        for number, handler in request.former.items():
            signal.signal(number, handler)


def ask_to_stop() -> bool:
    """Asks the training that goes on in this process to stop, as a first SIGTERM does; from any thread.

    Returns:
        Whether there is one.
    """
    request = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(request, StopRequest):
        return False
    request.number = request.number or signal.SIGTERM
    return True


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises `Stopped`, as Ctrl-C raises KeyboardInterrupt, so that every `finally` runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM.", number)

    former = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or former != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
