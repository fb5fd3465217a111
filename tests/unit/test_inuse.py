"""Finding the releases that a document names."""

from __future__ import annotations

import json

import pytest

from deployer.inuse import releases_named

A, B = "1.0-aaaaaaaaaaaa", "2.0-rc.1-bbbbbbbbbbbb"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://models/team/digits/{A}/",
        f"s3://models/team/digits/{A}",
        f"file:///home/me/a%20b/model-store/digits/{A}/",
        f"https://account.blob.core.windows.net/models/digits/{A}/",
        f"pvc://claim/digits/{A}/model-store/digits.mar",
        f"digits/{A}",
    ],
)
def test_a_storage_uri_is_found_anywhere_in_a_document(uri: str) -> None:
    for document in (
        {"spec": {"predictor": {"model": {"storageUri": uri}}}},
        {"spec": {"predictor": {"storageUris": [{"uri": uri, "mountPath": "/mnt/models"}]}}},
        {"spec": {"transformer": {"containers": [{"env": [{"name": "STORAGE_URI", "value": uri}]}]}}},
        {"metadata": {"annotations": {"internal.serving.kserve.io/storage-initializer-sourceuri": uri}}},
        {"data": {"entry": json.dumps({"storage_uri": uri})}},
    ):
        assert list(releases_named(document)) == [f"digits/{A}"]


def test_all_releases_are_found_and_similar_paths_are_not() -> None:
    found = releases_named([f"s3://m/a/{A}/", {"x": f"s3://m/b/{B}/"}])
    assert list(found) == [f"a/{A}", f"b/{B}"]
    for text in (A, f"digits/{A}f", f"digits/{A}-more/", "a/b-0123456789ag", f"@/{A}", "s3://m/digits/"):
        assert list(releases_named({"x": text})) == []


def test_a_large_document_is_searched_quickly() -> None:
    for text in ("a" * 500_000, "a-" * 250_000, "/a" * 250_000, "0-" * 250_000 + "/"):
        assert list(releases_named({"x": text})) == []
