"""The digits example: trained by its own command, loaded as TorchServe loads it."""

import ast
import base64
import importlib
import io
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from ts.context import Context

from deployer.config import Config

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
SAMPLES = sorted((EXAMPLE / "samples").glob("*.png"))
ON_THE_IMAGE = ("model.py", "digits_handler.py")


def run(*arguments, **options):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, **options)


def train_into(folder):
    done = run(EXAMPLE / "train.py", "--out", folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a space in its name that `train.py` wrote to, and its output."""
    folder = tmp_path_factory.mktemp("digits") / "the trained model"
    return folder, train_into(folder)


@pytest.fixture(scope="module")
def example(trained, tmp_path_factory):
    """The example's modules, imported from a folder like that of an unpacked archive."""
    model_dir = tmp_path_factory.mktemp("model_dir")
    for source in (*(EXAMPLE / name for name in (*ON_THE_IMAGE, "train.py")), trained[0] / "digits.pt"):
        shutil.copy(source, model_dir)
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", model_dir)
    done = run(*pip, "--requirement", EXAMPLE / "requirements.txt")
    assert done.returncode == 0, done.stderr
    before = set(sys.modules)
    sys.path.insert(0, str(model_dir))
    try:
        yield {name: importlib.import_module(name) for name in ("train", "model", "digits_handler")}
    finally:
        sys.path.remove(str(model_dir))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(model_dir)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def handler(example):
    model_dir = Path(example["model"].__file__).parent
    manifest = {"model": {"serializedFile": "digits.pt", "modelFile": "model.py"}}
    handler = example["digits_handler"].DigitsHandler()
    handler.initialize(Context("digits", str(model_dir), manifest, 8, None, "0.12.0"))
    return handler


@pytest.fixture(scope="module")
def heldout(example):
    """The held-out scans, their digits, and the PNG file of each."""
    _, scans, _, digits = example["train"].split_scans()
    files = [example["train"].png(example["train"].picture(scan)) for scan in scans]
    return scans, digits, files


def in_process(example, trained, scans):
    network = example["model"].DigitsNet().eval()
    network.load_state_dict(torch.load(trained[0] / "digits.pt", weights_only=True))
    with torch.inference_mode():
        return network(torch.from_numpy(scans)).argmax(dim=1).tolist()


def handle(handler, rows):
    return handler.handle(rows, None)


def base64_row(file):
    return {"data": base64.b64encode(file).decode()}


# --- training -------------------------------------------------------------------------------------


def test_97_percent_of_the_held_out_third_are_correct(example, trained, heldout):
    scans, digits, _ = heldout
    assert scans.shape == (599, 8, 8)
    assert set(np.unique(scans)) == set(range(17))
    right = (np.array(in_process(example, trained, scans)) == digits).sum()
    assert right / 599 >= 0.97
    assert f"{right} of 599 held-out scans correct" in trained[1]


def test_no_held_out_scan_is_in_the_training_set(example):
    learned, heldout, _, _ = example["train"].split_scans()
    assert not {scan.tobytes() for scan in learned} & {scan.tobytes() for scan in heldout}


def test_training_again_gives_the_same_files(trained, tmp_path):
    train_into(tmp_path)
    for file in sorted(trained[0].rglob("*.*")):
        assert (tmp_path / file.relative_to(trained[0])).read_bytes() == file.read_bytes()


def test_training_leaves_no_temporary_file(trained):
    names = {str(file.relative_to(trained[0])) for file in trained[0].rglob("*") if file.is_file()}
    assert names == {"digits.pt", *(f"samples/{digit}-0.png" for digit in range(10))}


def test_the_weights_are_a_state_dict(trained):
    weights = torch.load(trained[0] / "digits.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


def test_a_model_below_the_accuracy_replaces_no_file(example, tmp_path, monkeypatch):
    train = example["train"]
    (tmp_path / "digits.pt").write_bytes(b"the old weights")
    monkeypatch.setattr(train, "learn", lambda scans, digits: example["model"].DigitsNet().eval())
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"below 97%\. No file was written") as caught:
        train.main()
    assert caught.value.code != 0
    assert [file.name for file in tmp_path.iterdir()] == ["digits.pt"]
    assert (tmp_path / "digits.pt").read_bytes() == b"the old weights"


def test_a_failed_write_keeps_the_old_file(example, tmp_path):
    path = tmp_path / "digits.pt"
    path.write_bytes(b"the old weights")
    with pytest.raises(TypeError):
        example["train"].write(path, "a text")
    assert [file.name for file in tmp_path.iterdir()] == ["digits.pt"]
    assert path.read_bytes() == b"the old weights"


def test_only_a_damaged_sample_is_replaced(example, heldout, tmp_path):
    write_samples = example["train"].write_samples
    write_samples(tmp_path, heldout[0], heldout[1])
    damaged, recompressed = tmp_path / "3-0.png", tmp_path / "4-0.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60])
    with Image.open(recompressed) as image:
        image.load()
    image.save(recompressed, compress_level=0)
    left = recompressed.read_bytes()
    write_samples(tmp_path, heldout[0], heldout[1])
    assert damaged.read_bytes() == whole
    assert recompressed.read_bytes() == left


# --- the samples ----------------------------------------------------------------------------------


def test_training_writes_the_committed_samples(trained):
    assert [sample.name for sample in SAMPLES] == [f"{digit}-0.png" for digit in range(10)]
    for sample in SAMPLES:
        with Image.open(sample) as kept, Image.open(trained[0] / "samples" / sample.name) as written:
            assert kept.size == (160, 160)
            assert np.array_equal(np.asarray(kept), np.asarray(written))


def test_the_handler_recognizes_every_sample(handler):
    answers = handle(handler, [{"body": sample.read_bytes()} for sample in SAMPLES])
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert [(answer["digit"], answer["word"]) for answer in answers] == list(enumerate(words))


# --- the handler ----------------------------------------------------------------------------------


def test_a_png_preserves_every_held_out_scan(handler, heldout):
    scans, _, files = heldout
    received = handler.preprocess([base64_row(file) for file in files])
    assert received.dtype == torch.float32
    assert np.array_equal(received.numpy(), scans)


def test_the_handler_predicts_as_the_network_in_process(example, trained, handler, heldout):
    scans, _, files = heldout
    answers = []
    for start in range(0, len(files), 8):
        answers += handle(handler, [base64_row(file) for file in files[start : start + 8]])
    assert [answer["digit"] for answer in answers] == in_process(example, trained, scans)


def test_a_batch_gets_the_answers_of_its_single_rows(handler, heldout):
    rows = [base64_row(file) for file in heldout[2][:16]]
    batch, singly = handle(handler, rows), [handle(handler, [row])[0] for row in rows]
    assert [answer["digit"] for answer in batch] == [answer["digit"] for answer in singly]
    for one, other in zip(batch, singly, strict=True):
        assert one["confidence"] == pytest.approx(other["confidence"], abs=2e-4)


def test_a_batch_is_one_call_of_the_network(handler, heldout):
    sizes = []
    hook = handler.network.register_forward_hook(lambda network, scans, logits: sizes.append(len(logits)))
    try:
        handle(handler, [base64_row(file) for file in heldout[2][:8]])
    finally:
        hook.remove()
    assert sizes == [8]


@pytest.mark.parametrize(
    "row",
    [
        lambda file: base64_row(file),
        lambda file: {"data": file},
        lambda file: {"data": bytearray(file)},
        lambda file: {"body": file},
        lambda file: {"body": bytearray(file)},
        lambda file: {"body": base64.b64encode(file).decode()},
    ],
    ids=["base64 data", "bytes data", "bytearray data", "bytes body", "bytearray body", "base64 body"],
)
def test_every_form_of_a_row(handler, row):
    [answer] = handle(handler, [row((EXAMPLE / "samples" / "7-0.png").read_bytes())])
    assert answer["digit"] == 7
    assert 0.5 < answer["confidence"] <= 1
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(133, 121), (1600, 1200), (8, 8)])
def test_images_of_other_sizes_and_formats(handler, kind, mode, size):
    with Image.open(EXAMPLE / "samples" / "0-0.png") as sample:
        picture = sample.convert(mode).resize(size)
    file = io.BytesIO()
    picture.save(file, format=kind, quality=95)
    [answer] = handle(handler, [{"body": file.getvalue()}])
    assert answer["digit"] == 0


@pytest.mark.parametrize(
    "row", [{"body": b"not an image"}, {"data": "!"}, {"data": 10**15}, {"body": b""}, {}], ids=repr
)
def test_a_row_without_an_image_is_an_error(handler, row):
    with pytest.raises((OSError, ValueError, TypeError)):
        handle(handler, [row])


# --- kdeploy.toml --------------------------------------------------------------------------------


def test_kdeploy_toml_names_existing_files():
    config = msgspec.toml.decode((EXAMPLE / "kdeploy.toml").read_bytes(), type=Config)
    assert (config.model.name, config.model.version, config.serving.batch_size) == ("digits", "1.0", 8)
    assert config.model.serialized_file == "digits.pt"
    for name in (config.model.handler, config.model.model_file, config.model.requirements_file):
        assert (EXAMPLE / name).is_file()


@pytest.mark.parametrize("name", ON_THE_IMAGE)
def test_the_code_for_the_serving_image_parses_on_its_python(name):
    ast.parse((EXAMPLE / name).read_text(), feature_version=(3, 9))


def test_no_installed_package_brings_the_requirement():
    """Otherwise the worker would find the package even if TorchServe did not install it."""
    lines = (EXAMPLE / "requirements.txt").read_text().splitlines()
    [requirement] = [Requirement(line) for line in lines if not line.startswith("#")]
    assert [part.operator for part in requirement.specifier] == ["=="]
    dependencies = {
        canonicalize_name(needed.name)
        for distribution in metadata.distributions()
        for needed in map(Requirement, distribution.requires or ())
        if needed.marker is None or needed.marker.evaluate({"extra": ""})
    }
    assert "numpy" in dependencies
    assert canonicalize_name(requirement.name) not in dependencies


# --- expect.py ------------------------------------------------------------------------------------


def prediction(image, digit, word):
    return {"image": image, "prediction": {"digit": digit, "word": word, "confidence": 0.98765}}


@pytest.mark.parametrize(
    ("answers", "code", "last"),
    [
        ([prediction("a b/3-0.png", 3, "three"), prediction("0-0.png", 0, "zero")], 0, "2 of 2 as expected."),
        ([prediction("3-0.png", 8, "eight"), prediction("0-0.png", 0, "zero")], 1, "1 of 2 as expected."),
        ([], 1, "0 of 0 as expected."),
    ],
    ids=["all correct", "one wrong", "none"],
)
def test_expect_compares_predictions_with_file_names(answers, code, last):
    done = run(EXAMPLE / "expect.py", input=json.dumps(answers))
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines()[-1] == last
    assert done.stdout.count("<- differs") == (1 if "8" in str(answers) and code else 0)
