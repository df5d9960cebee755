"""Sums over all tasks of a build, with pandas: where the workers' time and tokens went, and how many were at it at once."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.last_word import Figures, LastWord, OutcomeFigures, Round, RoundFigures

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

_COLUMNS = ("outcome", "iteration", "landed", "seconds", "tokens", "start", "end")


def figures_of(word: LastWord) -> Figures:
    """Tasks that only subplanners had are counted by their parts."""
    rows = [
        (
            facts.outcome,
            facts.task.iteration,
            facts.landing is not None and facts.landing.state is LandingState.LANDED,
            facts.run.ended_at - facts.run.started_at if facts.run else None,
            facts.run.tokens_in + facts.run.tokens_out if facts.run else 0,
            facts.run.started_at if facts.run else None,
            facts.run.ended_at if facts.run else None,
        )
        for facts in word.tasks
        if not facts.task.delegated
    ]
    if not rows:
        return Figures()
    import pandas as pd  # seconds of start-up, and only a report needs it

    tasks = pd.DataFrame.from_records(rows, columns=list(_COLUMNS))
    most, mean = _at_once(tasks)
    return Figures(_by_outcome(tasks), _by_round(tasks, word), most, mean)


def _by_outcome(tasks: "DataFrame") -> tuple[OutcomeFigures, ...]:
    sums = tasks.groupby("outcome").agg(tasks=("outcome", "size"), seconds=("seconds", "sum"), tokens=("tokens", "sum"))
    shares = sums / sums.sum().replace(0, 1)
    ordered = sums.sort_values(["seconds", "tasks"], ascending=False).to_dict("index")
    return tuple(
        OutcomeFigures(
            outcome=str(name),
            tasks=int(row["tasks"]),
            worker_s=float(row["seconds"]),
            worker_share=float(shares["seconds"][name]),
            tokens=int(row["tokens"]),
            token_share=float(shares["tokens"][name]),
        )
        for name, row in ordered.items()
    )


def _by_round(tasks: "DataFrame", word: LastWord) -> tuple[RoundFigures, ...]:
    rounds = tasks.groupby("iteration").agg(
        tasks=("iteration", "size"),
        landed=("landed", "sum"),
        median=("seconds", "median"),
        longest=("seconds", "max"),
        tokens=("tokens", "sum"),
    )
    found = rounds.to_dict("index")
    nothing = {"tasks": 0, "landed": 0, "median": float("nan"), "longest": float("nan"), "tokens": 0}
    return tuple(_round(r, found.get(r.key.short, nothing)) for r in word.rounds)


def _round(planned: Round, row: Mapping[Hashable, Any]) -> RoundFigures:
    return RoundFigures(
        iteration=planned.key.short,
        tasks=int(row["tasks"]),
        landed=int(row["landed"]),
        median_s=_known(row["median"]),
        longest_s=_known(row["longest"]),
        planner_tokens=planned.plan.tokens if planned.plan else 0,
        worker_tokens=int(row["tokens"]),
    )


def _known(seconds: float) -> float | None:
    return None if seconds != seconds else float(seconds)  # pandas says NaN where nothing was measured


def _at_once(tasks: "DataFrame") -> tuple[int, float]:
    """(most workers at once, mean number while any was at work)."""
    import pandas as pd

    ran = tasks.dropna(subset=["start", "end"])
    if ran.empty:
        return 0, 0.0
    steps = pd.concat([pd.Series(1, index=ran["start"]), pd.Series(-1, index=ran["end"])])
    level = steps.groupby(level=0).sum().sort_index().cumsum()
    lasting = level.index.to_series().diff().shift(-1).fillna(0.0)
    busy = float(lasting[level > 0].sum())
    return int(level.max()), float((level * lasting).sum()) / busy if busy else 0.0
