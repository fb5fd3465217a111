"""KServe's settings and version, read from its ConfigMap and its controller."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployer.observed import Document
from deployer.targets.kserve.state.settings import KServeConfig, read_config, read_version


def config_map(**texts: Any) -> Document:
    return {
        "data": {key: value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
    }


def test_settings_are_read() -> None:
    ingress = {
        "enableGatewayApi": True,
        "kserveIngressGateway": "kserve/gateway",
        "ingressDomain": "models.example.org",
        "domainTemplate": "{{.Name}}.{{ .Namespace }}.{{- .IngressDomain -}}",
        "urlScheme": "https",
        "pathTemplate": "/serving/{{ .Namespace }}/{{ .Name }}",
        "ingressClassName": "nginx",
    }
    found = read_config(config_map(deploy={"defaultDeploymentMode": "RawDeployment"}, ingress=ingress))
    assert found == KServeConfig(
        deployment_mode="Standard",
        domain="models.example.org",
        domain_template="{{.Name}}.{{ .Namespace }}.{{- .IngressDomain -}}",
        url_scheme="https",
        path_template="/serving/{{ .Namespace }}/{{ .Name }}",
        ingress_class="nginx",
        gateway="kserve/gateway",
    )
    assert found.host("digits", "team") == "digits.team.models.example.org"


@pytest.mark.parametrize(
    "incomplete",
    [{}, {"data": None}, config_map(deploy="{", ingress="[1]"), config_map(ingress={"urlScheme": ""})],
)
def test_missing_settings_are_kserves_defaults(incomplete: Document) -> None:
    found = read_config(incomplete)
    assert found == KServeConfig()
    assert found.host("digits-predictor", "team") == "digits-predictor-team.example.com"


def test_former_names_of_modes_are_translated_and_modelmesh_is_ignored() -> None:
    modes = ("Serverless", "Knative", "RawDeployment", "Standard", "ModelMesh", None)
    found = [
        read_config(config_map(deploy={"defaultDeploymentMode": mode})).deployment_mode for mode in modes
    ]
    assert found == ["Knative", "Knative", "Standard", "Standard", None, None]


def test_a_gateway_is_ignored_without_the_gateway_api() -> None:
    ingress = {"enableGatewayApi": False, "kserveIngressGateway": "kserve/gateway"}
    assert read_config(config_map(ingress=ingress)).gateway is None


def test_a_domain_template_with_more_than_names_has_no_host() -> None:
    assert KServeConfig(domain_template="{{ .Annotations.host }}.x").host("digits", "team") is None


def test_the_version_is_read_from_the_image() -> None:
    def controller(*images: str) -> Document:
        return {"spec": {"template": {"spec": {"containers": [{"image": image} for image in images]}}}}

    assert read_version(controller("proxy:v1.2.3", "docker.io/kserve/kserve-controller:v0.15.2")) == "0.15.2"
    assert read_version(controller("kserve/kserve-controller:0.16.0-rc1")) == "0.16.0-rc1"
    assert read_version(controller("kserve/kserve-controller@sha256:abc")) is None
    assert read_version(None) is None
