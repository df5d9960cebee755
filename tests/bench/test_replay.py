"""The replay bench's own parts: the record it reads, what it draws, and how it accounts for every path."""

from replaying.contents import IGNORE_FILE, LOCK_FILE, edits, scaffold
from replaying.record import read_record


def test_the_record_holds_the_finished_tasks_in_the_order_of_merging_and_what_landed_then():
    record = read_record()
    assert len(record.jobs) == 91 and len(record.fix_s) == 130
    assert [j.merged_s for j in record.jobs] == sorted(j.merged_s for j in record.jobs)
    assert 0.42 < record.landed_share < 0.43
    assert all(j.scope and j.began_s < j.ended_s and j.worker_s > 0 for j in record.jobs)


def test_the_same_seed_draws_the_same_work_and_another_seed_other_work():
    jobs, files = read_record().jobs, scaffold()
    drawn = [edits(job, jobs, 1, files.get) for job in jobs]
    assert drawn == [edits(job, jobs, 1, files.get) for job in jobs]
    assert drawn != [edits(job, jobs, 2, files.get) for job in jobs]


def test_every_task_writes_its_scope_and_strays_as_far_as_the_record_says():
    jobs, files = read_record().jobs, scaffold()
    for job in jobs:
        changed = edits(job, jobs, 1, files.get)
        assert set(job.scope) <= changed.keys()
        assert all(text != files.get(path) for path, text in changed.items())
        assert (LOCK_FILE in changed, IGNORE_FILE in changed) == (job.brings_lock_file, job.brings_ignore_file)
        strayed = changed.keys() - {*job.scope, LOCK_FILE, IGNORE_FILE}
        assert len(strayed) == job.strays


def test_what_the_worker_finds_there_already_is_no_change_of_its_own():
    jobs = read_record().jobs
    for job in jobs[:30]:
        there = {**scaffold(), **edits(job, jobs, 1, scaffold().get)}
        again = edits(job, jobs, 1, there.get)
        assert IGNORE_FILE not in again and all(text != there.get(path) for path, text in again.items())
