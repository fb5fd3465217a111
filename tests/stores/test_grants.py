"""From the credentials of each cloud to the documents that give KServe access."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import msgspec
import pytest

from deployer.archive import Archive
from deployer.config import Config, Model, Scaling, Serving, Store
from deployer.errors import ConfigError
from deployer.manifest import encode_yaml, render, render_runtime, runtime_name
from deployer.observed import Capabilities, Document
from deployer.patience import Patience
from deployer.release import ArchiveRecord, Release, plan_release
from deployer.store.credentials import Credentials, find_credentials
from deployer.store.grants import plan_access
from deployer.store.location import locate
from tests.stores.fixtures import CLOUDS

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASE = Release(
    id="1.0-0123456789ab",
    name="digits",
    version="1.0",
    archive=ArchiveRecord("digits.mar", "sha256:0", ()),
    serving=Serving(),
    config_properties="",
)
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "planted-secret"}
ACCOUNT = {"AZURE_STORAGE_ACCOUNT": "mymodels"}
PRINCIPAL = {"AZURE_CLIENT_ID": "id", "AZURE_CLIENT_SECRET": "planted-secret", "AZURE_TENANT_ID": "tenant"}
S3 = "s3://models/team"


def found_in(environment: dict[str, str], scheme: str = "s3") -> Credentials:
    """Find credentials with these variables as the only ones of any cloud."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(CLOUDS):
                patch.delenv(name)
        for name, value in {"HOME": "/nonexistent", **environment}.items():
            patch.setenv(name, value)
        return find_credentials(scheme, os.environ)


def documents(config: Store, environment: dict[str, str]) -> tuple[list[Document], str]:
    """Return the rendered Secret, ServiceAccount and labelled service, and the caution."""
    scheme = config.uri.partition("://")[0]
    credentials = found_in(environment, scheme)
    location = locate(config, environment, credentials.region)
    access = plan_access(config, location, credentials)
    bundle = render(
        RELEASE,
        storage_uri=location.uri,
        namespace="team",
        capabilities=Capabilities(deployment_mode="Knative", canary=True),
        scaling=Scaling(),
        access=access,
    )
    made = [bundle.secret.document if bundle.secret else None, bundle.account]
    # The service itself only if the store sets a label of it.
    made.append(bundle.service if access.pod_labels else None)
    return [document for document in made if document], access.caution


@pytest.mark.parametrize(
    ("name", "config", "environment"),
    [
        ("s3-aws", Store(uri=S3, region="eu-central-1"), KEYS),
        ("s3-compatible", Store(uri=S3, endpoint="http://10.0.0.5:9000"), {**KEYS, "AWS_REGION": "here"}),
        (
            "s3-virtual",
            Store(uri=S3, endpoint="https://s3.example.org", virtual_hosted=True, ca_config_map="ca"),
            KEYS,
        ),
        ("s3-role", Store(uri=S3, service_account_annotations={"eks.amazonaws.com/role-arn": "arn:x"}), KEYS),
        (
            "azure-workload-identity",
            Store(uri="az://models", service_account_annotations={"azure.workload.identity/client-id": "id"}),
            ACCOUNT,
        ),
        ("s3-secret", Store(uri=S3, secret_name="keys"), KEYS),
        ("azure-key", Store(uri="az://models/team"), {**ACCOUNT, "AZURE_STORAGE_KEY": "planted-secret"}),
        ("azure-principal", Store(uri="az://models/team"), {**ACCOUNT, **PRINCIPAL}),
    ],
)
def test_the_documents_are_the_golden_ones(
    name: str, config: Store, environment: dict[str, str], tmp_path: Path
) -> None:
    made, caution = documents(config, {"HOME": str(tmp_path), **environment})
    rendered = encode_yaml(made).replace(runtime_name(render_runtime()), "kdeploy-torchserve-DIGEST")
    assert rendered == (GOLDEN / f"access-{name}.yaml").read_text("utf-8")
    assert caution == ""


def test_access_to_the_store_does_not_change_the_release_id() -> None:
    archive = Archive(name="digits", version="1.0", format="zip-store", members=())
    config = Config(model=Model(name="digits", version="1.0", handler="h"))
    annotations = {"azure.workload.identity/client-id": "id"}
    store = Store(uri="az://models", service_account_annotations=annotations)
    labelled = msgspec.structs.replace(config, store=store)
    assert plan_release(config, archive).id == plan_release(labelled, archive).id


def google(tmp_path: Path, kind: str) -> dict[str, str]:
    path = tmp_path / "google.json"
    path.write_text(json.dumps({"type": kind, "private_key": "planted-secret"}))
    return {"HOME": str(tmp_path), "GOOGLE_APPLICATION_CREDENTIALS": str(path)}


def test_a_service_account_file_is_stored_unchanged(tmp_path: Path) -> None:
    (secret, account), caution = documents(Store(uri="gs://models"), google(tmp_path, "service_account"))
    ((name, content),) = secret["data"].items()
    assert name == "gcloud-application-credentials.json"  # KServe's name for it
    assert json.loads(base64.b64decode(content))["private_key"] == "planted-secret"
    assert account["secrets"] == [{"name": secret["metadata"]["name"]}]
    assert caution == ""


@pytest.mark.parametrize(
    ("uri", "environment"),
    [
        ("s3://models", {}),
        ("az://models", ACCOUNT),
        ("az://models", {**ACCOUNT, "AZURE_STORAGE_TOKEN": "planted-secret"}),
        (
            "az://models",
            {
                **ACCOUNT,
                "AZURE_CLIENT_ID": "id",
                "AZURE_TENANT_ID": "tenant",
                "AZURE_FEDERATED_TOKEN_FILE": "x",
            },
        ),
        ("gs://models", {}),
    ],
)
def test_without_storable_credentials_there_is_a_caution(
    uri: str, environment: dict[str, str], tmp_path: Path
) -> None:
    made, caution = documents(Store(uri=uri), {"HOME": str(tmp_path), **environment})
    assert [d["kind"] for d in made] == ["ServiceAccount"]
    assert "no credentials found that a cluster could use" in caution
    assert "planted-secret" not in str(made)


def expiring(folder: Path) -> dict[str, tuple[str, dict[str, str]]]:
    token = ', "SessionToken": "process-token", "Expiration": "2999-01-01T00:00:00Z"'
    (folder / "files").mkdir()
    (folder / "files" / "credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = planted-secret\n"
        "aws_session_token = token\n"
        "[old]\naws_access_key_id = A\naws_secret_access_key = planted-secret\naws_security_token = token\n"
    )
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(folder / "files" / "credentials")}
    return {
        "session": (S3, {**KEYS, "AWS_SESSION_TOKEN": "token"}),
        "security token": (S3, {**KEYS, "AWS_SECURITY_TOKEN": "token"}),
        "profile": (S3, files),
        "profile with the old token": (S3, {**files, "AWS_PROFILE": "old"}),
        "process": (S3, process(folder, "{" + KEYS_OF_A_PROCESS + token + "}")),
        "SAS": ("az://models", {**ACCOUNT, "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=planted-secret"}),
        "personal login": ("gs://models", google(folder, "authorized_user")),
        "impersonated": ("gs://models", google(folder, "impersonated_service_account")),
        "federated": ("gs://models", google(folder, "external_account")),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "session",
        "security token",
        "profile",
        "profile with the old token",
        "process",
        "SAS",
        "personal login",
        "impersonated",
        "federated",
    ],
)
def test_temporary_and_personal_credentials_are_never_stored(kind: str, tmp_path: Path) -> None:
    uri, environment = expiring(tmp_path)[kind]
    environment = {"HOME": str(tmp_path), **environment}
    with pytest.raises(ConfigError, match="temporary or personal") as caught:
        documents(Store(uri=uri), environment)
    assert "store.service-account" in (caught.value.hint or "")
    assert "store.secret-name" in (caught.value.hint or "")
    assert "planted-secret" not in f"{caught.value} {caught.value.hint}"
    for config in (
        Store(uri=uri, service_account="models"),
        Store(uri=uri, secret_name="keys"),
        Store(uri=uri, service_account_annotations={"eks.amazonaws.com/role-arn": "arn:x"}),
    ):
        made, caution = documents(config, environment)
        assert (caution, "token" in str([d.get("data") for d in made])) == ("", False)


def test_a_named_service_account_needs_no_document(tmp_path: Path) -> None:
    assert documents(Store(uri=S3, service_account="models"), {"HOME": str(tmp_path), **KEYS}) == ([], "")


def write_profiles(home: Path) -> dict[str, str]:
    folder = home / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = default-secret\n"
        "[team]\naws_access_key_id = B\naws_secret_access_key = team-secret\n"
    )
    (folder / "config").write_text(
        "[default]\nregion = eu-central-1\n"
        "[profile team]\nregion = eu-west-3\n"
        "[profile sso]\nsso_session = x\n"
        "[profile role]\nrole_arn = arn:x\naws_access_key_id = D\naws_secret_access_key = base-secret\n"
    )
    return {"HOME": str(home)}


def test_profiles_are_read_like_awss_tools(tmp_path: Path) -> None:
    home = write_profiles(tmp_path)
    for profile, secret, region in (
        (None, "default-secret", "eu-central-1"),
        ("team", "team-secret", "eu-west-3"),
    ):
        found = found_in({**home, **({"AWS_PROFILE": profile} if profile else {})})
        assert (found.data["AWS_SECRET_ACCESS_KEY"], found.region) == (secret, region)
        assert (found.options["secret_access_key"], found.lasting) == (secret, True)
        assert secret in found.secrets
    for profile in ("sso", "role", "unknown"):  # a role has precedence over keys in the same profile
        with pytest.raises(ConfigError, match="cannot get credentials") as caught:
            found_in({**home, "AWS_PROFILE": profile})
        assert caught.value.where == "AWS_PROFILE"
        assert f"--profile {profile}" in (caught.value.hint or "")
        assert "base-secret" not in str(caught.value)
    (tmp_path / ".aws" / "credentials").write_text("planted-secret")
    with pytest.raises(ConfigError) as broken:
        found_in(home)
    assert "planted-secret" not in str(broken.value)


def test_keys_in_the_environment_have_precedence_over_profiles(tmp_path: Path) -> None:
    home = write_profiles(tmp_path)
    for profile, region in (("team", "eu-west-3"), ("sso", ""), ("default", "eu-central-1")):
        found = found_in({**home, **KEYS, "AWS_PROFILE": profile})
        assert (found.data, found.region) == (KEYS, region)
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"):
        found_in({**home, "AWS_ACCESS_KEY_ID": "planted", "AWS_SESSION_TOKEN": "token"})


def write_login_of_azure(home: Path) -> dict[str, str]:
    (home / ".azure").mkdir()
    (home / ".azure" / "azureProfile.json").write_text("{}")
    return {**ACCOUNT, "HOME": str(home)}


IDENTITIES = {
    "a profile": ("s3", "aws", "boto3", lambda home: {"AWS_PROFILE": "team"}),
    "the default profile": ("s3", "aws", "boto3", write_profiles),
    "web identity": ("s3", "aws", "boto3", lambda home: {"AWS_WEB_IDENTITY_TOKEN_FILE": "x"}),
    "a login of Azure": ("az", "azure", "azure.identity", write_login_of_azure),
    "a workload identity": (
        "az",
        "azure",
        "azure.identity",
        lambda home: {"AZURE_FEDERATED_TOKEN_FILE": "x", "AZURE_CLIENT_ID": "id"},
    ),
    "a login of Google": ("gs", "gcp", "google.auth", lambda home: google(home, "authorized_user")),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_without_its_extra_a_configured_identity_is_an_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, extra, library, configure = IDENTITIES[kind]
    for module in [name for name in sys.modules if name.startswith("obstore.auth.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    environment = {"HOME": str(tmp_path), **configure(tmp_path)}
    with pytest.raises(ConfigError, match="which is not installed") as caught:
        found_in(environment, scheme)
    assert caught.value.hint == f"Run `pip install 'kdeploy[{extra}]'`."
    if scheme == "s3":  # keys in the environment do not need it
        assert found_in({**environment, **KEYS}).data == KEYS


KEYS_OF_A_PROCESS = '"Version": 1, "AccessKeyId": "C", "SecretAccessKey": "process-secret"'


def process(folder: Path, printed: str, more: str = "") -> dict[str, str]:
    """Return an environment whose AWS profile has a credential_process that prints `printed`."""
    (folder / ".aws").mkdir(exist_ok=True)
    text = f"import sys; print({printed!r}); print('planted', file=sys.stderr){more}"
    (folder / "print.py").write_text(text)
    command = f"credential_process = '{sys.executable}' '{folder}/print.py'"
    (folder / ".aws" / "config").write_text(f"[profile team]\nregion = eu-west-3\n{command}\n")
    return {"HOME": str(folder), "AWS_PROFILE": "team"}


def test_a_credential_process_provides_keys(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = found_in(process(tmp_path, "{" + KEYS_OF_A_PROCESS + "}"))
    assert (found.data["AWS_SECRET_ACCESS_KEY"], found.region) == ("process-secret", "eu-west-3")
    assert found.lasting
    assert set(found.data.values()) <= found.secrets
    assert capfd.readouterr() == ("", "")


def test_a_credential_process_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployer.store.credentials.PATIENCE", Patience(program=0.2))
    with pytest.raises(ConfigError, match=r"cannot get credentials: no answer after 0\.2 s"):
        found_in(process(tmp_path, "", more="; import time; time.sleep(3)"))


@pytest.mark.parametrize("token", ["", ', "SessionToken": "process-token"'])
def test_expiring_keys_of_a_credential_process_are_requested_when_needed(token: str, tmp_path: Path) -> None:
    printed = "{" + KEYS_OF_A_PROCESS + token + ', "Expiration": "2999-01-01T00:00:00Z"}'
    found = found_in(process(tmp_path, printed))
    assert (found.data, found.lasting) == ({}, False)
    given = found.options["credential_provider"]()
    assert given["secret_access_key"] == "process-secret"
    assert given["token"] == ("process-token" if token else None)
    assert "process-secret" in found.secrets


@pytest.mark.parametrize(
    ("printed", "more"),
    [
        ("planted", ""),
        ('{"Version": 1, "AccessKeyId": "planted"}', ""),
        ("{" + KEYS_OF_A_PROCESS.replace("1", "2", 1) + "}", ""),
        ("{" + KEYS_OF_A_PROCESS + ', "Expiration": "2020-01-01T00:00:00Z"}', ""),
        ("planted", "; sys.exit('planted')"),
    ],
)
def test_a_credential_process_without_keys_is_an_error(
    printed: str, more: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="cannot get credentials") as caught:
        found = found_in(process(tmp_path, printed, more))
        found.options["credential_provider"]()
    assert "--profile team" in (caught.value.hint or "")
    assert caught.value.__cause__ is None
    said = "".join([str(caught.value), *capfd.readouterr()])
    assert "planted" not in said
    assert "process-secret" not in said


@pytest.mark.parametrize("name", ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"])
def test_an_endless_file_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the file: more than"):
        found_in({"HOME": str(tmp_path), name: "/dev/zero"})
    with pytest.raises(ConfigError, match="cannot read the credentials: more than"):
        found_in({"HOME": str(tmp_path), "GOOGLE_APPLICATION_CREDENTIALS": "/dev/zero"}, "gs")


def test_azures_connection_string_is_parsed() -> None:
    text = "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abc+/==;EndpointSuffix=x.net"
    found = found_in({"AZURE_STORAGE_CONNECTION_STRING": text}, "az")
    assert found.data == {"AZURE_STORAGE_ACCESS_KEY": "abc+/=="}
    assert {text, "abc+/=="} <= found.secrets
    assert "abc" not in repr(found)


@pytest.mark.parametrize("content", ["", "[]", "{", '"planted-secret"'])
def test_an_invalid_file_of_google_is_an_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "google.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="cannot read the credentials") as caught:
        found_in({"GOOGLE_APPLICATION_CREDENTIALS": str(path)}, "gs")
    assert "planted-secret" not in str(caught.value)
