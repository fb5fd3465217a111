"""Compares predictions with the digit that each image's name starts with; exits with 1 when one differs.

kdeploy predict -o json samples/*.png | python expect.py
"""

import json
import sys
from pathlib import Path


def main():
    """Read what `kdeploy predict -o json` wrote and print what was seen beside what was expected."""
    answers = json.load(sys.stdin)
    print(f"{'image':<12} {'predicted':<12} {'confidence':>10}  expected")
    wrong = 0
    for answer in answers:
        image, seen = Path(answer["image"]), answer["prediction"]
        expected = int(image.name.split("-")[0])
        differs = seen["digit"] != expected
        wrong += differs
        predicted = f"{seen['digit']} {seen['word']}"
        note = "  <- differs" if differs else ""
        print(f"{image.name:<12} {predicted:<12} {seen['confidence']:>10.1%}  {expected:>8}{note}")
    print(f"{len(answers) - wrong} of {len(answers)} as expected.")
    sys.exit(1 if wrong or not answers else 0)


if __name__ == "__main__":
    main()
