"""The client of `kdeploy predict` and a real TorchServe: the same value with each protocol."""

import json

import pytest

from deployer.errors import InputRefusedError, NotReachedError, PredictError
from deployer.predict import Client, Failure, Prediction, inputs
from deployer.targets.protocols import Endpoint

pytestmark = pytest.mark.torchserve


@pytest.fixture
def ask(torchserve, tmp_path):
    """Send the content of a file, or text as of --data."""

    def send(content, protocol="plain", name=None, model="batched", follow=False):
        given = inputs.of_bytes(inputs.DATA, content)
        if name:
            (given := tmp_path / name).write_bytes(content)
        with Client(Endpoint(f"http://127.0.0.1:{torchserve.inference}"), model) as client:
            return list(client.predict([given], protocol, follow=follow))

    return send


def value(answers):
    [answer] = answers
    assert isinstance(answer, Prediction), answer.error
    return answer.value


def error(answers):
    [answer] = answers
    assert isinstance(answer, Failure)
    return answer.error


@pytest.mark.parametrize("protocol", ["plain", "v1", "v2"])
@pytest.mark.parametrize(
    ("name", "content", "saw"),
    [
        ("t.txt", b"one two\nthree", "one two\nthree"),
        ("t.csv", b"a,b\r\n1,2.5\r\n", "a,b\r\n1,2.5\r\n"),
        ("review", 'très "bien"\t漢'.encode(), 'très "bien"\t漢'),
        (None, b"hello", "hello"),
    ],
)
def test_text_is_the_same_with_each_protocol(ask, protocol, name, content, saw):
    assert value(ask(content, protocol, name))["saw"] == saw


def test_a_body_with_other_inputs_reaches_the_handler(ask):
    talk = {"inputs": [{"role": "user", "text": "hi"}, {"role": "bot", "text": "hello"}], "parameters": {}}
    for protocol in ("plain", "v1"):
        assert value(ask(json.dumps(talk).encode(), protocol, "talk.json", follow=True))["saw"] == talk


def test_a_v2_request_is_sent_as_one(ask):
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    answer = value(ask(json.dumps({"inputs": [tensor]}).encode(), "plain", "v2.json", follow=True))
    assert [row["saw"] for row in answer] == ["a"]


def test_each_line_is_a_request(ask):
    answers = ask(b'"a"\n"refused"\n"c"\n', "v1", "rows.jsonl")
    assert [getattr(answer, "value", {}).get("saw") for answer in answers] == ["a", None, "c"]
    assert answers[1].name.endswith("rows.jsonl:2")


def test_a_handler_that_reads_a_json_object_gets_one_by_the_flag_in_the_hint(ask):
    refused = error(ask(b"\0picture", "plain", "a.bin", "classic"))
    assert "--protocol json" in refused.hint
    for protocol in ("json", "v1"):
        assert value(ask(b"\0picture", protocol, "a.bin", "classic"))["picture"] == "\0picture"


def test_refused_failed_and_not_reached_are_different(ask):
    assert type(error(ask(b"refused"))) is InputRefusedError
    assert type(error(ask(b"poison"))) is PredictError
    assert type(error(ask(b"x", model="missing"))) is NotReachedError
