"""The address of a store that pods use, and addresses that they cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.config import Store, load_settings
from deployer.errors import ConfigError
from deployer.store.credentials import Credentials
from deployer.store.grants import plan_access
from deployer.store.hosts import is_this_machine
from deployer.store.location import locate

KEYS = Credentials(data={"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"})
MINIO = "http://minio.minio.svc:9000"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000",
        "http://127.8.9.10",
        "http://127.1:9000",  # forms that the C library reads
        "http://2130706433",
        "http://0x7f000001",
        "http://0177.0.0.1",
        "http://0.0.0.0:9000",
        "http://0:9000",
        "http://169.254.169.254",
        "https://localhost",
        "https://LOCALHOST.:9000",
        "http://minio.localhost:9000",
        "http://ip6-localhost:9000",
        "http://[::1]:9000",
        "http://[::]:9000",
        "http://[::ffff:127.0.0.1]:9000",
        "http://[fe80::1%25eth0]:9000",
        "http://host.docker.internal:9000",
        "http://kubernetes.docker.internal",
        "http://gateway.docker.internal",
        "http://host.containers.internal",
        "http://docker.for.mac.localhost",
    ],
)
def test_an_address_of_this_machine_is_refused_for_a_cluster(url: str) -> None:
    assert is_this_machine(url)
    for store, where in (
        (Store(uri="s3://models/team", endpoint=url), "store.endpoint"),
        (Store(uri="s3://models/team", cluster_endpoint=url), "store.cluster-endpoint"),
        (Store(uri="gs://models/team", endpoint=url), "store.endpoint"),
    ):
        with pytest.raises(ConfigError, match="a cluster cannot reach") as caught:
            plan_access(store, locate(store, {}), KEYS)
        assert caught.value.where == where


@pytest.mark.parametrize(
    "url",
    [
        MINIO,
        "http://10.0.0.5:9000",
        "http://192.168.1.2",
        "https://s3.example.org",
        "https://localhost.example.org",
        "http://host.minikube.internal:9000",  # resolved by the cluster's DNS
        "http://[fd00::1]:9000",
        "http://1.2.3.4.5",
        "http://999999999999",
        "http://09.1",
    ],
)
def test_other_addresses_are_left_to_the_cluster(url: str) -> None:
    assert not is_this_machine(url)
    store = Store(uri="s3://models/team", endpoint=url)
    host = url.partition("://")[2]
    assert plan_access(store, locate(store, {}), KEYS).annotations["serving.kserve.io/s3-endpoint"] == host


def test_pods_use_the_cluster_endpoint_and_kdeploy_the_other_one() -> None:
    store = Store(uri="s3://models/team", endpoint="https://127.0.0.1:9000", cluster_endpoint=f"{MINIO}/")
    location = locate(store, {})
    assert location.endpoint == "https://127.0.0.1:9000"
    annotations = plan_access(store, location, KEYS).annotations
    assert annotations["serving.kserve.io/s3-endpoint"] == "minio.minio.svc:9000"
    assert annotations["serving.kserve.io/s3-usehttps"] == "0"
    assert annotations["serving.kserve.io/s3-verifyssl"] == "0"


def test_an_endpoint_of_the_environment_is_named_as_such() -> None:
    store = Store(uri="s3://models/team")
    location = locate(store, {"AWS_ENDPOINT_URL": "http://localhost:9000"})
    with pytest.raises(ConfigError, match="localhost:9000") as caught:
        plan_access(store, location, KEYS)
    assert caught.value.where == "the environment"


def test_an_existing_account_or_secret_names_its_own_endpoint() -> None:
    for store in (
        Store(uri="s3://models", endpoint="http://localhost:9000", secret_name="minio"),
        Store(uri="s3://models", endpoint="http://localhost:9000", service_account="minio"),
    ):
        assert plan_access(store, locate(store, {}), KEYS).annotations == {}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"store.uri": "gs://models"}, "only for s3://"),
        ({"store.uri": "pvc://models"}, "only for s3://"),
        ({"store.secret-name": "keys"}, "no effect"),
        ({"store.service-account": "reader"}, "no effect"),
        ({"store.cluster-endpoint": f"{MINIO}/models"}, "contains a path"),
        ({"store.cluster-endpoint": "minio:9000"}, "invalid value"),
    ],
)
def test_a_cluster_endpoint_without_an_effect_is_an_error(
    more: dict[str, str], what: str, tmp_path: Path
) -> None:
    flags = {"model.name": "digits", "model.version": "1.0", "model.handler": "h.py"}
    flags |= {"store.uri": "s3://models", "store.cluster-endpoint": MINIO, **more}
    with pytest.raises(ConfigError, match=what):
        load_settings(None, environment={}, flags=flags, folder=tmp_path)
