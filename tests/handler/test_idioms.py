"""Handlers for plain TorchServe give the same answers through the adapter, at batch 1 and 8."""

import json
import sys

import pytest
from ts.model_loader import ModelLoaderFactory

from tests.handler.idioms import IDIOMS
from tests.handler.test_streams import Recorder
from tests.handler.torchserve_worker import ADAPTER, Ask, predict, worker_metrics

FORMS = [(name, number) for name, (_, asks) in IDIOMS.items() for number in range(len(asks))]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a handler as TorchServe's worker does, with or without the adapter."""
    before = set(sys.modules)

    def load_model(source, *, adapted):
        folder = tmp_path / ("adapted" if adapted else "plain")
        (folder / "MAR-INF").mkdir(parents=True)
        entry = "kdeploy_handler.py" if adapted else "users_handler.py"
        manifest = {"model": {"modelName": "m", "modelVersion": "1", "handler": entry}}
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
        (folder / "users_handler.py").write_text(source)
        if adapted:
            (folder / "kdeploy_handler.json").write_text('{"handler": "users_handler.py"}')
            for file in ADAPTER:
                (folder / file.name).write_bytes(file.read_bytes())
        for name in {"users_handler", "kdeploy_handler"} & set(sys.modules):
            del sys.modules[name]
        monkeypatch.syspath_prepend(folder)
        loader = ModelLoaderFactory.get_model_loader()
        return loader.load("m", str(folder), entry, None, 8, None, True, worker_metrics())

    yield load_model
    for name in {"users_handler", "kdeploy_handler"} & (set(sys.modules) - before):
        del sys.modules[name]


def answers_of(service, asks):
    """Return status, headers, pieces and body of each answer."""
    recorder = Recorder()
    service.set_cl_socket(recorder)
    code, answers = predict(service, *asks)
    assert code == 200
    pieces = {f"request-{number}": "" for number in range(len(asks))}
    for request, piece in recorder.sent:
        pieces[request] += piece
    for answer in answers:
        answer.headers.pop("ts_stream_next", None)  # TorchServe's own; the front end removes it
    return [
        (answer.status, answer.content_type, answer.headers, streamed, answer.body)
        for answer, streamed in zip(answers, pieces.values(), strict=True)
    ]


def by_its_path(ask):
    """A request as the container's front passes it: /predictions/NAME unless it says otherwise."""
    return Ask(ask.parts, {"kdeploy-api": "torchserve", **ask.headers})


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_answer_is_that_of_plain_torchserve(load, name, form):
    source, asks = IDIOMS[name]
    plain = load(source, adapted=False)
    adapted = load(source, adapted=True)
    [expected] = answers_of(plain, [asks[form]])
    for ask in (asks[form], by_its_path(asks[form])):
        for count in (1, 8, 8):
            assert answers_of(adapted, [ask] * count) == [expected] * count


@pytest.mark.parametrize("name", IDIOMS)
def test_a_batch_of_all_forms(load, name):
    source, asks = IDIOMS[name]
    plain = load(source, adapted=False)
    adapted = load(source, adapted=True)
    expected = [answers_of(plain, [ask])[0] for ask in asks]
    for _ in range(3):
        assert answers_of(adapted, asks * 2) == expected * 2
