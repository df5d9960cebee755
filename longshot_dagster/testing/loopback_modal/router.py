"""The task command router of the loopback server: commands, files and snapshots of living sandboxes."""

from collections.abc import AsyncIterator
from typing import TypeVar

from grpclib import GRPCError, Status
from modal_proto import task_command_router_pb2 as tcr

from longshot_dagster.testing.loopback_modal.calls import Nothing
from longshot_dagster.testing.loopback_modal.container import Command
from longshot_dagster.testing.loopback_modal.control import Control
from longshot_dagster.testing.loopback_modal.images import Images
from longshot_dagster.testing.loopback_modal.sandboxes import Sandbox, Sandboxes, entrypoint
from longshot_dagster.testing.loopback_modal.spoken import Spoken

_FILES_TOOL = "/__modal/.bin/modal-sandbox-fs-tools"
_STDERR = tcr.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
_NOWHERE = (
    tcr.TASK_EXEC_STDOUT_CONFIG_DEVNULL,
    tcr.TASK_EXEC_STDERR_CONFIG_DEVNULL,
)
_R = TypeVar("_R", tcr.TaskExecPollResponse, tcr.TaskExecWaitResponse)


class Router:
    """Answers by the names of Modal's calls."""

    def __init__(self, control: Control, sandboxes: Sandboxes, images: Images) -> None:
        self._control = control
        self._sandboxes = sandboxes
        self._images = images

    async def task_exec_start(self, request: tcr.TaskExecStartRequest) -> tcr.TaskExecStartResponse:
        sandbox = self._living(request.task_id)
        if request.container_id or request.HasField("pty_info"):
            raise GRPCError(Status.INVALID_ARGUMENT, "the loopback server has no sidecars and no terminals")
        if request.exec_id in sandbox.container.commands:  # asked again, because the answer was lost
            return tcr.TaskExecStartResponse()
        argv = list(request.command_args)
        if argv[0] == _FILES_TOOL:
            sandbox.container.start_files(request.exec_id, argv[1], request.timeout_secs)
            return tcr.TaskExecStartResponse()
        sandbox.container.start(
            request.exec_id,
            argv,
            cwd=request.workdir or sandbox.workdir,
            env=self._control.environment(request.secret_sources),
            timeout_s=request.timeout_secs,
            kept=(request.stdout_config != _NOWHERE[0], request.stderr_config != _NOWHERE[1]),
        )
        return tcr.TaskExecStartResponse()

    async def task_exec_poll(self, request: tcr.TaskExecPollRequest) -> tcr.TaskExecPollResponse:
        command = self._command(request.task_id, request.exec_id)
        return _status(tcr.TaskExecPollResponse(), command.code)

    async def task_exec_wait(self, request: tcr.TaskExecWaitRequest) -> tcr.TaskExecWaitResponse:
        command = self._command(request.task_id, request.exec_id)
        return _status(tcr.TaskExecWaitResponse(), await command.ended())

    async def task_exec_stdio_read(
        self, request: tcr.TaskExecStdioReadRequest
    ) -> AsyncIterator[tcr.TaskExecStdioReadResponse]:
        command = self._command(request.task_id, request.exec_id)
        stream = command.stderr if request.file_descriptor == _STDERR else command.stdout
        async for data in _said(stream, request.offset):
            yield tcr.TaskExecStdioReadResponse(data=data)

    async def task_exec_stdin_write(self, request: tcr.TaskExecStdinWriteRequest) -> tcr.TaskExecStdinWriteResponse:
        await _feed(self._command(request.task_id, request.exec_id), request.data, request.offset, request.eof)
        return tcr.TaskExecStdinWriteResponse()

    async def task_exec_stdin_status(self, request: tcr.TaskExecStdinStatusRequest) -> tcr.TaskExecStdinStatusResponse:
        command = self._command(request.task_id, request.exec_id)
        return tcr.TaskExecStdinStatusResponse(num_bytes_written=command.given, closed=command.finished)

    async def task_exec_stdin_write_stream(
        self, requests: AsyncIterator[tcr.TaskExecStdinWriteStreamRequest]
    ) -> tcr.TaskExecStdinWriteStreamResponse:
        command, offset = None, 0
        async for request in requests:
            kind = request.WhichOneof("payload")
            if kind == "start":
                command = self._command(request.start.task_id, request.start.exec_id)
                offset = request.start.offset
            elif command is None:
                raise GRPCError(Status.INVALID_ARGUMENT, "input begins with its start")
            elif kind == "data":
                await _feed(command, request.data, offset, False)
                offset += len(request.data)
            else:
                await _feed(command, b"", offset, True)
                break
        return tcr.TaskExecStdinWriteStreamResponse()

    async def sandbox_stdio_read_v2(
        self, request: tcr.SandboxStdioReadV2Request
    ) -> AsyncIterator[tcr.SandboxStdioReadV2Response]:
        command = entrypoint(self._any(request.task_id))
        if command is None:
            return
        stderr = request.file_descriptor == tcr.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        async for data in _said(command.stderr if stderr else command.stdout, request.offset):
            yield tcr.SandboxStdioReadV2Response(data=data)

    async def task_snapshot_filesystem(
        self, request: tcr.TaskSnapshotFilesystemRequest
    ) -> tcr.TaskSnapshotFilesystemResponse:
        image = await self._images.snapshot(self._living(request.task_id).container)
        return tcr.TaskSnapshotFilesystemResponse(image_id=image.id)

    async def task_snapshot_directory(
        self, request: tcr.TaskSnapshotDirectoryRequest
    ) -> tcr.TaskSnapshotDirectoryResponse:
        folder = request.path.decode()
        image = await self._images.snapshot(self._living(request.task_id).container, folder)
        return tcr.TaskSnapshotDirectoryResponse(image_id=image.id)

    async def task_mount_directory(self, request: tcr.TaskMountDirectoryRequest) -> Nothing:
        try:
            image = self._images.get(request.image_id)
        except KeyError as e:
            raise GRPCError(Status.NOT_FOUND, f"no image {request.image_id}") from e
        container = self._living(request.task_id).container
        await self._images.unpack(image, container, request.path.decode(), over=False)
        return Nothing()

    async def sandbox_wait_until_ready(
        self, request: tcr.SandboxWaitUntilReadyTcrRequest
    ) -> tcr.SandboxWaitUntilReadyTcrResponse:
        return tcr.SandboxWaitUntilReadyTcrResponse(ready_at=self._living(request.task_id).created_at)

    def _any(self, task_id: str) -> Sandbox:
        found = self._sandboxes.by_task(task_id)
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"no task {task_id}")
        return found

    def _living(self, task_id: str) -> Sandbox:
        found = self._any(task_id)
        if found.result is not None:
            raise GRPCError(Status.NOT_FOUND, f"task {task_id} has ended")
        return found

    def _command(self, task_id: str, exec_id: str) -> Command:
        """Also of a sandbox that has ended: how its commands ended can still be asked."""
        found = self._any(task_id).container.commands.get(exec_id)
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"no command {exec_id} in task {task_id}")
        return found


async def _said(stream: Spoken, offset: int) -> AsyncIterator[bytes]:
    try:
        while data := await stream.after(offset):
            yield data
            offset += len(data)
    except LookupError as e:
        raise GRPCError(Status.DATA_LOSS, str(e)) from e


async def _feed(command: Command, data: bytes, offset: int, last: bool) -> None:
    try:
        await command.feed(data, offset, last)
    except BrokenPipeError as e:
        raise GRPCError(Status.FAILED_PRECONDITION, str(e)) from e
    except ValueError as e:
        raise GRPCError(Status.OUT_OF_RANGE, str(e)) from e


def _status(answer: _R, code: int | None) -> _R:
    if code is not None and code >= 0:
        answer.code = code
    elif code is not None:
        answer.signal = -code
    return answer
