from __future__ import annotations

import pytest

from deployer.targets.log_lines import is_probe, last, since

OLD, NEW = "2026-12-01T15:16:29,305 old", "2026-12-01T15:16:30,001 new"
CUT = "2026-12-01T15:16:30,000"


@pytest.mark.parametrize(
    ("request_", "probe"),
    [
        ('/127.0.0.1:4 "GET /models HTTP/1.1" 200 1', True),
        ('/127.0.0.1:4 "GET /models?limit=1000 HTTP/1.1" 200 1', True),
        ('/127.0.0.1:4 "GET /models/demo HTTP/1.1" 200 1', True),
        ('/127.0.0.1:4 "GET /models/demo HTTP/1.1" 404 1', False),
        ('/127.0.0.1:4 "PUT /models/demo?min_worker=2 HTTP/1.1" 200 1', False),
        ('/127.0.0.1:4 "POST /predictions/demo HTTP/1.1" 200 1', False),
        ('/10.0.0.9:4 "GET /models HTTP/1.1" 200 1', False),
    ],
)
def test_a_successful_request_of_the_probe_is_recognized(request_: str, probe: bool):
    assert is_probe(f"2026-12-01T15:16:29,305 [INFO ] epoll-3-1 ACCESS_LOG - {request_}") is probe


@pytest.mark.parametrize(("count", "kept"), [(None, "abc"), (0, ""), (2, "bc"), (9, "abc")])
def test_the_last_lines(count: int | None, kept: str):
    assert list(last(list("abc"), count)) == list(kept)


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([OLD, "of old", NEW, "of new"], [NEW, "of new"]),
        (["before all", NEW], ["before all", NEW]),
        (["before all", OLD], []),
        (["no time"], []),
        ([], []),
    ],
)
def test_a_line_without_a_time_belongs_to_the_one_before(lines: list[str], kept: list[str]):
    assert list(since(lines, CUT)) == kept
