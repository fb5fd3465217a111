from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.archive import Archive, Member
from deployer.config import Config, Model, Scaling, Serving, VariableSource
from deployer.errors import IntegrityError, NotFoundError
from deployer.release import Release, decode_release, encode_release, is_complete_id, match_ids, plan_release

MODEL = Model(name="digits", version="1.0", handler="h.py")


def archive(sha256: str | None = "a" * 64, **more: object) -> Archive:
    member = Member(name="h.py", size=3, sha256=sha256, source=b"x=1")
    return Archive(name="digits", version="1.0", format="zip-store", members=(member,), **more)


def plan(sha256: str = "a" * 64, **config: object) -> Release:
    runtime = {"containers": [{"name": config.pop("container", "kserve-container")}]}
    return plan_release(Config(**{"model": MODEL, **config}), archive(sha256), runtime)


def test_the_id_is_the_version_and_twelve_hex() -> None:
    made = plan()
    assert made.id.startswith("1.0-")
    assert is_complete_id(made.id)
    assert made.label == f"digits/{made.id}"
    assert made.archive.size == 3


def test_the_same_inputs_are_the_same_release() -> None:
    assert plan() == plan()


@pytest.mark.parametrize(
    "other",
    [
        {"sha256": "b" * 64},
        {"serving": Serving(batch_size=2)},
        {"serving": Serving(env={"A": "b"})},
        {"serving": Serving(drain_seconds=6)},
        {"torchserve": {"netty_client_threads": 4}},
        {"container": "of another kdeploy's runtime"},
        {"model": msgspec.structs.replace(MODEL, requirements_file="r.txt")},
    ],
)
def test_other_serving_settings_are_another_release(other: dict[str, object]) -> None:
    assert plan(**other).id != plan().id


def test_the_number_of_replicas_does_not_change_the_release() -> None:
    scaled = plan(scaling=Scaling(min_replicas=0, max_replicas=9))
    assert scaled == plan()
    assert b"replicas" not in encode_release(scaled)


def test_a_release_of_the_first_version_keeps_its_record_and_its_id() -> None:
    data = (Path(__file__).parents[1] / "golden" / "release-0.1.0.json").read_bytes()
    assert encode_release(decode_release(data, where="here")) == data


def test_a_later_setting_is_in_the_record_if_it_is_set() -> None:
    assert b"overlay" not in encode_release(plan())
    overlaid = plan(serving=Serving(overlay={"spec": {"predictor": {"hostname": "a"}}}))
    assert overlaid.id != plan().id
    assert decode_release(encode_release(overlaid), where="here") == overlaid
    source = plan(serving=Serving(env={"A": VariableSource(secret="s", key="k")}))
    assert decode_release(encode_release(source), where="here") == source


def test_warnings_do_not_change_the_release() -> None:
    assert plan_release(Config(model=MODEL), archive(warnings=("hm",))).id == (
        plan_release(Config(model=MODEL), archive()).id
    )


def test_a_release_on_the_clusters_own_runtime_does_not_depend_on_kdeploys() -> None:
    named = Serving(runtime="theirs")
    assert plan(serving=named) == plan(serving=named, container="another")
    assert plan(serving=named).runtime is None


def test_an_archive_without_digests_is_refused() -> None:
    with pytest.raises(ValueError, match="is not known"):
        plan_release(Config(model=MODEL), archive(None))


def test_decoding_a_record_reverses_encoding() -> None:
    assert decode_release(encode_release(plan()), where="here") == plan()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"batch-size"', b'"batch-siez"'),
        (b'"size": 3', b'"size": 4'),
        (b"aaaaaaaa", b"aaaaaaab"),
        (b'"version": "1.0"', b'"version": "1.1"'),
        (b"job_queue_size=1000", b"job_queue_size=9999"),
        (b'"batch-size": 1', b'"batch-size": 2'),
        (b'"schema": 2', b'"schema": "2"'),
        (b'"kserve-container"', b'"kserve-container2"'),
        (b"{", b""),
    ],
)
def test_a_changed_record_is_refused(old: bytes, new: bytes) -> None:
    data = encode_release(plan())
    assert old in data
    data = data.replace(old, new, 1)
    with pytest.raises(IntegrityError) as caught:
        decode_release(data, where="store/release.json")
    assert caught.value.where == "store/release.json"
    assert "below store/ and push" in (caught.value.hint or "")


@pytest.mark.parametrize("schema", [1, 3])
def test_the_record_of_another_schema_is_refused(schema: int) -> None:
    data = b'{"schema": %d, "field": "of those days"}' % schema
    with pytest.raises(IntegrityError, match=f"schema {schema}: this kdeploy reads schema 2") as caught:
        decode_release(data, where="store/release.json")
    assert "push the release again" in (caught.value.hint or "")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_release(data, where="here")


@pytest.mark.parametrize(
    "text", ["../../etc-0123456789ab/..", "", "-", "*", "1.0-0123456789ab\n", "1.0-\x00", ".."]
)
def test_an_invalid_id_is_refused(text: str) -> None:
    with pytest.raises(NotFoundError, match="invalid release ID"):
        is_complete_id(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1.0-0a", ["1.0-0a1111111111"]),
        ("1.0-0", ["1.0-0a1111111111", "1.0-0b2222222222"]),
        ("0b2", ["1.0-0b2222222222"]),
        ("1", ["1.0-0a1111111111", "1.0-0b2222222222", "2-1c3333333333"]),
        ("2", ["2-1c3333333333"]),
        ("a1111111111", []),
        ("1.0-0A", []),
    ],
)
def test_the_start_of_an_id_or_of_its_digits_is_enough(text: str, found: list[str]) -> None:
    assert not is_complete_id(text)
    assert match_ids(text, ["1.0-0a1111111111", "1.0-0b2222222222", "2-1c3333333333"]) == found


VERSION = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?", fullmatch=True)


@given(one=VERSION, other=VERSION, hex_one=st.text("0123456789abcdef", min_size=12, max_size=12))
def test_no_id_is_the_prefix_of_another(one: str, other: str, hex_one: str) -> None:
    from deployer.config.checks import _RELEASE_TAIL

    first = f"{one}-{hex_one}"
    # The closest case: another version begins with the whole first ID.
    second = f"{first}-{other}-{hex_one}"
    assert _RELEASE_TAIL.search(second.rsplit("-", 1)[0])
