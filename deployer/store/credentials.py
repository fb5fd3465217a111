"""Finds an object store's credentials where each cloud's tools keep them. They are never shown or written.

Access keys in the environment and the file of a Google service account go to obstore as they are. The cloud's
own library, an extra of kdeploy, resolves everything else (profiles, SSO, roles, web and workload identity,
personal logins) in its own order. If nothing is configured, obstore queries the machine's metadata service.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

from msgspec import Struct, field

from deployer.errors import ConfigError
from deployer.files import exists, expanded, read_text
from deployer.patience import PATIENCE

GOOGLE_FILE = "gcloud-application-credentials.json"  # KServe's name for it
_AWS = {
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
}
_OLD_TOKEN = "AWS_SECURITY_TOKEN"  # noqa: S105 - the older name of AWS_SESSION_TOKEN
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
_PROXY_PASSWORD = re.compile(r"//[^/@:]*:([^/@]*)@")
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_LIBRARIES = {  # by extra: a distribution, and obstore's module for it
    "aws": ("boto3", "obstore.auth.boto3"),
    "azure": ("azure-identity", "obstore.auth.azure"),
    "gcp": ("google-auth", "obstore.auth.google"),
}

Result = TypeVar("Result")


class Credentials(Struct, kw_only=True):
    """The credentials of one object store.

    `data` has the keys of KServe's Secret, `options` those of obstore's store. `lasting` is false for
    credentials that expire or are a person's own. `secrets` must never be shown; it grows when a library
    returns new keys. `failure` is set when a library fails.
    """

    data: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    region: str = ""
    lasting: bool = True
    failure: ConfigError | None = None

    def __repr__(self) -> str:
        return f"Credentials({', '.join(self.data or self.options) or 'none'})"

    def provide(self, provider: Callable[[], Any], where: str, hint: str) -> None:
        """Let obstore request keys from a library when it needs some."""

        def request() -> Any:
            try:
                keys = _call(provider, where, hint)
            except ConfigError as error:
                self.failure = error
                raise
            # A new set, since another thread can be reading the old one.
            self.secrets = self.secrets | {value for value in keys.values() if isinstance(value, str)}
            return keys

        self.options["credential_provider"] = request


def find_credentials(scheme: str, environment: Mapping[str, str], region: str = "") -> Credentials:
    """Find the credentials for a scheme; `data` and `options` are empty if there are none.

    `region` is the config's. The clouds' libraries read the environment of this process. Raises ConfigError.
    """
    if scheme == "s3":
        found = _aws(environment, region or environment.get("AWS_REGION", ""))
    else:
        found = _google(environment) if scheme == "gs" else _azure(environment)
    if scheme != "gs":
        values = {**found.data, "AZURE_STORAGE_SAS_TOKEN": found.options.get("sas_key", "")}
        for name, value in values.items():
            if not value.isprintable():
                raise ConfigError(
                    "invalid credential: it contains a line break or another control character", where=name
                )
    # obstore reads variables itself, and proxies have passwords.
    found.secrets |= {value for name, value in environment.items() if _SECRET_VARIABLE.fullmatch(name)}
    proxies = [value for name, value in environment.items() if name.lower().endswith("_proxy")]
    found.secrets |= {match[1] for proxy in proxies if (match := _PROXY_PASSWORD.search(proxy))}
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
                hint="Set both, or unset both to use a profile.",
            )
        found = _of_keys(keys)
        found.region = _region_of_profile(configured) if configured and not region else ""
        return found
    profile = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or "default"
    return _of_boto3(configured, profile, region) if configured else Credentials()


def _of_keys(keys: dict[str, str]) -> Credentials:
    """Return access keys for obstore and a Secret. The ID identifies the account, so it is a secret."""
    return Credentials(
        data=keys,
        options={_AWS[name]: value for name, value in keys.items()},
        secrets=set(keys.values()),
        lasting="AWS_SESSION_TOKEN" not in keys,
    )


def _aws_configured(environment: Mapping[str, str]) -> str:
    """Return the first variable or file that configures an identity, else an empty string."""
    found = [name for name in _AWS_PROFILES if environment.get(name)]
    for variable, usual in _AWS_FILES.items():
        path = expanded(environment.get(variable) or usual, environment)
        try:
            read_text(path)  # boto3 has no limit of size
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot read the file: {error.strerror}", where=str(path)) from None
        found.append(str(path))
    return found[0] if found else ""


def _region_of_profile(configured: str) -> str:
    """Return the region of the profile, for keys in the environment; empty without boto3."""
    try:
        import boto3
    except ImportError:
        return ""
    hint = "Correct the profile, or unset AWS_PROFILE."
    return _call(lambda: boto3.Session().region_name, configured, hint) or ""


def _of_boto3(configured: str, profile: str, region: str) -> Credentials:
    """Let boto3 find the keys, in the order of AWS's tools."""
    auth = _import_auth("aws", configured)
    import boto3
    from botocore.credentials import RefreshableCredentials

    hint = f"Run `aws sts get-caller-identity --profile {profile}` for details, `aws sso login` to sign in."
    session = _call(lambda: boto3.Session(region_name=region or None), configured, hint)
    keys = _call(session.get_credentials, configured, hint)
    if keys is None:
        if configured in _AWS_PROFILES:
            raise _unusable(configured, "none found", hint)
        found = Credentials()
    elif isinstance(keys, RefreshableCredentials):
        # A machine's identity can also be the cluster's; any other is a person's or a role's.
        found = Credentials(lasting=keys.method in _MACHINES)
        found.provide(auth.Boto3CredentialProvider(session, ttl=_KEPT), configured, hint)
    else:
        frozen = keys.get_frozen_credentials()
        values = zip(_AWS, (frozen.access_key, frozen.secret_key, frozen.token), strict=True)
        found = _of_keys({name: value for name, value in values if value})
    found.region = session.region_name or ""
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
    auth = _import_auth("azure", configured)
    logging.getLogger("azure").addHandler(logging.NullHandler())  # its warnings would go to stderr
    # A workload's identity can also be the cluster's.
    found = Credentials(secrets=secrets, lasting=configured == "AZURE_FEDERATED_TOKEN_FILE")
    hint = "Run `az account get-access-token` for details, `az login` to sign in."

    def request() -> Any:
        return auth.AzureCredentialProvider()()

    found.provide(request, configured, hint)
    return found


def _google(environment: Mapping[str, str]) -> Credentials:
    named = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    folder = environment.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    path = expanded(named or f"{folder}/application_default_credentials.json", environment)
    hint = "Run `gcloud auth application-default login` to sign in."
    try:
        text = read_text(path)
        content = json.loads(text)
        names = ("private_key", "private_key_id", "client_secret", "refresh_token")
        secrets = {text, *(value for name in names if isinstance(value := content.get(name), str))}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FileNotFoundError) and not named:
            return Credentials()
        reason = error.strerror if isinstance(error, OSError) else "invalid JSON object"
        raise ConfigError(f"cannot read the credentials: {reason}", where=str(path), hint=hint) from None
    if content.get("type") == "service_account":
        return Credentials(data={GOOGLE_FILE: text}, options={"service_account_key": text}, secrets=secrets)
    auth = _import_auth("gcp", str(path))
    import google.auth

    def request() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about quotas, which do not matter here
            credentials, _ = google.auth.default(scopes=[_GOOGLE_SCOPE])
        return auth.GoogleCredentialProvider(credentials)()

    found = Credentials(secrets=secrets, lasting=False)
    found.provide(request, str(path), hint)
    return found


def _import_auth(extra: str, configured: str) -> Any:
    """Import obstore's module for a cloud's library. Raises ConfigError if that is not installed."""
    library, module = _LIBRARIES[extra]
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(
            f"these credentials need {library}, which is not installed",
            where=configured,
            hint=f"Run `pip install 'kdeploy[{extra}]'`.",
        ) from None


def _call(work: Callable[[], Result], where: str, hint: str) -> Result:
    """Call a cloud's library, for a limited time: a `credential_process` can hang. Raises ConfigError."""
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is read
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(PATIENCE.program)
    except TimeoutError:
        raise _unusable(where, f"no answer after {PATIENCE.program:g} s", hint) from None
    except Exception as error:  # noqa: BLE001 - any of a library
        # The name of its class only, since its text can quote a secret.
        raise _unusable(where, type(error).__name__, hint) from None


def _unusable(where: str, reason: str, hint: str) -> ConfigError:
    return ConfigError(f"cannot get credentials: {reason}", where=where, hint=hint)
