"""Compares predictions with the digits in the images' names. Exits with 1 if any differs.

kdeploy predict -o json samples/*.png | python expect.py
"""

import json
import sys
from pathlib import Path


def main():
    """Read the output of `kdeploy predict -o json`, and print predicted and expected digits."""
    answers = json.load(sys.stdin)
    print(f"{'image':<12} {'predicted':<12} {'confidence':>10}  expected")
    wrong = 0
    for answer in answers:
        image, prediction = Path(answer["image"]), answer["prediction"]
        expected = int(image.name.split("-")[0])
        differs = prediction["digit"] != expected
        wrong += differs
        predicted = f"{prediction['digit']} {prediction['word']}"
        note = "  <- differs" if differs else ""
        print(f"{image.name:<12} {predicted:<12} {prediction['confidence']:>10.1%}  {expected:>8}{note}")
    print(f"{len(answers) - wrong} of {len(answers)} as expected.")
    sys.exit(1 if wrong or not answers else 0)


if __name__ == "__main__":
    main()
