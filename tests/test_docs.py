"""The words around the code name what exists: files, tests, commands, codes."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secfed import errors
from secfed.cli import app
from secfed.operations import KINDS
from secfed.study import load_study_dict

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/audit.md",
    "docs/pitfalls.md",
    "docs/tree.md",
    "docs/aggregation.md",
    "docs/amplification.md",
    "docs/deployment.md",
    "docs/deployment-speed.md",
    "docs/airgap.md",
    "docs/simulation.md",
    "docs/evidence-map.md",
    "docs/for-dpo.md",
    "docs/for-it-security.md",
    "docs/ledger.md",
    "docs/release.md",
    "docs/resources.md",
    "docs/performance.md",
    "docs/utility.md",
    "docs/decisions/0001-token-classification-head.md",
    "docs/decisions/0002-sgd-under-dp.md",
    "docs/decisions/0003-budget-anchor.md",
    "docs/decisions/0004-site-as-unit.md",
    "docs/decisions/0005-rules-and-payloads.md",
    "docs/decisions/0006-means-of-products.md",
    "docs/decisions/0007-texts.md",
    "docs/decisions/0008-deployment.md",
    "docs/decisions/0009-witnessed-ledger.md",
    "examples/compare_rules/README.md",
    "examples/lora_aggregation/README.md",
    "examples/lora_aggregation/same_rank/README.md",
    "examples/lora_aggregation/which_factor/README.md",
    "examples/lora_aggregation/unequal_ranks/README.md",
    "examples/governance/README.md",
    "examples/cola/README.md",
    "examples/mrpc_as_text/README.md",
    "examples/distillation/README.md",
    "examples/qlora/README.md",
    "examples/sst2/README.md",
    "docs/formal/README.md",
)


GOVERNANCE = ("docs/evidence-map.md", "docs/for-dpo.md", "docs/for-it-security.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, without the indentation of a list."""
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL
    )
    return [
        re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found
    ]


def tree() -> list[str]:
    """The paths of docs/tree.md; a directory ends with a slash."""
    (block,) = blocks(read("docs/tree.md"), "tree")
    above: list[str] = []
    paths = []
    for line in block.splitlines():
        name = line.split()[0]
        depth, odd = divmod(len(line) - len(line.lstrip()), 2)
        assert not odd, line
        assert depth <= len(above), line
        del above[depth:]
        paths.append("".join(above) + name)
        if name.endswith("/"):
            above.append(name)
    return paths


def named_tests(document: str) -> list[str]:
    return re.findall(r"`([\w/]+\.py::\w+)`", read(document))


# The tree


def test_every_path_of_the_tree_exists() -> None:
    paths = tree()
    assert len(paths) == len(set(paths))
    for path in paths:
        place = ROOT / path
        assert place.is_dir() if path.endswith("/") else place.is_file(), path


def test_every_line_of_the_tree_says_what_a_file_is() -> None:
    (block,) = blocks(read("docs/tree.md"), "tree")
    for line in block.splitlines():
        if not line.split()[0].endswith("/"):
            assert len(line.split()) > 1, line


@pytest.mark.parametrize("package", ["protocols", "secfed"])
def test_every_source_file_is_in_the_tree(package: str) -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - set(tree()) == set()


def test_every_test_file_is_in_the_tree() -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert files - set(tree()) == set()


# Named tests and files


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/pitfalls.md"])
def test_named_tests_exist(document: str) -> None:
    names = named_tests(document)
    assert len(names) > 40
    for name in names:
        path, function = name.split("::")
        module = ast.parse(read(path))
        functions = {
            node.name for node in module.body if isinstance(node, ast.FunctionDef)
        }
        assert function in functions, name
        assert function.startswith("test_"), name


@pytest.mark.parametrize("document", GOVERNANCE)
def test_tests_and_claims_that_a_page_for_reviewers_names_exist(document: str) -> None:
    for name in named_tests(document):
        path, function = name.split("::")
        assert re.search(rf"^def {function}\b", read(path), re.MULTILINE), name
    claimed = {int(n) for n in re.findall(r"\*\*SC-(\d+)\.\*\*", read("SECURITY.md"))}
    named = {int(number) for number in re.findall(r"SC-(\d+)", read(document))}
    assert named
    assert named <= claimed


def test_every_claim_has_a_test_and_a_number() -> None:
    claims = read("SECURITY.md").split("## Claims")[1].split("## Not claimed")[0]
    parts = re.split(r"\*\*SC-(\d+)\.\*\*", claims)[1:]
    numbers, bodies = parts[::2], parts[1::2]
    assert [int(number) for number in numbers] == list(range(1, len(numbers) + 1))
    for number, body in zip(numbers, bodies, strict=True):
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", body), number


def test_every_pitfall_that_is_prevented_has_a_line_about_tests() -> None:
    rows = re.findall(r"^\| (\d+[a-c]?) \|", read("docs/pitfalls.md"), re.MULTILINE)
    assert len(rows) > 60
    assert {number for number in rows if rows.count(number) != 2} == set()


def test_lines_that_prevent_a_pitfall_exist() -> None:
    rows = re.findall(r"^\| \d+[a-c]? \|.*\|$", read("docs/pitfalls.md"), re.MULTILINE)
    places = 0
    for row in rows:
        named = re.findall(r"`([^`]+)`", row)
        source = ""
        for word in named:
            if word.endswith(".py"):
                source = read(word)
            elif source and "::" not in word and re.fullmatch(r"[\w.]+", word):
                last = word.rsplit(".", maxsplit=1)[-1]
                defined = rf"(def|class) {last}\b|^{last}\b.*="
                assert re.search(defined, source, re.MULTILINE), (word, row)
                places += 1
    assert places > 30


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(document: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", read(document)):
        assert ((ROOT / document).parent / target).exists(), target


def test_files_of_the_architecture_exist() -> None:
    text = read("docs/architecture.md").replace("<br/>", " ")
    names = set(re.findall(r"[\w/.]+\.(?:py|toml)\b|\b\w+/(?=[`\s\"<])", text))
    assert len(names) > 10
    for name in names - {"site.toml", "study.toml", "private/"}:  # made by people, runs
        places = [ROOT / name, ROOT / "secfed" / name]
        assert any(place.exists() for place in places), name


# Commands


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    return result.output


def commands() -> set[str]:
    listed = help_of().split("Commands:")[1]
    return set(re.findall(r"^  (\w+) ", listed, re.MULTILINE))


def test_commands_of_the_readme_are_those_of_the_help() -> None:
    text = read("README.md")
    spans = re.findall(r"`([^`\n]*)`", text) + blocks(text, "console")
    used = {name for span in spans for name in re.findall(r"secfed ([a-z]+)", span)}
    assert used == commands()


def test_options_of_the_readme_exist() -> None:
    used = re.findall(r"secfed ([a-z]+)( [a-z]+)?[^`\n]*? (--\w+)", read("README.md"))
    assert used
    for command, part, option in used:
        parts = [part.strip()] if "Commands:" in help_of(command) else []
        assert option in help_of(command, *parts), (command, parts, option)


@pytest.mark.parametrize("document", GOVERNANCE)
def test_commands_of_a_page_for_reviewers_exist(document: str) -> None:
    text = read(document)
    spans = re.findall(r"`([^`\n]*)`", text) + re.findall(
        r"^ {4}(.*)$", text, re.MULTILINE
    )
    used = [span.split() for span in spans if span.startswith("secfed ")]
    assert used
    for _, name, *rest in used:
        command = [name]
        if rest and "Commands:" in help_of(name) and not rest[0][0].isupper():
            command.append(rest[0])
        described = help_of(*command)
        for option in (word for word in rest if word.startswith("--")):
            assert option in described, (command, option)


def test_every_event_of_the_operations_log_is_on_the_page() -> None:
    listed = read("docs/for-it-security.md").split("| event.action |")[1]
    table = listed.split("\n\n")[0]
    assert set(
        re.findall(r"`([a-z-]+-[a-z]+|started|interrupted|failed|withdrawn)`", table)
    ) == set(KINDS)


def test_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    table = read("README.md").split("| exit code |")[1].split("\n\n")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    raised = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SecfedError)
    }
    assert listed == {0, 130} | raised


def test_make_targets_of_the_words_exist() -> None:
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    for document in DOCUMENTS:
        for line in re.findall(r"`make ([a-z ]+)`", read(document)):
            assert set(line.split()) <= targets, (document, line)


# Snippets


def test_own_data_in_the_readme_is_a_study() -> None:
    (snippet,) = blocks(read("README.md"), "toml")
    example = tomllib.loads(read("examples/icd10_hospitals/study.toml"))
    changed = tomllib.loads(snippet)
    study = load_study_dict({**example, **changed, "simulation": {}}, "README.md")
    assert study.sites == ("north", "south", "west")
    assert study.privacy.unit == "person"


def test_python_in_the_readme_is_python() -> None:
    (snippet,) = blocks(read("README.md"), "python")
    names = {
        node.id for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Name)
    }
    assert {"AutoModelForTokenClassification", "PeftModel"} <= names


def test_the_place_for_the_demos_output_is_there() -> None:
    text = read("README.md")
    start, end = "<!-- demo-output -->", "<!-- /demo-output -->"
    assert text.count(start) == text.count(end) == 1
    assert "```" in text.split(start)[1].split(end)[0]
