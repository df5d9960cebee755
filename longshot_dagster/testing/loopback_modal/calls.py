"""How the loopback server answers calls: a plain method for each one it knows; any other is refused and remembered."""

import asyncio
import collections
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]  # its stubs are a package of their own
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import StreamTerminatedError
from modal_proto import api_pb2

from longshot_dagster.core.errors import SandboxError, SandboxGone, SandboxRefused, WrongUse

_log = logging.getLogger(__name__)
_REMEMBERED = 4096  # replies to calls that a client may repeat
_ONCE = ("SandboxCreateV2",)  # repeated under the same key, it must not happen twice

Nothing = Empty
_Stream = Any  # of grpclib, whose messages differ by call


@dataclass
class Fault:
    """Something that goes wrong `times` times.

    With `after_bytes`, a stream of answers breaks after so many; without, the call is refused before anything is done;
    `retry_after_s` is what a throttling server tells its clients.
    """

    status: Status
    times: int = 1
    retry_after_s: float | None = None
    after_bytes: int | None = None
    after_work: bool = False  # the work is done and its answer lost

    def error(self) -> GRPCError:
        details = None
        if self.retry_after_s is not None:
            details = [api_pb2.RPCRetryPolicy(retry_after_secs=self.retry_after_s)]
        return GRPCError(self.status, "a fault that was asked for", details)


class Record:
    """What was called, what nobody here knows, what broke, and what shall still go wrong."""

    def __init__(self) -> None:
        self.called: collections.Counter[str] = collections.Counter()
        self.missing: list[str] = []
        self.broken: list[str] = []
        self._faults: dict[str, list[Fault]] = collections.defaultdict(list)

    def check(self) -> None:
        """Raises WrongUse when somebody asked for what this server does not know, or it broke: the rehearsal was none."""
        if self.missing or self.broken:
            found = ", ".join(sorted({*self.missing, *self.broken}))
            raise WrongUse(f"the loopback Modal server lacks {found}")

    def plan(self, call: str, fault: Fault) -> None:
        """`fault` happens at the next calls of `call`, after those that are planned already."""
        self._faults[call].append(fault)

    def due(self, call: str) -> Fault | None:
        planned = self._faults[call]
        if not planned:
            return None
        planned[0].times -= 1
        return planned.pop(0) if planned[0].times <= 0 else planned[0]


def servable(base: type, answers: object, record: Record, admits: Callable[[Mapping[str, Any]], bool]) -> "Servable":
    """`answers` behind the generated service `base`: its method `sandbox_create_v2` answers SandboxCreateV2.

    One request gives one reply, an asynchronous iterator of replies, or takes an iterator of requests, as the service says.
    """
    names = getattr(base, "__abstractmethods__", ())
    listed = type(base.__name__, (base,), dict.fromkeys(names))()
    mapping = {}
    for path, handler in listed.__mapping__().items():
        name = path.rpartition("/")[2]
        answer = getattr(answers, _snake(name), None)
        mapping[path] = handler._replace(func=_Call(name, handler, answer, record, admits))
    return Servable(mapping)


@dataclass(frozen=True)
class Servable:
    """What grpclib's server takes."""

    mapping: Mapping[str, Handler]

    def __mapping__(self) -> Mapping[str, Handler]:
        return self.mapping


class _Call:
    """One call of the service, from the request to the answer."""

    def __init__(
        self,
        name: str,
        handler: Handler,
        answer: Callable[..., Any] | None,
        record: Record,
        admits: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        self._name = name
        self._cardinality = handler.cardinality
        self._answer = answer
        self._record = record
        self._admits = admits
        self._replies: collections.OrderedDict[str, asyncio.Future[Any]] = collections.OrderedDict()

    async def __call__(self, stream: _Stream) -> None:
        try:
            await self._answered(stream)
        except SandboxGone as e:
            raise GRPCError(Status.NOT_FOUND, str(e)) from e
        except SandboxRefused as e:
            raise GRPCError(Status.INVALID_ARGUMENT, str(e)) from e
        except SandboxError as e:
            raise GRPCError(Status.INTERNAL, str(e)) from e
        except (GRPCError, StreamTerminatedError, asyncio.CancelledError, ConnectionError):
            raise  # an answer, or a client that has hung up
        except Exception as e:
            if not type(e).__module__.startswith("h2."):  # speaking to a stream that is closed already
                self._record.broken.append(f"{self._name}: {e!r}")
                _log.exception("%s", self._name)
            raise GRPCError(Status.INTERNAL, f"{self._name}: {e!r}") from e

    async def _answered(self, stream: _Stream) -> None:
        self._record.called[self._name] += 1
        if not self._admits(stream.metadata):
            raise GRPCError(Status.UNAUTHENTICATED, "this is not the token that this server has given out")
        fault = self._record.due(self._name)
        if fault is not None and fault.after_bytes is None and not fault.after_work:
            raise fault.error()
        if self._answer is None:
            await stream.recv_message()
            self._record.missing.append(self._name)
            raise GRPCError(Status.UNIMPLEMENTED, f"the loopback server does not know {self._name}")
        if self._cardinality is Cardinality.STREAM_UNARY:
            reply = await self._answer(_requests(stream))
        elif self._cardinality is Cardinality.UNARY_STREAM:
            await self._stream_out(stream, self._answer(await stream.recv_message()), fault)
            return
        else:
            reply = await self._once(stream, self._answer)
        if fault is not None:
            raise fault.error()
        await stream.send_message(reply)

    async def _stream_out(self, stream: _Stream, replies: AsyncIterator[Any], fault: Fault | None) -> None:
        said = 0
        async for reply in replies:
            if fault is not None and said + reply.ByteSize() > (fault.after_bytes or 0):
                raise fault.error()
            await stream.send_message(reply)
            said += reply.ByteSize()
        if fault is not None:
            raise fault.error()

    async def _once(self, stream: _Stream, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        """The same reply to a repeated call, also while the first one is still being worked on."""
        request = await stream.recv_message()
        key = stream.metadata.get("x-idempotency-key")
        if self._name not in _ONCE or not isinstance(key, str):
            return await answer(request)
        if key not in self._replies:
            self._replies[key] = asyncio.ensure_future(answer(request))
            while len(self._replies) > _REMEMBERED:
                self._replies.popitem(last=False)
        reply = self._replies[key]
        try:
            return await asyncio.shield(reply)
        except Exception:  # it was not done: a repetition may do it
            self._replies.pop(key, None)
            raise


async def _requests(stream: _Stream) -> AsyncIterator[Any]:
    while (request := await stream.recv_message()) is not None:
        yield request


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
