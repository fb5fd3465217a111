"""Handlers that stream: V1 and V2 get whole JSON, other requests their pieces as they come."""

import json

import pytest
from kdeploy_streams import parse_message
from ts.handler_utils.utils import send_intermediate_predict_response

from tests.handler.torchserve_worker import Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor


class Recorder:
    """The connection to TorchServe: the pieces that were sent, with the requests' IDs."""

    def __init__(self):
        self.sent = []

    def sendall(self, message):
        for answer in parse_message(message)[1]:
            size = int.from_bytes(answer.encoded[:4], "big")
            self.sent.append((answer.encoded[4 : 4 + size].decode(), answer.body.decode()))


def text_of(row):
    value = row.get("data") or row.get("body")
    value = value.decode() if isinstance(value, (bytes, bytearray)) else value
    return value["prompt"] if isinstance(value, dict) else value


def by_word(data, context):
    """Stream the words of all rows together, as TorchServe's examples of language models."""
    words = [text_of(row).split() for row in data]
    for step in range(max(map(len, words)) - 1):
        pieces = [each[step] + " " if step < len(each) - 1 else "" for each in words]
        send_intermediate_predict_response(pieces, context.request_ids, "ok", 200, context)
    return [each[-1] for each in words]


def row_by_row(data, context):
    """Stream one row after the other, each with its own map of IDs."""
    for index, row in reversed(list(enumerate(data))):
        ids = {index: context.get_request_id(index)}
        for word in text_of(row).split()[:-1]:
            send_intermediate_predict_response({index: f"{word} ".encode()}, ids, "ok", 200, context)
    return [text_of(row).split()[-1].encode() for row in data]


def streamed(entry, *asks):
    worker, recorder = Worker(entry), Recorder()
    worker.service.set_cl_socket(recorder)
    return worker.predict(*asks), recorder.sent


def v2(*texts):
    return ask_v2(tensor(list(texts), datatype="BYTES"))


@pytest.mark.parametrize("entry", [by_word, row_by_row])
def test_v1_and_v2_get_whole_json_and_other_requests_their_pieces(entry):
    answers, sent = streamed(
        entry,
        ask_v1({"prompt": "q r s t"}, "u v w"),
        ask_raw(b"a b c"),
        v2("k l", "m", "n o p"),
        ask_json({"prompt": "d e"}),
        ask_v1("one"),
    )
    assert answers[0].json == {"predictions": ["q r s t", "u v w"]}
    assert answers[2].json["outputs"][0]["data"] == ["k l", "m", "n o p"]
    assert answers[4].json == {"predictions": ["one"]}
    assert [answer.status for answer in answers] == [200] * 5
    for number in (0, 2, 4):
        assert "ts_stream_next" not in answers[number].headers
    pieces = {"request-1": "", "request-3": ""}
    for request, piece in sent:
        pieces[request] += piece
    assert pieces == {"request-1": "a b ", "request-3": "d "}
    assert (answers[1].body, answers[1].headers["ts_stream_next"]) == (b"c", "false")
    assert (answers[3].body, answers[3].headers["ts_stream_next"]) == (b"e", "false")


def test_nothing_is_sent_for_v1():
    answers, sent = streamed(by_word, ask_v1("a b"), ask_v1("c d", "e f"))
    assert sent == []
    assert [answer.json["predictions"] for answer in answers] == [["a b"], ["c d", "e f"]]


def test_pieces_of_a_failed_call_are_dropped():
    def entry(data, context):
        texts = [text_of(row) for row in data]
        send_intermediate_predict_response(
            [f"{text} " for text in texts], context.request_ids, "ok", 200, context
        )
        if "bad" in texts:
            raise ValueError("bad")
        return ["end"] * len(data)

    (good, bad, again), sent = streamed(entry, ask_v1("a"), ask_v1("bad"), v2("b"))
    assert sent == []
    assert good.json == {"predictions": ["a end"]}
    assert (bad.status, bad.json) == (500, {"error": "ValueError: bad", "row": 0})
    assert again.json["outputs"][0]["data"] == ["b end"]


@pytest.mark.parametrize(
    ("pieces", "value"),
    [
        (["a", b"b", "ü"], "abüend"),
        ([b"\xff"], "/2VuZA=="),
        ([], "end"),
        ([{"token": 1}], '{\n  "token": 1\n}end'),
    ],
    ids=str,
)
def test_pieces_of_any_kind(pieces, value):
    def entry(data, context):
        for piece in pieces:
            send_intermediate_predict_response([piece], context.request_ids, "ok", 200, context)
        return ["end"]

    [answer], _ = streamed(entry, ask_v1(0))
    assert answer.json == {"predictions": [value]}


def test_a_streamed_answer_to_v1_over_the_limit_fails():
    def entry(data, context):
        for _ in range(3):
            send_intermediate_predict_response(
                ["x" * 400] * len(data), context.request_ids, "ok", 200, context
            )
        return ["end"] * len(data)

    worker = Worker(entry, response_size=1000)
    worker.service.set_cl_socket(Recorder())
    v1, other = worker.predict(ask_v1(0), ask_raw(b"a"))
    assert (v1.status, other.status) == (500, 200)
    assert "serving.max-response-size is 1,000" in v1.json["error"]


@pytest.mark.parametrize("as_list", [False, True])
def test_continuous_batching_refuses_v1_and_ends_it(as_list):
    def entry(data, context):
        criteria = [lambda value: value["end"]] * len(data)
        context.stopping_criteria = criteria if as_list else dict(enumerate(criteria))
        return [{"end": False}] * len(data)

    own, v1 = Worker(entry).predict(ask_json({"prompt": "a"}), ask_v1("a"))
    assert json.loads(own.body) == {"end": False}
    assert own.headers["ts_stream_next"] == "true"
    assert v1.status == 501
    assert "/predictions/NAME" in v1.json["error"]
    assert v1.headers["ts_stream_next"] == "false"


def test_a_failed_request_ends_its_continuous_batching():
    def entry(data, context):
        context.stopping_criteria = {0: lambda value: value["end"]}
        raise ValueError("bad")

    [answer] = Worker(entry).predict(ask_json({"prompt": "a"}))
    assert (answer.status, answer.headers["ts_stream_next"]) == (500, "false")
