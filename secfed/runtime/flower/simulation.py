"""Flower's simulation engine as the carrier: virtual nodes, and processes of Ray.

Every site is a node of Flower's. Its messages take Flower's way: grid, link state,
queue, worker, a Ray actor that calls the ClientApp, and back. Two things are ours.

*Which actor.* Flower hands any node to any idle actor. A session's secrets are in the
memory of one process and never leave it, so a site stays with one actor from the first
order to the last; node i belongs to actor i modulo their number.

*Whose turn.* Flower's link state looks through all messages for every node, over and
over: a quarter of a million lookups for 500 sites, before anything is done. Here a
node's messages are found by the node.

Ray is asked for when a simulation starts and imported nowhere else.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import psutil
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import (
    _register_node_info_stores,
    _register_nodes,
    run_api,
)
from flwr.server.superlink.linkstate import (
    InMemoryLinkState,
    LinkState,
    LinkStateFactory,
)
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from secfed.errors import RunDirectoryError, SecfedError
from secfed.runtime.envelope import Post
from secfed.runtime.flower.client_app import Answering, client_app
from secfed.runtime.flower.server_app import FlowerPost, Node

__all__ = ["Opening", "require_ray", "simulate"]

Opening = Callable[[tuple[str, ...]], Answering]
"""Opens these sites in a process of Ray's; what it returns answers for all of them."""

_RUN_ID: Final = 1
_TASK_ID: Final = 1
_STORE_BYTES: Final = 256 * 1024**2
_END_SECONDS: Final = 10.0


def require_ray() -> None:
    """Refuse to begin where Ray is not installed.

    Raises:
        SecfedError: It is not; the text says what to install.
    """
    if importlib.util.find_spec("ray") is None:
        raise SecfedError(
            "--engine simulation needs Ray, which is not installed: "
            "pip install 'secfed[simulation]' (with -c constraints.txt for the "
            "versions that were tested), or leave --engine out"
        )


def simulate(
    sites: Sequence[str],
    processes: int,
    opening: Opening,
    run: Callable[[Post], None],
) -> None:
    """Play these sites in processes of Ray, and run a coordinator's loop over them.

    Args:
        sites: Their names.
        processes: How many processes share them.
        opening: Called once in every process, with the sites that it plays.
        run: The loop; in this thread, so that Ctrl-C ends it.

    Raises:
        RunDirectoryError: Ray does not start.
        SecfedError: A site cannot be opened, or as ``run``.
    """
    require_ray()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    processes = min(processes, len(sites))
    with (
        _ray(processes) as ray,
        _engine(sites, _Actors(ray, sites, processes, opening)) as (grid, nodes),
    ):
        run(_VirtualPost(grid, nodes))


# Ray


@contextmanager
def _ray(processes: int) -> Iterator[Any]:
    """Ray, closed to whoever has not its token, with a folder that goes when it ends.

    Ray listens on every address of the machine, and an open one runs what it is told.
    It reads how it is to be asked when it is imported.
    """
    folder = tempfile.mkdtemp(prefix="secfed-ray-")
    path = os.pathsep.join(str(Path(p).resolve()) for p in sys.path)
    with _environment(
        PYTHONPATH=path,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=_ray_token(),
        # Ray's next default, which warns until it is chosen.
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    ):
        # Not installed with secfed; ``require_ray`` has looked.
        import ray  # noqa: PLC0415

        try:
            _start(ray, processes, folder)
            yield ray
        finally:
            ray.shutdown()
            _end_left(folder)
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _ray_token() -> str:
    """Drawn once in a process: Ray reads it once."""
    return secrets.token_hex(32)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """These variables for Ray and its processes, and what was there before again."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_left(folder: str) -> None:
    """End what Ray left: after a start that failed its daemons go on (seen in 2.55)."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(folder in word for word in child.cmdline()):
                child.kill()


def _start(ray: Any, processes: int, folder: str) -> None:
    try:
        ray.init(
            num_cpus=processes,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
    except Exception as error:
        raise RunDirectoryError(
            f"Ray does not start: {error} It waits 30 seconds for its own processes; "
            "on a machine that is busy that is not enough. Try again with "
            "`secfed resume`"
        ) from error


class _Host:
    """What runs in an actor: the ClientApp of the sites that belong to it."""

    def __init__(self, opening: Opening, sites: tuple[str, ...]) -> None:
        self._opening = opening
        self._sites = sites
        self._app = ClientApp()  # It has no handlers yet, and refuses everything.

    def open(self) -> tuple[int, str]:
        """Open the sites: an exit code and the reason where that fails, else 0."""
        try:
            self._app = client_app(self._opening(self._sites))
        except SecfedError as error:  # Not every error survives being pickled.
            return error.exit_code, str(error)
        return 0, ""

    def answer(self, message: Message, context: Context) -> Message:
        """As the resident runner of a deployed site: the reason stays here."""
        try:
            return self._app(message, context)
        except Exception:  # noqa: BLE001 - nothing of it may reach the other end
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, "refused"), reply_to=message)


class _Actors(Backend):
    """Flower's backend with a fixed actor for every node.

    Raises:
        SecfedError: Some site cannot be opened.
    """

    def __init__(
        self, ray: Any, sites: Sequence[str], processes: int, opening: Opening
    ) -> None:
        super().__init__({})
        self._ray = ray
        kind = ray.remote(_Host)
        self._hosts = [
            kind.options(num_cpus=1).remote(opening, tuple(sites[start::processes]))
            for start in range(processes)
        ]
        for code, reason in ray.get([host.open.remote() for host in self._hosts]):
            if code:
                failed = SecfedError(reason)
                failed.exit_code = code
                raise failed

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Every actor has its ClientApp already; none is sent."""

    @property
    def num_workers(self) -> int:
        """Messages under way: two for each actor, so that none waits for the next."""
        return 2 * len(self._hosts)

    def is_worker_idle(self) -> bool:
        """A message waits at its actor."""
        return True

    def process_message(
        self, message: Message, context: Context
    ) -> tuple[Message, Context]:
        """Hand a node's message to the node's actor; Flower's state stays empty."""
        place = cast("int", context.node_config[PARTITION_ID_KEY])
        host = self._hosts[place % len(self._hosts)]
        return self._ray.get(host.answer.remote(message, context)), context

    def terminate(self) -> None:
        """Ray is shut down by the thread that started it."""


# Flower


class _ByNode(InMemoryLinkState):
    """Flower's state in memory, which finds a node's messages by the node.

    It also answers without looking at every message that is still under way; the
    coordinator has deadlines of its own.
    """

    def __init__(self) -> None:
        super().__init__(NoOpFederationManager(), ObjectStoreFactory().store())
        self._waiting: defaultdict[int, deque[str]] = defaultdict(deque)

    def store_message_ins(self, message: Message) -> str | None:
        """As Flower's."""
        with self.lock:
            kept = super().store_message_ins(message)
            if kept is not None:
                self._waiting[message.metadata.dst_node_id].append(kept)
            return kept

    def get_message_ins(
        self, node_id: int, limit: int | None, *, run_id: int | None = None
    ) -> list[Message]:
        """As Flower's, of the one run that there is."""
        del run_id
        found: list[Message] = []
        with self.lock:
            waiting = self._waiting.get(node_id)
            while waiting and (limit is None or len(found) < limit):
                message = self.message_ins_store.get(waiting.popleft())
                if message is not None:
                    message.metadata.delivered_at = now().isoformat()
                    found.append(message)
        return found

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """As Flower's, of the messages that were answered."""
        with self.lock:
            answered = message_ids & self.message_ins_id_to_message_res_id.keys()
            return super().get_message_res(answered, run_id) if answered else []


class _Factory(LinkStateFactory):
    def __init__(self, state: LinkState) -> None:
        super().__init__(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        self.state_instance = state


@contextmanager
def _engine(
    sites: Sequence[str], backend: Backend
) -> Iterator[tuple[InMemoryGrid, dict[str, int]]]:
    """Flower's simulation runtime in threads; yields its grid, and each site's node."""
    state = _ByNode()
    run = _registered_run(state)
    factory = _Factory(state)
    grid = InMemoryGrid(factory)
    grid.set_run(run)
    places = _register_nodes(len(sites), factory)
    ended = threading.Event()
    stores = _register_node_info_stores(places, run)
    thread = threading.Thread(
        target=run_api,
        args=(_no_app, lambda: backend, places, factory, stores, ended, VceMetrics()),
        name="simulation",
        daemon=True,
    )
    thread.start()
    try:
        yield grid, {sites[place]: node for node, place in places.items()}
    finally:
        ended.set()
        thread.join(_END_SECONDS)


def _registered_run(state: InMemoryLinkState) -> Run:
    """A run as ``flwr.simulation`` registers it."""
    run = Run.create_empty(run_id=_RUN_ID)
    run.primary_task_id = _TASK_ID
    run.federation_id = NOOP_FEDERATION_ID
    TaskIdentity.task_id, TaskIdentity.run_id = _TASK_ID, _RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    state.run_ids[_RUN_ID] = RunRecord(run=run)
    state.task_store[_TASK_ID] = Task(task_id=_TASK_ID, run_id=_RUN_ID)
    return run


def _no_app() -> ClientApp:
    raise RunDirectoryError("an actor opens its sites itself")


class _VirtualPost(FlowerPost):
    """The deployment's post over virtual nodes, which are always there."""

    def __init__(self, grid: InMemoryGrid, nodes: Mapping[str, int]) -> None:
        super().__init__(grid, {})
        self._here = {site: Node(node, "") for site, node in nodes.items()}

    def _online(self) -> dict[str, Node]:
        return self._here
