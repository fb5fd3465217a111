"""Finds phrases that `docs/style.md` rejects in the repository's texts: `python -m tests.style [PATH ...]`.

Lines are compared with `_` read as a blank, so that the names of tests count as text.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXTS = {".py", ".md", ".j2", ".sh", ".toml", ".yaml", ".yml", ""}
# These two quote the phrases, the license is not our text, recorded objects are KServe's.
EXEMPT = ("docs/style.md", "tests/style.py", "LICENSE", "tests/snapshots/recorded")

INSTEAD = {
    r"who(so)?ever|whomever": "anyone who",
    r"whatever|wherever|whichever|whence|thereof|therein|thereby|lest|albeit|anew|whilst": "a common word",
    r"mend(s|ed|ing)?": "fix",
    r"heal(s|ed|ing)?": "recover",
    r"for ever": "forever, or without a limit",
    r"(come|comes|came|coming|bring|brings|brought)( \w+)? to serve": "becomes ready, rolls out",
    r"what serves": "the running release",
    r"(go|goes|going|went|gone) on": "continue",
    r"(is|are|was|were|be|been|being) (asked|told|said)": "name who asks or reports",
    r"(?<!there )(?<!There )(is|are|was|were) no (?!longer)[a-z]+": "is not a, or invalid X",
    r"tells? of": "reports",
    r"(is|are|was|were) over": "has ended",
    r"(?<=,) too": "also",
    r"(no|some|every)body('s)?": "no one, another user, another process",
    r"alone": "only",
    r"(?<!all )at once": "immediately, together, at the same time",
    r"may not": "cannot, must not, might not",
    r"of (its|their|our|his) own": "its own X",
    r"in vain|nowhere": "say what happens",
    r"(stands|stood|lies|lay) (in|at|on|there|here|where|under|before|next)": "is",
}
PHRASES = [
    (re.compile(rf"\b({phrase})(?!\w)", re.IGNORECASE), instead) for phrase, instead in INSTEAD.items()
]


def tracked(paths: list[str]) -> Iterator[Path]:
    """Yield the repository's text files, or those under `paths`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.suffix in TEXTS and path.is_file() and not name.startswith(EXEMPT):
            yield path


def findings(path: Path) -> Iterator[str]:
    """Yield one line for each rejected phrase of a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for phrase, instead in PHRASES:
            for match in phrase.finditer(line.replace("_", " ")):
                yield f"{path.relative_to(ROOT)}:{number}: '{match[0].strip()}': write {instead}"


def main(paths: list[str]) -> int:
    """Print every finding; return 1 if there is one."""
    found = [line for path in tracked(paths) for line in findings(path)]
    sys.stdout.write("\n".join(found or ["Style: no rejected phrase"]) + "\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
