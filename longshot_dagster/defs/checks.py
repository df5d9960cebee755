"""The three asset checks of an iteration: main passes its checks, holds no conflict markers, and everything landed."""

from collections.abc import Sequence

import dagster as dg

from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import Sweep
from longshot_dagster.defs.metadata import landings_metadata, sweep_metadata

CHECKS_PASS = "checks_pass"  # noqa: S105 - the name of a check
NO_CONFLICT_MARKERS = "no_conflict_markers"
ALL_LANDED = "all_landed"

# Checks of partitioned assets are a preview in Dagster and show the latest result only: the metadata names the build.
SPECS = [
    dg.AssetCheckSpec(
        CHECKS_PASS,
        asset="health",
        description="Install, compile, types, lint and tests are green on main, in a clean checkout inside a sandbox.",
    ),
    dg.AssetCheckSpec(NO_CONFLICT_MARKERS, asset="health", description="No file on main holds a git conflict marker."),
    dg.AssetCheckSpec(
        ALL_LANDED, asset="landings", description="Every task of the iteration landed, or had nothing to land."
    ),
]

_LANDED = (LandingState.LANDED, LandingState.NOOP, LandingState.SUPERSEDED)


def health_checks(sweep: Sweep, build: str) -> list[dg.AssetCheckResult]:
    """`checks_pass` is never true for a main that nothing checked: that is a warning, a red check an error."""
    metadata = sweep_metadata(sweep, build)
    markers = not sweep.conflict_markers
    unchecked = not sweep.checked and not sweep.red
    return [
        dg.AssetCheckResult(
            asset_key="health",
            check_name=CHECKS_PASS,
            passed=sweep.green,
            severity=dg.AssetCheckSeverity.WARN if unchecked else dg.AssetCheckSeverity.ERROR,
            description="the repository offers nothing to check: neither green nor red" if unchecked else None,
            metadata=metadata,
        ),
        dg.AssetCheckResult(
            asset_key="health",
            check_name=NO_CONFLICT_MARKERS,
            passed=markers,
            metadata={"build": build, "conflict markers": metadata["conflict markers"]},
        ),
    ]


def landed_check(landings: Sequence[LandingOutcome], build: str) -> dg.AssetCheckResult:
    """A warning, not an error: what did not land is fixed, planned again or reported as left over."""
    left = [o for o in landings if o.state not in _LANDED]
    return dg.AssetCheckResult(
        asset_key="landings",
        check_name=ALL_LANDED,
        passed=not left,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"build": build, "not landed": len(left), **landings_metadata(left)},
    )
