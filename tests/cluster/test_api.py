"""The Kubernetes client on a real API server, with and without faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployer.config import KServeTarget
from deployer.errors import ConfigError, ConflictError, RefusedError, RolloutFailedError, TargetError
from deployer.patience import Retry
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import UnknownKindError
from deployer.targets.kserve.client.kubeconfig import connect
from deployer.targets.kserve.client.resources import CONFIG_MAP, POD, Resource
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE
from tests.clocks import patience
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.proxy import Proxy

UNKNOWN = Resource("unknown.example.com", "v1", "things", "Thing")


class Slept:
    """A sleep that only records its seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def slept() -> Slept:
    return Slept()


@pytest.fixture
def api(kubeconfig: Path, slept: Slept) -> Api:
    return Api(connect(str(kubeconfig), None, patience(slept)))


def config_map(namespace: str, name: str = "one", **data: str) -> dict[str, object]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def test_an_object_is_applied_read_and_deleted(api: Api, namespace: str) -> None:
    assert api.get(CONFIG_MAP, namespace, "one") is None
    applied = api.apply(CONFIG_MAP, config_map(namespace, a="1"))
    assert api.get(CONFIG_MAP, namespace, "one")["data"] == {"a": "1"}
    assert applied["metadata"]["managedFields"][0]["manager"] == "kdeploy"
    assert api.delete(CONFIG_MAP, namespace, "one")
    assert not api.delete(CONFIG_MAP, namespace, "one")


def test_a_dry_run_changes_nothing(api: Api, namespace: str) -> None:
    assert api.apply(CONFIG_MAP, config_map(namespace, a="1"), dry_run=True)["data"] == {"a": "1"}
    assert api.get(CONFIG_MAP, namespace, "one") is None


def test_a_conflict_names_field_and_manager_and_force_takes_the_field(
    api: Api, kube: Kube, namespace: str
) -> None:
    api.apply(CONFIG_MAP, config_map(namespace, a="1"))
    path = CONFIG_MAP.path(namespace, "one")
    kube.merge(f"{path}?fieldManager=kubectl-edit", {"data": {"a": "2"}})
    with pytest.raises(ConflictError, match=r"data\.a is managed by kubectl-edit") as caught:
        api.apply(CONFIG_MAP, config_map(namespace, a="1"))
    assert "--force-conflicts" in (caught.value.hint or "")
    assert api.apply(CONFIG_MAP, config_map(namespace, a="1"), force=True)["data"] == {"a": "1"}


def test_a_list_is_read_in_pages(api: Api, kube: Kube, namespace: str, proxy: Proxy) -> None:
    api = Api(api.connection, page=2)
    for number in range(5):
        kube.create(CONFIG_MAP.path(namespace), config_map(namespace, f"c{number}"))
    before = len(proxy.requests)
    found, version = api.list(CONFIG_MAP, namespace)
    assert [one["metadata"]["name"] for one in found] == [f"c{number}" for number in range(5)]
    assert found[0]["kind"] == "ConfigMap"
    assert version
    assert len(proxy.requests) - before == 3


def test_a_list_with_an_expired_page_is_read_again_in_one_piece(
    api: Api, kube: Kube, namespace: str, proxy: Proxy
) -> None:
    api = Api(api.connection, page=2)
    for number in range(3):
        kube.create(CONFIG_MAP.path(namespace), config_map(namespace, f"c{number}"))
    with proxy.fault("GET .*continue=", status=410, reason="Expired"):
        found, _ = api.list(CONFIG_MAP, namespace)
    assert len(found) == 3


class TestFaults:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_a_temporary_failure_is_retried(
        self, api: Api, namespace: str, proxy: Proxy, slept: Slept, status: int
    ) -> None:
        with proxy.fault("PATCH", status=status, times=2):
            api.apply(CONFIG_MAP, config_map(namespace))
        assert len(slept.seconds) == 2
        assert slept.seconds[1] > slept.seconds[0] / 2

    def test_retry_after_sets_the_pause(self, api: Api, namespace: str, proxy: Proxy, slept: Slept) -> None:
        with proxy.fault("GET", status=429, headers={"Retry-After": "7"}):
            api.get(CONFIG_MAP, namespace, "one")
        assert slept.seconds == [7.0]

    def test_a_retry_after_of_minutes_is_an_error(
        self, api: Api, namespace: str, proxy: Proxy, slept: Slept
    ) -> None:
        with (
            proxy.fault("GET", status=503, headers={"Retry-After": "600"}),
            pytest.raises(TargetError, match="503"),
        ):
            api.get(CONFIG_MAP, namespace, "one")
        assert slept.seconds == []

    def test_the_number_of_attempts_is_limited(
        self, api: Api, namespace: str, proxy: Proxy, slept: Slept
    ) -> None:
        with proxy.fault("GET", status=500, times=99) as fault, pytest.raises(TargetError, match="HTTP 500"):
            api.get(CONFIG_MAP, namespace, "one")
        assert fault.seen == Retry().attempts
        assert sum(slept.seconds) < 10

    def test_a_request_is_sent_again_if_its_answer_breaks_off(
        self, api: Api, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        kube.create(CONFIG_MAP.path(namespace), config_map(namespace, a="1" * 1000))
        with proxy.fault("GET", cut=100, times=2):
            assert api.get(CONFIG_MAP, namespace, "one")["data"] == {"a": "1" * 1000}

    def test_a_request_is_sent_again_if_its_answer_is_lost(
        self, api: Api, namespace: str, proxy: Proxy
    ) -> None:
        with proxy.fault("PATCH", lost=True):
            assert api.apply(CONFIG_MAP, config_map(namespace, a="1"))["data"] == {"a": "1"}

    def test_an_api_server_that_does_not_answer_is_an_error(
        self, kubeconfig: Path, namespace: str, proxy: Proxy
    ) -> None:
        impatient = Api(connect(str(kubeconfig), None, patience(answer=0.2)))
        with proxy.fault("GET", before=1.0, times=1):
            assert impatient.get(CONFIG_MAP, namespace, "one") is None
        with proxy.fault("GET", before=0.5, times=9), pytest.raises(TargetError, match="does not answer"):
            impatient.get(CONFIG_MAP, namespace, "one")

    def test_an_api_server_that_does_not_listen_is_an_error(
        self, kube: Kube, tmp_path: Path, slept: Slept
    ) -> None:
        path = tmp_path / "guest"
        path.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN, server="https://127.0.0.1:1")))
        with pytest.raises(TargetError, match="cannot reach") as caught:
            Api(connect(str(path), None, patience(slept))).get(CONFIG_MAP, "default", "one")
        assert (caught.value.where or "").endswith("on https://127.0.0.1:1 (context test)")


class TestRefusals:
    def test_an_unknown_kind_is_refused(self, api: Api, namespace: str) -> None:
        with pytest.raises(UnknownKindError, match="does not know this kind"):
            api.list(UNKNOWN, namespace)

    def test_a_value_of_the_wrong_type_names_the_field(self, api: Api, namespace: str) -> None:
        wrong = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "x", "namespace": namespace},
            "spec": {"predictor": {"minReplicas": "many"}},
        }
        with pytest.raises(RolloutFailedError, match="minReplicas"):
            api.apply(INFERENCE_SERVICE, wrong)

    def test_a_webhook_that_denies_a_request_is_quoted(self, api: Api, namespace: str, proxy: Proxy) -> None:
        said = 'admission webhook "inferenceservice.validator" denied the request: minReplicas > maxReplicas'
        with (
            proxy.fault("PATCH", status=400, message=said),
            pytest.raises(RolloutFailedError, match="validator denied the request: minReplicas > max"),
        ):
            api.apply(CONFIG_MAP, config_map(namespace))

    def test_a_webhook_that_does_not_answer_has_a_hint(self, api: Api, namespace: str, proxy: Proxy) -> None:
        said = (
            'Internal error occurred: failed calling webhook "inferenceservice.defaulter": connection refused'
        )
        with proxy.fault("PATCH", status=500, message=said, times=9), pytest.raises(TargetError) as caught:
            api.apply(CONFIG_MAP, config_map(namespace))
        assert "controller" in (caught.value.hint or "")

    def test_an_unknown_token_is_refused_and_not_quoted(
        self, kube: Kube, tmp_path: Path, namespace: str
    ) -> None:
        path = tmp_path / "stranger"
        path.write_text(yaml.safe_dump(kube.kubeconfig("secret-of-a-stranger")))
        with pytest.raises(RefusedError, match="credentials") as caught:
            Api(connect(str(path), None)).get(CONFIG_MAP, namespace, "one")
        assert "secret-of-a-stranger" not in repr(caught.value) + str(caught.value.hint)

    def test_a_user_without_the_permission_is_refused(
        self, kube: Kube, tmp_path: Path, namespace: str
    ) -> None:
        path = tmp_path / "guest"
        path.write_text(yaml.safe_dump(kube.kubeconfig("guest-token")))
        api = Api(connect(str(path), None))
        with pytest.raises(RefusedError, match="user guest cannot list pods"):
            api.list(POD, namespace)
        assert not api.allowed("list", POD, namespace)

    def test_a_certificate_of_another_authority_is_refused(self, kube: Kube, tmp_path: Path) -> None:
        import trustme

        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(other)
        config = kube.kubeconfig(ADMIN)
        config["clusters"][0]["cluster"]["certificate-authority"] = str(other)
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(config))
        with pytest.raises(RefusedError, match="certificate"):
            Api(connect(str(path), None)).get(CONFIG_MAP, "default", "one")


class TestKubeconfig:
    def test_several_files_are_merged(
        self, kube: Kube, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = kube.kubeconfig(ADMIN, namespace=namespace)
        contexts, users = tmp_path / "contexts", tmp_path / "users"
        contexts.write_text(yaml.safe_dump({**whole, "users": []}))
        users.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "users": whole["users"]}))
        monkeypatch.setenv("KUBECONFIG", f"{contexts}{os.pathsep}{tmp_path / 'missing'}{os.pathsep}{users}")
        connection = connect(None, None)
        assert connection.namespace == namespace
        assert Api(connection).allowed("delete", POD, None)

    def test_a_context_can_be_chosen(self, kube: Kube, tmp_path: Path) -> None:
        config = kube.kubeconfig(ADMIN)
        config["contexts"].append(
            {"name": "other", "context": {"cluster": "test", "user": "test", "namespace": "elsewhere"}}
        )
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(config))
        assert connect(str(path), "other").namespace == "elsewhere"
        assert connect(str(path), None).namespace == "default"
        with pytest.raises(ConfigError, match="it has no context no-such") as caught:
            connect(str(path), "no-such")
        assert "--context" in (caught.value.hint or "")

    def test_a_missing_kubeconfig_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the file does not exist"):
            connect(str(tmp_path / "missing"), None)

    @pytest.mark.parametrize("text", ["[1, 2]", "hello"])
    def test_an_invalid_kubeconfig_is_an_error(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config").write_text(text)
        with pytest.raises(ConfigError, match="it is not a kubeconfig"):
            connect(str(tmp_path / "config"), None)

    def test_an_error_does_not_quote_the_kubeconfig(self, tmp_path: Path) -> None:
        path = tmp_path / "config"
        path.write_text("users: [{name: a, user: {token: planted-secret}\n  : :")
        with pytest.raises(ConfigError) as caught:
            connect(str(path), None)
        assert "planted-secret" not in str(caught.value) + str(caught.value.__cause__)

    def test_an_exec_plugin_returns_the_token(self, kube: Kube, tmp_path: Path, namespace: str) -> None:
        plugin = tmp_path / "plugin.py"
        credential = {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "kind": "ExecCredential",
            "status": {"token": ADMIN},
        }
        plugin.write_text(f"print('''{json.dumps(credential)}''')")
        config = kube.kubeconfig("unused")
        config["users"][0]["user"] = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1beta1",
                "command": sys.executable,
                "args": [str(plugin)],
            }
        }
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(config))
        assert Api(connect(str(path), None)).get(CONFIG_MAP, namespace, "none") is None

    def test_keys_in_the_kubeconfig_leave_no_files(
        self, kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import base64
        import tempfile

        config = kube.kubeconfig(ADMIN)
        config["users"][0]["user"] = {
            "client-certificate-data": base64.b64encode(kube.certificate.read_bytes()).decode(),
            "client-key-data": base64.b64encode(kube.key.read_bytes()).decode(),
        }
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(config))
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        for _ in range(2):  # no key is left in a temporary file
            connect(str(path), None)
            assert list(folder.iterdir()) == []


def test_connecting_sends_no_request(tmp_path: Path) -> None:
    Cluster(KServeTarget(kubeconfig=str(tmp_path / "missing")))


def test_the_kubernetes_package_is_not_imported() -> None:
    code = "import sys, deployer.targets.kserve; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
