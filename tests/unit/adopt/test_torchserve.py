"""A config.properties becomes settings, and each entry says where it is now, or why it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.adopt.found import Found
from deployer.adopt.torchserve import parse_properties, read_properties


def snapshot(models: Any) -> str:
    return "model_snapshot=" + json.dumps({"name": "startup.cfg", "modelCount": 1, "models": models}) + "\n"


def fate(found: Found, field: str) -> tuple[str, str]:
    (line,) = (line for line in found.lines if line.field == field)
    return line.fate, line.becomes


class TestFormat:
    @pytest.mark.parametrize(
        ("text", "entries"),
        [
            ("a=1\nb = 2 \n  c\t=\t3\n", {"a": "1", "b": "2", "c": "3"}),
            ("a:1\nb 2\nc\n", {"a": "1", "b": "2", "c": ""}),
            ("# a=1\n! b=2\n\n  # c=3\n", {}),
            ("a=1,\\\n   2,\\\n  # 3\nb=4", {"a": "1,2,# 3", "b": "4"}),
            ("a=x\\\\\nb=1\n", {"a": "x\\", "b": "1"}),
            ("a\\=b=c\\u00e9\\tx\\q\n", {"a=b": "cé\txq"}),
            ("a=b=c\na=d\n", {"a": "d"}),
            ("=x\n", {}),
            ("a=1\\", {"a": "1"}),
        ],
    )
    def test_javas_format_is_read(self, text: str, entries: dict[str, str]) -> None:
        assert parse_properties(text) == entries


class TestModel:
    def test_a_snapshot_becomes_the_settings_of_serving(self) -> None:
        table = {
            "defaultVersion": True,
            "marName": "cats.mar",
            "minWorkers": 1,
            "maxWorkers": 3,
            "batchSize": 4,
            "maxBatchDelay": 100,
            "responseTimeout": 60,
            "startupTimeout": 90,
            "parallelType": "tp",
        }
        found = read_properties(snapshot({"cats": {"1.0": table}}))
        assert found.tables == {
            "model": {"name": "cats"},
            "serving": {
                "min-workers": 1,
                "max-workers": 3,
                "batch-size": 4,
                "max-batch-delay": 100,
                "response-timeout": 60,
                "startup-timeout": 90,
            },
        }
        assert fate(found, "model_snapshot: cats.parallelType")[0] == "left out"

    def test_of_several_models_the_one_of_the_archive_is_taken(self) -> None:
        models = {
            "dogs": {"1": {"marName": "dogs.mar", "batchSize": 2}},
            "cats": {
                "1": {"marName": "cats.mar", "batchSize": 3},
                "2": {"marName": "cats.mar", "batchSize": 4, "defaultVersion": True},
            },
        }
        found = read_properties(snapshot(models), "cats.mar")
        assert (found.tables["model"]["name"], found.tables["serving"]["batch-size"]) == ("cats", 4)
        assert fate(found, "model_snapshot: dogs")[0] == "left out"
        assert read_properties(snapshot(models), "other.mar").tables["model"]["name"] == "cats"
        del models["cats"]
        assert read_properties(snapshot(models)).tables["model"]["name"] == "dogs"

    def test_models_without_a_snapshot_are_read(self) -> None:
        found = read_properties('models={"cats": {"1.0": {"marName": "cats.mar", "batchSize": 8}}}')
        assert found.tables["serving"] == {"batch-size": 8}

    @pytest.mark.parametrize(
        "value",
        [
            "{",
            "[" * 100_000,
            "[]",
            "{}",
            '{"models": 3}',
            '{"models": {"a": 3}}',
            '{"models": {"a": {"1": 3}}}',
            "3",
        ],
    )
    def test_an_invalid_snapshot_is_left_out(self, value: str) -> None:
        found = read_properties(f"model_snapshot={value}\n")
        assert found.tables == {}
        assert fate(found, "model_snapshot") == ("left out", "it is not JSON of models")

    def test_an_empty_snapshot_is_left_out(self) -> None:
        assert fate(read_properties(snapshot({})), "model_snapshot") == ("left out", "it names no model")

    def test_a_number_that_kdeploy_refuses_is_left_out(self) -> None:
        found = read_properties(snapshot({"cats": {"1": {"batchSize": 0, "minWorkers": True}}}))
        assert found.tables == {"model": {"name": "cats"}}
        reason = "0 is not a number that kdeploy accepts"
        assert fate(found, "model_snapshot: cats.batchSize") == ("left out", reason)

    def test_a_number_in_quotes_is_one(self) -> None:
        found = read_properties(snapshot({"cats": {"1": {"batchSize": 4, "responseTimeout": "90"}}}))
        assert found.tables["serving"] == {"batch-size": 4, "response-timeout": 90}


class TestEntries:
    def test_numbers_of_serving_are_taken_over(self) -> None:
        text = "max_request_size=100\nmax_response_size=200\ndefault_response_timeout=7\nnumber_of_gpu=0\n"
        found = read_properties(text + "default_workers_per_model=2\ndefault_startup_timeout=9\n")
        assert found.tables["serving"] == {
            "max-request-size": 100,
            "max-response-size": 200,
            "response-timeout": 7,
            "startup-timeout": 9,
            "gpu": 0,
            "min-workers": 2,
            "max-workers": 2,
        }

    @pytest.mark.parametrize(
        "line", ["max_request_size=-1", "default_response_timeout=0", "default_workers_per_model=x"]
    )
    def test_numbers_that_kdeploy_refuses_are_left_out(self, line: str) -> None:
        found = read_properties(line)
        assert found.tables == {}
        assert found.lines[0].fate == "left out"

    def test_others_are_copied(self) -> None:
        found = read_properties(
            "gpu_id=0\nconfig_path=/x/config.properties\nprefer_direct_buffer=true\nv=007\n"
        )
        assert found.tables["torchserve"] == {
            "gpu_id": 0,
            "config_path": "/x/config.properties",
            "prefer_direct_buffer": True,
            "v": "007",
        }

    def test_what_kdeploy_sets_is_left_out_with_the_reason(self) -> None:
        found = read_properties("inference_address=http://0.0.0.0:8085\nmodel_store=/x\na-b=c\nlabel=é\n")
        assert found.tables == {}
        assert fate(found, "inference_address") == ("left out", "kdeploy's ServingRuntime fixes the ports")
        assert {line.fate for line in found.lines} == {"left out"}

    def test_what_kdeploy_sets_to_the_same_value_is_not_written(self) -> None:
        found = read_properties(
            "metrics_mode=prometheus\nenable_metrics_api=true\ngrpc_inference_port=7070\n"
        )
        assert found.tables == {}
        assert {line.fate for line in found.lines} == {"taken over"}

    @given(st.text(max_size=60), st.sampled_from(["model_snapshot=", "max_request_size=", "a=", ""]))
    def test_any_text_is_read(self, text: str, start: str) -> None:
        read_properties(start + text)

    @pytest.mark.parametrize("number", ["\u00b2", "9" * 5000, "1_0", "-1"])
    def test_what_looks_like_a_number_is_not_one(self, number: str) -> None:
        for key in ("max_request_size", "default_workers_per_model", "job_queue_size"):
            assert "serving" not in read_properties(f"{key}={number}").tables

    @pytest.mark.parametrize(
        ("envelope", "reason"),
        [
            ("kserve", "reads V1 and V2 itself"),
            ("kservev2", "reads V2 itself"),
            ("json", "reads `instances` itself"),
            ("body", "has no such envelope"),
            ("mine", "does not know 'mine'"),
        ],
    )
    def test_an_envelope_is_reported(self, envelope: str, reason: str) -> None:
        found = read_properties(f"service_envelope={envelope}\n")
        assert reason in fate(found, "service_envelope")[1]
        wanted = {"serving": {"protocol-version": "v2"}} if envelope == "kservev2" else {}
        assert found.tables == wanted
