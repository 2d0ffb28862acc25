"""The resident process of a site: takes Flower's tasks and runs the installed secfed.

Flower would start a process for each message and execute the code that came with the
run. This one stays, so that a session's secrets are in its memory only, compares the
bundle's bytes with its own, and calls the ClientApp that it was given. Whatever goes
wrong, the coordinator is told that an error occurred, and never which.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from secfed.runtime.flower.bundle import app_digest
from secfed.runtime.flower.pauses import Pauses
from secfed.runtime.flower.supernode import FIRST_BACKOFF_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ACQUIRE", "Runner", "alive", "runtime_client"]

ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"
_LOOK_SECONDS: Final = (0.1, 0.5)  # Between two questions to the SuperNode.
_HEARTBEAT_SECONDS: Final = 15.0
_MESSAGE_SECONDS: Final = 60.0


def runtime_client(address: str, *interceptors: Any) -> RuntimeHttpClient:
    """A client of a runtime API on the loopback interface."""
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor("flwr-clientapp"), *interceptors],
    )


class Runner:
    """Executes a ClientApp for the tasks of one SuperNode.

    Args:
        address: Of the SuperNode's runtime API, on loopback.
        secret: Shared with the SuperNode; others cannot take its tasks.
        app: The installed ClientApp.
        say: Told in one line what happens.
    """

    def __init__(
        self,
        address: str,
        secret: bytes,
        app: ClientApp,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._address = address
        self._app = app
        self._say = say
        self._tasks = runtime_client(
            address,
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=[ACQUIRE]
            ),
        )

    def run(self, until: Callable[[], bool]) -> None:
        """Take tasks, one at a time, until ``until`` says so."""
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        looks = Pauses(*_LOOK_SECONDS)
        while not until():
            try:
                taken = self._tasks.AcquireTask(request)
            except httpx.HTTPError:
                time.sleep(1.0)  # The SuperNode starts, or starts anew.
                continue
            if taken.HasField("task") and taken.token:
                self._task(taken.token)
                looks.came()
            else:
                looks.wait()

    def _task(self, token: str) -> None:
        client = runtime_client(self._address, RuntimeTokenHttpInterceptor(token))
        try:
            with alive(client):
                self._answer(client)
        except (httpx.HTTPError, TimeoutError) as error:
            self._say(f"a task was lost: {type(error).__name__}")
        finally:
            client.close()

    def _answer(self, client: RuntimeHttpClient) -> None:
        """Pull one message, execute, push the answer."""
        given = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        context = context_from_proto(given.context)
        message = _pull_message(client, context.node_id, context.run_id)
        if hashlib.sha256(given.fab.content).hexdigest() == app_digest():
            reply = self._execute(message, context)
        else:
            self._say("refused: the coordinator sent another app bundle")
            reply = Message(Error(ErrorCode.INVALID_FAB, "refused"), reply_to=message)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.COMPLETED, "")

    def _execute(self, message: Message, context: Any) -> Message:
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - nothing of it may reach the other end
            self._say(f"refused {message.metadata.message_type}: {error}")
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, "refused"), reply_to=message)


@contextmanager
def alive(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the SuperNode, while a task takes long, that it is being worked on."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_HEARTBEAT_SECONDS):
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError:
                continue

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _pull_message(client: RuntimeHttpClient, node_id: int, run_id: int) -> Message:
    """The task's message; it is stored a moment after the task is.

    Raises:
        TimeoutError: It never came.
    """
    end = time.monotonic() + _MESSAGE_SECONDS
    while time.monotonic() < end:
        found = client.PullMessages(PullAppMessagesRequest())
        if found.messages_list:
            break
        time.sleep(FIRST_BACKOFF_SECONDS)
    else:
        raise TimeoutError("a task without a message")
    node, tree = Node(node_id=node_id), found.message_object_trees[0]
    contents = pull_objects(
        [part.object_id for part in iterate_object_tree(tree)],
        make_pull_object_fn_protobuf(client.PullObject, node, run_id),
        initial_backoff=FIRST_BACKOFF_SECONDS,
    )
    make_confirm_message_received_fn_protobuf(
        client.ConfirmMessageReceived, node, run_id
    )(tree.object_id)
    message = inflate_object_from_contents(tree.object_id, contents)
    if not isinstance(message, Message):
        raise TimeoutError("a task without a message")
    # An object does not contain its own identifier; answers name it.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message
