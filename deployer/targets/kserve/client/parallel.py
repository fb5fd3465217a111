"""Several questions to the API server at a time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

AT_ONCE = 8

Answer = TypeVar("Answer")


def ask_all(questions: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Ask several questions at a time, and return the answers in their order. Raises what the first raises.

    These are daemons and no pool of threads, which Python waits for at its end: Ctrl-C would wait for an API
    server that is silent.
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
                except Exception as error:  # noqa: BLE001 - it is raised where the answer is waited for
                    answer.set_exception(error)

    for number in range(min(AT_ONCE, len(questions))):
        threading.Thread(target=work, name=f"question {number}", daemon=True).start()
    return [answer.result() for answer in answers]
