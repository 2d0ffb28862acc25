"""The units and the containers of `examples/deployment/` name what exists.

No service manager and no container engine runs here: what is shown is that the files
are well-formed, that every command, option, credential and variable in them is one of
secfed's, and that nothing of the hardening is missing.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml

from secfed.cli import app
from secfed.cli.output import INTERRUPTED
from secfed.runtime.key_places import CREDENTIAL
from secfed.runtime.metrics_server import loopback
from secfed.runtime.protection import VARIABLE

FOLDER = Path(__file__).parents[1] / "examples" / "deployment"
UNITS = sorted((FOLDER / "systemd").glob("*.service"))
DOCKERFILE = (FOLDER / "container" / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(
    (FOLDER / "container" / "compose.yaml").read_text("utf-8")
)


def unit(path: Path) -> dict[str, str]:
    """The settings of [Service] and [Unit]; a unit here names each once."""
    text = re.sub(r"\\\n\s*", " ", path.read_text("utf-8"))
    parser = ConfigParser(interpolation=None, delimiters=("=",), strict=True)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(text)
    return {**parser["Unit"], **parser["Service"]}


def assert_command(words: list[str]) -> None:
    """The words are a command of secfed with options that it has."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= known, used - known


def test_there_is_a_unit_of_each_party() -> None:
    assert [path.name for path in UNITS] == [
        "secfed-coordinator.service",
        "secfed-site@.service",
    ]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_runs_a_command_that_exists(path: Path) -> None:
    program, *words = shlex.split(unit(path)["ExecStart"])
    assert program == "/opt/secfed/bin/secfed"
    assert_command(words)
    assert unit(path)["LoadCredential"].split(":")[0] == CREDENTIAL


def test_only_a_crash_is_tried_again() -> None:
    coordinator, site = (unit(path) for path in UNITS)
    for held in (coordinator, site):
        assert held["Restart"] == "on-failure"
        assert held["SuccessExitStatus"] == str(INTERRUPTED)
        assert int(held["StartLimitBurst"]) <= 5
    # An aborted round has spent budget: whether the next is tried, a person says.
    assert coordinator["RestartPreventExitStatus"].split() == ["2", "3", "4", "5"]
    assert site["RestartPreventExitStatus"].split() == ["2", "3", "4"]
    assert "--or-resume" in coordinator["ExecStart"].split()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_hardened(path: Path) -> None:
    held = unit(path)
    for name in (
        *("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome"),
        *("ProtectKernelTunables", "ProtectControlGroups", "RestrictNamespaces"),
        *("LockPersonality", "RestrictSUIDSGID"),
    ):
        assert held[name] == "yes", name
    assert held["ProtectSystem"] == "strict"
    assert held["ReadWritePaths"].startswith("/var/lib/secfed/")
    assert held["User"] == "secfed"
    assert held["CapabilityBoundingSet"] == ""
    assert set(held["RestrictAddressFamilies"].split()) == {
        *("AF_UNIX", "AF_INET", "AF_INET6")
    }
    # The protecting key is not in the folder that the service writes and backs up.
    key = held["LoadCredential"].split(":")[1]
    assert not key.startswith(held["ReadWritePaths"])
    assert held["LimitCORE"] == "0"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd on this machine"
)
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    names = []
    for path in UNITS:
        text = path.read_text("utf-8").replace("/opt/secfed/bin/secfed", "/bin/true")
        name = path.name.replace("@.", "@north.")
        (tmp_path / name).write_text(text, "utf-8")
        names.append(str(tmp_path / name))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "secfed" in line]
    assert (done.returncode, said) == (0, []), done.stderr


# Containers


def test_services_run_commands_that_exist() -> None:
    assert COMPOSE["services"].keys() == {"coordinator", "site"}
    for service in COMPOSE["services"].values():
        assert_command(service["command"])
    for name, count in {"coordinator": "1", "site": "5"}.items():
        assert COMPOSE["services"][name]["restart"] == f"on-failure:{count}"


def test_services_are_hardened_and_take_no_image_from_elsewhere() -> None:
    for service in COMPOSE["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"
        assert service["pull_policy"] == "never"
        assert "privileged" not in service


def test_the_health_check_asks_the_port_that_is_served_and_publishes_none() -> None:
    asked = {
        name: re.findall(
            r"http://([\d.]+:\d+)/healthz", service["healthcheck"]["test"][-1]
        )
        for name, service in COMPOSE["services"].items()
    }
    assert asked == {"coordinator": ["127.0.0.1:9464"], "site": ["127.0.0.1:9465"]}
    for (where,) in asked.values():
        loopback(where)
    assert "--metrics=9464" in COMPOSE["services"]["coordinator"]["command"]
    text = (FOLDER / "container" / "compose.yaml").read_text("utf-8")
    assert "node.toml with `metrics = 9465`" in text
    assert COMPOSE["services"]["coordinator"]["ports"] == ["8443:8443"]
    assert "ports" not in COMPOSE["services"]["site"]


def test_the_health_check_is_a_program_that_compiles() -> None:
    for service in COMPOSE["services"].values():
        compile(service["healthcheck"]["test"][-1], "health", "exec")


def test_secrets_lie_where_the_image_says() -> None:
    found = re.search(rf"{VARIABLE}=(\S+)", DOCKERFILE)
    assert found is not None
    for service in COMPOSE["services"].values():
        (secret,) = service["secrets"]
        assert found[1] == f"/run/secrets/{secret['target']}"
        assert secret["source"] in COMPOSE["secrets"]


def test_variables_of_the_image_are_read_by_somebody() -> None:
    names = set(re.findall(r"\b([A-Z][A-Z_]+)=", DOCKERFILE.split("ENV ")[1]))
    ours = {name for name in names if name.startswith("SECFED_")}
    assert ours == {VARIABLE}
    systems = {"PATH", "HOME", "PYTHONDONTWRITEBYTECODE", "HF_HUB_OFFLINE"}
    assert names - ours == systems


def test_the_image_runs_as_nobody_and_is_built_without_a_network() -> None:
    steps = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    lines = [line for line in steps.splitlines() if line and line[0] != "#"]
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    runs = " ".join(line for line in lines if line.startswith("RUN "))
    assert "--no-index" in runs
    for word in ("apt", "curl", "wget", "http", "git "):
        assert word not in runs
    assert 'ENTRYPOINT ["secfed"]' in lines
