"""What TorchServe's log says about a model that does not load."""

from __future__ import annotations

from deployer.load_log import LoadLog, last_traceback, pip_errors


def said(text: str, worker: int = 9000) -> str:
    stamp = "2026-11-22T09:43:28,327 [INFO ]"
    return "".join(f"{stamp} W-{worker}-demo_1.0-stdout MODEL_LOG - {line}\n" for line in text.split("\n"))


def retry(worker: int = 9000) -> str:
    return (
        f"2026-11-22T09:43:28,352 [INFO ] W-{worker}-demo_1.0 org.pytorch.serve.wlm.WorkerThread"
        f" - Retry worker: {worker} in 1 seconds.\n"
    )


def traceback(error: str) -> str:
    frame = '  File "/x/models/1/handler.py", line 7, in load\n    f()'
    return f"Traceback (most recent call last):\n{frame}\n{error}"


def own_frame(file: str = "/tmp/models/0af1/handler.py") -> str:
    return f'  File "{file}", line 3, in initialize\n    load()'


def test_the_true_exception_is_found_beneath_the_one_it_caused() -> None:
    log = LoadLog()
    chained = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
    text = said(
        traceback("ModuleNotFoundError: No module named 'foo'")
        + chained
        + traceback("ModuleNotFoundError: No module named 'ts.torch_handler.handler'")
    )
    for character in text:  # a log is read in whatever pieces it comes
        log.feed(character)
    assert log.failure == ""
    log.feed(retry())
    assert log.failure == "ModuleNotFoundError: No module named 'foo' (handler.py, line 7)"


def test_other_exceptions_get_a_second_chance_and_keep_their_whole_message() -> None:
    log = LoadLog()
    error = 'RuntimeError: Error(s) in loading state_dict for Net:\n\tMissing key(s): "a.weight"'
    log.feed(said(traceback(error)) + retry())
    assert log.failure == ""
    log.feed(said("it is tried again") + said(traceback(error)) + retry())
    assert log.failure == (
        "RuntimeError: Error(s) in loading state_dict for Net:"
        ' Missing key(s): "a.weight" (handler.py, line 7)'
    )


def test_workers_without_a_word_fail_at_their_third_attempt_and_only_all_of_them() -> None:
    log = LoadLog()
    log.feed(said("model_name: demo", 9002) + retry(9000) + retry(9001))
    log.feed((retry(9000) + retry(9001)) * 2)
    assert log.failure == ""  # one of them loads yet, and would make the model ready
    log.feed(retry(9002) * 3)
    assert "without an error message" in log.failure


def test_pips_complaint_is_whole_before_it_is_told() -> None:
    log = LoadLog()
    stamp = "2026-11-22T09:44:13,178 [ERROR] main org.pytorch.serve.wlm.ModelManager - "
    log.feed(f"{stamp}Custom pip package installation failed for model demo:\n")
    assert log.failure == ""
    log.feed("ERROR: No matching distribution found for x\n\n")
    log.feed(f"{stamp}Error while registering model. Details: Custom pip package installation failed\n")
    assert log.failure == "pip cannot install the model's requirements; No matching distribution found for x"


def test_pips_own_log_tells_what_a_build_said_last() -> None:
    text = (
        "2026-11-22T10:09:13,990   gcc: not found\n"
        "2026-11-22T10:09:13,991   ERROR: [present-rich] Preparing metadata exited with 1\n"
        "2026-11-22T10:09:13,998 ERROR: [present-rich] metadata generation failed\n"
        "2026-11-22T10:09:13,999 ERROR: No matching distribution found for y\n"
    )
    assert pip_errors(text) == ["gcc: not found", "No matching distribution found for y"]


def test_a_taken_port_is_one_only_if_torchserve_says_so() -> None:
    log = LoadLog()
    log.feed(said("OSError: Address already in use"))
    assert not log.port_taken
    log.feed("java.io.IOException: Failed to bind to address: http://127.0.0.1:23000\n")
    assert log.port_taken
    assert "Failed to bind" in log.summary


def test_the_place_is_the_handlers_own_line_and_not_a_librarys() -> None:
    log = LoadLog()
    library = '  File "/venv/lib/python3.9/site-packages/torch/module.py", line 2, in f\n    raise'
    inside = '  File "/tmp/models/0af1/venv/lib/site-packages/x.py", line 5, in f\n    raise'
    lines = ["Traceback (most recent call last):", own_frame(), library, inside, "ImportError: it is broken"]
    log.feed(said("\n".join(lines)) + retry())
    assert log.failure == "ImportError: it is broken (handler.py, line 3)"


def test_what_torchserve_raises_in_the_place_of_a_runtime_error_is_not_the_reason() -> None:
    log = LoadLog()
    attempt = said(
        "Failed to load model demo, exception no such layer\n"
        + traceback("RuntimeError: no such layer")
        + "\nBackend worker process died.\n"
        + traceback("RuntimeError: 500 - Unknown exception")
    )
    log.feed(attempt)
    assert log.reason == "RuntimeError: no such layer (handler.py, line 7)"
    log.feed(retry() + attempt + retry())
    assert log.failure == "RuntimeError: no such layer (handler.py, line 7)"


def test_a_worker_that_takes_too_long_is_told_as_such() -> None:
    error = (
        "2026-11-22T09:43:28,592 [ERROR] W-9000-demo_1.0 org.pytorch.serve.wlm.WorkerThread"
        " - Backend worker error\n"
        "org.pytorch.serve.wlm.WorkerInitializationException: Backend worker did not respond in given time\n"
        "\tat org.pytorch.serve.wlm.WorkerThread.run(WorkerThread.java:247) [model-server.jar:?]\n"
    )
    log = LoadLog()
    log.feed(error + retry())
    assert log.failure == ""
    log.feed(error + retry())
    assert log.failure == "the worker did not load the model within its startup-timeout"


def test_an_archive_that_torchserve_cannot_register_is_a_failure() -> None:
    log = LoadLog()
    log.feed(
        "2026-11-22T09:43:28,592 [ERROR] main org.pytorch.serve.snapshot.SnapshotManager"
        " - Error while registering model. Details: Model archive is broken\n"
    )
    assert log.failure == "TorchServe cannot load the model: Model archive is broken"


def test_the_last_lines_are_the_workers_and_errors_and_not_the_frontends_chatter() -> None:
    log = LoadLog()
    stamp = "2026-11-22T09:43:28,592"
    log.feed(
        f'{stamp} [INFO ] epollEventLoopGroup-3-4 ACCESS_LOG - /127.0.0.1:1 "GET /models HTTP/1.1" 200 1\n'
        f"{stamp} [DEBUG] main org.pytorch.serve.wlm.ModelManager - updateModel: demo\n"
        f"{stamp} [WARN ] main org.pytorch.serve.archive.ModelArchive - not versioned\n"
        "\tat java.lang.Thread.run(Unknown Source) [?:?]\n\n" + said("  I say so")
    )
    assert log.last_lines == ["not versioned", "  I say so"]
    assert log.summary == "not versioned |   I say so"
    assert log.reason == log.failure == ""


def test_a_log_of_any_size_takes_little_memory() -> None:
    log = LoadLog()
    log.feed("x" * 10_000_000)
    for _ in range(200):
        log.feed(said(traceback("ValueError: " + "v" * 3000)) + said("\t" + "k" * 3000) * 3)
    for number in range(100):
        log.feed(said(f"line {number}"))
    sizes = [len(line) for line in log.last_lines]
    assert (len(sizes), max(sizes) < 5000, log.last_lines[-1]) == (20, True, "line 99")
    assert len(log.reason) < 1100
    assert len(log._workers["W-9000-demo_1.0"]._raised) == 20
    assert len(log._rest) <= 4096


def test_the_last_traceback_of_any_program() -> None:
    lines = (
        "starting",
        "Traceback (most recent call last):",
        '  File "/srv/load.py", line 3, in <module>',
        "    import gone",
        "ModuleNotFoundError: No module named 'gone'",
        "giving up",
    )
    assert last_traceback(lines) == "ModuleNotFoundError: No module named 'gone' (load.py, line 3)"
    said = "2026-11-25T10:00:00,000 [INFO ] W-9000-digits_1.0-stdout MODEL_LOG - "
    assert last_traceback(tuple(said + line for line in lines)) == last_traceback(lines)
    assert last_traceback(("starting", "serving")) == ""
