"""Keys beside the coordinator's: in PEM files, in a hardware module, and garbage."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from deployed import KEY, Cast, LostError
from securesystemslib.signer import CryptoSigner
from small import planned, small_policy, small_study

from secfed.canonical import parse_jcs
from secfed.errors import LedgerError, RunDirectoryError, SecfedError, StudyError
from secfed.ledger import split_lines, verify_entries
from secfed.runtime.setup import Prepared
from secfed.runtime.signers import open_signers
from secfed.verify import verify_run

_MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so")
_MODULE = next((path for path in _MODULES if Path(path).is_file()), None)
_NO_MODULE = "" if _MODULE else "no SoftHSM here (Debian: softhsm2)"
if not all(map(shutil.which, ("softhsm2-util", "pkcs11-tool"))):
    _NO_MODULE = "no softhsm2-util or pkcs11-tool here (Debian: softhsm2, opensc)"
if importlib.util.find_spec("pkcs11") is None:
    _NO_MODULE = "no python-pkcs11 here (pip install 'secfed[hsm]')"


def write_pem(folder: Path, name: str, made: CryptoSigner) -> str:
    """Both halves of a key, and its entry in the file."""
    folder.mkdir(exist_ok=True)
    private = folder / f"{name}.pem"
    private.write_bytes(made.private_bytes)
    private.chmod(0o600)
    public = load_pem_private_key(made.private_bytes, None).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(pem)
    return f'[[signer]]\nuri = "file2:{name}.pem"\npublic = "{name}.pub"\n'


def write_file(folder: Path, *entries: str) -> Path:
    path = folder / "signers.toml"
    path.write_text("format = 1\n" + "".join(entries), "utf-8")
    return path


@pytest.fixture
def cast(prepared: Prepared, tmp_path: Path) -> Cast:
    study = small_study(rounds=2, seed=41)
    return Cast(planned(prepared, study), study, small_policy(), tmp_path / "sites")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Three schemes in one file."""
    folder = tmp_path / "beside"
    return write_file(
        folder,
        write_pem(folder, "one", CryptoSigner.generate_ed25519()),
        write_pem(folder, "two", CryptoSigner.generate_ecdsa()),
        write_pem(folder, "three", CryptoSigner.generate_mldsa(scheme="ml-dsa-44/1")),
    )


def test_a_run_whose_ledger_three_more_keys_sign(
    cast: Cast, keys: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cast.crash, cast.also = (2, "shares"), open_signers(keys)
    with pytest.raises(LostError):
        cast.serve(run)
    cast.crash, cast.also = None, ()
    with pytest.raises(LedgerError, match="does not name everybody"):
        cast.serve(run)
    cast.also = open_signers(keys)
    cast.serve(run)
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    assert {len(parse_jcs(line)["signatures"]) for line in lines} == {4}
    verify_entries(lines, KEY.public_bytes)
    report = verify_run(run)
    assert report.passed, report.failures()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("", "signer"),
        ('[[signer]]\nuri = "gcpkms:x"\npublic = "one.pub"\n', "starts with one of"),
        ('[[signer]]\nuri = "file2:gone.pem"\npublic = "one.pub"\n', "cannot be open"),
        ('[[signer]]\nuri = "file2:one.pem"\npublic = "gone"\n', "cannot be used"),
        ('[[signer]]\nuri = "file2:one.pem"\npublic = "two.pub"\n', "cannot be used"),
        ('[[signer]]\nuri = "file2:one.pub"\npublic = "one.pub"\n', "open to other"),
        ('[[signer]]\nuri = "file2:no.pem"\npublic = "one.pub"\n', "cannot be used"),
        ('[[signer]]\nuri = "file2:one.pem"\npublic = "no.pem"\n', "cannot be used"),
        ('[[signer]]\nuri = "file2:one.pem"\n', "public"),
    ],
)
def test_a_key_that_cannot_sign_is_named_before_anything_is_written(
    keys: Path, entry: str, words: str
) -> None:
    (keys.parent / "no.pem").write_bytes(b"\xff\x00 no key")
    (keys.parent / "no.pem").chmod(0o600)
    path = write_file(keys.parent, entry)
    with pytest.raises((StudyError, RunDirectoryError)) as caught:
        open_signers(path)
    assert words in str(caught.value)
    assert "PRIVATE KEY" not in str(caught.value)


def test_a_signing_key_that_others_can_read_is_refused(keys: Path) -> None:
    (keys.parent / "one.pem").chmod(0o644)
    with pytest.raises(RunDirectoryError, match="open to other users"):
        open_signers(keys)


def test_a_key_that_is_gone_in_a_run_stops_it_and_loses_nothing(
    cast: Cast, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cast.also = tmp_path / "run", open_signers(keys)
    sign, asked = CryptoSigner.sign, []

    def gone(self: CryptoSigner, payload: bytes) -> Any:
        asked.append(self)
        if len(asked) > 6:  # Study and plan are signed by three keys each.
            raise RuntimeError("no token")
        return sign(self, payload)

    monkeypatch.setattr(CryptoSigner, "sign", gone)
    with pytest.raises(LedgerError, match="RuntimeError: no token"):
        cast.serve(run)
    monkeypatch.undo()
    cast.also = open_signers(keys)
    cast.serve(run)
    assert verify_run(run).passed


@pytest.mark.skipif(bool(_NO_MODULE), reason=_NO_MODULE)
def test_a_key_in_a_hardware_module(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from securesystemslib.signer import HSMSigner  # noqa: PLC0415

    conf, tokens = tmp_path / "softhsm2.conf", tmp_path / "tokens"
    tokens.mkdir()
    conf.write_text(f"directories.tokendir = {tokens}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
    monkeypatch.setenv("PYKCS11LIB", str(_MODULE))
    login = f"pkcs11-tool --module {_MODULE} --token-label secfed --login --pin 1234"
    make = "--keypairgen --key-type EC:prime256v1 --id 02 --label ledger"
    begin = "softhsm2-util --init-token --free --label secfed --pin 1234 --so-pin 5678"
    for command in (begin, f"{login} {make}"):
        subprocess.run(command.split(), check=True, capture_output=True)
    uri, public = HSMSigner.import_(None, "secfed")
    (tmp_path / "hsm.pub").write_text(public.keyval["public"], "ascii")
    (tmp_path / "pin").write_text("1234\n")
    (tmp_path / "pin").chmod(0o600)
    entry = f'[[signer]]\nuri = "{uri}"\npublic = "hsm.pub"\npin = "pin"\n'
    cast.also = open_signers(write_file(tmp_path, entry))
    cast.serve(tmp_path / "run")
    assert verify_run(tmp_path / "run").passed
    (tmp_path / "pin").write_text("9999\n")
    with pytest.raises(SecfedError, match="the key cannot be used") as caught:
        open_signers(tmp_path / "signers.toml")
    assert "9999" not in str(caught.value)
