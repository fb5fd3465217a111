"""Routing: the service of a Host header, and the revision of a request."""

from __future__ import annotations

from collections import Counter

import pytest

from deployer.observed import Reference
from deployer.targets.local.routing import Route, Routes, Upstream

DEMO, OTHER = Reference("default", "demo"), Reference("default", "other")


@pytest.mark.parametrize("percent", [0, 1, 10, 33, 50, 99, 100])
def test_traffic_is_exact_over_any_hundred_requests(percent: int) -> None:
    new, old = Upstream("new"), Upstream("old")
    route = Route([(new, percent), (old, 100 - percent)])
    picked = [route.pick() for _ in range(250)]
    for start in range(0, 150, 7):
        names = Counter(one.revision for one in picked[start : start + 100] if one)
        assert names == Counter({"new": percent, "old": 100 - percent})


def test_a_route_without_revisions_picks_none() -> None:
    assert Route([(Upstream("demo"), 0)]).pick() is None


@pytest.mark.parametrize(
    "host",
    ["demo.default.example.com", "DEMO.default.svc.cluster.local:8081", "demo.default.example.com."],
)
def test_a_host_is_found_without_its_case_port_and_final_dot(host: str) -> None:
    routes, route = Routes(), Route([])
    routes.set(DEMO, route)
    assert routes.find(host) is route
    assert routes.find(f"x{host}") is None


def test_the_hosts_of_a_removed_service_are_unknown() -> None:
    routes = Routes()
    for reference in (DEMO, OTHER):
        routes.set(reference, Route([]))
    for _ in range(2):
        routes.remove(OTHER)
    assert routes.names() == ["demo.default.example.com", "demo.default.svc.cluster.local"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8081", "127.0.0.1:8081", "[::1]:80", "192.0.2.7"])
def test_the_only_service_is_found_by_an_address_of_this_machine(host: str) -> None:
    routes, route = Routes(), Route([])
    assert routes.find(host) is None
    routes.set(DEMO, route)
    assert routes.find(host) is route
    routes.set(OTHER, Route([]))
    assert routes.find(host) is None


@pytest.mark.parametrize(
    "host", ["", "localhost.evil.example", "evil.example:8081", "demo", "1.2.3", "::1.example"]
)
def test_another_name_does_not_lead_to_the_only_service(host: str) -> None:
    routes = Routes()
    routes.set(DEMO, Route([]))
    assert routes.find(host) is None
