"""A document that is cut, flipped or emptied anywhere is never taken for what was written."""

import json

import pytest

from longshot_dagster.adapters.host.documents import parsed, rendered
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildState, Handoff, HandoffStatus
from longshot_dagster.core.sealing import opened, sealed

HANDOFF = Handoff(task_id="r001-01", status=HandoffStatus.PARTIAL, summary="half é \u202e\x00", files_changed=["a.py"])
LANDING = LandingOutcome(task="r001-01", state=LandingState.LANDED, commits=("a" * 40,), history=(("landed", 2.5),))
STATE = BuildState()
ALL = pytest.mark.parametrize("document", [HANDOFF, LANDING, STATE], ids=["handoff", "landing", "state"])


@ALL
def test_what_was_written_is_read_and_stays_readable_json(document):
    data = rendered(document)
    assert parsed(type(document), data) == (document, "")
    fields = json.loads(data)
    assert list(fields)[-1] == "sha256" and data.count(b"\n") == len(data.splitlines()) - 1
    assert {k: v for k, v in fields.items() if k != "sha256"} == document.model_dump(mode="json")


@ALL
def test_cut_short_at_any_byte_it_is_not_read(document):
    data = rendered(document)
    for end in range(len(data)):
        found, wrong = parsed(type(document), data[:end])
        assert found is None and wrong, data[:end]


@ALL
def test_with_any_bit_flipped_it_is_either_refused_or_what_was_written(document):
    data = rendered(document)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            found, wrong = parsed(type(document), bytes(flipped))
            assert found in (None, document), bytes(flipped)
            assert (found is None) == bool(wrong)


@ALL
@pytest.mark.parametrize("block", [b"\0", b"{", b"\xff", b" "])
def test_with_a_block_of_garbage_anywhere_it_is_not_read(document, block):
    data = rendered(document)
    for place in range(0, len(data) - 8, 3):
        torn = data[:place] + block * 8 + data[place + 8 :]
        found, _ = parsed(type(document), torn)
        assert found in (None, document)


def test_documents_of_older_versions_have_no_checksum_and_are_read():
    text = json.dumps(LANDING.model_dump(mode="json"), indent=1).encode()
    assert parsed(LandingOutcome, text) == (LANDING, "")


@pytest.mark.parametrize("text", [b"{}", b'{"a": 1}', b'{\n "a": "}"\n}', b"[1]", b"", b"null"])
def test_any_json_survives_being_sealed(text):
    found, wrong = opened(sealed(text))
    assert not wrong or not text
    assert not text or json.loads(found) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (sealed(b'{"a": 1}').replace(b"1", b"2", 1), "its checksum does not match"),
        (sealed(b'{"a": 1}')[:-1], "its checksum is damaged"),
    ],
)
def test_what_is_wrong_is_said_in_a_few_words(data, wrong):
    assert opened(data)[1] == wrong
