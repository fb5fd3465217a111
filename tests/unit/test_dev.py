from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployer.config import Settings, load_settings
from deployer.dev import Change, WorkingFolder
from deployer.errors import ArchiveError, ConfigError, KdeployError
from deployer.events import Event, Warned
from deployer.properties import decode_properties

HANDLER = "def handle(data, context):\n    return [1 for _ in data or []]\n"
TOML = '[model]\nname = "demo"\nversion = "1.0"\nhandler = "handler.py"\nserialized-file = "model.pt"\n'
METRICS = """
dimensions: [ModelName, Level]
ts_metrics:
  counter:
    - name: Requests2XX
      unit: Count
      dimensions: [Level]
model_metrics:
  counter:
    - name: rows
      unit: Count
      dimensions: [ModelName, Level]
"""


class Working:
    """A project that is edited, and its working folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[Event] = []
        self.write("kdeploy.toml", TOML)
        self.write("handler.py", HANDLER)
        (root / "model.pt").write_bytes(b"w" * 300_000)
        self.folder = root / ".kdeploy" / "dev" / "models" / "demo"
        self.working = WorkingFolder(self.load, self.folder, "default", self.events.append)

    def load(self) -> Settings:
        return load_settings(self.root / "kdeploy.toml", environment={}, flags={}, folder=self.root)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_text(text)

    def look(self) -> Change | None:
        """Look until nothing changes any more, as a session does."""
        changes = [change for _ in range(4) if (change := self.working.look())]
        assert len(changes) <= 1
        return changes[0] if changes else None

    def served(self, name: str) -> Path:
        return self.folder / "model-store" / "demo.mar" / name


@pytest.fixture
def working(tmp_path: Path) -> Working:
    return Working(tmp_path)


def names(change: Change | None) -> tuple[str, ...]:
    assert change
    return change.names


def test_the_first_look_prepares_a_release_that_torchserve_can_load(working: Working):
    change = working.look()
    assert change
    assert change.restart
    assert change.bundle.storage_uri == working.folder.as_uri()
    properties = (working.folder / "config" / "config.properties").read_text()
    assert '"marName":"demo.mar"' in properties
    manifest = json.loads(working.served("MAR-INF/MANIFEST.json").read_bytes())
    assert manifest["model"]["handler"] == "kdeploy_dev.py"
    assert json.loads(working.served("kdeploy_handler.json").read_bytes()) == {"handler": "handler.py"}
    assert working.served("kdeploy_dev.py").is_file()
    assert working.served("handler.py").read_text() == HANDLER


def test_only_the_state_folder_is_written_and_large_files_are_links(working: Working):
    before = sorted(working.root.iterdir())
    working.look()
    assert sorted(working.root.iterdir()) == sorted([*before, working.root / ".kdeploy"])
    assert working.served("model.pt").readlink() == working.root / "model.pt"
    working.root.joinpath("model.pt").write_bytes(b"v" * 300_001)
    assert names(working.look()) == ("model.pt",)


def test_a_saved_handler_needs_a_worker_and_a_changed_setting_a_start(working: Working):
    working.look()
    assert working.look() is None
    working.write("handler.py", HANDLER.replace("1", "2"))
    change = working.look()
    assert (names(change), change and change.restart) == (("handler.py",), False)
    working.write("kdeploy.toml", TOML + "[serving]\nbatch-size = 4\n")
    change = working.look()
    assert (names(change), change and change.restart) == ((), True)
    assert '"batchSize":4' in (working.folder / "config" / "config.properties").read_text()


def test_one_worker_serves_even_if_the_project_wants_more(working: Working):
    working.write("kdeploy.toml", TOML + "[serving]\nmin-workers = 3\nmax-workers = 4\n")
    working.look()
    properties = (working.folder / "config" / "config.properties").read_text()
    assert '"minWorkers":1,"maxWorkers":1' in properties


def test_a_file_that_is_still_written_is_left_for_the_next_look(working: Working):
    working.look()
    working.write("handler.py", "def handle(")
    assert working.working.look() is None
    working.write("handler.py", HANDLER.replace("1", "3"))
    assert working.working.look() is None
    assert names(working.working.look()) == ("handler.py",)


@pytest.mark.parametrize(
    ("file", "wrong", "error", "right"),
    [
        ("handler.py", "def handle(", ArchiveError, HANDLER),
        ("kdeploy.toml", TOML + "[serving]\nbatch-size = 0\n", ConfigError, TOML),
        ("kdeploy.toml", "[model", ConfigError, TOML),
        ("kdeploy.toml", TOML + 'extra-files = ["absent.txt"]\n', ArchiveError, TOML),
    ],
)
def test_a_wrong_file_is_reported_once_and_the_served_files_stay(
    working: Working, file: str, wrong: str, error: type[KdeployError], right: str
):
    working.look()
    working.write(file, wrong)
    with pytest.raises(error):
        working.look()
    assert working.look() is None
    assert working.served("handler.py").read_text() == HANDLER
    working.write(file, right)
    assert working.look() is not None  # also if nothing else has changed: the error is gone


def test_a_missing_file_that_appears_is_noticed(working: Working):
    (working.root / "model.pt").unlink()
    with pytest.raises(ArchiveError, match=r"model\.pt not found"):
        working.look()
    (working.root / "model.pt").write_bytes(b"w")
    assert names(working.look()) == ()
    assert working.served("model.pt").read_bytes() == b"w"


def test_new_and_removed_extra_files_are_noticed(working: Working):
    working.write("data/one.txt", "1")
    working.write("kdeploy.toml", TOML + 'extra-files = ["data"]\n')
    working.look()
    working.write("data/two.txt", "2")
    assert names(working.look()) == ("two.txt",)
    (working.root / "data" / "one.txt").unlink()
    assert names(working.look()) == ("one.txt",)
    assert not working.served("one.txt").exists()


def test_changed_requirements_need_a_start(working: Working):
    working.write("requirements.txt", "humanize\n")
    working.write("kdeploy.toml", TOML + 'requirements-file = "requirements.txt"\n')
    working.look()
    working.write("requirements.txt", "humanize\nflask\n")
    change = working.look()
    assert (names(change), change and change.restart) == (("requirements.txt",), True)


def test_the_metrics_configuration_is_read_from_the_models_folder(working: Working):
    working.write("metrics.yaml", METRICS)
    working.write("kdeploy.toml", TOML + '[serving]\nmetrics-config = "metrics.yaml"\n')
    working.look()
    properties = decode_properties((working.folder / "config" / "config.properties").read_text())
    place = Path(properties["metrics_config"]).relative_to("/mnt/models")
    assert (working.folder / place).read_text() == METRICS
    working.write("metrics.yaml", METRICS.replace("rows", "lines"))
    change = working.look()
    assert change
    assert change.restart


def test_another_model_name_needs_another_session(working: Working):
    working.look()
    working.write("kdeploy.toml", TOML.replace("demo", "other"))
    with pytest.raises(ConfigError, match="cannot change the name") as caught:
        working.look()
    assert caught.value.hint


def test_a_warning_is_emitted_once(working: Working):
    working.write("handler.py", f"import no_such_module_of_mine\n{HANDLER}")
    working.look()
    working.write("handler.py", f"import no_such_module_of_mine\n{HANDLER}#\n")
    working.look()
    assert [type(event) for event in working.events] == [Warned]


def test_the_log_names_the_users_own_files(working: Working):
    working.look()
    text = f'File "{working.served("handler.py")}", line 3; {working.served("kdeploy_handler.py")}'
    assert working.working.shown(text) == f'File "handler.py", line 3; {working.served("kdeploy_handler.py")}'
    assert working.working.shown("rows: 1") == "rows: 1"


def test_the_reason_of_a_failed_load_is_read_from_the_models_folder(working: Working):
    working.look()
    assert working.working.failure() == ""
    working.served("kdeploy_dev.error").write_text("ValueError: no weights")
    assert working.working.failure() == "ValueError: no weights"
