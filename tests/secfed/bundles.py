"""Bundles that are small and real: installed packages packed as wheels again.

Nothing is fetched. A wheel that was installed and is packed again holds the same files.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import evidence
import tomli_w

from secfed.airgap import Written, write_bundle
from secfed.signing import CoordinatorKey

ROOT = Path(__file__).parents[2]
KEY = CoordinatorKey(b"\x05" * 32)
FINGERPRINT = KEY.fingerprint()
WEIGHTS = b"numbers of a base model"
DATE = (1980, 1, 1, 0, 0, 0)


def study_values(**model: Any) -> dict[str, Any]:
    """A study whose weights lie in a folder, or where ``model`` says."""
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    return {**evidence.STUDY, "model": model or {"path": "base", "sha256": sha256}}


def write_study(folder: Path, values: Mapping[str, Any] | None = None) -> Path:
    """A study's file with its base model beside it."""
    (folder / "base").mkdir(parents=True, exist_ok=True)
    (folder / "base" / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "base" / "config.json").write_text("{}")
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(values or study_values()), "utf-8")
    return path


def pack(name: str, folder: Path) -> Path:
    """An installed package as a wheel."""
    found = metadata.distribution(name)
    info = f"{found.metadata['Name']}-{found.version}".replace("-", "_")
    wheel = found.read_text("WHEEL") or ""
    tags = [line[5:].split("-") for line in wheel.splitlines() if line[:5] == "Tag: "]
    tag = "-".join(".".join(sorted({t[i] for t in tags})) for i in range(3))
    version = found.version
    stem = info.removesuffix(f"_{version.replace('-', '_')}")
    path = folder / f"{stem}-{version}-{tag}.whl"
    left_out = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", ".pyc")
    files = {
        str(file): Path(str(found.locate_file(file))).read_bytes()
        for file in found.files or ()
        if not str(file).startswith("..") and not str(file).endswith(left_out)
    }
    inside = next(one for one in files if one.endswith(".dist-info/METADATA"))
    _zip(path, files, inside.rpartition("/")[0])
    return path


def made_up(
    folder: Path,
    name: str,
    version: str = "1.0",
    needs: Iterable[str] = (),
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """A wheel of a package that does not exist."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    lines += [f"Requires-Dist: {one}\n" for one in needs]
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {
        **(files or {f"{stem}/__init__.py": b""}),
        f"{info}/METADATA": "".join(lines).encode(),
        f"{info}/WHEEL": wheel.encode(),
    }
    path = folder / f"{stem}-{version}-py3-none-any.whl"
    _zip(path, content, info)
    return path


def own_wheel(folder: Path) -> Path:
    """The wheel of this checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
    subprocess.run(
        [*command, str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    (path,) = folder.glob("secfed-*.whl")
    return path


def write_small(
    folder: Path,
    wheels: Iterable[Path],
    *,
    bare: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    key: CoordinatorKey = KEY,
) -> Written:
    """A bundle of these wheels; ``bare`` are installed without what they need."""

    def collect(target: Path) -> Iterable[str]:
        target.mkdir()
        for path in wheels:
            shutil.copy(path, target)
        return bare

    study = write_study(folder / "home", values)
    return write_bundle(study, folder / "bundle", key, collect)


def _zip(path: Path, files: Mapping[str, bytes], info: str) -> None:
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted({**files, f"{info}/RECORD": record.encode()}.items()):
            archive.writestr(zipfile.ZipInfo(name, DATE), data)
