"""The gateway's accounts as a file: whole after every change, though only what has changed is rendered anew."""

from pathlib import Path

from longshot_dagster.adapters.gateway.token_counts import BuildAccounts, TokenCounts, read_accounts, write_accounts

BUILD = "shop-7f3k"


def test_the_file_holds_every_account_after_every_change(tmp_path: Path) -> None:
    counts = TokenCounts(tmp_path)
    for number in range(3):
        counts.open(BUILD, f"r001-{number:02d}", 500, 60.0)
        counts.charge(BUILD, f"r001-{number:02d}", (10, number), estimated=False)
        write_accounts(counts.take_dirty())
        assert read_accounts(tmp_path, BUILD) == counts.build(BUILD)
    counts.close(BUILD, "r001-01")
    write_accounts(counts.take_dirty())
    assert read_accounts(tmp_path, BUILD) == counts.build(BUILD)
    assert counts.left_open() == [(BUILD, "r001-00"), (BUILD, "r001-02")]
    assert counts.take_dirty() == []


def test_the_next_gateway_writes_what_the_one_before_had_counted(tmp_path: Path) -> None:
    first = TokenCounts(tmp_path)
    first.charge(BUILD, "planner-root", (100, 20), estimated=True)
    write_accounts(first.take_dirty())
    second = TokenCounts(tmp_path)
    second.open(BUILD, "r001-01", 0, None)
    (document,) = second.take_dirty()
    assert BuildAccounts.model_validate_json(document[1]) == second.build(BUILD)
    assert second.build(BUILD).accounts["planner-root"].usage.total == 120


def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    counts = TokenCounts(tmp_path)
    counts.open(BUILD, "r001-01", 0, None)
    counts.not_written(counts.take_dirty())
    write_accounts(counts.take_dirty())
    assert read_accounts(tmp_path, BUILD) == counts.build(BUILD)
