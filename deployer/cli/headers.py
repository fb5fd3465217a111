"""Reads the headers of a prediction request, including a token and cookies.

A token or cookie is read from a file, stdin or the environment, never from the command line: every user of
the machine can read that. Their values are never printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from deployer.errors import ConfigError
from deployer.files import TEXT_MAX, read_text

TOKEN, COOKIE = "KDEPLOY_TOKEN", "KDEPLOY_COOKIE"


def read_headers(
    given: Sequence[str], token: str | None, cookies: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Read headers: `NAME: VALUE` or `@FILE`; a token: `@FILE` or `-`; cookies: `[NAME=]@FILE`.

    Options override the environment, and a header overrides both. Raises ConfigError, without the value.
    """
    headers = (
        *_of_token(token, environment.get(TOKEN)),
        *_of_cookies(cookies, environment.get(COOKIE)),
        *_given(given),
    )
    return dict({name.lower(): (name, value) for name, value in headers}.values())


def _of_token(option: str | None, variable: str | None) -> Iterator[tuple[str, str]]:
    token = variable
    if option == "-":
        token = _read_stdin()
    elif option is not None:
        if not option.startswith("@"):
            raise _secret_on_command_line(
                "--token", f"Use `--token @FILE`, `--token -` for stdin, or {TOKEN}."
            )
        token = _read(option[1:], f"--token {option}")
    if token is None:
        return
    if not token.strip():
        raise ConfigError("empty token", where="--token" if option else TOKEN)
    yield "Authorization", f"Bearer {token.strip()}"


def _of_cookies(options: Sequence[str], variable: str | None) -> Iterator[tuple[str, str]]:
    cookies = []
    for option in options:
        name, separator, file = option.partition("@")
        if not separator or (name and (not name.endswith("=") or name.count("=") > 1)):
            raise _secret_on_command_line(
                "--cookie", f"Use `--cookie NAME=@FILE`, `--cookie @FILE`, or {COOKIE}."
            )
        lines = _read(file, f"--cookie @{file}").splitlines()
        cookies += [name + line.strip() for line in lines if line.strip()]
    if cookies or variable:
        yield "Cookie", "; ".join(cookies) or str(variable).strip()


def _given(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option in options:
        lines = _read(option[1:], f"--header {option}").splitlines() if option.startswith("@") else [option]
        for line in filter(str.strip, lines):
            name, separator, value = line.partition(":")
            if not separator:
                raise ConfigError(
                    "expected NAME: VALUE", where="--header", hint="Write `--header 'Name: value'`."
                )
            yield name.strip(), value.strip()


def _secret_on_command_line(where: str, hint: str) -> ConfigError:
    what = "secret on the command line, which every user of this machine can read"
    return ConfigError(what, where=where, hint=hint)


def _read_stdin() -> str:
    try:
        text = sys.stdin.read(TEXT_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read stdin as UTF-8", where="--token -") from error
    if len(text) > TEXT_MAX:
        raise ConfigError(f"stdin has more than {TEXT_MAX:,} characters", where="--token -")
    return text


def _read(file: str, where: str) -> str:
    try:
        return read_text(file)
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=where) from error
