from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.config import Config, Model, Serving
from deployer.errors import ConfigError
from deployer.properties import decode_properties, encode_properties, render_properties

MODEL = Model(name="digits", version="1.0", handler="h.py")


def rendered(requirements: bool = False, **more: object) -> dict[str, str]:
    return decode_properties(render_properties(Config(model=MODEL, **more), requirements=requirements))


def test_the_entries_that_kserve_and_torchserve_need() -> None:
    serving = Serving(
        min_workers=1,
        max_workers=2,
        batch_size=8,
        max_batch_delay=20,
        response_timeout=30,
        startup_timeout=60,
    )
    entries = rendered(serving=serving)
    assert entries["inference_address"] == "http://0.0.0.0:8080"
    assert entries["management_address"] == "http://127.0.0.1:8081"
    assert entries["metrics_address"] == "http://0.0.0.0:8082"
    assert (entries["grpc_inference_port"], entries["grpc_management_port"]) == ("7070", "7071")
    assert (entries["enable_metrics_api"], entries["metrics_mode"]) == ("true", "prometheus")
    assert entries["model_store"] == "/mnt/models/model-store"
    assert entries["disable_token_authorization"] == "true"
    assert entries["max_request_size"] == entries["max_response_size"] == "6553500"
    assert entries["job_queue_size"] == "1000"
    assert json.loads(entries["model_snapshot"]) == {
        "name": "startup.cfg",
        "modelCount": 1,
        "models": {
            "digits": {
                "1.0": {
                    "defaultVersion": True,
                    "marName": "digits.mar",
                    "minWorkers": 1,
                    "maxWorkers": 2,
                    "batchSize": 8,
                    "maxBatchDelay": 20,
                    "responseTimeout": 30,
                    "startupTimeout": 60,
                }
            }
        },
    }


@pytest.mark.parametrize("requirements", [True, False])
def test_requirements_are_installed_if_there_are_any(requirements: bool) -> None:
    assert rendered(requirements)["install_py_dep_per_model"] == str(requirements).lower()


def test_the_users_entries_are_verbatim_and_can_replace_a_default() -> None:
    entries = rendered(
        torchserve={"job_queue_size": 7, "cpu_launcher_enable": True, "vmargs": "-Xmx1g -Da=b"}
    )
    assert entries["job_queue_size"] == "7"
    assert entries["cpu_launcher_enable"] == "true"
    assert entries["vmargs"] == "-Xmx1g -Da=b"


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("model_store", "/x", "kdeploy reserves model_store"),
        ("service_envelope", "kserve", "breaks batching"),
        ("max_request_size", 1, "serving.max-request-size"),
        ("a", "b\nmodel_store=/etc", "line break"),
        ("a", "b\\", "backslash"),
        ("a", "b\x85c=d", "ASCII"),
        ("a", "b\u2028c=d", "ASCII"),
        ("a", " b", "outer spaces"),
        ("a=b", "c", "invalid key"),
        ("a b", "c", "invalid key"),
        ("", "c", "invalid key"),
        ("#a", "c", "invalid key"),
    ],
)
def test_invalid_entries_are_refused(key: str, value: str | int, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rendered(torchserve={key: value})
    assert what in f"{caught.value.what} {caught.value.hint}"
    assert "torchserve" in (caught.value.where or "")


LINE = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\"))


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), LINE))
def test_decoding_reverses_encoding(entries: dict[str, str]) -> None:
    assert decode_properties(encode_properties(entries)) == entries


@given(st.text(max_size=60))
def test_no_value_makes_a_second_entry(value: str) -> None:
    try:
        text = render_properties(Config(model=MODEL, torchserve={"vmargs": value}), requirements=False)
    except ConfigError:
        return
    plain = render_properties(Config(model=MODEL, torchserve={"vmargs": "x"}), requirements=False)
    # Java ends a line at \r and \n, Python's splitlines also at others: both must see the same entries.
    assert set(decode_properties(text)) == set(decode_properties(plain))
    assert len(text.split("\n")) == len(plain.split("\n"))


def test_comments_and_blank_lines_are_ignored() -> None:
    assert decode_properties("# a=b\n\n  c = d=e \nnonsense\n") == {"c": "d=e"}


def test_metrics_of_the_handler_are_published_as_it_names_them_or_by_a_file() -> None:
    assert rendered()["model_metrics_auto_detect"] == "true"
    entries = rendered(serving=Serving(metrics_config="monitoring/metrics.yaml"))
    assert entries["model_metrics_auto_detect"] == "false"
    assert entries["metrics_config"] == "kdeploy_metrics.yaml"
    assert rendered(torchserve={"metrics_config": "/image/m.yaml"})["metrics_config"] == "/image/m.yaml"


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"torchserve": {"metrics_config": "/image/m.yaml"}}, "kdeploy.toml: torchserve.metrics_config"),
        (
            {"serving": Serving(metrics_config="m.yaml", runtime="theirs")},
            "kdeploy.toml: serving.metrics-config",
        ),
    ],
)
def test_a_metrics_file_that_nothing_would_read_is_an_error(more: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rendered(**{"serving": Serving(metrics_config="m.yaml"), **more})
    assert caught.value.where == where
