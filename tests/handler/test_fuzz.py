"""10,000 hostile requests, each with three neighbors: no wrong one, and no error but the handler's."""

import logging
import random

import pytest

from tests.handler.mutations import mutated
from tests.handler.torchserve_worker import Worker, ask_raw, ask_v1, ask_v2, predict, tensor

SETTINGS = [{}, {"v2_rows": "first-dimension"}, {"body": "handler"}]
SOURCES = ["", 'body["instances"], body["inputs"]']


def described(data, context):
    """Answer any row without an error."""
    answers = []
    for row in data:
        value = row.get("data") or row.get("body")
        value = value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else value
        answers.append(ascii(value)[:200])
    return answers


def picky(data, context):
    """Fail at most rows that are not the neighbors', in many ways."""
    answers = described(data, context)
    for row, answer in zip(data, answers, strict=True):
        if not answer.startswith("'good"):
            raise [ValueError, KeyError, TypeError, AttributeError][len(answer) % 4](f"bad {len(answer)}")
        assert len(row)
    return answers


def predictions(answer):
    return answer.json["predictions"]


def output(answer):
    return answer.json["outputs"][0]["data"]


NEIGHBOURS = [
    (ask_v1("good 1", {"data": "good 2"}), predictions, ["'good 1'", "'good 2'"]),
    (ask_v2(tensor(["good 3"], datatype="BYTES")), output, ["'good 3'"]),
    (ask_raw(b"good 4"), lambda answer: answer.body, b"'good 4'"),
]


def check(seed, entry, settings, source):
    """Send one hostile request between its neighbors; return its status."""
    chance = random.Random(seed)
    worker = Worker(entry, settings=settings, source=source)
    neighbours = NEIGHBOURS if settings != {"body": "handler"} else [NEIGHBOURS[2]] * 3
    place = chance.randrange(4)
    asks = [ask for ask, _, _ in neighbours]
    asks.insert(place, mutated(chance))
    code, answers = predict(worker.service, *asks)
    assert (code, len(answers)) == (200, 4), seed
    hostile = answers.pop(place)
    for answer, (_, read, expected) in zip(answers, neighbours, strict=True):
        assert answer.status == 200, (seed, answer)
        assert read(answer) == expected, seed
    if hostile.content_type == "application/json":
        assert hostile.json is not None
    return hostile


def run(seeds):
    logging.disable(logging.CRITICAL)
    try:
        for seed in seeds:
            settings, source = SETTINGS[seed % 3], SOURCES[seed % 2]
            answer = check(seed, described, settings, source)
            assert answer.status in (200, 400), (seed, answer)
            answer = check(seed, picky, settings, source)
            if answer.status not in (200, 400):
                assert answer.status == 500, (seed, answer)
                assert "bad " in answer.json["error"], (seed, answer)
    finally:
        logging.disable(logging.NOTSET)


def test_300_hostile_requests():
    run(range(300))


@pytest.mark.full
def test_10_000_hostile_requests():
    run(range(300, 10_000))
