"""Credentials in texts: what looks like one, and what does not."""

from __future__ import annotations

import pytest

from deployer.leaks import find_credential, find_token

HEX = "3f2a9c71d0be4f6688aa19c5d27e0b43"


@pytest.mark.parametrize(
    "text",
    [
        "hf_abcdefghijklmnopqrstuvwxyz0123456789",
        "hf_aB3xY9Zk",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0abcdefghij_klmnop",
        "glpat-abcdefghij0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "sk-abcdefghijklmnopqrstuvwx",
        "sk-proj-Ab_cd-efgh1234",
        "xoxb-1234567890-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abcdefghijklmnopqrstuvwxyz0=",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
        'Authorization: Bearer hf_abcdefghij"',
        f"dapi{HEX}",
    ],
)
def test_the_form_of_a_token_is_known(text: str) -> None:
    assert find_token(text) == find_credential("ANY", text) == "a token"


@pytest.mark.parametrize(
    "text",
    [
        "postgres://me:hunter2@db/x",
        "redis://:hunter2@cache:6379",
        "https://ssssssssssssssssssssssssssssssssssssssss@host/simple",
    ],
)
def test_a_url_with_a_password(text: str) -> None:
    assert find_token(text) == "a URL with a password"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "disk-abcdefghijklmnopqrstuvwx",
        "sk-learn-random-forest",
        "https://me@host/x",
        "https://me:${PASSWORD}@host/x",
        "https://$(USER):$(PASSWORD)@host/x",
        "ghp_",
        "hf_hub",
        "model eyJ",
    ],
)
def test_other_texts_are_not_tokens(text: str) -> None:
    assert find_token(text) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASSWORD", "hunter2"),
        ("password", "correct horse"),
        ("CLIENT_SECRET", "s3cr3t"),
        ("PGPASSWORD", "hunter2"),
        ("WANDB_API_KEY", HEX),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"[:39] + "7"),
        ("SERVICE_TOKEN", "a8Kd92mXq01LpZw7"),
        ("AZURE_STORAGE_SAS", "sv2021sigABCdef0123456789xyz"),
    ],
)
def test_a_name_and_a_value_together(name: str, value: str) -> None:
    assert find_credential(name, value) in ("a password", "a token")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EOS_TOKEN", "</s>"),
        ("PAD_TOKEN", "<|endoftext|>"),
        ("MAX_NEW_TOKEN", "512"),
        ("SPECIAL_TOKEN", "aaaaaaaaaaaaaaaaaaa1"),
        ("PARTITION_KEY", "customer_identifier"),
        ("CACHE_KEY", "resnet50"),
        ("GIT_COMMIT", HEX),
        ("HF_TOKEN", ""),
        ("DB_PASSWORD", "$(OTHER)"),
        ("DB_PASSWORD", "/run/secrets/password"),
        ("USE_PASSWORD", "false"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/var/run/secrets/google/key.json"),
        ("REQUIRE_AUTH", "true"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("AUTH_URL", "https://login.example.org/0123456789abcdef"),
        ("JWKS_KEY", "https://login.example.org/0123456789abcdef"),
    ],
)
def test_ordinary_variables_are_not_credentials(name: str, value: str) -> None:
    assert find_credential(name, value) == ""
