"""Checks that the quotas and limits of a namespace admit one more pod of a service. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.quantity import parse_quantity
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, model_of


def check_quotas(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Report every ResourceQuota and LimitRange that rejects the pod."""
    resources = model_of(service).get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    found = [*_check_quotas(requests, limits, facts.quotas), *_check_ranges(requests, limits, facts.limits)]
    yield from found
    if (facts.quotas or facts.limits) and not found:
        yield ok("quota", "the quotas and limits of the namespace admit one more pod")


def _check_quotas(requests: Document, limits: Document, quotas: Sequence[Document]) -> Iterator[Finding]:
    wanted = {"pods": "1"}  # by the names that quotas use
    wanted |= {f"limits.{key}": value for key, value in limits.items()}
    wanted |= {f"requests.{key}": value for key, value in requests.items()}
    wanted |= {key: value for key, value in requests.items() if "/" not in key}
    for quota in quotas:
        where, status = f"ResourceQuota {quota['metadata']['name']}", quota.get("status", {})
        hard, used = status.get("hard") or quota.get("spec", {}).get("hard", {}), status.get("used") or {}
        for key, value in wanted.items():
            limit, amount, taken = map(parse_quantity, (hard.get(key), value, used.get(key, "0")))
            if limit is None or amount is None or taken is None or limit - taken >= amount:
                continue
            if limit < amount:
                detail = f"{where} allows {hard[key]} {key}, but one pod requests {value}"
                yield failure("quota", detail, where, "Raise the quota, or lower the request in `[serving]`.")
            else:
                detail = f"{where}: {used[key]} of {hard[key]} {key} are used, and a new pod requests {value}"
                remedy = "Raise the quota, or stop the old pod first with `--strategy recreate`."
                yield warning("quota", detail, where, remedy)


def _check_ranges(requests: Document, limits: Document, ranges: Sequence[Document]) -> Iterator[Finding]:
    for one in ranges:
        where = f"LimitRange {one['metadata']['name']}"
        for rule in one.get("spec", {}).get("limits", []):
            if rule.get("type") not in ("Container", "Pod"):
                continue
            for key, most in (rule.get("max") or {}).items():
                if _is_less(most, limits.get(key)):
                    detail = f"{where} allows {most} {key}, but [serving] requests {limits[key]}"
                    yield failure("limits", detail, where, f"Lower `serving.{_setting(key)}`.")
            for key, least in (rule.get("min") or {}).items():
                if _is_less(requests.get(key), least):
                    detail = f"{where} requires {least} {key}, but [serving] requests {requests[key]}"
                    yield failure("limits", detail, where, f"Raise `serving.{_setting(key)}`.")


def _is_less(one: object, other: object) -> bool:
    first, second = parse_quantity(one), parse_quantity(other)
    return first is not None and second is not None and first < second


def _setting(resource: str) -> str:
    return "gpu" if "/" in resource else resource
