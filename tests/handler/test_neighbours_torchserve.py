"""On a real TorchServe: a request never fails the other requests of its batch."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.torchserve

V1 = "/v1/models/neighbours:predict"
OWN = "/predictions/neighbours"
LIMIT = 6_553_500  # bytes, TorchServe's default


def ask(server, path, body):
    """Send a request and return the status and body of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.inference, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def together(torchserve):
    """Send requests concurrently, so that TorchServe batches them. The worker must survive."""
    before = torchserve.worker("neighbours")

    def send(*requests):
        with ThreadPoolExecutor(len(requests)) as threads:
            return list(threads.map(lambda request: ask(torchserve, *request), requests))

    yield send
    assert torchserve.worker("neighbours") == before
    status, body = ask(torchserve, V1, {"instances": [1]})
    assert (status, json.loads(body)["predictions"][0]["worker"]) == (200, before)


def task(**task):
    return V1, {"instances": [task]}


def own(**task):
    return OWN, task


def test_only_the_request_with_a_900_by_900_mask_fails_and_the_error_has_the_size(together):
    answers = together(own(mask=50), own(mask=900), own(mask=60), own(mask=70))
    assert [status for status, _ in answers] == [200, 500, 200, 200]
    message = "the answer has 12,967,202 bytes, serving.max-response-size is 6,553,500"
    assert json.loads(answers[1][1]) == {"error": message}
    assert len(json.loads(answers[3][1])) == 70


def test_only_the_request_with_a_large_answer_fails(together):
    many = {"instances": [{"letters": 400}] * 20_000}
    (status, body), *others = together((V1, many), task(int=1), task(int=2), own(int=3))
    assert status == 500
    assert json.loads(body)["error"].endswith("serving.max-response-size is 6,553,500")
    assert [status for status, _ in others] == [200] * 3


def test_the_limit_applies_to_one_answer_and_not_to_a_batch(together):
    answers = together(*[own(letters=LIMIT)] * 2, own(letters=LIMIT + 1))
    assert [(status, len(body)) for status, body in answers[:2]] == [(200, LIMIT)] * 2
    assert answers[2][0] == 500


def test_the_name_of_a_gpu_in_a_clients_text_fails_only_that_client(together):
    good, bad, refused = together(task(int="7"), task(int="CUDA"), task(int="oops"))
    assert good[0] == 200
    assert (bad[0], refused[0]) == (500, 500)
    assert json.loads(bad[1]) == {
        "error": "ValueError: invalid literal for int() with base 10: 'CUDA'",
        "row": 0,
    }


def test_one_bad_row_among_2500_costs_at_most_30_more_calls(together):
    def calls():
        [(_, body)] = together(task(int=1))
        return json.loads(body)["predictions"][0]["calls"]

    before = calls()
    rows = {"instances": [*[{"int": 1}] * 2499, {"int": "x"}]}
    (status, body), (other, _) = together((V1, rows), task(int=7))
    assert (status, other) == (500, 200)
    assert json.loads(body) == {
        "error": "ValueError: invalid literal for int() with base 10: 'x'",
        "row": 2499,
    }
    assert calls() - before <= 1 + 1 + 30 + 1  # both requests, their division, and the request for the count


def test_a_batch_of_bad_rows_is_answered_before_response_timeout(together):
    """Calls for all 32 rows would take longer than response-timeout."""
    rows = [{"int": 1, "seconds": 1.2}] * 3 + [{"fail": "bad", "seconds": 1.2}]
    answers = together(*[(V1, {"instances": rows})] * 8)
    errors = [json.loads(body)["error"] for _, body in answers]
    assert {status for status, _ in answers} == {500}
    assert all(error.endswith("ValueError: bad") for error in errors)
    assert any("no time to try this row by itself" in error for error in errors)


@pytest.mark.parametrize("header", [("x-label", "a\nb"), ("x label", "a"), ("x-label", 5)])
def test_only_the_request_with_an_invalid_header_fails(together, header):
    bad, good = together(own(header=header), own(int=1))
    assert (bad[0], good[0]) == (500, 200)
    assert json.loads(bad[1])["error"].startswith("the handler set an invalid header")


def test_a_streamed_piece_over_the_limit_fails_only_its_request(together):
    (status, body), good = together(own(piece=LIMIT + 1), own(int=1))
    assert status == 200  # sent with the first piece
    assert body.startswith(b"first")
    assert b"a streamed piece of the answer has 6,553,501 bytes" in body
    assert good[0] == 200
