"""Whether a namespace's quotas and limits admit what a release asks for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.quantity import parse_quantity


def check_quotas(
    service: Document, quotas: Sequence[Document], ranges: Sequence[Document]
) -> Iterator[Finding]:
    """Yield what a ResourceQuota or a LimitRange will refuse, or that they admit one more pod."""
    found = [*_of_quotas(service, quotas), *_of_ranges(service, ranges)]
    yield from found
    if (quotas or ranges) and not found:
        yield ok("quota", "the namespace's quotas and limits admit one more pod")


def _of_quotas(service: Document, quotas: Sequence[Document]) -> Iterator[Finding]:
    asked = _asked(service)
    for quota in quotas:
        status = quota.get("status", {})
        hard, used = status.get("hard") or quota.get("spec", {}).get("hard", {}), status.get("used") or {}
        for key, amount in asked.items():
            limit, taken = parse_quantity(hard.get(key)), parse_quantity(used.get(key)) or Decimal(0)
            where = f"ResourceQuota {quota['metadata']['name']}"
            if limit is None or limit - taken >= amount:
                continue
            if limit < amount:
                detail = f"{where} admits {hard[key]} of {key}, and one pod asks for {_said(service, key)}"
                remedy = "raise the quota, or lower what [serving] asks for"
                yield failure("quota", detail, where, remedy)
            else:
                detail = (
                    f"{where}: {used[key]} of {hard[key]} {key} are used, "
                    f"and a new pod asks for {_said(service, key)}"
                )
                remedy = "raise the quota, or `--strategy recreate` stops the old pod first"
                yield warning("quota", detail, where, remedy)


def _of_ranges(service: Document, ranges: Sequence[Document]) -> Iterator[Finding]:
    resources = service["spec"]["predictor"]["model"].get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for one in ranges:
        where = f"LimitRange {one['metadata']['name']}"
        for rule in one.get("spec", {}).get("limits", []):
            if rule.get("type") not in ("Container", "Pod"):
                continue
            for key, most in (rule.get("max") or {}).items():
                if _is_less(most, limits.get(key)):
                    detail = f"{where} admits at most {most} of {key}, and [serving] asks for {limits[key]}"
                    yield failure("limits", detail, where, f"lower serving.{_key(key)}")
            for key, least in (rule.get("min") or {}).items():
                if _is_less(requests.get(key), least):
                    detail = (
                        f"{where} wants at least {least} of {key}, and [serving] asks for {requests[key]}"
                    )
                    yield failure("limits", detail, where, f"raise serving.{_key(key)}")


def _is_less(one: object, other: object) -> bool:
    first, second = parse_quantity(one), parse_quantity(other)
    return first is not None and second is not None and first < second


def _key(resource: str) -> str:
    return "gpu" if "/" in resource else resource


def _asked(service: Document) -> dict[str, Decimal]:
    """Return what one pod asks for, by the names that quotas have."""
    resources = service["spec"]["predictor"]["model"].get("resources", {})
    found = {"pods": Decimal(1)}
    for prefix, amounts in (("requests.", "requests"), ("limits.", "limits"), ("", "requests")):
        for key, value in resources.get(amounts, {}).items():
            if (amount := parse_quantity(value)) is not None and not (prefix == "" and "/" in key):
                found[f"{prefix}{key}"] = amount
    return found


def _said(service: Document, key: str) -> str:
    resources = service["spec"]["predictor"]["model"].get("resources", {})
    name, which = key.removeprefix("requests.").removeprefix("limits."), "requests"
    if key.startswith("limits."):
        which = "limits"
    return str(resources.get(which, {}).get(name, 1))
