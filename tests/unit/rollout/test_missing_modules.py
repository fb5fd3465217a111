from __future__ import annotations

import pytest

from deployer.rollout.missing_modules import advise


@pytest.mark.parametrize(
    ("explanation", "lines"),
    [
        ("ModuleNotFoundError: No module named 'sklearn' (handler.py, line 3)", "the line `scikit-learn` to"),
        ("ModelLoadFailed: No module named 'cv2'", "the line `opencv-python-headless` to"),
        ("ModelLoadFailed: No module named 'yaml.nodes'", "the line `pyyaml` to"),
        ("ModelLoadFailed: No module named 'captum' (text_classifier.py, line 11)", "the line `captum` to"),
        ("No module named 'torchvision' (image_classifier.py, line 6)", "`captum` and `torchvision==0.N.*`"),
        ("No module named 'captum' (vision_handler.py, line 11)", "`captum` and `torchvision==0.N.*`"),
    ],
)
def test_a_missing_module_names_the_line_for_the_requirements(explanation: str, lines: str) -> None:
    hint = advise(explanation)
    assert lines in hint
    assert hint.endswith(", then run `kdeploy rollout` again.")


@pytest.mark.parametrize("explanation", ["", "OOMKilled", "No module named 'ts.torch_handler.handler'"])
def test_another_failure(explanation: str) -> None:
    assert advise(explanation) == ""
