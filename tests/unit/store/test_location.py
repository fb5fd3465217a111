"""Locating a bucket or a claim, from the project and the environment."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.config import Store
from deployer.errors import ConfigError
from deployer.store.location import Claim, Location, locate, locate_claim

ACCOUNT = {"AZURE_STORAGE_ACCOUNT": "mymodels"}


def at(
    uri: str, environment: dict[str, str] | None = None, profile_region: str = "", **more: Any
) -> Location:
    return locate(Store(uri=uri, **more), environment or {}, profile_region)


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix", "storage_uri"),
    [
        ("s3://models", "models", "", "s3://models/"),
        ("s3://models/", "models", "", "s3://models/"),
        ("s3://my.models/a/b=1/", "my.models", "a/b=1", "s3://my.models/a/b=1/"),
        ("gs://my_models/team", "my_models", "team", "gs://my_models/team/"),
        ("az://models/team", "models", "team", "https://mymodels.blob.core.windows.net/models/team/"),
        (
            "https://other.blob.core.windows.net/models/team",
            "models",
            "team",
            "https://other.blob.core.windows.net/models/team/",
        ),
        (
            "https://other.blob.core.windows.net/models",
            "models",
            "",
            "https://other.blob.core.windows.net/models/",
        ),
    ],
)
def test_a_uri_names_a_bucket_and_a_prefix(uri: str, bucket: str, prefix: str, storage_uri: str) -> None:
    location = at(uri, ACCOUNT)
    assert (location.bucket, location.prefix, location.uri) == (bucket, prefix, storage_uri)


@pytest.mark.parametrize(
    ("environment", "profile_region", "configured", "region"),
    [
        ({}, "", {}, "us-east-1"),
        ({}, "eu-west-3", {}, "eu-west-3"),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-3", {}, "eu-west-2"),
        ({"AWS_DEFAULT_REGION": "eu-west-2", "AWS_REGION": "eu-west-1"}, "eu-west-3", {}, "eu-west-1"),
        ({"AWS_REGION": "eu-west-1"}, "eu-west-3", {"region": "eu-central-1"}, "eu-central-1"),
    ],
)
def test_the_region_comes_from_the_project_then_the_environment_then_the_profile(
    environment: dict[str, str], profile_region: str, configured: dict[str, str], region: str
) -> None:
    location = at("s3://models", environment, profile_region, **configured)
    assert (location.region, location.endpoint) == (region, f"https://s3.{region}.amazonaws.com")


@pytest.mark.parametrize(
    ("uri", "environment", "configured", "endpoint"),
    [
        ("s3://models", {"AWS_REGION": "cn-north-1"}, {}, "https://s3.cn-north-1.amazonaws.com.cn"),
        ("s3://models", {"AWS_ENDPOINT_URL": "http://b:9"}, {}, "http://b:9"),
        (
            "s3://models",
            {"AWS_ENDPOINT_URL": "http://b:9", "AWS_ENDPOINT_URL_S3": "http://a"},
            {},
            "http://a",
        ),
        ("s3://models", {"AWS_ENDPOINT_URL_S3": "http://a"}, {"endpoint": "https://c/"}, "https://c"),
        ("gs://models", {}, {}, ""),
        ("gs://models", {}, {"endpoint": "http://g:1"}, "http://g:1"),
        ("az://models", ACCOUNT, {}, ""),
        ("az://models", {**ACCOUNT, "AZURE_ENDPOINT": "http://d/"}, {}, "http://d"),
        (
            "az://models",
            {**ACCOUNT, "AZURE_STORAGE_ENDPOINT": "http://e"},
            {"endpoint": "http://f"},
            "http://f",
        ),
    ],
)
def test_the_endpoint_comes_from_the_project_then_the_environment(
    uri: str, environment: dict[str, str], configured: dict[str, str], endpoint: str
) -> None:
    assert at(uri, environment, **configured).endpoint == endpoint


@pytest.mark.parametrize(
    ("environment", "configured", "account"),
    [
        (ACCOUNT, {}, "mymodels"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "named"}, {}, "named"),
        ({"AZURE_STORAGE_ACCOUNT": "", "AZURE_STORAGE_ACCOUNT_NAME": "named"}, {}, "named"),
        (ACCOUNT, {"account": "configured"}, "configured"),
    ],
)
def test_the_account_comes_from_the_project_then_the_environment(
    environment: dict[str, str], configured: dict[str, str], account: str
) -> None:
    assert at("az://models", environment, **configured).account == account


def test_the_host_name_contains_the_bucket_of_a_virtual_hosted_store() -> None:
    paths, hosts = (
        at("s3://models", endpoint="https://s3.example.org", virtual_hosted=hosted)
        for hosted in (False, True)
    )
    assert paths.server_url == "https://s3.example.org"
    assert hosts.server_url == "https://models.s3.example.org"
    assert hosts.host == "s3.example.org"


def test_only_an_http_endpoint_is_used_without_tls() -> None:
    assert at("s3://models").secure
    assert at("gs://models").secure
    assert not at("s3://models", endpoint="http://127.0.0.1:9000").secure


@pytest.mark.parametrize(
    ("uri", "configured", "what", "where"),
    [
        ("ftp://x", {}, "unsupported scheme ftp://", "store.uri"),
        ("s3://", {}, "invalid bucket name", "store.uri"),
        ("gs://UPPER/x", {}, "invalid bucket name", "store.uri"),
        ("s3://models/a b", {}, "invalid prefix: it has characters", "store.uri"),
        ("s3://models/a//b", {}, "invalid prefix: it has characters", "store.uri"),
        ("s3://models/%41", {}, "invalid prefix: it has characters", "store.uri"),
        ("gs://models/a/../b", {}, r"invalid prefix: it contains \. or \.\.", "store.uri"),
        ("s3://models/.", {}, r"invalid prefix: it contains \. or \.\.", "store.uri"),
        ("az://models/x", {}, "Azure's storage account is not set", "store.account"),
        ("https://example.org/models", {}, "not Azure's blob storage", "store.uri"),
        ("https://other.blob.core.windows.net/", {}, "invalid bucket name", "store.uri"),
        ("s3://models", {"endpoint": "http://host/path"}, "invalid endpoint of S3", "store.endpoint"),
        ("s3://models", {"endpoint": "host:9000"}, "invalid endpoint of S3", "store.endpoint"),
        ("s3://models", {"endpoint": "https://me@host"}, "invalid endpoint of S3", "store.endpoint"),
    ],
)
def test_an_invalid_uri_or_endpoint_is_refused(
    uri: str, configured: dict[str, str], what: str, where: str
) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        at(uri, **configured)
    assert caught.value.where == where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("uri", "claim", "storage_uri", "folder"),
    [
        ("pvc://models", Claim("models", ""), "pvc://models/", "."),
        ("pvc://models/a/b/", Claim("models", "a/b"), "pvc://models/a/b/", "./a/b"),
        ("pvc://my.models/-rf", Claim("my.models", "-rf"), "pvc://my.models/-rf/", "./-rf"),
    ],
)
def test_a_uri_names_a_claim_and_a_path(uri: str, claim: Claim, storage_uri: str, folder: str) -> None:
    located = locate_claim(uri)
    assert located == claim
    assert (located.uri, located.folder) == (storage_uri, folder)


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("pvc://", "invalid name of a claim"),
        ("pvc:///a", "invalid name of a claim"),
        ("pvc://Models/a", "invalid name of a claim"),
        ("pvc://m/a b", "invalid prefix: it has characters"),
        ("pvc://m/$(x)", "invalid prefix: it has characters"),
        ("pvc://m/../x", r"invalid prefix: it contains \. or \.\."),
    ],
)
def test_an_invalid_claim_is_refused(uri: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        locate_claim(uri)
    assert caught.value.where == "store.uri"
