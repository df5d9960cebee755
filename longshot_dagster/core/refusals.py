"""What an endpoint's bad answer means: may it be tried again, elsewhere, and what should a person do about it."""

from dataclasses import dataclass
from enum import StrEnum

from longshot_dagster.core.display import one_line

BUDGET_EXHAUSTED = "budget_exhausted"


class Kind(StrEnum):
    """Why there is no usable answer; the `type` of the gateway's error bodies."""

    REFUSED_KEY = "refused_key"
    NO_CREDIT = "no_credit"
    NOT_FOUND = "not_found"
    OTHER_API = "other_api"  # `detail` is the language that it does not speak
    REJECTED = "rejected"  # the request's own fault: passed back as it came, never tried again
    RATE_LIMITED = "rate_limited"
    FAILED = "endpoint_failed"
    UNREACHABLE = "endpoint_unreachable"
    TIMEOUT = "endpoint_timeout"
    JUNK = "endpoint_junk"

    @property
    def again(self) -> bool:
        """May the same endpoint answer a moment later? (After a time-out, one wait was long enough.)"""
        return self in (Kind.RATE_LIMITED, Kind.FAILED, Kind.UNREACHABLE, Kind.JUNK)

    @property
    def lasting(self) -> bool:
        """Will the endpoint refuse every other request as well?"""
        return self in (Kind.REFUSED_KEY, Kind.NO_CREDIT)


_ADVICE = {
    Kind.REFUSED_KEY: "check LLM_API_KEY (or `apiKey` in LLM_ENDPOINTS) and LLM_BASE_URL",
    Kind.NO_CREDIT: "check the account's credit at the endpoint",
    Kind.NOT_FOUND: "check LLM_BASE_URL and LLM_MODEL",
    Kind.OTHER_API: "choose another HARNESS, or name an endpoint in LLM_ENDPOINTS that speaks it",
    Kind.REJECTED: "check LLM_MODEL and LLM_MAX_TOKENS",
    Kind.RATE_LIMITED: "wait, lower MAX_WORKERS or add endpoints to LLM_ENDPOINTS",
    Kind.FAILED: "check LLM_BASE_URL/LLM_API_KEY or wait until the endpoint is well",
    Kind.UNREACHABLE: "check LLM_BASE_URL and that the endpoint runs",
    Kind.TIMEOUT: "raise LLM_TIMEOUT or check the endpoint",
    Kind.JUNK: "check that LLM_BASE_URL is an OpenAI-compatible endpoint",
}


def kind_of_status(status: int) -> Kind | None:
    """None for a success."""
    if 200 <= status < 300:
        return None
    match status:
        case 401 | 403:
            return Kind.REFUSED_KEY
        case 402:
            return Kind.NO_CREDIT
        case 404 | 405:
            return Kind.NOT_FOUND
        case 429:
            return Kind.RATE_LIMITED
        case 408 | 425:
            return Kind.FAILED
        case _ if 400 <= status < 500:
            return Kind.REJECTED
    return Kind.FAILED


@dataclass(frozen=True)
class Refusal:
    """One endpoint's bad answer. `detail` is the endpoint's own text, already free of keys."""

    kind: Kind
    endpoint: str
    status: int = 0
    detail: str = ""
    retry_after_s: float | None = None

    @property
    def line(self) -> str:
        """What happened, in one line: endpoint and HTTP status, never a key."""
        http = f"HTTP {self.status}" if self.status else ""
        told = one_line(self.detail, 200)
        both = ": ".join(x for x in (http, told) if x)
        who = f"endpoint {self.endpoint}"
        match self.kind:
            case Kind.REFUSED_KEY:
                return f"{who} refused the key ({http})"
            case Kind.NO_CREDIT:
                return f"{who} wants payment ({both})"
            case Kind.NOT_FOUND:
                return f"{who} does not know this address or model ({both})"
            case Kind.OTHER_API:
                return f"{who} does not speak {told}"
            case Kind.REJECTED:
                return f"{who} rejected the request ({both})"
            case Kind.RATE_LIMITED:
                return f"{who} is rate-limiting ({http})"
            case Kind.FAILED:
                return f"{who} failed ({both})"
            case Kind.UNREACHABLE:
                return f"{who} cannot be reached ({told or 'no connection'})"
            case Kind.TIMEOUT:
                return f"{who} gave no answer in time ({told})" if told else f"{who} gave no answer in time"
            case Kind.JUNK:
                return f"{who} answered, but not as a model does ({both})"

    @property
    def http_status(self) -> int:
        """What the gateway answers in its place."""
        if self.kind is Kind.TIMEOUT:
            return 504
        if self.kind is Kind.OTHER_API:
            return 404
        return self.status if self.status >= 400 else 502


def advice(kind: str) -> str:
    """What a person should do, for a `type` out of one of the gateway's error bodies."""
    return _ADVICE[Kind(kind)] if kind in set(Kind) else _ADVICE[Kind.FAILED]
