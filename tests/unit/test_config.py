from __future__ import annotations

import json
import os
import string
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.config import (
    Config,
    KServeTarget,
    LocalTarget,
    Settings,
    VariableSource,
    check_root,
    find_file,
    json_schema,
    load_settings,
    overlays_of,
    read_file,
)
from deployer.config.keys import KEYS
from deployer.errors import ConfigError, KdeployError

MINIMAL = '[model]\nname = "digits"\nversion = "1.0"\nhandler = "handler.py"\n'
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "kdeploy.toml"


def load(
    tmp_path: Path,
    text: str = MINIMAL,
    *,
    environment: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
) -> Settings:
    path = tmp_path / "kdeploy.toml"
    path.write_text(text, "utf-8")
    return load_settings(path, environment=environment or {}, flags=flags or {}, folder=tmp_path)


def refusal(tmp_path: Path, text: str = MINIMAL, **more: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **more)
    return caught.value


def service_links(service: str, address: str, protocol: str) -> dict[str, str]:
    """Return the variables of a container for a Kubernetes Service with two ports."""
    name, host = service.upper().replace("-", "_"), f"[{address}]" if ":" in address else address
    found = {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": "80", f"{name}_SERVICE_PORT_HTTP": "80"}
    found |= {f"{name}_SERVICE_PORT_ADMIN_1": "8081", f"{name}_PORT": f"{protocol}://{host}:80"}
    for port in ("80", "8081"):
        link = f"{name}_PORT_{port}_{protocol.upper()}"
        found |= {link: f"{protocol}://{host}:{port}", f"{link}_PROTO": protocol}
        found |= {f"{link}_PORT": port, f"{link}_ADDR": address}
    return found


class TestFold:
    def test_defaults_need_three_keys(self, tmp_path: Path) -> None:
        config = load(tmp_path).config
        assert config.model.name == "digits"
        assert config.serving.batch_size == 1
        assert config.targets == {"local": LocalTarget()}

    def test_later_sources_have_precedence_and_every_value_has_its_source(self, tmp_path: Path) -> None:
        text = MINIMAL + "[serving]\nbatch-size = 2\nmin-workers = 2\nmax-workers = 4\ngpu = 1\n"
        settings = load(
            tmp_path,
            text,
            environment={"KDEPLOY_SERVING_BATCH_SIZE": "3", "KDEPLOY_SERVING_MAX_WORKERS": "5"},
            flags={"serving.batch-size": "4"},
        )
        values = {key: (value, source) for key, value, source in settings.values()}
        assert values["serving.batch-size"] == (4, "--set serving.batch-size")
        assert values["serving.max-workers"] == (5, "KDEPLOY_SERVING_MAX_WORKERS")
        assert values["serving.min-workers"] == (2, str(tmp_path / "kdeploy.toml"))
        assert values["serving.cpu"] == ("1", "default")
        assert values["targets.local.ingress-port"] == (8081, "default")

    def test_every_key_can_be_set_by_a_variable(self, tmp_path: Path) -> None:
        settings = load(
            tmp_path,
            environment={
                "KDEPLOY_MODEL_EXTRA_FILES": '["a.txt", "b"]',
                "KDEPLOY_SERVING_ENV": '{"A": "b"}',
                "KDEPLOY_STORE_URI": "elsewhere",
                "KDEPLOY_TARGETS_LOCAL_INGRESS_PORT": "0",
                "KDEPLOY_TORCHSERVE_JOB_QUEUE_SIZE": "7",
                "KDEPLOY_TORCHSERVE_CPU_LAUNCHER_ENABLE": "true",
            },
        )
        config = settings.config
        assert config.model.extra_files == ("a.txt", "b")
        assert config.serving.env == {"A": "b"}
        assert config.store.uri == "elsewhere"
        assert config.targets["local"].ingress_port == 0
        assert config.torchserve == {"job_queue_size": "7", "cpu_launcher_enable": True}
        assert settings.sources["serving.env.A"] == "KDEPLOY_SERVING_ENV"

    def test_variables_of_no_table_are_ignored(self, tmp_path: Path) -> None:
        # Kubernetes sets these for a Service called kdeploy.
        environment = {"KDEPLOY_PORT": "tcp://10.0.0.1:80", "KDEPLOY_SERVICE_HOST": "10.0.0.1"}
        assert load(tmp_path, environment=environment).config == load(tmp_path).config

    @pytest.mark.parametrize(
        "service", ["kdeploy-torchserve", "kdeploy-store", "kdeploy-targets-local-ingress"]
    )
    @pytest.mark.parametrize("address", ["10.96.0.7", "fd00::7"])
    @pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
    def test_the_variables_of_a_kubernetes_service_are_ignored(
        self, tmp_path: Path, service: str, address: str, protocol: str
    ) -> None:
        environment = service_links(service, address, protocol)
        settings = load(tmp_path, environment=environment)
        assert settings.config == load(tmp_path).config
        assert not set(settings.sources.values()) & set(environment)

    def test_a_key_that_ends_like_a_service_variable_is_a_setting(self, tmp_path: Path) -> None:
        text = MINIMAL + '[targets.x-port]\nkind = "local"\n[targets.x-service-port]\nkind = "kserve"\n'
        environment = {
            "KDEPLOY_TARGETS_X_PORT_NAMESPACE": "team",
            "KDEPLOY_TARGETS_X_PORT_INGRESS_PORT": "9000",
            "KDEPLOY_TARGETS_X_SERVICE_PORT_HISTORY_LIMIT": "7",
            "KDEPLOY_TORCHSERVE_GRPC_INFERENCE_PORT": "7072",
            "KDEPLOY_TORCHSERVE_METRICS_SERVICE_HOST": "metrics.example.org",
        }
        config = load(tmp_path, text, environment=environment).config
        assert config.targets["x-port"] == LocalTarget(namespace="team", ingress_port=9000)
        assert config.targets["x-service-port"] == KServeTarget(history_limit=7)
        assert config.torchserve == {
            "grpc_inference_port": "7072",
            "metrics_service_host": "metrics.example.org",
        }

    @pytest.mark.parametrize("name", ["KDEPLOY_STORE_SERVICE_HOST", "KDEPLOY_SERVING_PORT"])
    def test_a_service_variable_with_another_value_is_refused(self, tmp_path: Path, name: str) -> None:
        assert refusal(tmp_path, environment={name: "elsewhere"}).where == name

    def test_a_value_for_a_whole_table_replaces_its_entries(self, tmp_path: Path) -> None:
        text = MINIMAL + '[serving.env]\nOLD = "1"\n'
        settings = load(tmp_path, text, flags={"serving.env": '{"NEW": "2"}'})
        assert settings.config.serving.env == {"NEW": "2"}
        assert "serving.env.OLD" not in settings.sources

    def test_flags_can_define_a_target(self, tmp_path: Path) -> None:
        settings = load(tmp_path, flags={"targets.other.namespace": "team"})
        assert settings.config.targets == {"other": LocalTarget(namespace="team")}

    def test_a_target_has_the_keys_of_its_kind(self, tmp_path: Path) -> None:
        text = MINIMAL + '[targets.prod]\nkind = "kserve"\ncontext = "eu"\n'
        environment = {"KDEPLOY_TARGETS_PROD_NAMESPACE": "team"}
        settings = load(tmp_path, text, environment=environment, flags={"targets.prod.wait-window": "0.5"})
        wanted = KServeTarget(context="eu", namespace="team", wait_window=0.5)
        assert settings.config.targets == {"prod": wanted}
        with pytest.raises(ConfigError, match=r"unknown key targets\.prod\.ingress-port"):
            load(tmp_path, text, flags={"targets.prod.ingress-port": "1"})
        with pytest.raises(ConfigError, match=r"unknown key targets\.prod\.state"):
            load(tmp_path, text + 'state = "x"\n')

    def test_an_invalid_target_is_named(self, tmp_path: Path) -> None:
        text = MINIMAL + '[targets.a]\nkind = "local"\n[targets.b]\nkind = "kserve"\ningress = "there"\n'
        with pytest.raises(ConfigError, match=r"targets\.b\.ingress: invalid value") as caught:
            load(tmp_path, text)
        assert "port-forward" in (caught.value.hint or "")

    def test_flags_can_define_a_cluster(self, tmp_path: Path) -> None:
        flags = {"targets.prod.kind": "kserve", "targets.prod.context": "eu"}
        assert load(tmp_path, flags=flags).config.targets == {"prod": KServeTarget(context="eu")}

    def test_a_key_below_a_targets_key_is_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"unknown key targets\.prod\.a"):
            load(tmp_path, flags={"targets.prod.kind": "kserve", "targets.prod.a.b": "1"})

    def test_flags_can_set_entries_of_torchserve_and_env(self, tmp_path: Path) -> None:
        flags = {"torchserve.job_queue_size": "7", "torchserve.async_logging": "True", "serving.env.N": "1"}
        config = load(tmp_path, flags=flags).config
        assert config.torchserve == {"job_queue_size": "7", "async_logging": True}
        assert config.serving.env == {"N": "1"}

    def test_the_nearest_file_above_is_found(self, tmp_path: Path) -> None:
        inner = tmp_path / "a" / "b"
        inner.mkdir(parents=True)
        (tmp_path / "kdeploy.toml").write_text(MINIMAL)
        assert find_file(inner) == tmp_path / "kdeploy.toml"
        assert find_file(inner.parent.parent.parent) != tmp_path / "kdeploy.toml"
        settings = load(tmp_path)
        assert settings.root == tmp_path.resolve()

    def test_flags_can_replace_the_file(self, tmp_path: Path) -> None:
        flags = {"model.name": "a", "model.version": "1", "model.handler": "h.py"}
        settings = load_settings(None, environment={}, flags=flags, folder=tmp_path)
        assert settings.path is None
        assert settings.root == tmp_path.resolve()


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "what", "hint"),
        [
            (MINIMAL + "[serving]\nbatchsize = 8\n", "unknown key serving.batchsize", "serving.batch-size"),
            (MINIMAL + "batch-size = 8\n", "unknown key model.batch-size", "serving.batch-size"),
            (MINIMAL + "[servin]\n", "unknown key servin", "serving"),
            (MINIMAL + "[zzz]\n", "unknown key zzz", "Keys of this table: default-target, model"),
            (MINIMAL + '[targets.x]\nkind = "local"\nport = 1\n', "targets.x.port", "ingress-port"),
            (MINIMAL + '[targets.x]\nkind = "nomad"\ncontext = "eu"\n', "nomad", "local"),
            (MINIMAL + '[targets.x]\nkind = ["local"]\n', "expected text", "local"),
            (MINIMAL + '[targets.x]\ncontext = "eu"\n', "targets.x.kind is not set", "kserve"),
            (MINIMAL + "[targets]\n", "no target", "targets.local"),
            (MINIMAL + '[targets."a b"]\nkind = "local"\n', "invalid target name 'a b'", "lower-case"),
            (MINIMAL.replace('"1.0"', "1.0"), "expected text, got a number", "in quotes"),
            (MINIMAL.replace("1.0", "1.0-0123456789ab"), "12 hex digits", "Shorten"),
            (MINIMAL.replace("1.0", "1/0"), "invalid value", "letters, digits"),
            (MINIMAL.replace("digits", "My Model"), "invalid value", "letters, digits"),
            (MINIMAL.replace("digits", "a" * 64), "63", "63 characters"),
            (MINIMAL + f'[service]\nname = "{"a" * 47}"\n', "46", "46 characters"),
            (MINIMAL + "[serving]\nbatch-size = 0\n", ">= 1", None),
            (MINIMAL + 'runtime = "pythn3"\n', "invalid value 'pythn3'", "python3. Did you mean python3?"),
            (
                MINIMAL + '[targets.x]\nkind = "kserve"\ndeployment-mode = "x"\n',
                "value 'x'",
                "Knative, Standard.",
            ),
            (MINIMAL + "[serving]\nbatch-size = true\n", "expected a whole number, got true or false", None),
            (MINIMAL + "[serving]\nmin-workers = 2\n", "more than max-workers", "max-workers"),
            (MINIMAL + "[scaling]\nmin-replicas = 2\n", "more than max-replicas", "max-replicas"),
            (MINIMAL + '[serving.env]\nPYTHONPATH = "x"\n', "PYTHONPATH", "Remove it"),
            (MINIMAL + '[serving.env]\nKDEPLOY_DRAIN_SECONDS = "9"\n', "kdeploy sets it", "Remove it"),
            (MINIMAL + '[serving.env]\n"A=B" = "x"\n', "'A=B': a name consists of letters", "rename it"),
            (MINIMAL + '[serving.env]\nA = "\\u0000"\n', "it contains a NUL byte", "UTF-8"),
            (MINIMAL + '[serving]\nmemory = "lots"\n', "invalid value", "2Gi"),
            ("[model]\n", "model.name is not set", "letters, digits"),
            ("", "model is not set", None),
            ("model = 3\n", "expected a table, got a whole number", None),
            ("targets = 3\n" + MINIMAL, "expected a table", None),
            ("targets = { x = 3 }\n" + MINIMAL, "expected a table", None),
            ("[model\n", "invalid TOML", None),
        ],
    )
    def test_an_error_has_what_where_and_hint(
        self, tmp_path: Path, text: str, what: str, hint: str | None
    ) -> None:
        error = refusal(tmp_path, text)
        assert what in error.what
        assert str(tmp_path / "kdeploy.toml") in (error.where or "")
        assert error.hint is None if hint is None else hint in (error.hint or "")

    def test_names_of_existing_objects_have_kubernetes_limits(self, tmp_path: Path) -> None:
        store = f'[store]\nuri = "s3://models"\nsecret-name = "{"s" * 253}"\nca-config-map = "{"c" * 253}"\n'
        target = f'[targets.x]\nkind = "{{kind}}"\nnamespace = "{"0" * 63}"\n'
        for kind in ("kserve", "local"):
            assert load(tmp_path, MINIMAL + store + target.format(kind=kind)).config.targets["x"]
            error = refusal(tmp_path, MINIMAL + target.replace("0" * 63, "0" * 64).format(kind=kind))
            assert "63" in error.what

    @pytest.mark.parametrize(
        ("variable", "hint"),
        [
            ("KDEPLOY_SERVING_BATCHSIZE", "KDEPLOY_SERVING_BATCH_SIZE"),
            ("KDEPLOY_STORE_" + "Q" * 40, "Unset the variable"),
        ],
    )
    def test_an_unknown_variable_of_a_table(self, tmp_path: Path, variable: str, hint: str) -> None:
        error = refusal(tmp_path, environment={variable: "8"})
        assert error.where == variable
        assert hint in (error.hint or "")

    @pytest.mark.parametrize(
        ("flag", "text", "hint"),
        [
            ("serving.batch-size", "many", None),
            ("model.archive-format", "tar.gz", "zip-store, default, tgz, no-archive."),
            ("targets.local.namespace", "A B", "lower-case"),
            ("serving.batchsize", "8", "serving.batch-size"),
            ("model.extra-files", "a.txt", "JSON"),
            ("serving.env", "[]", None),
            ("serving.batch-size", "[1]", None),
            ("model.name.x", "1", None),
        ],
    )
    def test_an_error_names_its_flag(self, tmp_path: Path, flag: str, text: str, hint: str | None) -> None:
        error = refusal(tmp_path, flags={flag: text})
        assert f"--set {flag}" in (error.where or "")
        assert hint is None or hint in (error.hint or "")

    def test_without_a_file_the_hint_is_init(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="model is not set") as caught:
            load_settings(None, environment={}, flags={}, folder=tmp_path)
        assert "kdeploy init" in (caught.value.hint or "")

    def test_a_command_that_needs_no_file(self, tmp_path: Path) -> None:
        def without_project(path: Path | None = None, **flags: str) -> Settings:
            variables = {"KDEPLOY_TARGETS_CLUSTER_CONTEXT": "eu-west"}
            given = {f"{key.replace('_', '.')}": value for key, value in flags.items()}
            return load_settings(
                path, environment=variables, flags=given, folder=tmp_path, allow_no_project=True
            )

        settings = without_project(targets_cluster_namespace="vision")
        assert settings.config.targets == {"cluster": KServeTarget(context="eu-west", namespace="vision")}
        assert settings.service("letters") == "letters"
        with pytest.raises(ConfigError, match="no service name"):
            settings.service(None)
        assert without_project(model_name="digits").service(None) == "digits"
        assert load(tmp_path).service(None) == "digits"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="file not found"):
            read_file(tmp_path / "other.toml")

    def test_a_folder_with_the_name_of_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot read the file: Is a directory"):
            read_file(tmp_path)

    def test_a_file_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "kdeploy.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
            read_file(tmp_path / "kdeploy.toml")

    def test_a_huge_file(self, tmp_path: Path) -> None:
        path = tmp_path / "kdeploy.toml"
        path.touch()
        os.truncate(path, 1 << 40)
        with pytest.raises(ConfigError, match="more than 1,048,576 bytes"):
            read_file(path)

    @pytest.mark.parametrize("name", ["/dev/zero", "pipe", "loop", "x" * 300])
    def test_a_path_that_is_not_a_file(self, tmp_path: Path, name: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(ConfigError) as caught:
            load_settings(tmp_path / name, environment={}, flags={}, folder=tmp_path)
        assert str(tmp_path / name) in (caught.value.where or "")

    def test_a_pipe_is_read(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.write(writer, MINIMAL.encode())
        os.close(writer)
        assert read_file(Path(f"/dev/fd/{reader}"))["model"]["name"] == "digits"
        os.close(reader)

    @pytest.mark.parametrize(
        ("text", "flags"),
        [
            (MINIMAL + "[torchserve]\n" + "a." * 3000 + "a = 1\n", {}),
            (MINIMAL, {"torchserve" + ".a" * 3000: "1"}),
            (MINIMAL, {"model.extra-files": "[" * 100_000}),
            (MINIMAL, {"serving.env": '{"a":' * 500 + "1" + "}" * 500}),
        ],
    )
    def test_a_deeply_nested_value(self, tmp_path: Path, text: str, flags: dict[str, str]) -> None:
        with pytest.raises(ConfigError):
            load(tmp_path, text, flags=flags)

    @pytest.mark.parametrize("key", ["model.handler", "store.uri", "serving.image", "targets.local.state"])
    @pytest.mark.parametrize("text", ["a\0b", "a\udcffb"])
    def test_an_invalid_text(self, tmp_path: Path, key: str, text: str) -> None:
        error = refusal(tmp_path, flags={key: text})
        assert error.where == f"--set {key}"
        assert error.what in ("it contains a NUL byte", "it is not UTF-8")
        refusal(tmp_path, flags={"serving.env": json.dumps({"A": text}, ensure_ascii=False)})

    @pytest.mark.parametrize(
        "lines",
        ['[store]\nuri = "a\\u0000b"', '[serving]\nimage = "a\\u0000b"', 'extra-files = ["a", "b\\u0000"]'],
    )
    def test_a_nul_byte_in_the_file(self, tmp_path: Path, lines: str) -> None:
        assert "NUL byte" in refusal(tmp_path, MINIMAL + lines).what

    def test_a_project_whose_path_is_not_utf8(self, tmp_path: Path) -> None:
        check_root(tmp_path / "ü")
        with pytest.raises(ConfigError, match="not UTF-8"):
            check_root(tmp_path / "p\udcff")

    def test_deeply_nested_toml(self, tmp_path: Path) -> None:
        (tmp_path / "kdeploy.toml").write_text("a = " + "[" * 100_000)
        with pytest.raises(ConfigError, match="invalid TOML"):
            read_file(tmp_path / "kdeploy.toml")


class TestStore:
    @pytest.mark.parametrize("key", ["secret-access-key", "access-key-id", "sas-token", "password"])
    def test_credentials_are_refused_and_not_shown(self, tmp_path: Path, key: str) -> None:
        error = refusal(tmp_path, MINIMAL + f'[store]\n{key} = "planted"\n')
        assert "credentials do not belong" in error.what
        assert "planted" not in f"{error} {error.hint}"

    @pytest.mark.parametrize(
        "line",
        [
            'uri = "s3://id:planted@models"',
            'uri = "https://a.blob.core.windows.net/models?sig=planted"',
            'endpoint = "https://id:planted@s3.example.org"',
        ],
    )
    def test_credentials_in_a_location_are_refused(self, tmp_path: Path, line: str) -> None:
        error = refusal(tmp_path, MINIMAL + f"[store]\n{line}\n")
        assert "planted" not in f"{error} {error.hint}"
        assert "credentials" in (error.hint or "")

    def test_identities_for_the_store_exclude_each_other(self, tmp_path: Path) -> None:
        text = MINIMAL + '[store]\nservice-account = "a"\nsecret-name = "b"\n'
        assert "exclude each other" in refusal(tmp_path, text).what


CLUSTER = MINIMAL + '[targets.far]\nkind = "kserve"\n'
POOL = "spec:\n  predictor:\n    nodeSelector: {pool: gpu}\n"


class TestVariables:
    def test_a_variable_can_come_from_a_secret_or_a_config_map(self, tmp_path: Path) -> None:
        lines = 'A = "1"\nB = { secret = "hf", key = "token" }\nC = { config-map = "c", key = "k" }\n'
        assert load(tmp_path, f"{MINIMAL}[serving.env]\n{lines}").config.serving.env == {
            "A": "1",
            "B": VariableSource(secret="hf", key="token"),
            "C": VariableSource(config_map="c", key="k"),
        }
        flags = {"serving.env.B.secret": "hf", "serving.env.B.key": "token"}
        assert load(tmp_path, flags=flags).config.serving.env["B"] == VariableSource(secret="hf", key="token")
        flags = {"serving.env.B": '{"secret": "hf", "key": "token"}', "serving.env.C": '{"level": 1}'}
        found = load(tmp_path, flags=flags).config.serving.env
        assert found == {"B": VariableSource(secret="hf", key="token"), "C": '{"level": 1}'}

    @pytest.mark.parametrize(
        ("value", "what", "where"),
        [
            ('{ secret = "hf" }', "serving.env.B.key is not set", ""),
            ('{ secrets = "hf", key = "k" }', "unknown key serving.env.B.secrets", ""),
            ('{ key = "k" }', "either a Secret or a ConfigMap", ": serving.env.B"),
            ('{ secret = "a", config-map = "b", key = "k" }', "either a Secret", ": serving.env.B"),
            ('{ secret = "A!", key = "k" }', "invalid value", ": serving.env.B.secret"),
            ('{ secret = "a", key = 1 }', "expected text", ": serving.env.B.key"),
            ("1", "expected text or a table", ": serving.env.B"),
            ('"hf_planted0123456789"', "the value of B looks like a token", ": serving.env.B"),
            ('"https://me:planted@host/simple"', "looks like a URL with a password", ": serving.env.B"),
        ],
    )
    def test_what_is_wrong_with_a_variable(self, tmp_path: Path, value: str, what: str, where: str) -> None:
        error = refusal(tmp_path, f'{MINIMAL}[serving.env]\nA = "1"\nB = {value}\n')
        assert what in error.what
        assert (error.where or "").endswith(where)
        assert error.hint
        assert "planted" not in f"{error} {error.hint}"


class TestOverlays:
    def test_patch_files_are_read_and_come_before_the_overlay(self, tmp_path: Path) -> None:
        (tmp_path / "pool.yaml").write_text(POOL)
        lines = 'patches = ["pool.yaml"]\noverlay.spec.predictor.nodeSelector.zone = "a"\n'
        config = load(tmp_path, f"{CLUSTER}{lines}[serving]\n{lines}").config
        pool, zone = (
            {"spec": {"predictor": {"nodeSelector": one}}} for one in ({"pool": "gpu"}, {"zone": "a"})
        )
        assert overlays_of(config.serving) == overlays_of(config.targets["far"]) == (pool, zone)
        assert overlays_of(LocalTarget()) == overlays_of(KServeTarget()) == ()

    def test_flags_set_fields_of_any_type(self, tmp_path: Path) -> None:
        key = "targets.far.overlay.spec.predictor"
        flags = {f"{key}.hostNetwork": "true", f"{key}.priorityClassName": "high", f"{key}.a": "[1]"}
        overlay = load(tmp_path, CLUSTER, flags=flags).config.targets["far"].overlay  # type: ignore[union-attr]
        assert overlay["spec"]["predictor"] == {"hostNetwork": True, "priorityClassName": "high", "a": [1]}

    @pytest.mark.parametrize(
        ("lines", "what", "where"),
        [
            ("overlay = 1", "expected a table", "kdeploy.toml: targets.far.overlay"),
            (
                "overlay.metadata.name = 'x'",
                "cannot set metadata.name",
                ": targets.far.overlay.metadata.name",
            ),
            ("overlay.spec.predictor.hostname = 2026-01-01", "not a value of JSON", "predictor.hostname"),
            ("patches = ['pool.yaml', {status = 1}]", "cannot set status", "far.patches[1]: status"),
            ("patches = ['no.yaml']", "file 'no.yaml' not found", ": targets.far.patches"),
            ("patches = ['']", "cannot read '': Is a directory", ": targets.far.patches"),
            (
                "patches = ['replicas.yaml']",
                "minReplicas: kdeploy sets it",
                "replicas.yaml: spec.predictor.min",
            ),
            ("patches = ['list.yaml']", "an overlay is a table", "list.yaml"),
            ("patches = ['empty.yaml']", "an overlay is a table", "empty.yaml"),
            ("patches = ['broken.yaml']", "invalid YAML", "broken.yaml:2"),
            ("patches = ['two.yaml']", "invalid YAML: but found another document", "two.yaml:"),
            ("patches = ['control.yaml']", "invalid YAML: unacceptable character", "control.yaml"),
            ("patches = ['endless.yaml']", "nested too deeply", "kdeploy.toml"),
            ("patches = ['laughs.yaml']", "more than 20,000 values", "laughs.yaml"),
        ],
    )
    def test_what_is_wrong_with_an_overlay(self, tmp_path: Path, lines: str, what: str, where: str) -> None:
        (tmp_path / "pool.yaml").write_text(POOL)
        (tmp_path / "replicas.yaml").write_text("spec: {predictor: {minReplicas: 2}}")
        (tmp_path / "list.yaml").write_text("- op: add\n")
        (tmp_path / "empty.yaml").write_text("# nothing\n")
        (tmp_path / "broken.yaml").write_text("spec:\n\t- a")
        (tmp_path / "two.yaml").write_text(f"{POOL}---\n{POOL}")
        (tmp_path / "control.yaml").write_text("a: \x01")
        (tmp_path / "endless.yaml").write_text("spec: &a\n  predictor: *a\n")
        levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
        (tmp_path / "laughs.yaml").write_text("\n".join(["l0: &l0 [lol]", *levels]))
        error = refusal(tmp_path, f"{CLUSTER}{lines}\n")
        assert what in error.what
        assert where in (error.where or "")

    def test_a_local_target_has_no_overlay(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, f'{MINIMAL}[targets.here]\nkind = "local"\noverlay = {{}}\n')
        assert error.what == "unknown key targets.here.overlay"


class TestHostileInput:
    @given(st.binary(max_size=400))
    def test_any_bytes_are_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes
    ) -> None:
        path = tmp_path_factory.mktemp("fuzz") / "kdeploy.toml"
        path.write_bytes(data)
        try:
            read_file(path)
        except KdeployError as error:
            assert error.where == str(path)

    VALUES = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )

    @given(key=st.sampled_from(KEYS), value=VALUES)
    def test_any_value_of_any_key_is_accepted_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, key: str, value: object
    ) -> None:
        folder = tmp_path_factory.mktemp("fuzz")
        flags = {"model.name": "a", "model.version": "1", "model.handler": "h.py", key: json.dumps(value)}
        try:
            settings = load_settings(None, environment={}, flags=flags, folder=folder)
        except ConfigError as error:
            assert key in (error.where or "") or key.split(".", maxsplit=1)[0] in (error.where or "")
        else:
            assert msgspec.convert(msgspec.to_builtins(settings.config), Config) == settings.config

    @given(st.text(alphabet=string.printable, max_size=40))
    def test_any_name_is_a_dns_label_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, name: str
    ) -> None:
        flags = {"model.name": "a", "model.version": "1", "model.handler": "h.py", "service.name": name}
        try:
            settings = load_settings(
                None, environment={}, flags=flags, folder=tmp_path_factory.mktemp("fuzz")
            )
        except ConfigError:
            return
        assert settings.service(None) == name
        assert name.isascii()
        assert name[0].isalpha()
        assert name.replace("-", "a").isalnum()


PROD = '[targets.prod]\nkind = "kserve"\n'


class TestOtherNames:
    @pytest.mark.parametrize(
        ("lines", "key", "old", "new"),
        [
            (
                PROD + 'deployment-mode = "RawDeployment"',
                "targets.prod.deployment-mode",
                "RawDeployment",
                "Standard",
            ),
            (
                PROD + 'deployment-mode = "Serverless"',
                "targets.prod.deployment-mode",
                "Serverless",
                "Knative",
            ),
            (
                '[store]\nuri = "pvc://m"\nclaim-access-mode = "RWO"',
                "store.claim-access-mode",
                "RWO",
                "ReadWriteOnce",
            ),
        ],
    )
    def test_names_known_from_elsewhere_are_accepted_with_a_note(
        self, lines: str, key: str, old: str, new: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "kdeploy.toml"
        path.write_text(MINIMAL + lines)
        settings = load_settings(path, environment={}, flags={}, folder=tmp_path)
        values = {name: (value, source) for name, value, source in settings.values()}
        assert values[key] == (new, str(path))
        assert settings.notes == (f"{path}: {key}: {old} is read as {new}",)

    @pytest.mark.parametrize("source", ["flag", "variable"])
    def test_they_are_accepted_from_every_source(self, source: str, tmp_path: Path) -> None:
        path = tmp_path / "kdeploy.toml"
        path.write_text(MINIMAL + PROD)
        key = "targets.prod.deployment-mode"
        flags = {key: "RawDeployment"} if source == "flag" else {}
        variables = {"KDEPLOY_TARGETS_PROD_DEPLOYMENT_MODE": "RawDeployment"} if source == "variable" else {}
        settings = load_settings(path, environment=variables, flags=flags, folder=tmp_path)
        target = settings.config.targets["prod"]
        assert isinstance(target, KServeTarget)
        assert target.deployment_mode == "Standard"
        assert settings.notes[0].endswith("RawDeployment is read as Standard")

    @pytest.mark.parametrize(
        ("lines", "hint"),
        [
            (PROD + 'deployment-mode = "ModelMesh"', "Use one of: Knative, Standard."),
            (
                PROD + 'deployment-mode = "standard"',
                "Use one of: Knative, Standard. Did you mean Standard?",
            ),
            (PROD + 'deployment-mode = "knativ"', "Use one of: Knative, Standard. Did you mean Knative?"),
            ('[store]\nclaim-access-mode = "ROX"', "Use one of: ReadWriteMany, ReadWriteOnce."),
            ('archive-format = "zip"', "no-archive. Did you mean zip-store?"),
            (PROD + 'run-as-user = "root"', 'Write a user ID, or "namespace".'),
            ('[targets.prod]\nkind = "kserv"', "Use one of: local, kserve. Did you mean kserve?"),
        ],
    )
    def test_other_values_get_the_choices_and_the_nearest_one(
        self, lines: str, hint: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "kdeploy.toml"
        path.write_text(MINIMAL + lines)
        with pytest.raises(ConfigError, match="invalid value") as caught:
            load_settings(path, environment={}, flags={}, folder=tmp_path)
        assert (caught.value.hint or "").endswith(hint)


class TestSchema:
    def test_the_schema_accepts_the_reference_file(self, tmp_path: Path) -> None:
        jsonschema.Draft202012Validator.check_schema(json_schema())
        jsonschema.validate(read_file(REFERENCE), json_schema())

    def test_the_schema_refuses_an_unknown_key(self, tmp_path: Path) -> None:
        data = {"model": {"name": "a", "version": "1", "handler": "h.py", "nmae": "x"}}
        with pytest.raises(jsonschema.ValidationError, match="nmae"):
            jsonschema.validate(data, json_schema())

    def test_the_reference_file_shows_every_key(self) -> None:
        shown = {
            line.lstrip("# ").split(" =")[0] for line in REFERENCE.read_text().splitlines() if " = " in line
        }
        wanted = {key.rsplit(".", 1)[-1] for key in KEYS} - {"services", "targets", "torchserve", "env"}
        for kind in (LocalTarget, KServeTarget):
            wanted |= {field.encode_name for field in msgspec.structs.fields(kind)}
        assert wanted <= shown

    def test_the_reference_file_shows_the_defaults(self) -> None:
        settings = load_settings(REFERENCE, environment={}, flags={}, folder=REFERENCE.parent)
        minimal = Config(model=settings.config.model)
        assert settings.config.serving == msgspec.structs.replace(
            minimal.serving, env=settings.config.serving.env
        )
        assert settings.config.store == minimal.store
        assert settings.config.targets["local"] == minimal.targets["local"]

    def test_every_key_is_described(self) -> None:
        for table in json_schema()["$defs"].values():
            for key, value in table["properties"].items():
                assert key == "kind" or "description" in value or "$ref" in json.dumps(value), key
