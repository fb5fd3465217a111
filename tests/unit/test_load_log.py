"""Reading why a model does not load from TorchServe's log."""

from __future__ import annotations

from deployer.load_log import LoadLog, last_traceback, pip_errors


def model_log(text: str, worker: int = 9000) -> str:
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


def test_the_reason_is_the_original_exception_and_not_one_it_caused() -> None:
    log = LoadLog()
    chained = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
    text = model_log(
        traceback("ModuleNotFoundError: No module named 'foo'")
        + chained
        + traceback("ModuleNotFoundError: No module named 'ts.torch_handler.handler'")
    )
    for character in text:  # a log can be read in pieces of any size
        log.feed(character)
    assert log.failure == ""
    log.feed(retry())
    assert log.failure == "ModuleNotFoundError: No module named 'foo' (handler.py, line 7)"


def test_other_exceptions_must_occur_twice_and_keep_their_whole_message() -> None:
    log = LoadLog()
    error = 'RuntimeError: Error(s) in loading state_dict for Net:\n\tMissing key(s): "a.weight"'
    log.feed(model_log(traceback(error)) + retry())
    assert log.failure == ""
    log.feed(model_log("second attempt") + model_log(traceback(error)) + retry())
    assert log.failure == (
        "RuntimeError: Error(s) in loading state_dict for Net:"
        ' Missing key(s): "a.weight" (handler.py, line 7)'
    )


def test_workers_without_an_exception_fail_when_all_of_them_ended_three_times() -> None:
    log = LoadLog()
    log.feed(model_log("model_name: demo", 9002) + retry(9000) + retry(9001))
    log.feed((retry(9000) + retry(9001)) * 2)
    assert log.failure == ""  # one worker is still loading, and can make the model ready
    log.feed(retry(9002) * 3)
    assert "without an error message" in log.failure


def test_a_pip_failure_is_reported_when_its_output_is_complete() -> None:
    log = LoadLog()
    stamp = "2026-11-22T09:44:13,178 [ERROR] main org.pytorch.serve.wlm.ModelManager - "
    log.feed(f"{stamp}Custom pip package installation failed for model demo:\n")
    assert log.failure == ""
    log.feed("ERROR: No matching distribution found for x\n\n")
    log.feed(f"{stamp}Error while registering model. Details: Custom pip package installation failed\n")
    assert log.failure == "pip cannot install the model's requirements; No matching distribution found for x"


def test_pips_errors_include_the_last_output_of_a_failed_build() -> None:
    text = (
        "2026-11-22T10:09:13,990   gcc: not found\n"
        "2026-11-22T10:09:13,991   ERROR: [present-rich] Preparing metadata exited with 1\n"
        "2026-11-22T10:09:13,998 ERROR: [present-rich] metadata generation failed\n"
        "2026-11-22T10:09:13,999 ERROR: No matching distribution found for y\n"
    )
    assert pip_errors(text) == ["gcc: not found", "No matching distribution found for y"]


def test_only_torchserves_own_lines_report_a_port_in_use() -> None:
    log = LoadLog()
    log.feed(model_log("OSError: Address already in use"))
    assert not log.port_taken
    log.feed("java.io.IOException: Failed to bind to address: http://127.0.0.1:23000\n")
    assert log.port_taken
    assert "Failed to bind" in log.summary


def test_the_line_of_an_exception_is_the_handlers_and_not_a_librarys() -> None:
    log = LoadLog()
    library = '  File "/venv/lib/python3.9/site-packages/torch/module.py", line 2, in f\n    raise'
    inside = '  File "/tmp/models/0af1/venv/lib/site-packages/x.py", line 5, in f\n    raise'
    lines = ["Traceback (most recent call last):", own_frame(), library, inside, "ImportError: torch"]
    log.feed(model_log("\n".join(lines)) + retry())
    assert log.failure == "ImportError: torch (handler.py, line 3)"


def test_the_reason_is_the_runtime_error_and_not_torchserves_replacement() -> None:
    log = LoadLog()
    attempt = model_log(
        "Failed to load model demo, exception no such layer\n"
        + traceback("RuntimeError: no such layer")
        + "\nBackend worker process died.\n"
        + traceback("RuntimeError: 500 - Unknown exception")
    )
    log.feed(attempt)
    assert log.reason == "RuntimeError: no such layer (handler.py, line 7)"
    log.feed(retry() + attempt + retry())
    assert log.failure == "RuntimeError: no such layer (handler.py, line 7)"


def test_a_replacement_that_is_logged_after_its_attempt_does_not_hide_the_reason() -> None:
    log = LoadLog()
    error, late = (
        model_log(traceback(f"RuntimeError: {what}")) for what in ("no such layer", "500 - Unknown")
    )
    log.feed(error + retry() + late)
    assert log.reason == "RuntimeError: no such layer (handler.py, line 7)"
    log.feed(error + retry() + late + retry())
    assert log.failure == "RuntimeError: no such layer (handler.py, line 7)"


def test_a_worker_that_exceeds_its_startup_timeout_is_reported() -> None:
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


def test_the_last_lines_leave_out_the_frontends_progress() -> None:
    log = LoadLog()
    stamp = "2026-11-22T09:43:28,592"
    log.feed(
        f'{stamp} [INFO ] epollEventLoopGroup-3-4 ACCESS_LOG - /127.0.0.1:1 "GET /models HTTP/1.1" 200 1\n'
        f"{stamp} [DEBUG] main org.pytorch.serve.wlm.ModelManager - updateModel: demo\n"
        f"{stamp} [WARN ] main org.pytorch.serve.archive.ModelArchive - not versioned\n"
        "\tat java.lang.Thread.run(Unknown Source) [?:?]\n\n" + model_log("  a line")
    )
    assert log.last_lines == ["not versioned", "  a line"]
    assert log.summary == "not versioned |   a line"
    assert log.reason == log.failure == ""


def test_memory_is_bounded_for_a_log_of_any_size() -> None:
    log = LoadLog()
    log.feed("x" * 10_000_000)
    for _ in range(200):
        log.feed(model_log(traceback("ValueError: " + "v" * 3000)) + model_log("\t" + "k" * 3000) * 3)
    for number in range(100):
        log.feed(model_log(f"line {number}"))
    sizes = [len(line) for line in log.last_lines]
    assert (len(sizes), max(sizes) < 5000, log.last_lines[-1]) == (20, True, "line 99")
    assert len(log.reason) < 1100
    assert len(log._workers["W-9000-demo_1.0"]._raised) == 20
    assert len(log._rest) <= 4096


def test_the_last_traceback_of_a_program_is_found() -> None:
    lines = (
        "starting",
        "Traceback (most recent call last):",
        '  File "/srv/load.py", line 3, in <module>',
        "    import gone",
        "ModuleNotFoundError: No module named 'gone'",
        "giving up",
    )
    assert last_traceback(lines) == "ModuleNotFoundError: No module named 'gone' (load.py, line 3)"
    prefix = "2026-11-25T10:00:00,000 [INFO ] W-9000-digits_1.0-stdout MODEL_LOG - "
    assert last_traceback(tuple(prefix + line for line in lines)) == last_traceback(lines)
    assert last_traceback(("starting", "serving")) == ""
