"""Who has the model: the program that trains it, or the peer that exchanges it.

Program and peer run in threads of their own and take turns. The program waits in `wait` until it
has the next turn; meanwhile the peer can have something done in the program's thread (`ask`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Job:
    """Done in the program's thread by `run`, which says whether that need not wait any longer;
    `cancel` if the program has left before."""

    run: Callable[[], bool]
    cancel: Callable[[], object] = lambda: None


class Turns:
    """The turns of one program and one peer."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._is_peers = threading.Event()  # the model
        self._is_peers.set()
        self._has_left = False  # the program; under the guard
        self._has_ended = False  # the peer; under the guard
        self._is_over = False  # the program knows that it has
        self._failure: BaseException | None = None
        self._guard = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether there are no more turns."""
        return self._is_over

    # --- the program's thread ----------------------------------------------------------------

    def wait(self) -> None:
        """Wait for the next turn, or for the end. Raises what ended the peer before its time, and
        whatever the beginning of a turn raises."""
        while not self._is_over and not self._jobs.get().run():
            pass
        if self._failure is not None:
            raise self._failure

    def hand_over(self) -> None:
        """The program's turn is over."""
        self._is_peers.set()

    def leave(self) -> None:
        """The program takes no more turns, and nothing is done in its thread any more."""
        with self._guard:
            self._has_left = True
            self._is_peers.set()
        while not self._jobs.empty():
            self._jobs.get().cancel()

    # --- the peer's threads ------------------------------------------------------------------

    def give(self, begin: Callable[[], None]) -> None:
        """It is the program's turn, which begins with `begin` in its thread."""

        def run() -> bool:
            begin()
            return True

        with self._guard:
            if not self._has_left:
                self._is_peers.clear()
                self._jobs.put(_Job(run))

    def ask(self, action: Callable[[], T]) -> T:
        """Have something done in the program's thread, which waits for its turn. Raises what it
        raises, and CancelledError if the program has left."""
        answer: Future[T] = Future()

        def run() -> bool:
            try:
                answer.set_result(action())
            except Exception as error:  # noqa: BLE001
                answer.set_exception(error)
            except BaseException:  # such as Ctrl+C: it is the program's
                answer.cancel()
                raise
            return False

        with self._guard:
            if self._has_left:
                raise CancelledError
            self._jobs.put(_Job(run, answer.cancel))
        return answer.result()

    def await_peers(self) -> None:
        """Wait until the model is the peer's."""
        self._is_peers.wait()

    def end(self, failure: BaseException | None = None) -> bool:
        """There are no more turns, because of a failure if there is one. False if there were none
        already: then nobody hears of the failure."""

        def run() -> bool:
            self._failure = failure
            self._is_over = True
            return True

        with self._guard:
            if self._has_ended or self._has_left:
                return False
            self._has_ended = True
            self._jobs.put(_Job(run))
            return True
