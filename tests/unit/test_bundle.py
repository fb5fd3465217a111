"""A release's documents as a value, which shows no Secret."""

from __future__ import annotations

import msgspec
import pytest

from deployer.bundle import Bundle, Sealed, read_bundle
from deployer.observed import RELEASE_LABEL, Document, Reference

SECRET: Document = {"kind": "Secret", "data": {"KEY": "aHVudGVyMg=="}}
ACCOUNT: Document = {"kind": "ServiceAccount"}
RUNTIME: Document = {"kind": "ServingRuntime"}
BUDGET: Document = {"kind": "PodDisruptionBudget"}
SERVICE: Document = {
    "kind": "InferenceService",
    "metadata": {"namespace": "team", "name": "digits", "labels": {RELEASE_LABEL: "1.0-aaaaaaaaaaaa"}},
    "spec": {"predictor": {"canaryTrafficPercent": 10, "model": {"storageUri": "s3://models/x/"}}},
}


def test_each_kind_has_its_place_and_the_secret_is_applied_first() -> None:
    bundle = read_bundle([BUDGET, SERVICE, RUNTIME, ACCOUNT, SECRET])
    assert bundle.secret
    assert bundle.secret.document == SECRET
    assert (bundle.account, bundle.runtime, bundle.extras) == (ACCOUNT, RUNTIME, (BUDGET,))
    assert bundle.beside == (SECRET, ACCOUNT, RUNTIME, BUDGET)
    assert bundle.documents == (ACCOUNT, RUNTIME, BUDGET, SERVICE)
    assert read_bundle(bundle.documents) == bundle.without_secret()


def test_what_is_said_of_it() -> None:
    bundle = Bundle(service=SERVICE)
    assert bundle.reference == Reference("team", "digits")
    assert (bundle.release, bundle.percent) == ("1.0-aaaaaaaaaaaa", 10)
    assert bundle.storage_uri == "s3://models/x/"
    theirs = {"metadata": {"namespace": "team", "name": "x"}, "spec": {"predictor": {}}}
    assert (Bundle(service=theirs).release, Bundle(service=theirs).percent) == ("", 100)


@pytest.mark.parametrize("documents", [[], [RUNTIME], [SERVICE, SERVICE]])
def test_one_service_makes_a_bundle(documents: list[Document]) -> None:
    with pytest.raises(ValueError, match="one InferenceService"):
        read_bundle(documents)


def test_a_secret_is_neither_shown_nor_encoded() -> None:
    bundle = Bundle(service=SERVICE, secret=Sealed(SECRET))
    assert "aHVudGVyMg" not in f"{bundle} {bundle!r} {bundle.secret}"
    for encode in (msgspec.json.encode, msgspec.to_builtins):
        with pytest.raises(TypeError):
            encode(bundle)
    shown = bundle.without_secret()
    assert msgspec.json.decode(msgspec.json.encode(shown), type=Bundle) == shown
