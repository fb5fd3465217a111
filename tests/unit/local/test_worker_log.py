from __future__ import annotations

import pytest

from deployer.targets.local.worker_log import handler_line

TIME = "2026-12-01T15:16:29,305"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"{TIME} [INFO ] W-9000-demo_1.0-stdout MODEL_LOG - rows: 1", "rows: 1"),
        (f'{TIME} [WARN ] W-9000-demo_1.0-stderr MODEL_LOG -   File "a.py", line 3', '  File "a.py", line 3'),
        (f"{TIME} [INFO ] W-9000-demo_1.0-stdout MODEL_LOG - ", ""),
        (f"{TIME} [INFO ] W-9000-demo_1.0-stdout MODEL_LOG - Torch worker started.", None),
        (f"{TIME} [INFO ] W-9000-demo_1.0-stdout MODEL_LOG - [PID]28075", None),
        (f"{TIME} [INFO ] W-9000-demo_1.0-stdout MODEL_LOG - model_name: demo, batchSize: 1", None),
        (
            f'{TIME} [INFO ] W-9 ACCESS_LOG - /127.0.0.1:39 "POST /v1/models/a:predict HTTP/1.1" 200 11',
            "POST /v1/models/a:predict 200 in 11 ms",
        ),
        (f'{TIME} [INFO ] epoll ACCESS_LOG - /127.0.0.1:32 "GET /models/demo HTTP/1.1" 200 47', None),
        (f'{TIME} [INFO ] epoll ACCESS_LOG - /127.0.0.1:32 "PUT /models/demo?a=0 HTTP/1.1" 200 1', None),
        (f"{TIME} [INFO ] epoll ACCESS_LOG - something else", None),
        (f"{TIME} [DEBUG] W-9000-demo_1.0 org.pytorch.serve.wlm.WorkerThread - State change", None),
        ("\tat java.util.concurrent.FutureTask.run(Unknown Source) [?:?]", None),
    ],
)  # fmt: skip
def test_only_the_handlers_lines_and_answered_requests_are_shown(line: str, shown: str | None):
    assert handler_line(line) == shown
