"""Overlays: merging, and what an overlay cannot change."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.overlay import OVERLAY_LABEL, VALUES_MAX, find_faults, merge, merge_all

SERVICE = {
    "metadata": {"name": "digits", "labels": {"a": "1"}},
    "spec": {
        "predictor": {
            "model": {
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}},
            }
        }
    },
}


def predictor(**fields: Any) -> dict[str, Any]:
    return {"spec": {"predictor": fields}}


def model(**fields: Any) -> dict[str, Any]:
    return predictor(model=fields)


def faults(overlay: Any) -> list[tuple[str, str]]:
    return [(one.path, one.what) for one in find_faults(overlay)]


class TestMerge:
    def test_tables_merge_and_null_removes(self) -> None:
        patch = model(resources={"requests": {"cpu": "500m"}, "limits": {"cpu": None, "memory": "1Gi"}})
        merged = merge(SERVICE, patch)["spec"]["predictor"]["model"]["resources"]
        assert merged == {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}
        assert SERVICE["spec"]["predictor"]["model"]["resources"]["limits"] == {"cpu": "1"}  # type: ignore[index]

    def test_variables_merge_by_name_and_are_replaced_as_a_whole(self) -> None:
        source = {"secretKeyRef": {"name": "s", "key": "k"}}
        patch = model(env=[{"name": "B", "valueFrom": source}, {"name": "C", "value": "3"}])
        assert merge(SERVICE, patch)["spec"]["predictor"]["model"]["env"] == [
            {"name": "A", "value": "1"},
            {"name": "B", "valueFrom": source},
            {"name": "C", "value": "3"},
        ]

    def test_containers_and_init_containers_merge_deeply_by_name(self) -> None:
        first = predictor(
            containers=[{"name": "proxy", "image": "p:1", "env": [{"name": "A", "value": "1"}]}],
            initContainers=[{"name": "wait", "image": "w:1"}],
        )
        second = predictor(
            containers=[
                {
                    "name": "proxy",
                    "env": [{"name": "B", "value": "2"}],
                    "volumeMounts": [{"mountPath": "/a"}],
                },
                {"name": "metrics", "image": "m:1", "args": None},
            ],
            initContainers=[{"name": "wait", "image": "w:2"}],
        )
        found = merge(merge(SERVICE, first), second)["spec"]["predictor"]
        assert found["containers"] == [
            {
                "name": "proxy",
                "image": "p:1",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "volumeMounts": [{"mountPath": "/a"}],
            },
            {"name": "metrics", "image": "m:1"},
        ]
        assert found["initContainers"] == [{"name": "wait", "image": "w:2"}]

    def test_a_volume_of_another_kind_and_a_mount_replace_theirs(self) -> None:
        first = predictor(
            volumes=[{"name": "cache", "emptyDir": {}}, {"name": "ca", "configMap": {"name": "ca"}}],
            model={"volumeMounts": [{"name": "cache", "mountPath": "/cache", "subPath": "a"}]},
        )
        second = predictor(
            volumes=[{"name": "cache", "hostPath": {"path": "/x"}}],
            model={
                "volumeMounts": [{"name": "ca", "mountPath": "/cache"}, {"name": "ca", "mountPath": "/ca"}]
            },
        )
        found = merge(merge({}, first), second)["spec"]["predictor"]
        assert found["volumes"] == [
            {"name": "cache", "hostPath": {"path": "/x"}},
            {"name": "ca", "configMap": {"name": "ca"}},
        ]
        assert found["model"]["volumeMounts"] == second["spec"]["predictor"]["model"]["volumeMounts"]

    def test_other_lists_are_replaced(self) -> None:
        first = predictor(tolerations=[{"key": "a"}, {"key": "b"}], imagePullSecrets=[{"name": "a"}])
        second = predictor(tolerations=[{"key": "c"}], imagePullSecrets=[])
        found = merge(merge({}, first), second)["spec"]["predictor"]
        assert found == {"tolerations": [{"key": "c"}], "imagePullSecrets": []}

    def test_the_overlays_of_a_target_come_last_and_have_a_label(self) -> None:
        ours, theirs = predictor(nodeSelector={"a": "1", "b": "1"}), predictor(nodeSelector={"b": "2"})
        merged = merge_all(SERVICE, [ours], [theirs])
        assert merged["spec"]["predictor"]["nodeSelector"] == {"a": "1", "b": "2"}
        digest = merged["metadata"]["labels"][OVERLAY_LABEL]
        assert digest == merge_all(SERVICE, [], [theirs])["metadata"]["labels"][OVERLAY_LABEL]
        assert digest != merge_all(SERVICE, [], [ours])["metadata"]["labels"][OVERLAY_LABEL]
        assert OVERLAY_LABEL not in merge_all(SERVICE, [ours], [])["metadata"]["labels"]
        assert OVERLAY_LABEL not in SERVICE["metadata"]["labels"]  # type: ignore[operator]

    VALUES = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("ab", max_size=2),
        lambda inner: st.dictionaries(st.text("abc", max_size=1), inner, max_size=3),
        max_leaves=8,
    )

    @given(document=VALUES, patch=VALUES)
    def test_merging_is_rfc_7396_and_idempotent(self, document: Any, patch: Any) -> None:
        def as_in_the_rfc(target: Any, change: Any) -> Any:
            if not isinstance(change, dict):
                return change
            target = dict(target) if isinstance(target, dict) else {}
            for name, value in change.items():
                if value is None:
                    target.pop(name, None)
                else:
                    target[name] = as_in_the_rfc(target.get(name), value)
            return target

        before = copy.deepcopy(document)
        merged = merge(document, patch)
        assert merged == as_in_the_rfc(document, patch)
        assert merge(merged, patch) == merged
        assert document == before


class TestFaults:
    @pytest.mark.parametrize(
        "overlay",
        [
            {},
            {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {}},
            predictor(nodeSelector=None, model={"securityContext": None, "resources": None}),
            {"metadata": {"labels": {"team": "vision"}, "annotations": {"prometheus.io/port": "1"}}},
            predictor(
                nodeSelector={"pool": "gpu", "old": None},
                tolerations=[{"key": "gpu", "operator": "Exists"}],
                serviceAccountName="robot",
                imagePullSecrets=[{"name": "registry"}],
                containers=[{"name": "proxy", "image": "p", "env": [{"name": "A", "value": "1"}]}],
                labels={"team": "vision"},
            ),
            model(
                resources={"requests": {"cpu": "500m"}, "limits": {"cpu": None}},
                readinessProbe={"periodSeconds": 2},
                env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                volumeMounts=[{"name": "a", "mountPath": "/mnt/models-cache"}],
            ),
        ],
    )
    def test_what_kdeploy_does_not_own_can_be_set(self, overlay: Any) -> None:
        assert faults(overlay) == []

    @pytest.mark.parametrize(
        ("overlay", "path"),
        [
            ({"metadata": {"name": "x"}}, "metadata.name"),
            ({"metadata": {"namespace": "x"}}, "metadata.namespace"),
            ({"metadata": {"finalizers": []}}, "metadata.finalizers"),
            ({"metadata": {"labels": {"kdeploy.dev/release": "x"}}}, "metadata.labels.kdeploy.dev/release"),
            (
                {"metadata": {"annotations": {"serving.kserve.io/deploymentMode": None}}},
                "metadata.annotations.serving.kserve.io/deploymentMode",
            ),
            (predictor(labels={"app": "x"}), "spec.predictor.labels.app"),
            ({"status": {}}, "status"),
            ({"apiVersion": "v1"}, "apiVersion"),
            ({"kind": "Deployment"}, "kind"),
            ({"spec": {"canary": []}}, "spec.canary"),
            ({"spec": {"transformer": {}}}, "spec.transformer"),
            (predictor(minReplicas=2), "spec.predictor.minReplicas"),
            (predictor(maxReplicas=None), "spec.predictor.maxReplicas"),
            (predictor(scaleTarget=1), "spec.predictor.scaleTarget"),
            (predictor(autoScaling={}), "spec.predictor.autoScaling"),
            (predictor(canaryTrafficPercent=1), "spec.predictor.canaryTrafficPercent"),
            (predictor(deploymentStrategy={}), "spec.predictor.deploymentStrategy"),
            (predictor(timeout=1), "spec.predictor.timeout"),
            (predictor(pytorch={}), "spec.predictor.pytorch"),
            (predictor(workerSpec={}), "spec.predictor.workerSpec"),
            (model(storageUri="s3://x"), "spec.predictor.model.storageUri"),
            (model(runtime="x"), "spec.predictor.model.runtime"),
            (model(image="x"), "spec.predictor.model.image"),
            (model(command=[]), "spec.predictor.model.command"),
            (model(args=["x"]), "spec.predictor.model.args"),
            (model(ports=[]), "spec.predictor.model.ports"),
            (model(modelFormat={}), "spec.predictor.model.modelFormat"),
            (model(terminationMessagePath="/x"), "spec.predictor.model.terminationMessagePath"),
            (model(readinessProbe={"httpGet": {}}), "spec.predictor.model.readinessProbe.httpGet"),
            (
                predictor(containers=[{"name": "kserve-container"}]),
                "spec.predictor.containers.kserve-container",
            ),
            (
                predictor(initContainers=[{"name": "storage-initializer"}]),
                "spec.predictor.initContainers.storage-initializer",
            ),
            (model(volumeMounts=[{"mountPath": "/mnt/models/"}]), "spec.predictor.model.volumeMounts"),
            (model(volumeMounts=[{"mountPath": "/mnt/models/x"}]), "spec.predictor.model.volumeMounts"),
            (
                model(env=[{"name": "KDEPLOY_DRAIN_SECONDS"}]),
                "spec.predictor.model.env.KDEPLOY_DRAIN_SECONDS",
            ),
            (model(env=[{"name": "PYTHONPATH"}]), "spec.predictor.model.env.PYTHONPATH"),
            (model(env=[{"name": "a b"}]), "spec.predictor.model.env.a b"),
        ],
    )
    def test_what_kdeploy_owns_is_named_with_what_to_do(self, overlay: Any, path: str) -> None:
        [fault] = find_faults(overlay)
        assert fault.path == path
        assert fault.what
        assert fault.hint

    @pytest.mark.parametrize(
        ("overlay", "path"),
        [
            ([], ""),
            ("text", ""),
            (None, ""),
            ({1: 2}, "1"),
            (predictor(nodeSelector={True: "x"}), "spec.predictor.nodeSelector.True"),
            ({"metadata": []}, "metadata"),
            ({"metadata": None}, "metadata"),
            ({"metadata": {"labels": None}}, "metadata.labels"),
            ({"spec": None}, "spec"),
            ({"spec": {"predictor": None}}, "spec.predictor"),
            (predictor(model=None), "spec.predictor.model"),
            (model(env=None), "spec.predictor.model.env"),
            (model(resources="x"), "spec.predictor.model.resources"),
            (model(resources={"limits": [1]}), "spec.predictor.model.resources.limits"),
            (model(env=[{"name": "A", "valueFrom": "x"}]), "spec.predictor.model.env.A"),
            ({"spec": {"predictor": "x"}}, "spec.predictor"),
            (model(resources={"limits": {"cpu": float("inf")}}), "spec.predictor.model.resources.limits.cpu"),
            (predictor(tolerations=[{"value": dt.date(2026, 1, 1)}]), "spec.predictor.tolerations[0].value"),
            (predictor(hostname="a\0b"), "spec.predictor.hostname"),
            (predictor(hostname="\ud800"), "spec.predictor.hostname"),
            (predictor(nodeSelector={"gpu": True}), "spec.predictor.nodeSelector.gpu"),
            ({"metadata": {"annotations": {"port": 8080}}}, "metadata.annotations.port"),
            (model(env=[{"name": "A", "value": 1}]), "spec.predictor.model.env.A"),
            (model(env={"A": "1"}), "spec.predictor.model.env"),
            (predictor(volumes=["x"]), "spec.predictor.volumes[0]"),
            (predictor(containers=[{"image": "x"}]), "spec.predictor.containers[0]"),
            (predictor(containers=[{"name": "a"}, {"name": "a"}]), "spec.predictor.containers[1]"),
            (predictor(initContainers=[{"name": "a", "env": "x"}]), "spec.predictor.initContainers.a.env"),
            (predictor(tolerations=[1] * VALUES_MAX), ""),
        ],
    )
    def test_what_is_not_an_overlay_is_named(self, overlay: Any, path: str) -> None:
        assert path in [place for place, _ in faults(overlay)]

    @pytest.mark.parametrize("kind", ["containers", "initContainers"])
    def test_a_credential_in_any_container_is_refused_and_not_shown(self, kind: str) -> None:
        item = {"name": "HF_TOKEN", "value": "hf_planted0123456789"}
        for overlay in (model(env=[item]), predictor(**{kind: [{"name": "a", "env": [item]}]})):
            [fault] = find_faults(overlay)
            assert "looks like a token" in fault.what
            assert "planted" not in f"{fault}"
