"""Credentials of an object store, found where each cloud's own tools keep them; never shown, never written.

Access keys in the environment and the file of a Google service account go to obstore as they are. The cloud's
own library, an extra of kdeploy, resolves everything else (profiles, SSO, roles, web and workload identity,
personal logins) in its own order. If nothing is configured, obstore queries the machine's metadata service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from msgspec import Struct, field

from deployer.errors import ConfigError
from deployer.files import exists, expanded, read_text

GOOGLE_FILE = "gcloud-application-credentials.json"  # as KServe calls it
_AWS = {
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
}
_OLD_TOKEN = "AWS_SECURITY_TOKEN"  # noqa: S105 - what AWS called a session token before
_AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
_AWS_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
_MACHINES = ("assume-role-with-web-identity", "iam-role", "container-role")
# boto3 renews keys at least 10 minutes before they expire; obstore must not keep them longer than that.
_KEPT = timedelta(minutes=5)
_AZURE_KEYS = ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY")
_AZURE_PRINCIPAL = {
    "AZ_CLIENT_ID": "AZURE_CLIENT_ID",
    "AZ_CLIENT_SECRET": "AZURE_CLIENT_SECRET",
    "AZ_TENANT_ID": "AZURE_TENANT_ID",
}
_AZURE_OTHERS = ("AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_USERNAME")
_SECRET_VARIABLE = re.compile(r"(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS|CONNECTION).*(?<!_FILE)")
_LOGIN = re.compile(r"//[^/@:]*:([^/@]*)@")
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class Credentials(Struct, kw_only=True):
    """What was found.

    `data` has the keys of KServe's Secret, `options` those of obstore's store. `lasting` is false for what
    expires or is a person's own. `secrets` must never be shown; it grows when a library hands out new keys.
    `failure` is set when a library has none to hand out.
    """

    data: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    region: str = ""
    lasting: bool = True
    failure: ConfigError | None = None

    def __repr__(self) -> str:
        return f"Credentials({', '.join(self.data or self.options) or 'none'})"

    def provide(self, provider: Callable[[], Any], what: str, hint: str) -> None:
        """Let obstore request keys from a library whenever it needs some."""

        def request() -> Any:
            try:
                given = provider()
            except Exception as error:  # noqa: BLE001 - any of a library's own
                # What a library says of a refusal may quote a secret.
                self.failure = _unusable(what, error, hint)
                raise self.failure from None
            # A new set, since another thread may be reading the old one.
            self.secrets = self.secrets | {value for value in given.values() if isinstance(value, str)}
            return given

        self.options["credential_provider"] = request


def find_credentials(scheme: str, environment: Mapping[str, str], region: str = "") -> Credentials:
    """Look for the credentials of a scheme; with none found, `data` and `options` are empty.

    `region` is S3's where the config sets it. The libraries of the clouds read the environment of this
    process. Raises ConfigError.
    """
    if scheme == "s3":
        found = _aws(environment, region or environment.get("AWS_REGION", ""))
    else:
        found = _google(environment) if scheme == "gs" else _azure(environment)
    if scheme != "gs":
        values = {**found.data, "AZURE_STORAGE_SAS_TOKEN": found.options.get("sas_key", "")}
        for name, value in values.items():
            if not value.isprintable():
                raise ConfigError("it holds a line break, or another character that is not text", where=name)
    # obstore reads variables by itself, and proxies have passwords.
    found.secrets |= {value for name, value in environment.items() if _SECRET_VARIABLE.fullmatch(name)}
    logins = (_LOGIN.search(value) for name, value in environment.items() if name.lower().endswith("_proxy"))
    found.secrets |= {login[1] for login in logins if login}
    found.secrets.discard("")
    return found


def _aws(environment: Mapping[str, str], region: str) -> Credentials:
    token = environment.get("AWS_SESSION_TOKEN") or environment.get(_OLD_TOKEN, "")
    given = {**environment, "AWS_SESSION_TOKEN": token}
    keys = {name: value for name in _AWS if (value := given.get(name))}
    configured = _aws_configured(environment)
    if "AWS_ACCESS_KEY_ID" in keys:
        if "AWS_SECRET_ACCESS_KEY" not in keys:
            raise ConfigError(
                "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not",
                where="AWS_SECRET_ACCESS_KEY",
                hint="set both, or neither to use a profile",
            )
        found = _of_keys(keys)
        found.region = _region_of_profile(configured) if configured and not region else ""
        return found
    profile = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or "default"
    return _of_boto3(configured, profile, region) if configured else Credentials()


def _of_keys(keys: dict[str, str]) -> Credentials:
    """Return access keys for obstore and a Secret; the ID names the account, so it is a secret too."""
    return Credentials(
        data=keys,
        options={_AWS[name]: value for name, value in keys.items()},
        secrets=set(keys.values()),
        lasting="AWS_SESSION_TOKEN" not in keys,
    )


def _aws_configured(environment: Mapping[str, str]) -> str:
    """Return the first variable or file that configures an identity, or nothing."""
    found = [name for name in _AWS_PROFILES if environment.get(name)]
    for variable, usual in _AWS_FILES.items():
        path = expanded(environment.get(variable) or usual, environment)
        try:
            read_text(path)  # boto3 would read a file without end
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"it cannot be read: {error.strerror}", where=str(path)) from None
        found.append(str(path))
    return found[0] if found else ""


def _region_of_profile(configured: str) -> str:
    """Return the region beside keys in the environment; a wrong one is refused by S3, and so no harm."""
    try:
        import boto3
    except ImportError:
        return ""
    try:
        return boto3.Session().region_name or ""
    except Exception as error:  # noqa: BLE001 - botocore's own
        raise _unusable(configured, error, "correct the profile, or unset AWS_PROFILE") from None


def _of_boto3(configured: str, profile: str, region: str) -> Credentials:
    """Let boto3 find the keys, by the precedence of AWS's own tools."""
    try:
        import boto3
        from botocore.credentials import RefreshableCredentials
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise _missing("boto3", "aws", configured) from None
    hint = f"`aws sts get-caller-identity --profile {profile}` shows more; `aws sso login` signs in again"
    try:
        session = boto3.Session(region_name=region or None)
        keys = session.get_credentials()
        if keys is None:
            if configured in _AWS_PROFILES:
                raise LookupError
            return Credentials(region=session.region_name or "")
        if isinstance(keys, RefreshableCredentials):
            # The identity of a machine may also be the cluster's; anything else is a person's or a role's.
            found = Credentials(lasting=keys.method in _MACHINES)
            found.provide(Boto3CredentialProvider(session, ttl=_KEPT), configured, hint)
        else:
            frozen = keys.get_frozen_credentials()
            values = zip(_AWS, (frozen.access_key, frozen.secret_key, frozen.token), strict=True)
            found = _of_keys({name: value for name, value in values if value})
        found.region = session.region_name or ""
    except Exception as error:  # noqa: BLE001 - botocore's own, and others of what it starts
        raise _unusable(configured, error, hint) from None
    return found


def _azure(environment: Mapping[str, str]) -> Credentials:
    connection = environment.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
    keys = [environment[name] for name in _AZURE_KEYS if environment.get(name)]
    key = next(iter(keys), parts.get("AccountKey", ""))
    sas = environment.get("AZURE_STORAGE_SAS_TOKEN") or parts.get("SharedAccessSignature", "")
    secrets = {connection, key, sas, *keys}
    if key:
        data = {"AZURE_STORAGE_ACCESS_KEY": key}
        return Credentials(data=data, options={"account_key": key}, secrets=secrets)
    if sas:
        return Credentials(options={"sas_key": sas.lstrip("?")}, secrets=secrets, lasting=False)
    principal = {ours: environment.get(theirs, "") for ours, theirs in _AZURE_PRINCIPAL.items()}
    if all(principal.values()):
        return Credentials(
            data={**principal, "AZ_SUBSCRIPTION_ID": environment.get("AZURE_SUBSCRIPTION_ID", "")},
            options={name.removeprefix("AZ_").lower(): value for name, value in principal.items()},
            secrets=secrets | {principal["AZ_CLIENT_SECRET"]},
        )
    login = expanded(environment.get("AZURE_CONFIG_DIR") or "~/.azure", environment) / "azureProfile.json"
    configured = next((name for name in _AZURE_OTHERS if environment.get(name)), "")
    configured = configured or (str(login) if exists(login) else "")
    if not configured or environment.get("AZURE_STORAGE_TOKEN"):  # which obstore reads
        return Credentials(secrets=secrets)
    return _of_azure_identity(configured, secrets)


def _of_azure_identity(configured: str, secrets: set[str]) -> Credentials:
    try:
        from obstore.auth.azure import AzureCredentialProvider
    except ImportError:
        raise _missing("azure-identity", "azure", configured) from None
    import logging

    logging.getLogger("azure").addHandler(logging.NullHandler())  # its warnings would go to stderr
    # A workload's identity is a machine's, which may also be the cluster's.
    found = Credentials(secrets=secrets, lasting=configured == "AZURE_FEDERATED_TOKEN_FILE")
    hint = "`az account get-access-token` shows more; `az login` signs in"

    def request() -> Any:
        return AzureCredentialProvider()()

    found.provide(request, configured, hint)
    return found


def _google(environment: Mapping[str, str]) -> Credentials:
    named = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    folder = environment.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    path = expanded(named or f"{folder}/application_default_credentials.json", environment)
    hint = "gcloud auth application-default login"
    try:
        text = read_text(path)
        content = json.loads(text)
        names = ("private_key", "private_key_id", "client_secret", "refresh_token")
        secrets = {text, *(value for name in names if isinstance(value := content.get(name), str))}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FileNotFoundError) and not named:
            return Credentials()
        why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "holds no credentials"
        raise ConfigError(f"it {why}", where=str(path), hint=hint) from None
    if content.get("type") == "service_account":
        return Credentials(data={GOOGLE_FILE: text}, options={"service_account_key": text}, secrets=secrets)
    found = Credentials(secrets=secrets, lasting=False)
    found.provide(_google_provider(str(path)), str(path), hint)
    return found


def _google_provider(path: str) -> Callable[[], Any]:
    try:
        import google.auth
        import google.auth.transport.requests
        from obstore.auth.google import GoogleCredentialProvider
    except ImportError:
        raise _missing("google-auth", "gcp", path) from None
    import warnings

    def ask() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about quotas, which do not matter here
            credentials, _ = google.auth.default(scopes=[_GOOGLE_SCOPE])
        return GoogleCredentialProvider(credentials)()

    return ask


def _missing(library: str, extra: str, configured: str) -> ConfigError:
    return ConfigError(
        f"reading these credentials needs {library}, which is not installed",
        where=configured,
        hint=f"pip install 'kdeploy[{extra}]'",
    )


def _unusable(configured: str, error: Exception, hint: str) -> ConfigError:
    """Return what a library's refusal stands for: its kind alone, since its text may quote a secret."""
    what = f"it gives no credentials ({type(error).__name__})"
    return ConfigError(what, where=configured, hint=hint)
