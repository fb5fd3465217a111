"""Finds credentials in texts that kdeploy would store where others can read them. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter

# The forms of Hugging Face, GitHub, GitLab, PyPI, npm, Docker, AWS, Google, OpenAI, Anthropic, Stripe, Slack,
# DigitalOcean, Databricks, JSON Web Tokens, Azure storage, and private keys.
_TOKEN = re.compile(
    r"""(?<![A-Za-z0-9_-])(
        hf_[A-Za-z0-9]{8,} | api_org_[A-Za-z0-9]{8,} |
        gh[pousr]_[A-Za-z0-9]{8,} | github_pat_[A-Za-z0-9_]{16,} | glpat-[A-Za-z0-9_-]{16,} |
        pypi-[A-Za-z0-9_-]{16,} | npm_[A-Za-z0-9]{16,} | dckr_pat_[A-Za-z0-9_-]{16,} |
        (AKIA|ASIA)[A-Z0-9]{16} | AIza[A-Za-z0-9_-]{30,} | ya29\.[A-Za-z0-9_-]{16,} |
        sk-(proj|ant|svcacct|admin|or)-[A-Za-z0-9_-]{8,} | sk-[A-Za-z0-9]{16,} |
        [rs]k_(live|test)_[A-Za-z0-9]{16,} | xox[abeprs]-[A-Za-z0-9-]{10,} |
        dop_v1_[a-f0-9]{16,} | dapi[a-f0-9]{32} |
        eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]* |
        .*AccountKey=[A-Za-z0-9+/=]{20,} | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----
    )""",
    re.VERBOSE,
)
_LOGIN = re.compile(r"://(?P<user>[^\s/@:]*)(?::(?P<password>[^\s/@]*))?@")
_LOGIN_TOKEN_FROM = 20  # characters; a user of this length without a password is a token
_REFERENCES = re.compile(r"(\$\{[A-Za-z0-9_]+\}|\$\([A-Za-z0-9_]+\))*")  # as pip and Kubernetes expand them

_PASSWORD_NAME = re.compile(r"(PASSWORD|PASSWD|PASSPHRASE|SECRET|_PWD)$", re.IGNORECASE)
_TOKEN_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|CREDENTIALS?|AUTH|SAS)$", re.IGNORECASE)
_RANDOM = re.compile(r"[A-Za-z0-9+/=_.~-]{16,}")
_PLAIN = re.compile(r"true|false|yes|no|on|off|none|null|[0-9.]+", re.IGNORECASE)
_PATH = re.compile(r"[~.]{0,2}/.*|[a-z0-9+]+://[^@]*", re.IGNORECASE)
_BITS = 3.0  # entropy per character; random hex digits have 3.5 or more at 32 characters, words less


def find_token(text: str) -> str:
    """Return what kind of credential a text contains, or an empty string."""
    if _TOKEN.search(text):
        return "a token"
    return "a URL with a password" if has_login(text) else ""


def has_login(text: str) -> bool:
    """Return whether a URL in a text has a password or a token, and not only a reference to one."""
    for found in _LOGIN.finditer(text):
        user, password = found["user"], found["password"]
        secret = password or (user if len(user) >= _LOGIN_TOKEN_FROM else "")
        if not _REFERENCES.fullmatch(secret):
            return True
    return False


def find_credential(name: str, value: str) -> str:
    """Return what kind of credential a variable contains, by its name and its value, or an empty string."""
    if kind := find_token(value):
        return kind
    if _REFERENCES.fullmatch(value) or _PLAIN.fullmatch(value) or _PATH.fullmatch(value):
        return ""
    if _PASSWORD_NAME.search(name):
        return "a password"
    return "a token" if _TOKEN_NAME.search(name) and _is_random(value) else ""


def _is_random(text: str) -> bool:
    """Return whether a text looks like generated characters, and not like words."""
    if not _RANDOM.fullmatch(text) or not (re.search("[0-9]", text) and re.search("[A-Za-z]", text)):
        return False
    counts = Counter(text)
    bits = -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
    return bits >= _BITS
