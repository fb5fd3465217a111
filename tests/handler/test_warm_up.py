"""Warm-up samples, in TorchServe's worker without the server."""

import json

import pytest
from kdeploy_warm_up import SAMPLES, WarmUpError, warm_up

from tests.handler.torchserve_worker import Worker, ask_v1


def warmed(tmp_path, entry, **samples):
    folder = tmp_path / SAMPLES
    folder.mkdir()
    for name, content in samples.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    worker = Worker(entry)
    worker.context.system_properties["model_dir"] = str(tmp_path)
    warm_up(worker.adapter.answer, worker.context)
    return worker


def test_every_sample_is_one_request_as_a_client_would_send_it(tmp_path):
    def entry(data, context):
        seen.extend(row.get("data") or row.get("body") for row in data)
        ids.add(context.get_request_id(0))
        context.metrics.add_counter("Seen", 1, 0)
        return ["ok"] * len(data)

    seen, ids = [], set()
    v1 = json.dumps({"instances": ["a", "b"]}).encode()
    worker = warmed(tmp_path, entry, a__json=v1, b__txt="é".encode(), c__bin=b"\xff\x00", d__jpg=b"\xff\xd8")
    assert [bytes(one) if isinstance(one, (bytes, bytearray)) else one for one in seen] == [
        "a", "b", "é", b"\xff\x00", b"\xff\xd8",
    ]  # fmt: skip
    assert ids == {"warm-up-a.json", "warm-up-b.txt", "warm-up-c.bin", "warm-up-d.jpg"}
    assert worker.predict(ask_v1("c"))[0].json == {"predictions": ["ok"]}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bad__json", b"{", "invalid warm-up sample bad.json: "),
        ("bad__txt", b"\xff", "invalid warm-up sample bad.txt: "),
        (
            "row__json",
            b'{"instances": ["no"]}',
            "warm-up sample row.json failed: HTTP 500: ValueError: refused",
        ),
        (
            "v2__json",
            b'{"inputs": [{"name": 1, "shape": [1], "datatype": "FP32", "data": [1]}]}',
            "v2.json failed",
        ),
    ],
)
def test_a_sample_that_fails_is_an_error_that_names_it(tmp_path, name, content, reason):
    def entry(data, context):
        raise ValueError("refused")

    with pytest.raises(WarmUpError, match=reason):
        warmed(tmp_path, entry, **{name: content})


def test_a_streamed_answer_is_discarded(tmp_path):
    from ts.handler_utils.utils import send_intermediate_predict_response

    def entry(data, context):
        send_intermediate_predict_response(["piece"], context.request_ids, "ok", 200, context)
        return ["end"]

    warmed(tmp_path, entry, a__txt=b"x")


def test_a_coroutine_cannot_be_warmed_up(tmp_path):
    async def entry(data, context):
        return ["x"]

    with pytest.raises(WarmUpError, match="the handler is a coroutine"):
        warmed(tmp_path, entry, a__txt=b"x")


def test_without_samples_the_handler_gets_no_call(tmp_path):
    def entry(data, context):
        raise AssertionError

    worker = Worker(entry)
    worker.context.system_properties["model_dir"] = str(tmp_path)
    warm_up(worker.adapter.answer, worker.context)
