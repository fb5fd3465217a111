"""The documentation agrees with the program: the commands, flags, keys and variables that it names exist."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from typer.main import get_command

from deployer.cli.app import app
from deployer.config import load_settings
from deployer.config.environment import variable
from deployer.config.keys import KEYS
from deployer.config.schema import Config, KServeTarget, LocalTarget
from tests.pages import PAGES, ROOT, Code, anchors, code, links

COMMANDS: Any = get_command(app)
CODE = [piece for page in PAGES for piece in code(page)]
# Flags of other programs that the pages name on their own.
FOREIGN_FLAGS = {"--canary-traffic-percent", "--foreground"}
OUR_SOURCES = [
    *(ROOT / "deployer").rglob("*.py"),
    *(ROOT / "manifests").iterdir(),
    *(ROOT / "tests").rglob("*.py"),
]
TABLES = "default-target|model|service|services|serving|scaling|store|targets|torchserve"
FILES = {"py", "pt", "pth", "mar", "onnx", "toml"}


def test_the_pages_are_found() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "docs/index.md", "docs/reference/commands.md", "handler/README.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_internal_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    broken = [(line, link) for line, link in links(page) if not leads_somewhere(page, link)]
    assert lines(f"line {line}: {link}" for line, link in broken) == ""


def leads_somewhere(page: Path, link: str) -> bool:
    if re.match(r"[a-z]+:", link):
        return True
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    return target.is_file() and (not anchor or anchor in anchors(target))


def test_every_command_and_flag_exists() -> None:
    found = [(piece, words) for piece in CODE for words in commands(piece)]
    faults = [(piece, words, command_fault(words, complete=not piece.inline)) for piece, words in found]
    assert (
        lines(f"{piece.place}: {' '.join(words)}: {fault}" for piece, words, fault in faults if fault) == ""
    )


def commands(piece: Code) -> Iterator[list[str]]:
    """Yield the arguments of each kdeploy command in a piece of code."""
    if piece.language in ("toml", "json", "python"):
        return
    lines = piece.text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):  # the other lines are output
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        before = r"^\s*|[|;&(]\s*|\brun:\s*|^\s*- \s*"
        for match in re.finditer(rf"(?:{before})(?:[A-Z_]+=\S*\s+)*kdeploy +(?=\S)", line):
            if words := words_of(line[match.end() :]):
                yield words


def words_of(text: str) -> list[str]:
    """Return the words of a shell command up to a pipe, a redirection, a comment or an ellipsis."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if re.fullmatch(r"…|\.\.\.|─+|[();<>|&]+", word):
            break
        words.append(word)
    return words


def command_fault(words: list[str], *, complete: bool) -> str:
    """Return what is wrong with a command line; a `complete` one must have all that is required."""
    command, rest = COMMANDS, list(words)
    given: list[str] = []
    arguments = 0
    while rest:
        word = rest.pop(0)
        if word in ("--help", "-h"):
            return ""
        if word.startswith("-") and word != "-":
            if not complete and not rest and word in options(command):
                return ""
            name, fault = take_option(command, word, rest)
            if fault:
                return fault
            given.append(name)
        elif commands_of(command):
            if word not in commands_of(command):
                return f"no command {word}"
            command, given = commands_of(command)[word], []
        else:
            arguments += 1
    return argument_fault(command, arguments, given, complete=complete)


def take_option(command: Any, word: str, rest: list[str]) -> tuple[str, str]:
    """Return an option's name and its fault; take its value from the words after it."""
    name, equals, value = word.partition("=")
    option = options(command).get(name)
    if option is None:
        return name, f"no option {name}"
    if option.is_flag:
        return option.name, ""
    if not equals and not rest:
        return option.name, f"{name} needs a value"
    return option.name, value_fault(option, value if equals else rest.pop(0))


def argument_fault(command: Any, arguments: int, given: list[str], *, complete: bool) -> str:
    if complete and commands_of(command) and not command.invoke_without_command:
        return "a command is missing"
    parameters = [one for one in command.params if one.param_type_name == "argument"]
    if arguments > len(parameters) and all(one.nargs > 0 for one in parameters):
        return f"{arguments} arguments"
    needed = sum(one.required for one in parameters)
    missing = [one.opts[0] for one in options(command).values() if one.required and one.name not in given]
    if complete and (arguments < needed or missing):
        return f"{arguments} of {needed} arguments; missing: {missing}"
    return ""


def commands_of(command: Any) -> dict[str, Any]:
    return getattr(command, "commands", {})


def options(command: Any) -> dict[str, Any]:
    found = [one for one in command.params if one.param_type_name == "option"]
    return {name: one for one in found for name in (*one.opts, *one.secondary_opts)}


def value_fault(option: Any, value: str) -> str:
    if option.opts[0] == "--set":
        key = value.partition("=")[0]
        return "" if key == "KEY" or is_key(key) else f"no key {key}"
    placeholder = value.isupper() or "…" in value or "$" in value
    known = choices(option)
    return "" if placeholder or not known or value in known else f"{option.opts[0]} {value}: not in {known}"


def choices(option: Any) -> tuple[str, ...]:
    return tuple(getattr(option.type, "choices", ()))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("kdeploy rollout --canary 10 -t production  # a comment", ""),
        ("kdeploy prune --keep 5 | tee log", ""),
        ("release=$(kdeploy push --strict)", ""),
        ("- run: kdeploy diff --strict || test $? -eq 15", ""),
        ("kdeploy rolout", "no command rolout"),
        ("kdeploy rollout --cannary 10", "no option --cannary"),
        ("kdeploy status digits other", "2 arguments"),
        ("kdeploy status -o xml", "--output xml"),
        ("kdeploy rollout --set serving.batch=4", "no key serving.batch"),
        ("kdeploy rollout --canary", "--canary needs a value"),
        ("kdeploy prune", "missing"),
        ("kdeploy models", "a command is missing"),
    ],
)
def test_a_wrong_command_is_found(line: str, fault: str) -> None:
    (words,) = commands(Code("page.md", 1, "", line, inline=False))
    found = command_fault(words, complete=True)
    assert (fault in found) if fault else (found == "")


def test_every_flag_that_a_page_names_by_itself_is_one_of_a_command() -> None:
    named = [(piece.place, *flag) for piece in CODE if piece.inline for flag in flags(piece.text)]
    assert lines(f"{place}: {name} {value}" for place, name, value in named if not is_flag(name, value)) == ""


def flags(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(", "):
        if part.startswith("--"):
            name, _, value = part.replace("=", " ", 1).partition(" ")
            yield name, value.partition(" ")[0]


def is_flag(name: str, value: str) -> bool:
    known = [options(command)[name] for command in every_command(COMMANDS) if name in options(command)]
    fits = [one for one in known if one.is_flag or not value or not value_fault(one, value)]
    return bool(fits) or name in FOREIGN_FLAGS


def every_command(command: Any) -> Iterator[Any]:
    yield command
    for inner in commands_of(command).values():
        yield from every_command(inner)


def lines(faults: Iterable[str]) -> str:
    """Return faults as one text, which pytest shows whole."""
    return "\n".join(faults)


def test_every_key_of_kdeploy_toml_exists() -> None:
    named = [(piece.place, key) for piece in CODE if piece.inline for key in keys(piece.text)]
    assert lines(f"{place}: {key}" for place, key in named if not is_key(key)) == ""


def keys(text: str) -> Iterator[str]:
    """Yield the keys and tables of kdeploy.toml that a piece of inline code names."""
    yield from (
        key
        for key in re.findall(rf"(?<![\w./-])((?:{TABLES})(?:\.[A-Za-z0-9_-]+)+)", text)
        if key.rpartition(".")[2] not in FILES and not key.startswith("serving.k")
    )
    if table := re.fullmatch(r"\[([a-z]+(?:\.[A-Za-z-]+)?)\]", text):
        yield table[1]


def is_key(key: str) -> bool:
    if key in fields_of(Config):
        return True
    table, *rest = key.split(".")
    if table == "services":
        return len(rest) < 2 or rest[1:] == ["serving"] or is_key(".".join(rest[1:]))
    if table == "targets":
        fields = {*fields_of(LocalTarget), *fields_of(KServeTarget), "kind"}
        return len(rest) == 1 or (len(rest) == 2 and rest[1] in fields)
    inner = (f"{table}.{rest[0]}" in KEYS, table == "torchserve")
    return key in KEYS or (
        any(inner) and key.startswith(("serving.env.", "store.service-account-annotations.", "torchserve."))
    )


def fields_of(table: type[Any]) -> list[str]:
    return [name.replace("_", "-") for name in table.__struct_fields__]


@pytest.mark.parametrize(
    "piece", [one for one in CODE if one.language == "toml"], ids=lambda piece: piece.place
)
def test_every_toml_block_is_a_valid_kdeploy_toml(piece: Code, tmp_path: Path) -> None:
    model = (
        "" if "model" in tomli.loads(piece.text) else '[model]\nname = "m"\nversion = "1"\nhandler = "h.py"\n'
    )
    file = tmp_path / "kdeploy.toml"
    file.write_text(f"{piece.text}\n{model}")
    for patch in re.findall(r'patches = \["(.+?)"\]', piece.text):
        (tmp_path / patch).write_text("spec: {}\n")
    assert load_settings(file, environment={}, flags={}, folder=tmp_path).path == file


@pytest.mark.parametrize(
    "piece",
    [one for one in CODE if one.language in ("yaml", "json", "python")],
    ids=lambda piece: piece.place,
)
def test_every_block_of_yaml_json_and_python_can_be_read(piece: Code) -> None:
    text = textwrap.dedent(piece.text)
    if piece.language == "python":
        ast.parse(text)
    else:
        assert list(yaml.safe_load_all(text))


def test_every_variable_of_kdeploy_exists() -> None:
    read = variables(*OUR_SOURCES)
    known = {variable(key) for key in KEYS} | read
    fields = "|".join(
        variable(name)[len("KDEPLOY_") :] for name in {*fields_of(LocalTarget), *fields_of(KServeTarget)}
    )
    patterns = re.compile(
        rf"KDEPLOY_(TARGETS_[A-Z0-9_]+_({fields})|TORCHSERVE_[A-Z0-9_]+|SERVING_ENV_[A-Z0-9_]+)"
    )
    named = {(page, name) for page in PAGES for name in variables(page)}
    wrong = [(page, name) for page, name in named if name not in known and not patterns.fullmatch(name)]
    assert lines(f"{page}: {name}" for page, name in wrong) == ""


def variables(*files: Path) -> set[str]:
    """Return the KDEPLOY_ variables that files name; one that ends in `_` or `*` stands for several."""
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    return {name for text in texts for name in re.findall(r"KDEPLOY_[A-Z0-9_]*[A-Z0-9](?![*_<…])", text)}


def test_the_pages_of_the_reference_that_are_not_generated_are_complete() -> None:
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    ours = variables(*(file for file in OUR_SOURCES if "tests" not in file.parts))
    assert sorted(name for name in ours if name not in page) == []
    index = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    assert [
        one.name for one in (ROOT / "docs" / "decisions").glob("0*.md") if f"({one.name})" not in index
    ] == []


def test_every_message_of_the_troubleshooting_page_is_one_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    texts = "\n".join(text for file in (ROOT / "deployer").rglob("*.py") for text in strings(file))
    assert len(headings) > 25
    patterns = {heading: ".*".join(map(re.escape, heading.split("…"))) for heading in headings}
    gone = [heading for heading, pattern in patterns.items() if not re.search(pattern, texts)]
    assert not gone, f"docs/troubleshooting.md quotes messages that do not exist: {lines(gone)}"


def strings(file: Path) -> Iterator[str]:
    """Yield each string of a Python file on one line, with `…` for what an f-string inserts."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def test_the_troubleshooting_page_has_every_exit_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    named = re.findall(r"^(?:## Exit code|\|) (\d+)\b", page, re.MULTILINE)
    table = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    codes = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    assert sorted(set(codes) - set(named) - {"0", "1", "130", "143"}) == []


def test_the_config_of_these_tests_is_the_schema() -> None:
    assert set(TABLES.split("|")) == set(fields_of(Config))
