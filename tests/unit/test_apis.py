"""The mark that tells the adapter which API a request came by."""

from __future__ import annotations

import pytest

from manifests.apis import mark


def head(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def marked(path: str, *fields: str) -> list[str]:
    data = mark(head(path, *fields), path.encode())
    assert data.endswith(b"\r\n\r\n")
    first, host, *others = data.decode()[:-4].split("\r\n")
    assert (first, host) == (f"POST {path} HTTP/1.1", "Host: a")
    return others


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v1/models/digits:predict", "v1"),
        ("/v2/models/digits/infer", "v2"),
        ("http://digits.example.com/v2/models/digits/infer", "v2"),
        ("/predictions/digits", "torchserve"),
        ("/predictions/v1/2.0", "torchserve"),
        ("/v12/models", "torchserve"),
        ("/invocations", "torchserve"),
    ],
)
def test_the_path_is_the_api(path: str, api: str) -> None:
    assert marked(path, "Content-Type: text/plain") == ["Content-Type: text/plain", f"kdeploy-api: {api}"]


@pytest.mark.parametrize("field", ["kdeploy-api: torchserve", "KDEPLOY-API:x", "Kdeploy-Api :  v2"])
def test_a_mark_of_the_client_is_removed(field: str) -> None:
    assert marked("/v1/models/a:predict", field, "X: 1") == ["X: 1", "kdeploy-api: v1"]


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
@pytest.mark.parametrize(
    "value", ["application/x-www-form-urlencoded", "APPLICATION/x-www-form-urlencoded; a=b"]
)
def test_v1_and_v2_have_no_forms(name: str, value: str) -> None:
    """curl's `-d` declares one unless the request names another type."""
    assert marked("/v1/models/a:predict", f"{name}: {value}")[0] == "content-type: application/json"
    assert marked("/v2/models/a/infer", f"{name}: {value}")[0] == "content-type: application/json"
    assert marked("/predictions/a", f"{name}: {value}")[0] == f"{name}: {value}"


@pytest.mark.parametrize("value", ["application/octet-stream", "multipart/form-data; boundary=b", "text/csv"])
def test_other_types_stay(value: str) -> None:
    assert marked("/v2/models/a/infer", f"Content-Type: {value}")[0] == f"Content-Type: {value}"
