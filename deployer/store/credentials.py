"""Credentials of an object store, found where each cloud's own tools keep them; never shown, never written.

S3, as AWS's own tools do: keys in the environment, then the profile (`AWS_PROFILE`, else `default`) in
`~/.aws/credentials` and `~/.aws/config`, and the process that it may name. Azure: account key, connection
string, SAS token or service principal in the environment. Google: the file that
`GOOGLE_APPLICATION_CREDENTIALS` names, else what `gcloud auth application-default login` wrote. Where there
are none, obstore asks what the machine has: web identity, instance metadata.
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct, field

from deployer.errors import ConfigError
from deployer.files import expanded, read_text

GOOGLE_FILE = "gcloud-application-credentials.json"  # as KServe calls it
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_OLD_TOKEN = "AWS_SECURITY_TOKEN"  # noqa: S105 - what AWS called a session token before
_STRONGER = {"role_arn", "sso_session", "sso_start_url"}  # what AWS's own tools ask before keys or a process
_AZURE_KEYS = (
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
)
_SECRET_VARIABLE = re.compile(r"(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS|CONNECTION).*(?<!_FILE)")
_NOT_GOOGLE = "is not a file of Google's credentials"
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
    section = _aws_profile(environment, profile or "default")
    region = section.get("region", "")
    by_variable = _pair(environment)
    if _AWS[0] in by_variable and _AWS[1] not in by_variable:
        raise ConfigError(
            "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not",
            where="AWS_SECRET_ACCESS_KEY",
            hint="set both, or neither to use a profile",
        )
    if _AWS[0] in by_variable:
        return _keys(by_variable, region)
    own = {} if section.keys() & _STRONGER else section
    by_file = _pair({name.upper(): value for name, value in own.items()})
    if {_AWS[0], _AWS[1]} <= by_file.keys():
        return _keys(by_file, region)
    if own.get("credential_process"):
        from deployer.store.aws_process import ask_process

        data, lasting = ask_process(own["credential_process"], profile or "default")
        return msgspec.structs.replace(_keys(data, region), lasting=lasting)
    if profile:
        raise ConfigError(
            f"profile {profile} holds no access key: it asks for a sign-in or a role",
            where="AWS_PROFILE",
            hint=f"`aws configure export-credentials --profile {profile} --format env` prints keys: "
            "set those, and unset AWS_PROFILE",
        )
    return Credentials(secrets=_contents([environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")]), region=region)


def _pair(values: Mapping[str, str]) -> dict[str, str]:
    """Return the access key, the secret and the session token among some values, as far as they are set."""
    token = values.get(_AWS[2]) or values.get(_OLD_TOKEN)
    found = {_AWS[0]: values.get(_AWS[0]), _AWS[1]: values.get(_AWS[1]), _AWS[2]: token}
    return {name: value for name, value in found.items() if value}


def _keys(data: dict[str, str], region: str) -> Credentials:
    """Hold a pair of keys; the id alone opens nothing, but names the account, so it is kept back too."""
    return Credentials(
        data=data, secrets=frozenset(data.values()), region=region, lasting="AWS_SESSION_TOKEN" not in data
    )


def _aws_profile(environment: Mapping[str, str], profile: str) -> dict[str, str]:
    """Return what both of AWS's files say of a profile, the one for credentials having the last word."""
    found: dict[str, str] = {}
    for variable, name, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        path = expanded(environment.get(variable) or f"~/.aws/{name}", environment)
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(read_text(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"it cannot be read: {error.strerror}", where=str(path)) from None
        except configparser.Error:
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
    path = expanded(named or "~/.config/gcloud/application_default_credentials.json", environment)
    try:
        text = read_text(path)
        content = json.loads(text)
        secrets = {
            value
            for key in ("private_key", "private_key_id", "client_secret", "refresh_token")
            if isinstance(value := content.get(key), str) and value
        }
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FileNotFoundError) and not named:
            return Credentials()
        why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else _NOT_GOOGLE
        raise ConfigError(
            f"it {why}",
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
            found.add(read_text(path).strip())
        except OSError:  # noqa: PERF203 - one or two
            continue  # whoever needs it says so
    return frozenset(found)
