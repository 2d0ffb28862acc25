"""Keys at rest: what is on the disk, who may read it, and what refuses."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from secfed.cli import app
from secfed.errors import RunDirectoryError
from secfed.private_files import read_private, write_private
from secfed.runtime.key_places import (
    CREDENTIAL,
    CREDENTIALS_FOLDER,
    absolute_place,
    find_protecting_key,
    make_protecting_key,
    read_protecting_key,
)
from secfed.runtime.keys import (
    make_authority,
    make_coordinator_key,
    make_server_certificate,
    make_site_keys,
    protect_keys,
    read_coordinator_key,
    read_server,
    read_site_keys,
)
from secfed.runtime.protection import VARIABLE, ProtectingKey, read_secret

KEY = ProtectingKey(bytes(range(32)))
OTHER = ProtectingKey(bytes(32))


@pytest.fixture(autouse=True)
def nobody_names_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(CREDENTIALS_FOLDER, raising=False)


def written(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


# Files


def test_a_private_file_appears_whole_with_its_owners_access_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys" / "one"
    assert write_private(path, b"first")
    assert not write_private(path, b"second")
    assert read_private(path, "the key") == b"first"
    assert write_private(path, b"third", replace=True)
    assert read_private(path, "the key") == b"third"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "one"
    write_private(path, b"first")

    with pytest.raises((OSError, TypeError)):
        write_private(path, "no bytes", replace=True)  # type: ignore[arg-type]
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "protecting.key", b"00" * 32, mode)
    with pytest.raises(RunDirectoryError, match="open to other users"):
        read_protecting_key(str(path))


def test_links_pipes_and_strangers_files_are_refused(tmp_path: Path) -> None:
    target = written(tmp_path / "target", b"00" * 32)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(RunDirectoryError, match="cannot be opened"):
        read_protecting_key(str(tmp_path / "link"))
    with pytest.raises(RunDirectoryError, match="cannot be opened"):
        make_protecting_key(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "pipe", mode=0o600)
    with pytest.raises(RunDirectoryError, match="not a plain file"):
        read_protecting_key(str(tmp_path / "pipe"))
    if os.geteuid() == 0:
        os.chown(target, 12345, 12345)
        with pytest.raises(RunDirectoryError, match="belongs to someone else"):
            read_protecting_key(str(target))


@pytest.mark.parametrize("text", ["", "correct horse", "00" * 31, "00" * 33, "é"])
def test_a_password_is_no_protecting_key_and_is_not_repeated(
    tmp_path: Path, text: str
) -> None:
    path = written(tmp_path / "protecting.key", text.encode())
    with pytest.raises(RunDirectoryError, match="not a protecting key") as caught:
        read_protecting_key(str(path))
    assert caught.value.__cause__ is None
    assert not text or text not in str(caught.value)


# Encryption


def test_what_is_sealed_opens_under_its_key_and_name_only(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    sealed = KEY.seal("identity.key", b"secret")
    assert sealed != KEY.seal("identity.key", b"secret")
    assert b"secret" not in sealed.removeprefix(b"secfed protected file 1\n")
    assert KEY.open(path, sealed) == b"secret"
    with pytest.raises(RunDirectoryError, match="give the right one"):
        OTHER.open(path, sealed)
    with pytest.raises(RunDirectoryError, match="damaged, or renamed"):
        KEY.open(tmp_path / "node.key", sealed)


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    sealed = KEY.seal(path.name, b"secret")
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        written(path, bytes(changed))
        with pytest.raises(RunDirectoryError):
            read_secret(path, KEY)
    for length in range(len(sealed)):
        written(path, sealed[:length])
        with pytest.raises(RunDirectoryError):
            read_secret(path, KEY)


def test_a_protecting_key_is_never_shown() -> None:
    for text in (repr(KEY), str(KEY)):
        assert bytes(range(32)).hex()[:16] not in text
    with pytest.raises(TypeError, match="not copied"):
        KEY.__reduce__()
    with pytest.raises(ValueError, match="32 bytes"):
        ProtectingKey(b"short")


# Keys folders


def test_a_protected_site_has_no_readable_secret_on_its_disk(tmp_path: Path) -> None:
    made = make_site_keys(tmp_path, KEY)
    again = read_site_keys(tmp_path, KEY)
    assert made.request("north") == again.request("north")
    assert made.node_private == again.node_private
    assert b"OPENSSH PRIVATE KEY" in made.node_private
    secret = made.identity.to_bytes()
    node = made.node_private.splitlines()[2]
    assert {p.name for p in tmp_path.iterdir()} == {"identity.key", "node.key"}
    for path in tmp_path.iterdir():
        held = path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for part in (secret, secret.hex().encode(), node, b"PRIVATE KEY"):
            assert part not in held
    assert repr(made) == "SiteKeys(<private>)"


def test_a_protected_coordinator_has_no_readable_secret_either(tmp_path: Path) -> None:
    make_authority(tmp_path, KEY)
    make_server_certificate(tmp_path, ["127.0.0.1"], KEY)
    key = make_coordinator_key(tmp_path, KEY)
    assert read_coordinator_key(tmp_path, KEY).public_bytes == key.public_bytes
    certificate, private = read_server(tmp_path, KEY)
    assert b"BEGIN CERTIFICATE" in certificate.read_bytes()
    assert private.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert make_authority(tmp_path, KEY).is_file()
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert files.keys() == {
        *("authority.key", "authority.pem", "coordinator.key"),
        *("server.key", "server.pem"),
    }
    assert all(b"PRIVATE KEY" not in data for data in files.values())
    for name in ("authority.key", "coordinator.key", "server.key"):
        assert files[name].startswith(b"secfed protected file 1\n")


def test_no_coordinators_key_is_made_where_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be opened"):
        read_coordinator_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_a_wrong_and_a_needless_key_say_what_to_do(tmp_path: Path) -> None:
    make_site_keys(tmp_path / "locked", KEY)
    make_site_keys(tmp_path / "open")
    with pytest.raises(RunDirectoryError, match="Say where the protecting key is"):
        read_site_keys(tmp_path / "locked")
    with pytest.raises(RunDirectoryError, match="give the right one"):
        read_site_keys(tmp_path / "locked", OTHER)
    with pytest.raises(RunDirectoryError, match="secfed keys protect"):
        read_site_keys(tmp_path / "open", KEY)


def test_an_older_folder_is_encrypted_once_and_its_key_can_change(
    tmp_path: Path,
) -> None:
    before = make_site_keys(tmp_path).request("north")
    assert protect_keys(tmp_path, KEY) == ("identity.key", "node.key")
    assert protect_keys(tmp_path, KEY) == ()
    assert read_site_keys(tmp_path, KEY).request("north") == before
    with pytest.raises(RunDirectoryError, match="give the right one"):
        protect_keys(tmp_path, OTHER)
    assert protect_keys(tmp_path, OTHER, KEY) == ("identity.key", "node.key")
    assert read_site_keys(tmp_path, OTHER).request("north") == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirectoryError, match="no keys here"):
        protect_keys(tmp_path / "empty", KEY)


def test_a_migration_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    before = make_site_keys(tmp_path).request("north")
    path = tmp_path / "identity.key"
    write_private(path, KEY.seal(path.name, path.read_bytes()), replace=True)
    assert protect_keys(tmp_path, KEY) == ("node.key",)
    assert read_site_keys(tmp_path, KEY).request("north") == before


# Where the key is


def test_the_first_place_that_is_named_counts(tmp_path: Path) -> None:
    places = {}
    for number, name in enumerate(("option", "variable", CREDENTIAL)):
        text = bytes([number] * 32).hex().encode()
        places[name] = str(written(tmp_path / name, text))
    environment = {VARIABLE: places["variable"], CREDENTIALS_FOLDER: str(tmp_path)}

    def found(named: str | None, **given: str) -> bytes | None:
        key = find_protecting_key(named, tmp_path, given)
        return None if key is None else key.identifier

    first, second, third = (ProtectingKey(bytes([n] * 32)).identifier for n in range(3))
    assert found("option", **environment) == first
    assert found(None, **environment) == second
    del environment[VARIABLE]
    assert found(None, **environment) == third
    assert found(None) is None
    assert found(None, **{CREDENTIALS_FOLDER: str(tmp_path / "other")}) is None
    # What is named and cannot be used is not passed over.
    with pytest.raises(RunDirectoryError, match="cannot be opened"):
        found("nothing", **environment)


def test_a_credential_may_show_the_bits_of_its_access_list(tmp_path: Path) -> None:
    path = written(tmp_path / CREDENTIAL, b"00" * 32, 0o440)
    given = {CREDENTIALS_FOLDER: str(tmp_path)}
    found = find_protecting_key(None, None, given)
    assert found is not None
    assert found.identifier == OTHER.identifier
    for mode in (0o444, 0o460, 0o450):
        path.chmod(mode)
        with pytest.raises(RunDirectoryError, match="not a credential"):
            find_protecting_key(None, None, given)
    path.rename(tmp_path / "target")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(RunDirectoryError, match="not a credential"):
        find_protecting_key(None, None, given)


class LockedError(Exception):
    """As the errors of the package `keyring`."""


class Keyring:
    priority = 5.0

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, name: str) -> str | None:
        if self.locked:
            raise LockedError("the secret is hunter2")
        return self.held.get((service, name))

    def set_password(self, service: str, name: str, text: str) -> None:
        self.held[service, name] = text


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> Keyring:
    """The package's two names that are used, over a keyring in memory."""
    held = Keyring()
    package, errors = ModuleType("keyring"), SimpleNamespace(KeyringError=LockedError)
    package.get_keyring = lambda: held  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", package)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)  # type: ignore[arg-type]
    return held


def test_a_key_in_the_keyring_is_made_once(keyring: Keyring) -> None:
    with pytest.raises(RunDirectoryError, match="no protecting key 'north'"):
        read_protecting_key("keyring:north")
    made = make_protecting_key("keyring:north")
    assert make_protecting_key("keyring:north").identifier == made.identifier
    assert make_protecting_key("keyring").identifier != made.identifier
    assert keyring.held.keys() == {
        ("secfed", "north"),
        ("secfed", "protecting-key"),
    }
    assert absolute_place("keyring:north") == "keyring:north"
    assert absolute_place("there") == str(Path("there").resolve())


def test_a_keyring_that_is_locked_or_keeps_no_secret_is_refused(
    keyring: Keyring,
) -> None:
    keyring.locked = True
    with pytest.raises(RunDirectoryError, match="LockedError; unlock it") as caught:
        read_protecting_key("keyring")
    assert "hunter2" not in str(caught.value)
    keyring.priority = 0.5
    with pytest.raises(RunDirectoryError, match="none that keeps a secret"):
        make_protecting_key("keyring")


def test_without_the_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(RunDirectoryError, match=r"secfed\[keyring\]"):
        read_protecting_key("keyring")


# The commands


def secfed(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["keys", *(str(part) for part in arguments)])
    return done.exit_code, done.output


def test_new_keys_are_encrypted_or_it_is_said_that_they_are_not(
    tmp_path: Path,
) -> None:
    keys, key = tmp_path / "keys", tmp_path / "protecting.key"
    code, said = secfed("new", keys)
    assert (code, keys.exists()) == (2, False)
    assert "--protecting-key" in said
    assert secfed("new", keys, "--protecting-key", keys / "protecting.key")[0] == 2
    assert secfed("new", keys, "--protecting-key", key)[0] == 0
    held = read_protecting_key(str(key))
    assert key.read_bytes().strip() not in said.encode()
    read_site_keys(keys, held)
    # A wrong path makes no second key for a folder that has one.
    code, said = secfed("new", keys, "--protecting-key", tmp_path / "typo")
    assert (code, (tmp_path / "typo").exists()) == (2, False)
    assert secfed("new", tmp_path / "open", "--unprotected")[0] == 0
    read_site_keys(tmp_path / "open")


def test_a_folder_is_protected_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_site_keys(tmp_path / "keys").request("north")
    assert secfed("protect", tmp_path / "keys")[0] == 2
    first, second = tmp_path / "first", tmp_path / "second"
    code, said = secfed("protect", tmp_path / "keys", "--protecting-key", first)
    assert (code, said) == (0, "encrypted now: identity.key, node.key\n")
    monkeypatch.setenv(VARIABLE, str(first))
    assert "all were before" in secfed("protect", tmp_path / "keys")[1]
    options = ("--protecting-key", second, "--was", first)
    assert secfed("protect", tmp_path / "keys", *options)[0] == 0
    held = read_site_keys(tmp_path / "keys", read_protecting_key(str(second)))
    assert held.request("north") == before
