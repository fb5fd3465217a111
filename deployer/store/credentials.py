"""Credentials of an object store, found where each cloud's own tools keep them; never shown, never written.

S3: the environment, then the profile (`AWS_PROFILE`, else `default`) in `~/.aws/credentials` and
`~/.aws/config`, and the process that it may name. Azure: account key, connection string, SAS token or
service principal in the environment. Google: the file that `GOOGLE_APPLICATION_CREDENTIALS` names, else what
`gcloud auth application-default login` wrote. Where there are none, obstore asks what the machine has: web
identity, instance metadata.
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field

from deployer.errors import ConfigError

GOOGLE_FILE = "gcloud-application-credentials.json"  # as KServe calls it
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_STRONGER = {"role_arn", "sso_session", "sso_start_url"}  # what AWS's own tools ask before a process
_AZURE_KEYS = (
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
)
_SECRET_VARIABLE = re.compile(r"(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS|CONNECTION).*(?<!_FILE)")
_LOGIN = re.compile(r"//[^/@:]*:([^/@]*)@")
_AZURE_PRINCIPAL = {
    "AZ_CLIENT_ID": "AZURE_CLIENT_ID",
    "AZ_CLIENT_SECRET": "AZURE_CLIENT_SECRET",
    "AZ_TENANT_ID": "AZURE_TENANT_ID",
}


class Credentials(Struct, frozen=True, kw_only=True):
    """What was found. `data` has the keys of KServe's Secret; `secrets` is all that must never be shown.

    `sas` is a token that only Azure knows and no Secret can carry; `lasting` is false for what expires.
    """

    data: dict[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    sas: str = ""
    region: str = ""
    lasting: bool = True

    def __repr__(self) -> str:
        return f"Credentials({', '.join(self.data) or 'none'})"


def find_credentials(scheme: str, environment: Mapping[str, str]) -> Credentials:
    """Look for the credentials of a scheme; with none found, `data` is empty. Raises ConfigError."""
    if scheme == "gs":
        found = _google(environment)
    else:
        found = _aws(environment) if scheme == "s3" else _azure(environment)
        for name, value in {**found.data, "AZURE_STORAGE_SAS_TOKEN": found.sas}.items():
            if not value.isprintable():
                raise ConfigError("it holds a line break, or another character that is no text", where=name)
    return msgspec.structs.replace(found, secrets=found.secrets | _of_variables(environment))


def _of_variables(environment: Mapping[str, str]) -> frozenset[str]:
    """Return what may be a secret in variables that obstore reads by itself, and the passwords of proxies."""
    named = {value for name, value in environment.items() if _SECRET_VARIABLE.fullmatch(name)}
    logins = (_LOGIN.search(value) for name, value in environment.items() if name.lower().endswith("_proxy"))
    return frozenset((named | {login[1] for login in logins if login}) - {""})


def _aws(environment: Mapping[str, str]) -> Credentials:
    profile = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    by_variable = {name: environment[name] for name in _AWS if environment.get(name)}
    if set(_AWS[:2]) <= set(by_variable) and not profile:
        return _keys(by_variable, "")
    section = _aws_profile(environment, profile or "default")
    by_file = {name: section[name.lower()] for name in _AWS if section.get(name.lower())}
    region = section.get("region", "")
    if set(_AWS[:2]) <= set(by_file):
        return _keys(by_file, region)
    if section.get("credential_process") and not section.keys() & _STRONGER:
        from deployer.store.aws_process import ask_process

        data, lasting = ask_process(section["credential_process"], profile or "default")
        return msgspec.structs.replace(_keys(data, region), lasting=lasting)
    if profile:
        raise ConfigError(
            f"profile {profile} holds no access key: it asks for a sign-in or a role",
            where="AWS_PROFILE",
            hint=f"`aws configure export-credentials --profile {profile} --format env` prints keys: "
            "set those, and unset AWS_PROFILE",
        )
    return Credentials(secrets=_contents([environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")]), region=region)


def _keys(data: dict[str, str], region: str) -> Credentials:
    """Hold a pair of keys; the id alone opens nothing, but names the account, so it is kept back too."""
    return Credentials(
        data=data, secrets=frozenset(data.values()), region=region, lasting="AWS_SESSION_TOKEN" not in data
    )


def _aws_profile(environment: Mapping[str, str], profile: str) -> dict[str, str]:
    """Return what both of AWS's files say of a profile, the one for credentials having the last word."""
    home = Path(environment.get("HOME") or Path.home())
    found: dict[str, str] = {}
    for variable, name, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        path = Path(environment.get(variable) or home / ".aws" / name).expanduser()
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, "utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            # What a parser says of a line quotes it, and the line may be the secret.
            raise ConfigError("it cannot be read as AWS writes it", where=str(path)) from None
        if parser.has_section(section):
            found |= parser[section]
    return found


def _azure(environment: Mapping[str, str]) -> Credentials:
    connection = environment.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
    keys = [environment[name] for name in _AZURE_KEYS if environment.get(name)]
    key = next(iter(keys), parts.get("AccountKey", ""))
    sas = environment.get("AZURE_STORAGE_SAS_TOKEN") or parts.get("SharedAccessSignature", "")
    principal = {ours: environment.get(theirs, "") for ours, theirs in _AZURE_PRINCIPAL.items()}
    secrets = frozenset(filter(None, [connection, key, sas, principal["AZ_CLIENT_SECRET"], *keys]))
    secrets |= _contents([environment.get("AZURE_FEDERATED_TOKEN_FILE")])
    if key:
        return Credentials(data={"AZURE_STORAGE_ACCESS_KEY": key}, secrets=secrets)
    if sas:
        return Credentials(sas=sas.lstrip("?"), secrets=secrets, lasting=False)
    if all(principal.values()):
        subscription = environment.get("AZURE_SUBSCRIPTION_ID", "")
        return Credentials(data={**principal, "AZ_SUBSCRIPTION_ID": subscription}, secrets=secrets)
    return Credentials(secrets=secrets)


def _google(environment: Mapping[str, str]) -> Credentials:
    named = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    home = Path(environment.get("HOME") or Path.home())
    path = Path(named or home / ".config" / "gcloud" / "application_default_credentials.json").expanduser()
    if not named and not path.is_file():
        return Credentials()
    try:
        text = path.read_text("utf-8")
        content = json.loads(text)
        secrets = {
            value
            for key in ("private_key", "private_key_id", "client_secret", "refresh_token")
            if isinstance(value := content.get(key), str) and value
        }
    except (OSError, ValueError, AttributeError):
        raise ConfigError(
            "it is no file of Google's credentials",
            where=str(path),
            hint="gcloud auth application-default login",
        ) from None
    # A person's own sign-in must not go to a cluster.
    lasting = content.get("type") == "service_account"
    return Credentials(data={GOOGLE_FILE: text}, secrets=frozenset({text, *secrets}), lasting=lasting)


def _contents(paths: Iterable[str | None]) -> frozenset[str]:
    """Return what stands in files of tokens, so that it can be kept out of every message."""
    found: set[str] = set()
    for path in filter(None, paths):
        try:
            found.add(Path(path).read_text("utf-8").strip())
        except (OSError, UnicodeDecodeError):  # noqa: PERF203 - one or two
            continue  # whoever needs it says so
    return frozenset(found)
