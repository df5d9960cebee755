"""One request to the endpoints: weighted choice, failover, bounded retries, and never a key in what comes back.

With `gateway_server.py` the only importer of aiohttp.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from longshot_dagster.core.admission import Admission
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.endpoint_pool import EndpointPool
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.model_apis import Api, api_of_path
from longshot_dagster.core.refusals import Kind, Refusal, kind_of_status
from longshot_dagster.core.usage import REHEARSAL_MODEL, is_rehearsal

MAX_ANSWER_BYTES = 64 << 20
_MAX_ERROR_BYTES = 64 << 10
_EXAMINED_S = 60.0
_MODELS_TOLD = 200
_FORWARDED = frozenset({"content-type", "accept", "user-agent", "anthropic-version", "anthropic-beta", "openai-beta"})
_ANTHROPIC_VERSION = "2023-06-01"
_LEARNT_S = 15.0
_NOT_IMPLEMENTED = 501


class Tuning(BaseModel):
    """How patient the gateway is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=3, ge=1, le=20, description="times each endpoint is asked at most")
    backoff_s: float = Field(default=1.0, ge=0, description="pause after the first round; doubles")
    max_wait_s: float = Field(default=30.0, ge=0, description="longest pause, also for Retry-After")
    timeout_s: float = Field(default=600.0, gt=0, description="seconds for one answer (LLM_TIMEOUT)")
    connect_s: float = Field(default=10.0, gt=0, description="seconds to connect")


@dataclass
class Answer:
    """A usable answer. `response` is still open when it is a stream; else `body` holds all of it."""

    endpoint: Endpoint
    status: int
    content_type: str
    body: bytes = b""
    document: object = None
    response: aiohttp.ClientResponse | None = None


class Upstream:
    """The endpoints behind the gateway. Use as an async context manager inside its event loop."""

    def __init__(self, endpoints: Sequence[Endpoint], tuning: Tuning) -> None:
        self.tuning = tuning
        self._clock = SystemClock()
        self.rehearsal = False
        self._admission: Admission[asyncio.Future[None]] = Admission()
        self.replace(endpoints)

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """Serve `endpoints` from now on; requests under way keep the ones they began with."""
        self.endpoints = tuple(endpoints)
        self._pool = EndpointPool(self.endpoints, self._clock.monotonic)
        self._learnt: dict[tuple[str, Api], bool] = {}
        self._keys = tuple(k for e in self.endpoints if (k := e.api_key.get_secret_value()))

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), trust_env=True, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def scrub(self, text: str) -> str:
        """`text` without any of the keys; an endpoint may quote the key it refuses."""
        for key in self._keys:
            text = text.replace(key, "[key]")
        return text

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        stream: bool,
        timeout_s: float,
        planner: bool = False,
    ) -> Answer | Refusal:
        """The first usable answer, or the last refusal once the rounds are over. `path` is below the base URL, and may have
        a query. An endpoint that does not speak its language is not asked.

        Where the endpoints are at their limit, a `planner` goes first.
        """
        pool, api = self._pool, _language(path)
        refusal: Refusal | None = None
        for number in range(self.tuning.rounds):
            order = pool.order()
            candidates = [e for e in order if self._speaks(e, api) is not False]
            if api and order and not candidates:
                return Refusal(Kind.OTHER_API, order[0].label, detail=api.spoken)
            if number:
                refused = refusal.retry_after_s if refusal else None
                await asyncio.sleep(min(self.tuning.max_wait_s, refused or self.tuning.backoff_s * 2 ** (number - 1)))
            if not candidates:
                break
            if not await self._turn(planner, timeout_s):
                busy = f"{self._admission.waiting} requests wait for it"
                return refusal or Refusal(Kind.RATE_LIMITED, candidates[0].label, detail=busy)
            again = limited = False
            try:
                if wait := min(pool.wait_s(e) for e in candidates):
                    await asyncio.sleep(min(wait, self.tuning.max_wait_s))  # all were told to wait: so does the fleet
                for endpoint in candidates:
                    outcome = await self._attempt(pool, endpoint, method, path, headers, body, stream, timeout_s)
                    if isinstance(outcome, Refusal) and outcome.kind is Kind.NOT_FOUND:
                        outcome = await self._understood(endpoint, api, outcome)
                    if isinstance(outcome, Answer) or outcome.kind is Kind.REJECTED:
                        limited = False
                        return outcome
                    again = again or outcome.kind.again
                    limited = limited or outcome.kind is Kind.RATE_LIMITED
                    refusal = outcome
            finally:
                self._next(self._admission.ended(refused=limited))
            if not again:
                break
        return refusal or Refusal(Kind.UNREACHABLE, "of the gateway", detail="no endpoint is configured")

    @property
    def waiting(self) -> int:
        """Requests held back because the endpoints get too many."""
        return self._admission.waiting

    async def _turn(self, planner: bool, timeout_s: float) -> bool:
        """Wait until a request may go out; False when its time is over before that."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._admission.enter(turn, planner=planner):
            return True
        try:
            await asyncio.wait_for(asyncio.shield(turn), timeout_s)
        except (TimeoutError, asyncio.CancelledError) as e:
            if turn.done():  # let in at that very moment
                self._next(self._admission.ended(refused=False))
            else:
                self._admission.leave_line(turn)
            if isinstance(e, asyncio.CancelledError):
                raise
            return False
        return True

    def _next(self, admitted: Sequence[asyncio.Future[None]]) -> None:
        for turn in admitted:
            turn.set_result(None)

    async def look(self, endpoint: Endpoint, timeout_s: float = 10.0) -> tuple[Refusal | None, frozenset[str]]:
        """(refusal or None, names of its models): one GET of the endpoint's model list, nothing tried again."""
        pool = EndpointPool([endpoint], self._clock.monotonic)
        outcome = await self._attempt(pool, endpoint, "GET", "models", {}, None, False, timeout_s)
        if isinstance(outcome, Refusal):
            return outcome, frozenset()
        listed = outcome.document.get("data") if isinstance(outcome.document, dict) else None
        models = frozenset(str(m.get("id")) for m in listed if isinstance(m, dict)) if isinstance(listed, list) else ()
        self.rehearsal = self.rehearsal or REHEARSAL_MODEL in models
        return None, frozenset(models)

    async def try_model(self, endpoint: Endpoint, model: str, timeout_s: float, api: Api = Api.CHAT) -> Refusal | None:
        """One short answer, nothing tried again."""
        pool = EndpointPool([endpoint], self._clock.monotonic)
        ask = json.dumps(api.short_question(model)).encode()
        outcome = await self._attempt(pool, endpoint, "POST", api.path, {}, ask, False, timeout_s)
        if isinstance(outcome, Refusal):
            return outcome
        self._learnt[endpoint.name, api] = True
        return None

    def _speaks(self, endpoint: Endpoint, api: Api | None) -> bool | None:
        """None: nobody knows yet."""
        if api is None:
            return True
        return api in endpoint.apis if endpoint.apis is not None else self._learnt.get((endpoint.name, api))

    async def _understood(self, endpoint: Endpoint, api: Api | None, refusal: Refusal) -> Refusal:
        """`refusal`, or that the endpoint does not speak `api`; every endpoint is taken to speak chat completions."""
        if api in (None, Api.CHAT) or await self.learn(endpoint, api) is not False:
            return refusal
        return Refusal(Kind.OTHER_API, endpoint.label, detail=api.spoken)

    async def learn(self, endpoint: Endpoint, api: Api) -> bool | None:
        """Does it speak `api`? Asked once, with an empty request, which costs nothing; None when that does not tell."""
        if (known := self._speaks(endpoint, api)) is not None:
            return known
        pool = EndpointPool([endpoint], self._clock.monotonic)
        outcome = await self._attempt(pool, endpoint, "POST", api.path, {}, b"{}", False, _LEARNT_S)
        if isinstance(outcome, Answer) or outcome.kind is Kind.REJECTED:
            told = True
        elif outcome.kind is Kind.NOT_FOUND:  # no such address, or it knows no model without a name
            told = "model" in outcome.detail.lower()
        elif outcome.status == _NOT_IMPLEMENTED:
            told = False
        else:
            return None
        self._learnt[endpoint.name, api] = told
        return told

    async def examine(self, model: str, api: Api = Api.CHAT) -> list[dict[str, object]]:
        """What each endpoint itself says: its list of models, and one short answer of `model`, in `api` too where that is
        another language; each asked once.
        """
        return list(await asyncio.gather(*(self._examine(e, model, api) for e in self.endpoints)))

    async def _examine(self, endpoint: Endpoint, model: str, api: Api) -> dict[str, object]:
        refusal, models = await self.look(endpoint)
        began = self._clock.monotonic()
        if refusal is None or not (refusal.kind.lasting or refusal.kind is Kind.UNREACHABLE):
            refusal = await self.try_model(endpoint, model, timeout_s=_EXAMINED_S)
        if refusal is None and api is not Api.CHAT:
            if await self.learn(endpoint, api) is False:
                refusal = Refusal(Kind.OTHER_API, endpoint.label, detail=api.spoken)
            else:
                refusal = await self.try_model(endpoint, model, timeout_s=_EXAMINED_S, api=api)
        return {
            "label": endpoint.label,
            "models": [self.scrub(m) for m in sorted(models)[:_MODELS_TOLD]],
            "seconds": self._clock.monotonic() - began,
            "line": self.scrub(refusal.line) if refusal else "",
            "kind": refusal.kind.value if refusal else "",
        }

    async def _attempt(
        self,
        pool: EndpointPool,
        endpoint: Endpoint,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        stream: bool,
        timeout_s: float,
    ) -> Answer | Refusal:
        started = self._clock.monotonic()
        try:
            outcome = await self._once(endpoint, method, path, headers, body, stream, timeout_s)
        except TimeoutError:
            outcome = Refusal(Kind.TIMEOUT, endpoint.label, detail=f"{timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as e:
            outcome = Refusal(Kind.UNREACHABLE, endpoint.label, detail=self.scrub(_network_detail(e)))
        if isinstance(outcome, Answer):
            pool.succeeded(endpoint, self._clock.monotonic() - started)
        elif outcome.kind is not Kind.REJECTED:
            pool.failed(endpoint, told_to_wait_s=outcome.retry_after_s or 0.0, lasting=outcome.kind.lasting)
        return outcome

    async def _once(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        stream: bool,
        timeout_s: float,
    ) -> Answer | Refusal:
        sent = {k.lower(): v for k, v in headers.items() if k.lower() in _FORWARDED} or {
            "content-type": "application/json"
        }
        key = endpoint.api_key.get_secret_value()
        if _language(path) is Api.MESSAGES:
            sent.setdefault("anthropic-version", _ANTHROPIC_VERSION)
            if key:
                sent["x-api-key"] = key
        elif key:
            sent["authorization"] = f"Bearer {key}"
        # A stream may well take longer than one answer's time, as long as it keeps coming.
        timeout = aiohttp.ClientTimeout(
            total=None if stream else timeout_s, sock_connect=self.tuning.connect_s, sock_read=timeout_s
        )
        response = await self._session.request(
            method, f"{endpoint.url}/{path}", headers=sent, data=body, timeout=timeout, allow_redirects=False
        )
        kept = False
        try:
            if (kind := kind_of_status(response.status)) is not None:
                return await self._refusal(kind, endpoint, response)
            if stream and response.content_type == "text/event-stream":
                kept = True
                return Answer(endpoint, response.status, "text/event-stream", response=response)
            return await self._whole(endpoint, response)
        finally:
            if not kept:
                response.close()

    async def _whole(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> Answer | Refusal:
        body = await _read(response, MAX_ANSWER_BYTES)
        if len(body) >= MAX_ANSWER_BYTES:
            return Refusal(Kind.JUNK, endpoint.label, response.status, f"more than {MAX_ANSWER_BYTES >> 20} MB")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            return Refusal(Kind.JUNK, endpoint.label, response.status, self._excerpt(body))
        if "error" in document and document["error"] and not any(k in document for k in ("choices", "data", "output")):
            return Refusal(Kind.JUNK, endpoint.label, response.status, self._excerpt(body))
        self.rehearsal = self.rehearsal or is_rehearsal(document)
        return Answer(endpoint, response.status, "application/json", body=body, document=document)

    async def _refusal(self, kind: Kind, endpoint: Endpoint, response: aiohttp.ClientResponse) -> Refusal:
        if 300 <= response.status < 400:
            return Refusal(Kind.NOT_FOUND, endpoint.label, response.status, "a redirect, which is not followed")
        body = await _read(response, _MAX_ERROR_BYTES)
        wait = None
        if kind in (Kind.RATE_LIMITED, Kind.FAILED) and (told := response.headers.get("retry-after")):
            wait = min(_seconds(told), self.tuning.max_wait_s)
        return Refusal(kind, endpoint.label, response.status, self._excerpt(body), wait)

    def _excerpt(self, body: bytes) -> str:
        """The message inside an error body, or its beginning."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        error = document.get("error") if isinstance(document, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        if message:
            return self.scrub(str(message))[:2_000]
        return self.scrub(body.decode("utf-8", "replace"))[:400]  # cut first, half a key would be none to the scrubber


def _language(path: str) -> Api | None:
    return api_of_path(path.partition("?")[0])


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most the first `limit` bytes."""
    parts, size = [], 0
    async for chunk in response.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size >= limit:
            break
    return b"".join(parts)[:limit]


def _seconds(retry_after: str) -> float:
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return 1.0  # a date; the next round comes soon enough


def _network_detail(error: Exception) -> str:
    inner = getattr(error, "os_error", None)
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(error) or type(error).__name__
