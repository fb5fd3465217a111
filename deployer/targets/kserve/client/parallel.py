"""Runs several requests to the API server at the same time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

THREADS_MAX = 8

Answer = TypeVar("Answer")


def ask_all(questions: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Call several functions at the same time, and return their results in order. Raises the first error.

    The threads are daemons, because Python waits for a thread pool when it exits: Ctrl-C would wait for an
    API server that does not answer.
    """
    asked = queue.SimpleQueue[tuple[Callable[[], Answer], "Future[Answer]"]]()
    answers: list[Future[Answer]] = [Future() for _ in questions]
    for pair in zip(questions, answers, strict=True):
        asked.put(pair)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                question, answer = asked.get_nowait()
                try:
                    answer.set_result(question())
                except Exception as error:  # noqa: BLE001 - `result()` raises it
                    answer.set_exception(error)

    for number in range(min(THREADS_MAX, len(questions))):
        threading.Thread(target=work, name=f"question {number}", daemon=True).start()
    return [answer.result() for answer in answers]
