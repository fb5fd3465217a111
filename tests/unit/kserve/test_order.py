"""The order in which the documents of a bundle are applied."""

from __future__ import annotations

import pytest
from msgspec import structs

from deployer.errors import TargetError
from deployer.storage_access import StorageAccess
from deployer.targets.kserve.client.resources import DISRUPTION_BUDGET, SECRET, SERVICE_ACCOUNT
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, SERVING_RUNTIME, resource_of
from deployer.targets.kserve.target.apply import order
from tests.bundles import make_bundle


def test_the_secret_is_applied_first_and_the_service_last() -> None:
    kinds = [resource for resource, _ in order(make_bundle(access=StorageAccess(data={"KEY": "x"})))]
    assert kinds == [SECRET, SERVICE_ACCOUNT, SERVING_RUNTIME, INFERENCE_SERVICE]


def test_a_document_of_another_kind_is_refused() -> None:
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "digits"}}
    with pytest.raises(TargetError, match="NetworkPolicy"):
        order(structs.replace(make_bundle(), account=policy))


def test_the_extras_are_not_needed_by_the_service() -> None:
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "digits"}}
    bundle = structs.replace(make_bundle(), extras=(budget,))
    assert order(bundle) == order(make_bundle())
    assert resource_of(budget) is DISRUPTION_BUDGET
