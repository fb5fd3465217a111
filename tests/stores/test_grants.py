"""From credentials, wherever a cloud keeps them, to the documents that let KServe in."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import msgspec
import pytest

from deployer.archive import Archive
from deployer.config import Config, Model, Serving, Store
from deployer.errors import ConfigError
from deployer.manifest import encode_yaml, render, render_runtime, render_secret, runtime_name
from deployer.observed import Capabilities, Document
from deployer.release import ArchiveRecord, Release, plan_release
from deployer.store.aws_process import ask_process
from deployer.store.credentials import find_credentials
from deployer.store.grants import grant
from deployer.store.location import locate

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


def documents(config: Store, environment: dict[str, str]) -> tuple[list[Document], str]:
    """Return the Secret and the ServiceAccount that are made, the account's name last, and the caution."""
    scheme = config.uri.partition("://")[0]
    credentials = find_credentials(scheme, environment)
    location = locate(config, environment, credentials.region)
    access = grant(config, location, credentials)
    secret = render_secret(access, service="digits", namespace="team")
    rendered = render(
        RELEASE,
        storage_uri=location.uri,
        namespace="team",
        capabilities=Capabilities(deployment_mode="Knative", canary=True),
        access=access,
    )
    made = [secret] if secret else []
    # Of the service itself, only where the store has a say in its labels.
    kinds = {"ServiceAccount"} | ({"InferenceService"} if access.pod_labels else set())
    return [*made, *(d for d in rendered if d["kind"] in kinds)], access.caution


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
def test_golden(name: str, config: Store, environment: dict[str, str], tmp_path: Path) -> None:
    made, caution = documents(config, {"HOME": str(tmp_path), **environment})
    rendered = encode_yaml(made).replace(runtime_name(render_runtime()), "kdeploy-torchserve-DIGEST")
    assert rendered == (GOLDEN / f"access-{name}.yaml").read_text("utf-8")
    assert caution == ""


def test_who_may_read_the_store_is_no_part_of_a_release() -> None:
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


def test_googles_file_goes_as_it_is(tmp_path: Path) -> None:
    (secret, account), caution = documents(Store(uri="gs://models"), google(tmp_path, "service_account"))
    ((name, content),) = secret["data"].items()
    assert name == "gcloud-application-credentials.json"  # KServe mounts it by this name
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
            {**ACCOUNT, **PRINCIPAL, "AZURE_CLIENT_SECRET": "", "AZURE_FEDERATED_TOKEN_FILE": "x"},
        ),
        ("gs://models", {}),
    ],
)
def test_what_no_secret_can_carry_is_said(uri: str, environment: dict[str, str], tmp_path: Path) -> None:
    made, caution = documents(Store(uri=uri), {"HOME": str(tmp_path), **environment})
    assert [d["kind"] for d in made] == ["ServiceAccount"]
    assert "no credentials that a cluster could use" in caution
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
        "profile of old": (S3, {**files, "AWS_PROFILE": "old"}),
        "process": (S3, process(folder, "{" + KEYS_OF_A_PROCESS + token + "}")),
        "SAS": ("az://models", {**ACCOUNT, "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=planted-secret"}),
        "own login": ("gs://models", google(folder, "authorized_user")),
        "impersonated": ("gs://models", google(folder, "impersonated_service_account")),
        "federated": ("gs://models", google(folder, "external_account")),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "session",
        "security token",
        "profile",
        "profile of old",
        "process",
        "SAS",
        "own login",
        "impersonated",
        "federated",
    ],
)
def test_what_expires_is_never_stored_in_a_cluster(kind: str, tmp_path: Path) -> None:
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


def test_an_account_that_exists_is_all(tmp_path: Path) -> None:
    assert documents(Store(uri=S3, service_account="models"), {"HOME": str(tmp_path), **KEYS}) == ([], "")


def test_profiles_are_read_as_awss_own_tools_do(tmp_path: Path) -> None:
    folder = tmp_path / ".aws"
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
    home = {"HOME": str(tmp_path)}
    found = find_credentials("s3", home)
    assert (found.data["AWS_SECRET_ACCESS_KEY"], found.region) == ("default-secret", "eu-central-1")
    found = find_credentials("s3", {**home, "AWS_PROFILE": "team"})
    assert (found.data["AWS_SECRET_ACCESS_KEY"], found.region) == ("team-secret", "eu-west-3")
    for profile in ("team", "sso", "role"):  # variables win, and the region is still the profile's
        found = find_credentials("s3", {**home, **KEYS, "AWS_PROFILE": profile})
        assert (found.data, found.region) == (KEYS, "eu-west-3" if profile == "team" else "")
    found = find_credentials("s3", {**home, **KEYS})
    assert (found.data, found.region) == (KEYS, "eu-central-1")
    for profile in ("sso", "role"):  # a role comes before the keys beside it
        with pytest.raises(ConfigError, match=f"profile {profile} holds no access key") as caught:
            find_credentials("s3", {**home, "AWS_PROFILE": profile})
        assert "export-credentials" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"):
        find_credentials("s3", {**home, "AWS_ACCESS_KEY_ID": "planted", "AWS_SESSION_TOKEN": "token"})
    (folder / "credentials").write_text("planted-secret")
    with pytest.raises(ConfigError) as broken:
        find_credentials("s3", home)
    assert "planted-secret" not in str(broken.value)


KEYS_OF_A_PROCESS = '"Version": 1, "AccessKeyId": "C", "SecretAccessKey": "process-secret"'


def process(folder: Path, printed: str, more: str = "") -> dict[str, str]:
    """Return an environment whose AWS profile names a process that prints this."""
    (folder / ".aws").mkdir(exist_ok=True)
    text = f"import sys; print({printed!r}); print('planted', file=sys.stderr){more}"
    (folder / "print.py").write_text(text)
    command = f"credential_process = '{sys.executable}' '{folder}/print.py'"
    (folder / ".aws" / "config").write_text(f"[profile team]\nregion = eu-west-3\n{command}\n")
    return {"HOME": str(folder), "AWS_PROFILE": "team"}


@pytest.mark.parametrize(
    ("more", "lasting"),
    [
        ("", True),
        (', "SessionToken": "process-token", "Expiration": "2999-01-01T00:00:00Z"', False),
        (', "Expiration": "2999-01-01T00:00:00"', False),
    ],
)
def test_a_process_of_a_profile_gives_keys(
    more: str, lasting: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = find_credentials("s3", process(tmp_path, "{" + KEYS_OF_A_PROCESS + more + "}"))
    assert (found.data["AWS_SECRET_ACCESS_KEY"], found.region) == ("process-secret", "eu-west-3")
    assert found.data.get("AWS_SESSION_TOKEN") == ("process-token" if "SessionToken" in more else None)
    assert found.lasting is lasting
    assert set(found.data.values()) <= found.secrets
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("printed", "more", "what"),
    [
        ("planted", "", "does not print keys"),
        ('{"Version": 1, "AccessKeyId": "planted"}', "", "does not print keys"),
        ("{" + KEYS_OF_A_PROCESS.replace("1", "2", 1) + "}", "", "in version 2"),
        ("{" + KEYS_OF_A_PROCESS + ', "Expiration": "2020-01-01T00:00:00Z"}', "", "have expired"),
        ("planted", "; sys.exit('planted')", "ends with exit code 1"),
    ],
)
def test_a_process_of_a_profile_that_gives_none(
    printed: str, more: str, what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        find_credentials("s3", process(tmp_path, printed, more))
    assert "profile team" in str(caught.value)
    said = "".join([str(caught.value), *capfd.readouterr()])
    assert "planted" not in said
    assert "process-secret" not in said


@pytest.mark.parametrize(
    "script", ["yes", "yes >&2", "sleep 60", "sleep 60 & exit 0", "while :; do printf x; sleep 0.01; done"]
)
def test_a_process_that_never_ends(script: str) -> None:
    with pytest.raises(ConfigError, match=r"does not end within 0.5 s|prints more than") as caught:
        ask_process(f"sh -c '{script}'", "team", seconds=0.5)
    assert "profile team" in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"])
def test_a_file_that_never_ends(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: it has more than"):
        find_credentials("s3", {"HOME": str(tmp_path), name: "/dev/zero"})
    with pytest.raises(ConfigError, match="cannot be read: it has more than"):
        find_credentials("gs", {"HOME": str(tmp_path), "GOOGLE_APPLICATION_CREDENTIALS": "/dev/zero"})


def test_a_process_that_never_ends_or_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"does not end within 0.1 s"):
        ask_process(f"'{sys.executable}' -c 'import time; time.sleep(60)'", "team", seconds=0.1)
    for command in ("/no/such/planted", "'planted"):
        with pytest.raises(ConfigError, match="cannot be started") as caught:
            ask_process(command, "team")
        assert "planted" not in str(caught.value)


def test_azures_connection_string_is_taken_apart() -> None:
    text = "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abc+/==;EndpointSuffix=x.net"
    found = find_credentials("az", {"AZURE_STORAGE_CONNECTION_STRING": text})
    assert found.data == {"AZURE_STORAGE_ACCESS_KEY": "abc+/=="}
    assert {text, "abc+/=="} <= found.secrets
    assert "abc" not in repr(found)


@pytest.mark.parametrize("content", ["", "[]", "{", '"planted-secret"'])
def test_a_file_of_google_that_is_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "google.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not a file of Google's") as caught:
        find_credentials("gs", {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})
    assert "planted-secret" not in str(caught.value)
