"""One project can have several services: each has its name, and its values of some tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployer.config import Settings, load_settings
from deployer.errors import ConfigError
from deployer.inuse import model_of
from deployer.observed import Reference
from tests.bundles import A, make_bundle

MODEL = '[model]\nname = "digits"\nversion = "1.0"\nhandler = "handler.py"\n'
TWO = """
[serving]
batch-size = 4
env = { LOGS = "some", KEPT = "yes" }

[services.small.scaling]
max-replicas = 3

[services.large]
serving = { batch-size = 16, env = { LOGS = "all" } }
torchserve = { job_queue_size = 7 }
"""


def load(
    folder: Path,
    text: str,
    service: str | None = None,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    path = folder / "kdeploy.toml"
    path.write_text(text)
    return load_settings(
        path, environment=environment or {}, flags=flags or {}, folder=folder, service=service
    )


def refusal(folder: Path, text: str, service: str | None = None, **more: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, service, **more).service(None)
    return caught.value


class TestName:
    def test_the_default_is_the_name_of_the_model(self, tmp_path: Path) -> None:
        assert load(tmp_path, MODEL).service(None) == "digits"

    def test_a_service_has_a_name_apart_from_the_model(self, tmp_path: Path) -> None:
        settings = load(tmp_path, MODEL + '[service]\nname = "digits-test08"\n')
        assert settings.service(None) == "digits-test08"
        assert settings.config.model.name == "digits"
        assert settings.service("other") == "other"

    @pytest.mark.parametrize(
        ("flags", "environment"),
        [({"service.name": "eu"}, {}), ({}, {"KDEPLOY_SERVICE_NAME": "eu"})],
        ids=["flag", "variable"],
    )
    def test_a_flag_or_a_variable_names_it(
        self, tmp_path: Path, flags: dict[str, str], environment: dict[str, str]
    ) -> None:
        assert load(tmp_path, MODEL, flags=flags, environment=environment).service(None) == "eu"

    @pytest.mark.parametrize("name", ["My_Model", "resnet18.v2", "8ball", "a" * 47])
    def test_a_model_whose_name_no_service_can_have_needs_a_service_name(
        self, tmp_path: Path, name: str
    ) -> None:
        error = refusal(tmp_path, MODEL.replace("digits", name))
        assert error.what == f"the model's name {name!r} cannot be the name of a service"
        assert error.where == f"{tmp_path}/kdeploy.toml: model.name"
        assert "Set service.name." in (error.hint or "")
        assert load(tmp_path, MODEL.replace("digits", name), "mine").service(None) == "mine"

    def test_a_kubernetes_service_called_kdeploy_sets_no_name(self, tmp_path: Path) -> None:
        links = {"KDEPLOY_SERVICE_HOST": "10.0.0.1", "KDEPLOY_SERVICE_PORT": "80"}
        assert load(tmp_path, MODEL, environment=links).service(None) == "digits"


class TestSeveral:
    def test_a_service_has_its_own_values(self, tmp_path: Path) -> None:
        small, large = (load(tmp_path, MODEL + TWO, name).config for name in ("small", "large"))
        assert (small.serving.batch_size, small.scaling.max_replicas) == (4, 3)
        assert (large.serving.batch_size, large.scaling.max_replicas) == (16, 1)
        assert large.serving.env == {"LOGS": "all", "KEPT": "yes"}
        assert (small.torchserve, large.torchserve) == ({}, {"job_queue_size": 7})
        assert (small.service.name, large.service.name) == ("small", "large")

    def test_its_values_name_their_source(self, tmp_path: Path) -> None:
        sources = load(tmp_path, MODEL + TWO, "large").sources
        assert sources["serving.batch-size"] == f"{tmp_path}/kdeploy.toml: services.large"
        assert sources["serving.env.KEPT"] == f"{tmp_path}/kdeploy.toml"
        assert sources["service.name"] == "--service"

    def test_a_flag_is_stronger_than_the_service(self, tmp_path: Path) -> None:
        flags = {"serving.batch-size": "2"}
        assert load(tmp_path, MODEL + TWO, "large", flags).config.serving.batch_size == 2

    def test_a_flag_changes_the_service(self, tmp_path: Path) -> None:
        flags = {"services.large.serving.batch-size": "32"}
        assert load(tmp_path, MODEL + TWO, "large", flags).config.serving.batch_size == 32
        assert load(tmp_path, MODEL + TWO, "small", flags).config.serving.batch_size == 4

    def test_the_only_service_is_the_default(self, tmp_path: Path) -> None:
        settings = load(tmp_path, MODEL + "[services.eu.serving]\nbatch-size = 9\n")
        assert (settings.service(None), settings.config.serving.batch_size) == ("eu", 9)

    def test_service_name_chooses_the_default(self, tmp_path: Path) -> None:
        settings = load(tmp_path, MODEL + TWO + '[service]\nname = "large"\n')
        assert (settings.service(None), settings.config.serving.batch_size) == ("large", 16)

    def test_one_of_several_must_be_named(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, MODEL + TWO)
        assert error.what == "several services: small, large"
        assert "--service" in (error.hint or "")

    def test_an_unknown_service_is_an_error(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, MODEL + TWO, "smal")
        assert (error.what, error.where) == ("unknown service 'smal'", "--service")
        assert error.hint == "Use one of: small, large. Did you mean small?"
        named = refusal(tmp_path, MODEL + TWO + '[service]\nname = "main"\n', "smal")
        assert named.hint == "Use one of: small, large, main. Did you mean small?"

    def test_without_services_any_name_is_one_more_service(self, tmp_path: Path) -> None:
        assert load(tmp_path, MODEL, "digits-b").service(None) == "digits-b"

    @pytest.mark.parametrize(
        ("text", "what", "where"),
        [
            ("serving.batch-size = 0", "expected a whole number >= 1", "services.eu.serving.batch-size"),
            ("serving.batchsize = 2", "unknown key serving.batchsize", "services.eu"),
            ("scaling.min-replicas = 7", "min-replicas is more", "services.eu.scaling.min-replicas"),
            ("model.version = '2'", "unknown key services.eu.model", "kdeploy.toml"),
            ("serving = 3", "expected a table", "services.eu"),
        ],
    )
    def test_a_fault_in_any_service_is_found(self, tmp_path: Path, text: str, what: str, where: str) -> None:
        text = f"{MODEL}[services.us]\n[services.eu]\n{text}\n"
        for chosen in ("eu", "us", None):
            error = refusal(tmp_path, text, chosen)
            assert what in error.what.lower()
            assert where in (error.where or "")

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("services = 3\n", "expected a table"),
            ("service = 3\n", "expected a table"),
            ("services = { x = 3 }\n", "expected a table"),
            ("services = { Big = {} }\n", "invalid value"),
            ("services = { Big = {}, small = {} }\n", "invalid service name 'Big'"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path: Path, text: str, what: str) -> None:
        assert what in refusal(tmp_path, text + MODEL).what

    def test_the_tables_and_the_base_can_be_of_other_kinds(self, tmp_path: Path) -> None:
        text = MODEL + '[serving]\nenv = "x"\n[services.eu.serving.env]\nA = "b"\n'
        assert load(tmp_path, text, "eu").config.serving.env == {"A": "b"}
        assert (
            "expected a table" in refusal(tmp_path, "serving = 3\n" + MODEL + "[services.eu.serving]\n").what
        )


class TestDocuments:
    def test_everything_of_a_service_has_its_name(self) -> None:
        bundle = make_bundle(A, service=Reference("team", "digits-test08"), model="digits")
        assert bundle.reference == Reference("team", "digits-test08")
        assert model_of(bundle.service) == "digits"

    def test_a_service_that_kdeploy_did_not_render_has_no_known_model(self) -> None:
        for predictor in ({}, {"model": {"storageUri": "s3://models/digits"}}):
            assert model_of({"spec": {"predictor": predictor}}) is None
        assert model_of({}) is None


class TestDefaultTarget:
    TARGETS = '[targets.here]\nkind = "local"\n[targets.there]\nkind = "kserve"\n'

    def test_an_unknown_default_target_is_an_error(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, 'default-target = "her"\n' + MODEL + self.TARGETS)
        assert (error.what, error.hint) == (
            "unknown target 'her'",
            "Use one of: here, there. Did you mean here?",
        )
        assert error.where == f"{tmp_path}/kdeploy.toml: default-target"
