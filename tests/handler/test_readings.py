"""Handlers for plain TorchServe stay as they are: how they read a body is found out, or set."""

import json
from dataclasses import dataclass

import pytest
import torch

from tests.handler.torchserve_worker import Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor

SETTING = 'set body = "handler" in [model] of kdeploy.toml'
BY_PATH = {"kdeploy-api": "torchserve"}  # as the container's front sets it for /predictions/NAME


def by_path(body):
    return ask_json(body, **BY_PATH)


# ---- handlers that read the whole body


def halves(data, context):
    """One answer to one request, as TorchServe's own examples."""
    values = torch.as_tensor(data[0]["body"]["instances"], dtype=torch.float32)
    return [{"predictions": (values / 2).tolist()}]


def halves_of_batches(data, context):
    bodies = [row.get("data") or row.get("body") for row in data]
    return [{"predictions": [value / 2 for value in body.get("instances")]} for body in bodies]


def halves_of_objects(data, context):
    answers = []
    for row in data:
        assert "instances" in row["body"]
        answers.append({"predictions": [each["x"] / 2 for each in row["body"].pop("instances")]})
    return answers


def halves_that_catch(data, context):
    """Answers 200 for its own errors."""
    try:
        return [{"predictions": [value / 2 for value in row["body"]["instances"]]} for row in data]
    except Exception as error:
        return [{"predictions": [{"error": str(error)}]} for _ in data]


def halves_as_text(data, context):
    return [json.dumps([value / 2 for value in row["body"]["instances"]]) for row in data]


def sums_of_tensors(data, context):
    return [{"outputs": [{"sum": sum(each["data"])} for each in row["body"]["inputs"]]} for row in data]


def instances(*values, **keys):
    return {"instances": list(values), **keys}


V2 = {"inputs": [tensor([1, 2], [1, 2]), tensor([3], name="y")]}
OWN_READERS = {
    "one request": (halves, instances([2.0, 4.0]), {"predictions": [[1.0, 2.0]]}),
    "batches": (halves_of_batches, instances(2, 4), {"predictions": [1.0, 2.0]}),
    "objects": (halves_of_objects, instances({"x": 2}, {"x": 4}), {"predictions": [1.0, 2.0]}),
    "an error that is caught": (halves_that_catch, instances(2, 4), {"predictions": [1.0, 2.0]}),
    "an answer as text": (halves_as_text, instances(2, 4), [1.0, 2.0]),
    "V2": (sums_of_tensors, V2, {"outputs": [{"sum": 3}, {"sum": 3}]}),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "body", "answer"), OWN_READERS.values(), ids=OWN_READERS)
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("headers", [{}, {"kdeploy-api": "v1"}, BY_PATH], ids=str)
def test_a_handler_that_reads_the_body_itself_answers_as_on_torchserve(entry, body, answer, count, headers):
    worker = Worker(entry, source='body["instances"], body["inputs"]')
    for _ in range(3):
        answers = worker.predict(*[ask_json(body, **headers)] * count)
        assert [each.json for each in answers] == [answer] * count


@pytest.mark.parametrize(("entry", "body", "answer"), OWN_READERS.values(), ids=OWN_READERS)
def test_the_setting_needs_no_detection(entry, body, answer):
    calls = []

    def counted(data, context):
        calls.append(len(data))
        return entry(data, context)

    worker = Worker(counted, settings={"body": "handler"})
    assert worker.predict(ask_json(body))[0].json == answer
    assert calls == [1]


def test_a_handler_gets_a_plain_dict_once_it_is_known():
    types = []

    def entry(data, context):
        types.extend(type(row["body"]) for row in data)
        return [{"predictions": row["body"]["instances"]} for row in data]

    worker = Worker(entry, source="'instances'")
    worker.predict(ask_v1(1))
    types.clear()
    worker.predict(ask_v1(1), ask_v1(2))
    assert types == [dict, dict]


def test_a_known_handler_still_gets_full_batches():
    sizes = []

    def entry(data, context):
        sizes.append(len(data))
        return halves_of_batches(data, context)

    worker = Worker(entry, source="'instances'")
    worker.predict(*[ask_v1(2)] * 8)
    worker.predict(*[ask_v1(2)] * 8)
    assert sizes == [1, 7, 8]


def test_a_bad_first_request_decides_nothing_and_gets_the_handlers_own_error():
    worker = Worker(halves_of_batches, source="'instances'")
    [bad] = worker.predict(ask_v1("x"))
    assert bad.status == 500
    assert bad.json["error"] == "TypeError: unsupported operand type(s) for /: 'str' and 'int'"
    [good] = worker.predict(ask_v1(2))
    assert good.json == {"predictions": [1.0]}


def test_a_handler_of_rows_whose_files_contain_instances_gets_rows():
    calls = []

    def entry(data, context):
        calls.append(len(data))
        return [row["x"] + 1 for row in data]

    worker = Worker(entry, source="'instances'")
    for _ in range(2):
        [answer] = worker.predict(ask_v1({"x": 1}, {"x": 2}))
        assert answer.json == {"predictions": [2, 3]}
    assert calls == [1, 2, 2]  # the first call was one with the request


def test_a_failed_try_leaves_no_trace_in_the_next_one():
    def entry(data, context):
        for row in data:
            if isinstance(row.get("body"), dict):
                row["body"]["instances"].append("trace")
                context.set_response_header(0, "x-trace", "1")
                raise KeyError("x")
        return [row["data"] for row in data]

    [answer] = Worker(entry, source="'instances'").predict(ask_v1([1], [2]))
    assert answer.json == {"predictions": [[1], [2]]}
    assert answer.headers.keys() == {"content-type"}


@pytest.mark.parametrize(
    ("entry", "ask"),
    [
        (halves, ask_v1([2.0, 4.0])),
        (halves_of_batches, ask_v1("text")),
        (sums_of_tensors, ask_v2(tensor([1, 2]))),
        (lambda data, context: [row["body"]["instances"] for row in data], ask_v1({"x": 1})),
    ],
)
def test_an_error_with_this_cause_names_the_setting(entry, ask):
    [answer] = Worker(entry).predict(ask)
    assert answer.status == 500
    assert SETTING in answer.json["error"]


@pytest.mark.parametrize(
    ("settings", "shape", "status", "named"),
    [
        ((), [2, 2], 500, True),
        ((), [1, 4], 500, False),  # its only row is not the cause
        ({"v2_rows": "first-dimension"}, [2, 2], 200, False),
    ],
)
def test_an_error_about_a_whole_tensor_names_the_setting_for_rows(settings, shape, status, named):
    def entry(data, context):
        return [sum(row["body"]) for row in data]

    [answer] = Worker(entry, settings=settings).predict(ask_v2(tensor([1, 2, 3, 4], shape)))
    assert answer.status == status
    assert ('set v2-rows = "first-dimension" in [model] of kdeploy.toml' in str(answer.json)) == named


@dataclass
class Unpacked:
    instances: list


def unpacked(data, context):
    return [{"predictions": Unpacked(**row["body"]).instances} for row in data]


def validated(data, context):
    """Fail as pydantic does: the name of the field has its own line."""
    if not all(set(row["body"]) == {"instances"} for row in data):
        raise ValueError("1 validation error for Request\ninstances\n  Field required [type=missing]")
    return [{"predictions": []} for _ in data]


@pytest.mark.parametrize("source", ["", "class Unpacked:\n    instances: list"])
@pytest.mark.parametrize(
    ("entry", "body"),
    [(unpacked, instances(1, 2)), (validated, instances({"x": 1})), (validated, instances("text"))],
)
def test_a_handler_that_unpacks_the_body_gets_an_error_that_names_the_setting(entry, body, source):
    [answer] = Worker(entry, source=source).predict(ask_json(body))
    assert answer.status == 500
    assert SETTING in answer.json["error"]
    [answer] = Worker(entry, settings={"body": "handler"}).predict(ask_json(body))
    assert "predictions" in answer.json


def test_a_file_with_a_field_instances_names_the_setting_until_the_handler_has_answered():
    def entry(data, context):
        return [1 / row["data"]["age"] for row in data]

    worker = Worker(entry, source="class Request:\n    instances: list")
    [first] = worker.predict(ask_v1({"x": 1}))
    [_] = worker.predict(ask_v1({"data": {"age": 1}}))
    [last] = worker.predict(ask_v1({"x": 1}))
    assert [SETTING in answer.json["error"] for answer in (first, last)] == [True, False]


def test_another_error_does_not_name_the_setting():
    def entry(data, context):
        raise KeyError("age")

    [answer] = Worker(entry).predict(ask_v1({"x": 1}))
    assert answer.json == {"error": "KeyError: 'age'", "row": 0}


# ---- the path


@pytest.mark.parametrize(
    "body",
    [
        instances(1, 2),
        {"inputs": [tensor([1])]},
        {"inputs": [{"shape": [1]}]},
        {"inputs": [{"data": "x", "datatype": "none"}]},
    ],
    ids=str,
)
def test_torchserves_own_path_hands_over_the_body(body):
    def entry(data, context):
        return [{"saw": row} for row in data]

    for answer in Worker(entry).predict(by_path(body), by_path(body)):
        assert answer.json == {"saw": {"body": body}}


@pytest.mark.parametrize("data", [b'{"instances": [1', b'{"inputs": ['])
def test_torchserves_own_path_hands_over_invalid_json(data):
    ask = ask_raw(data)
    ask.headers.update(BY_PATH)
    [answer] = Worker(lambda data, context: [bytes(row["body"]) for row in data]).predict(ask)
    assert answer.body == data


def test_a_handler_that_needs_an_envelope_answers_v1_on_torchserves_own_path():
    def entry(data, context):
        return [float(row["x"]) * 2 for row in data]

    answers = Worker(entry).predict(by_path(instances({"x": 1}, {"x": 2})), by_path(instances({"x": 3})))
    assert [answer.json for answer in answers] == [{"predictions": [2.0, 4.0]}, {"predictions": [6.0]}]


def test_a_request_that_fails_in_every_reading_has_the_error_of_its_path():
    def entry(data, context):
        raise ValueError(type(data[0]["body"]).__name__)

    [answer] = Worker(entry).predict(by_path(instances(1)))
    assert answer.json == {"error": "ValueError: dict", "row": 0}


# ---- bodies that only look like V1 or V2


LOOKALIKES = [
    {"inputs": [{"role": "user", "text": "hi"}, {"role": "bot", "text": "hello"}]},
    {"inputs": [{"name": "Ada", "text": "hi"}]},
    {"inputs": []},
    {"inputs": [1, 2]},
    {"inputs": [{}]},
    {"inputs": "a text", "parameters": {"max": 20}},
    {"inputs": {"shape": [1], "datatype": "FP32", "data": [1]}},
    {"instances": "text"},
    {"instances": {"data": 1}},
    {"instances": None},
]


@pytest.mark.parametrize("body", LOOKALIKES, ids=str)
@pytest.mark.parametrize("headers", [{}, {"kdeploy-api": "v2"}, BY_PATH], ids=str)
def test_a_body_that_only_looks_like_v1_or_v2_belongs_to_the_handler(body, headers):
    [answer] = Worker(lambda data, context: [row["body"] for row in data]).predict(ask_json(body, **headers))
    assert answer.status == 200
    assert answer.json == body


# ---- other keys of the request


def test_the_other_keys_of_v1_can_be_read_in_each_row():
    def entry(data, context):
        return [[row["parameters"]["top"], row.get("signature_name"), "parameters" in row] for row in data]

    body = instances({"x": 1}, "text", [1], 5, None, parameters={"top": 3}, signature_name="serving")
    [answer] = Worker(entry).predict(ask_json(body))
    assert answer.json == {"predictions": [[3, "serving", True]] * 5}


def test_a_key_of_an_instance_comes_before_one_of_its_request():
    def entry(data, context):
        return [[row["top"], row.get("data")] for row in data]

    body = instances({"top": 1}, {}, top=2, data="not this")
    [answer] = Worker(entry).predict(ask_json(body))
    assert answer.json == {"predictions": [[1, None], [2, None]]}


# ---- exact types


def types_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return {type(value), *(kind for each in inner for kind in types_of(each))}


VALUES = ["text", {"a": ["b", {"c": 1.5}]}, [["x"], [{"y": None}]], {"data": "b64"}]


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["values", "objects"])
def test_what_is_read_out_of_a_row_has_exactly_jsons_types(value, nested):
    seen = []

    def entry(data, context):
        read = [row["body"]["data"] if nested else row["body"] for row in data]
        seen[:] = [*read, *(row.get("body") for row in data), *(row["data"] for row in data if "data" in row)]
        return [0] * len(data)

    worker = Worker(entry)
    for _ in range(2):
        [answer] = worker.predict(ask_v1(value if not nested or "data" in value else "text"))
        assert answer.status == 200
        assert seen
        assert set().union(*map(types_of, seen)) <= {str, dict, list, float, int, type(None)}


@pytest.mark.parametrize(
    "sent",
    [tensor(["a"], datatype="BYTES"), tensor([1, 2], [2, 1]), tensor([True], datatype="BOOL")],
    ids=str,
)
def test_what_is_read_out_of_a_v2_row_has_exactly_jsons_types(sent):
    seen = []

    def entry(data, context):
        seen.extend(row[key] for row in data for key in ("data", "body", "name", "shape", "datatype"))
        return [0] * len(data)

    Worker(entry).predict(ask_v2(sent))
    assert len(seen) == 5
    assert set().union(*map(types_of, seen)) <= {str, list, int, bool}
