"""The endpoints that may answer for a model, as a person writes them in LLM_ENDPOINTS or LLM_BASE_URL."""

import json
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.model_apis import Api

_VERSION_SEGMENT = re.compile(r"/v\d+[a-z0-9]*(?:/|$)")
MAX_ENDPOINTS = 100


class Endpoint(BaseModel):
    """One endpoint. `url` is the base that `/chat/completions` is appended to; the key is never printed.

    `apis`: the languages it speaks; None: nobody said, so it is found out by asking.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=80)
    url: str
    api_key: SecretStr = SecretStr("")
    weight: float = Field(default=100, gt=0, le=1_000_000, description="share of the requests, relative to the others")
    apis: tuple[Api, ...] | None = Field(default=None, min_length=1)

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.url).netloc

    @property
    def label(self) -> str:
        return self.host if self.name == self.host else f"{self.name} ({self.host})"


def normalise_url(url: str, variable: str) -> str:
    """The base URL without a trailing slash and with its version segment (`/v1` unless it names another one).

    Raises WrongUse, naming `variable`, for what is no plain http(s) URL.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise WrongUse(f"{variable} is not a URL like https://host/v1") from None
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or ord(c) < 32 for c in text):
        raise WrongUse(f"{variable} is not a URL like https://host/v1")
    if parts.username or parts.password:
        raise WrongUse(f"{variable} has credentials in its URL; put the key into LLM_API_KEY or `apiKey`")
    if parts.query or parts.fragment:
        raise WrongUse(f"{variable} has a query or fragment; give the base URL alone, like https://host/v1")
    path = re.sub(r"/(chat/completions|responses|messages)$", "", parts.path.rstrip("/")).rstrip("/")
    if not _VERSION_SEGMENT.search(path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def parse_endpoints(llm_endpoints: str, base_url: str, api_key: str) -> tuple[Endpoint, ...]:
    """Endpoints from the three variables' texts: LLM_ENDPOINTS wins over LLM_BASE_URL with LLM_API_KEY; () when neither is set.

    Raises WrongUse in one line that never quotes a value, because the value may hold a key.
    """
    if llm_endpoints.strip():
        return _from_json(llm_endpoints)
    if not base_url.strip():
        return ()
    url = normalise_url(base_url, "LLM_BASE_URL")
    return (Endpoint(name=urlsplit(url).netloc[:80], url=url, api_key=_key(api_key, "LLM_API_KEY")),)


def _from_json(text: str) -> tuple[Endpoint, ...]:
    shape = 'LLM_ENDPOINTS is not JSON like [{"name":"primary","endpoint":"https://...","apiKey":"...","weight":100}]'
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        raise WrongUse(shape) from None
    if not isinstance(items, list) or not items or not all(isinstance(i, dict) for i in items):
        raise WrongUse(shape)
    if len(items) > MAX_ENDPOINTS:
        raise WrongUse(f"LLM_ENDPOINTS names {len(items)} endpoints; at most {MAX_ENDPOINTS}")
    found = tuple(_endpoint(i, f"LLM_ENDPOINTS[{n}]") for n, i in enumerate(items))
    names = [e.name for e in found]
    if len(set(names)) < len(names):
        raise WrongUse("LLM_ENDPOINTS names two endpoints alike; `name` must be unique")
    return found


def _endpoint(item: dict[str, object], where: str) -> Endpoint:
    known = {"name", "endpoint", "url", "apiKey", "weight", "apis"}
    if unknown := sorted(set(item) - known):
        raise WrongUse(f"{where} has an unknown field {unknown[0][:40]!r}; known: name, endpoint, apiKey, weight, apis")
    address, key = item.get("endpoint", item.get("url")), item.get("apiKey", "")
    if not isinstance(address, str) or not isinstance(key, str):
        raise WrongUse(f"{where} needs `endpoint` (a URL) and `apiKey` (a text)")
    url = normalise_url(address, f"{where}.endpoint")
    apis = item.get("apis")
    if apis is not None and not (isinstance(apis, list) and apis and all(a in tuple(Api) for a in apis)):
        raise WrongUse(f"{where}.apis is a list of the languages it speaks: any of {', '.join(Api)}")
    try:
        return Endpoint.model_validate(
            {
                "name": item.get("name") or urlsplit(url).netloc,
                "url": url,
                "api_key": _key(key, f"{where}.apiKey"),
                "weight": item.get("weight", 100),
                "apis": apis,
            }
        )
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        raise WrongUse(f"{where}.{first['loc'][0]}: {first['msg']}") from None


def _key(text: str, variable: str) -> SecretStr:
    key = text.strip()
    if any(not 32 < ord(c) < 127 for c in key):
        raise WrongUse(f"{variable} holds a space, line break or other character that no key has")
    return SecretStr(key)


def endpoints_to_wire(endpoints: Sequence[Endpoint]) -> list[dict[str, object]]:
    """For the gateway's stdin and control socket only: here the keys are in clear."""
    return [{**e.model_dump(exclude={"api_key"}), "api_key": e.api_key.get_secret_value()} for e in endpoints]


def endpoints_from_wire(items: object) -> tuple[Endpoint, ...]:
    """Inverse of `endpoints_to_wire`; raises WrongUse."""
    try:
        return tuple(Endpoint.model_validate(i) for i in items) if isinstance(items, list) else ()
    except ValidationError:
        raise WrongUse("the gateway was given endpoints it cannot read; start it again with this version") from None
