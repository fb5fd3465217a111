"""`kdeploy prune` with a model store that several targets and other users share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.cli.main import main
from deployer.config import KServeTarget, Store
from deployer.observed import Document
from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.play import Play, documents
from tests.cluster.project import write_project
from tests.cluster.proxy import Proxy

Prune = Callable[..., tuple[int, list[str], str]]
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"


@pytest.fixture
def elsewhere(kube: Kube, namespace: str) -> str:
    """The namespace of production; staging uses `namespace`."""
    kube.create("/api/v1/namespaces", {"metadata": {"name": f"{namespace}-production"}})
    return f"{namespace}-production"


@pytest.fixture
def pushed(
    kubeconfig: Path,
    s3_config: Store,
    namespace: str,
    elsewhere: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> list[str]:
    """Six releases in one store of two targets."""
    folder = write_project(tmp_path / "project", s3_config)
    (folder / "weights.pt").write_text(namespace)
    config = (folder / "kdeploy.toml").read_text()
    production = f'[targets.production]\nnamespace = "{elsewhere}"\n'
    staging = f'\n[targets.staging]\nkind = "kserve"\nnamespace = "{namespace}"\n'
    (folder / "kdeploy.toml").write_text(config.replace("[targets.production]\n", production) + staging)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    made = []
    for number in range(1, 7):
        with pytest.raises(SystemExit):
            main(["push", "--target", "staging", "--set", f"model.version=1.{number}"])
        made.append(capfd.readouterr().out.strip())
    return made


@pytest.fixture
def prune(pushed: list[str], capfd: pytest.CaptureFixture[str]) -> Prune:
    def run(*arguments: str) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as caught:
            main(["prune", "--target", "staging", "--keep", "1", "--min-age", "0s", *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(caught.value.code or 0), out.split(), err

    return run


def rolled_out(kubeconfig: Path, namespace: str, *releases: str, name: str = "digits") -> None:
    cluster = Cluster(KServeTarget(kubeconfig=str(kubeconfig), namespace=namespace))
    for release in releases:
        roll(cluster, documents(namespace, release, name=name, mode="Knative"))


def test_releases_that_a_target_serves_or_has_in_its_journal_stay(
    prune: Prune, pushed: list[str], kubeconfig: Path, namespace: str, elsewhere: str
) -> None:
    rolled_out(kubeconfig, elsewhere, pushed[0], pushed[1])  # the first one is only in the journal
    rolled_out(kubeconfig, namespace, pushed[2])
    assert prune("--dry-run")[:2] == (0, pushed[3:5])
    assert prune("--yes")[:2] == (0, pushed[3:5])
    assert "nothing to delete" in prune("--yes")[2]


def test_releases_that_other_users_serve_stay(
    prune: Prune, pushed: list[str], kube: Kube, elsewhere: str
) -> None:
    """Services of other users in other namespaces, by their storage URIs."""

    def service(name: str, predictor: Document) -> None:
        kube.create(
            SERVICES.format("default"),
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": f"{elsewhere}-{name}"},
                "spec": {"predictor": predictor},
            },
        )

    model = {"modelFormat": {"name": "pytorch"}}
    service("gitops", {"model": {**model, "storageUri": f"s3://elsewhere/x/digits/{pushed[0]}"}})
    server = {"name": "kserve-container", "image": "x"}
    uri = f"s3://models/digits/{pushed[3]}/"
    service("own-server", {"containers": [{**server, "env": [{"name": "STORAGE_URI", "value": uri}]}]})
    try:
        assert prune("--yes")[:2] == (0, [pushed[1], pushed[2], pushed[4]])
    finally:
        for name in ("gitops", "own-server"):
            kube.delete(f"{SERVICES.format('default')}/{elsewhere}-{name}")


def test_a_release_that_a_revision_still_serves_stays(
    prune: Prune, pushed: list[str], kubeconfig: Path, kube: Kube, elsewhere: str
) -> None:
    rolled_out(kubeconfig, elsewhere, pushed[0])
    Play(kube, elsewhere).revision(pushed[2], 1)
    assert prune("--yes")[:2] == (0, [pushed[1], *pushed[3:5]])


@pytest.mark.parametrize("kind", ["inferenceservices", "revisions", "controllerrevisions"])
def test_a_target_that_does_not_answer_stops_the_prune(
    prune: Prune, pushed: list[str], proxy: Proxy, kind: str
) -> None:
    with proxy.fault(f"GET .*/{kind}", status=403, message="not for you"):
        code, gone, err = prune("--yes")
    assert (code, gone) == (7, [])
    assert "cannot find out which releases target production needs" in err
    assert "--ignore-target production" in err
    ignored = ("--ignore-target", "production", "--ignore-target", "staging")
    with proxy.fault(f"GET .*/{kind}", status=403, message="not for you"):
        assert prune("--yes", *ignored)[:2] == (0, pushed[:5])


def test_a_release_rolled_out_before_the_confirmation_stays(
    prune: Prune,
    pushed: list[str],
    kubeconfig: Path,
    elsewhere: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def confirm(action: str) -> None:
        assert action == "delete 5 release(s)"
        rolled_out(kubeconfig, elsewhere, pushed[1])

    monkeypatch.setattr("deployer.cli.deps.confirm", confirm)
    code, gone, err = prune()
    assert (code, gone) == (0, [pushed[0], *pushed[2:5]])
    assert all(release in err for release in pushed[:5])


def test_without_a_terminal_prune_needs_yes(prune: Prune, pushed: list[str]) -> None:
    code, gone, err = prune()
    assert (code, gone) == (3, [])
    assert all(release in err for release in pushed[:5])
    assert "--yes" in err
