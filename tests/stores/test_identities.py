"""Profiles, processes, roles, single sign-on and web identity: boto3 finds the keys, obstore uses them.

The simulated sign-in returns Swift's keys, so Swift accepts a request only if obstore used them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployer.config import Store
from deployer.errors import ConfigError
from deployer.store.open import open_store
from tests.stores import swift as s3

LATER = "2999-01-01T00:00:00Z"
KEYS = f"aws_access_key_id = {s3.KEY}\naws_secret_access_key = {s3.SECRET}\n"
_STS = """<{0}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{0}Result><Credentials>
<AccessKeyId>{1}</AccessKeyId><SecretAccessKey>{2}</SecretAccessKey><SessionToken>planted-token</SessionToken>
<Expiration>{3}</Expiration></Credentials></{0}Result></{0}Response>"""


class SignIn(BaseHTTPRequestHandler):
    """AWS's token service and single sign-on. They accept every request unless `refused` is set."""

    protocol_version = "HTTP/1.1"
    refused = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        action = "AssumeRoleWithWebIdentity" if "WebIdentity" in body else "AssumeRole"
        self.reply(_STS.format(action, s3.KEY, s3.SECRET, LATER))

    def do_GET(self) -> None:
        keys = {"accessKeyId": s3.KEY, "secretAccessKey": s3.SECRET, "sessionToken": "planted-token"}
        self.reply(json.dumps({"roleCredentials": {**keys, "expiration": 32503680000000}}))

    def reply(self, text: str) -> None:
        content = b"planted-answer" if self.refused else text.encode()
        self.send_response(403 if self.refused else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def sign_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SignIn]]:
    handler = type("Asked", (SignIn,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    for service in ("STS", "SSO"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield handler
    server.shutdown()
    server.server_close()


def keys(home: Path) -> dict[str, str]:
    (home / ".aws" / "credentials").write_text(f"[default]\n{KEYS}")
    return {}


def process(home: Path) -> dict[str, str]:
    printed = {"Version": 1, "AccessKeyId": s3.KEY, "SecretAccessKey": s3.SECRET, "Expiration": LATER}
    (home / "print.py").write_text(f"print({json.dumps(json.dumps(printed))})")
    command = f"credential_process = '{sys.executable}' '{home}/print.py'\n"
    (home / ".aws" / "config").write_text(f"[profile team]\n{command}")
    return {"AWS_PROFILE": "team"}


def role(home: Path) -> dict[str, str]:
    text = "[profile base]\naws_access_key_id = a\naws_secret_access_key = planted-base\n"
    text += "[profile team]\nrole_arn = arn:aws:iam::1:role/team\nsource_profile = base\nregion = us-east-1\n"
    (home / ".aws" / "config").write_text(text)
    return {"AWS_PROFILE": "team"}


def web_identity(home: Path) -> dict[str, str]:
    (home / "token").write_text("planted-identity")
    return {"AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": str(home / "token")}


def single_sign_on(home: Path) -> dict[str, str]:
    start = "https://example.awsapps.com/start"
    text = f"[profile team]\nsso_start_url = {start}\nsso_region = us-east-1\n"
    text += "sso_account_id = 123456789012\nsso_role_name = team\n"
    (home / ".aws" / "config").write_text(text)
    cache = home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    token = {"startUrl": start, "region": "us-east-1", "accessToken": "planted-access", "expiresAt": LATER}
    name = hashlib.sha1(start.encode(), usedforsecurity=False).hexdigest()
    (cache / f"{name}.json").write_text(json.dumps(token))
    return {"AWS_PROFILE": "team"}


SOURCES = [keys, process, role, web_identity, single_sign_on]


def configure(source: Callable[[Path], dict[str, str]], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".aws").mkdir()
    # botocore read this when it was imported, with another home.
    cache = str(home / ".aws" / "sso" / "cache")
    monkeypatch.setattr("botocore.credentials.SSOProvider._SSO_TOKEN_CACHE_DIR", cache)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in source(home).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("source", SOURCES)
def test_a_bucket_is_read_with(
    source: Callable[[Path], dict[str, str]],
    s3_config: Store,
    bare: Path,
    sign_in: type[SignIn],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(source, bare, monkeypatch)
    store = open_store(s3_config, tmp_path)
    assert store.releases() == []
    if source is keys:
        access = store.access()
        assert access
        assert access.data["AWS_SECRET_ACCESS_KEY"] == s3.SECRET
    elif source is web_identity:  # a machine's identity, which the cluster can have
        access = store.access()
        assert access
        assert access.data == {}
        assert "no credentials found that a cluster could use" in access.caution
    else:
        with pytest.raises(ConfigError, match="temporary or personal"):
            store.access()


@pytest.mark.parametrize("source", [role, web_identity, single_sign_on])
def test_the_error_for_a_refused_sign_in_does_not_quote_the_response(
    source: Callable[[Path], dict[str, str]],
    s3_config: Store,
    bare: Path,
    sign_in: type[SignIn],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure(source, bare, monkeypatch)
    sign_in.refused = True
    with pytest.raises(ConfigError, match="cannot get credentials") as caught:
        open_store(s3_config, tmp_path).releases()
    assert "aws sso login" in (caught.value.hint or "")
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    assert "planted" not in "".join([str(caught.value), *capfd.readouterr()])
