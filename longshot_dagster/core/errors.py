"""Everything that can stop the machine, as one drawn tree.

    LongshotError                  one line a person can act on; `exit_code` is what the command returns
    ├── WrongUse                   the person's input: setting, request, repository, build name     exit 2
    ├── BuildPaused                the build cannot go on by itself, nothing is lost                exit 5
    │   ├── ModelUnavailable       no endpoint gives a usable answer (401, 429, 5xx, empty, hang)
    │   ├── PlanUnreadable         the model answered, but never with a plan
    │   ├── BudgetExhausted        MAX_TOKENS_PER_BUILD is spent
    │   └── TakenOver              another installation drives the build now
    ├── RepositoryError            git failed: unreachable, rejected push, corrupt objects
    │   ├── LostRace               main moved between merge and push; merge again
    │   ├── PushRefused            the target does not take what is to land, though nothing moved
    │   └── HostileBundle          a worker's bundle broke a rule and was refused whole
    ├── SandboxError               infrastructure; trying again may help
    │   ├── SandboxGone            terminated, timed out or never existed
    │   ├── SandboxRefused         this provider cannot enforce the specification; do not retry as it is
    │   ├── FileMissing            no such file in the sandbox
    │   └── TooLarge               the file is larger than the caller allows
    ├── LedgerError                the ledger holds something unreadable or contradictory
    │   └── IncompleteIteration    the completeness guard found a task without a handoff
    └── Cancelled                  a person asked the run to stop

A conflict, an empty diff, a blocked worker or a red build are results, not errors.
"""


class LongshotError(Exception):
    """Base of the tree; its text is one line for a person."""

    exit_code = 1


class WrongUse(LongshotError):
    """Raised when what a person gave us cannot be used as it is."""

    exit_code = 2


class BuildPaused(LongshotError):
    """Raised when a build cannot go on by itself; `longshot resume` continues it."""

    exit_code = 5


class ModelUnavailable(BuildPaused):
    """Raised when no endpoint gives a usable answer after the gateway's own retries."""


class PlanUnreadable(BuildPaused):
    """Raised when a model's answers never contained a valid plan."""


class BudgetExhausted(BuildPaused):
    """Raised when the token budget of the build is spent."""


class TakenOver(BuildPaused):
    """Raised when another installation has put its checkpoint where ours was: it drives the build from now on."""


class RepositoryError(LongshotError):
    """Raised when git fails for a reason that is not a merge conflict."""


class LostRace(RepositoryError):
    """Raised when the landing branch moved between merge and push."""


class PushRefused(RepositoryError):
    """Raised when the target refuses a push to the landing branch by a rule of its own."""


class HostileBundle(RepositoryError):
    """Raised when a worker's bundle breaks a rule; nothing of it was imported."""


class SandboxError(LongshotError):
    """Raised for sandbox infrastructure failures; a retry may help."""


class SandboxGone(SandboxError):
    """Raised when the sandbox is terminated, timed out or never existed."""


class SandboxRefused(SandboxError):
    """Raised when a provider cannot enforce the specification it was given."""


class FileMissing(SandboxError):
    """Raised when a file asked for is not in the sandbox."""


class TooLarge(SandboxError):
    """Raised when a file in the sandbox exceeds the caller's limit."""


class LedgerError(LongshotError):
    """Raised when the ledger holds something unreadable or contradictory."""


class IncompleteIteration(LedgerError):
    """Raised by the completeness guard: the manifest names a task that has no handoff."""


class Cancelled(LongshotError):
    """Raised inside a worker or planner when a person cancelled the run."""

    exit_code = 130
