"""What the readiness probe of a pod says, in front of a management API on loopback."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from manifests.probe import missing

REFUSED = 1  # no server listens on a port that only root's tcpmux would take


class Management(HTTPServer):
    answers: dict[str, object]

    def __init__(self) -> None:
        self.answers = {}
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Management

    def do_GET(self) -> None:
        body = json.dumps(self.server.answers[self.path]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def management() -> Iterator[Management]:
    with Management() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def pip_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_LOG", str(tmp_path / "pip.log"))
    return tmp_path / "pip.log"


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ([{"status": "READY"}, {"status": "LOADING"}], ""),
        ([{"status": "LOADING"}], "model digits has no READY worker"),
        ([], "model digits has no READY worker"),
    ],
)
def test_a_model_is_ready_with_one_ready_worker(management: Management, workers: object, said: str) -> None:
    management.answers = {
        "/models": {"models": [{"modelName": "digits"}]},
        "/models/digits": [{"workers": workers}],
    }
    assert missing(management.server_port) == said


@pytest.mark.usefixtures("pip_log")
def test_no_model(management: Management) -> None:
    management.answers = {"/models": {"models": []}}
    assert missing(management.server_port) == "no model is loaded"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (None, "TorchServe's management API does not answer: "),
        ("2026-11-25T10:00:00 Collecting torch\n", "installing the model's requirements"),
        ("2026-11-25T10:00:00 ERROR: No matching distribution\n", "; pip: 2026-11-25T10:00:00 ERROR: No"),
    ],
)
def test_a_running_pip_differs_from_no_answer(pip_log: Path, log: str | None, said: str) -> None:
    if log:
        pip_log.write_text(log)
    assert said in missing(REFUSED)
