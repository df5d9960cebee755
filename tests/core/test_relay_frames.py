"""Frames of the relay: whole out of any pieces, and nothing else is taken for one."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longshot_dagster.core.relay_frames import ALIVE, MAX_PAYLOAD, Frame, Frames, Kind, credit

streams = some.integers(1, 2**32 - 1)
frames = some.one_of(
    some.just(ALIVE),
    some.builds(Frame, streams, some.sampled_from([Kind.OPEN, Kind.EOF, Kind.RESET])),
    some.builds(Frame, streams, some.just(Kind.DATA), some.binary(min_size=1, max_size=300)),
    some.builds(credit, streams, some.integers(0, 2**32 - 1)),
)


@given(some.lists(frames, max_size=20), some.data())
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(sent: list[Frame], data: some.DataObject) -> None:
    whole = b"".join(frame.encoded for frame in sent)
    cuts = sorted(data.draw(some.lists(some.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reader = Frames()
    assert [frame for piece in pieces for frame in reader.of(piece)] == sent


@pytest.mark.parametrize(
    "header",
    [
        *((1, 0, 0), (1, 7, 0), (1, 255, 0), (0, 2, 1), (0, 1, 0), (5, 6, 0), (1, 2, 0), (1, 2, MAX_PAYLOAD + 1)),
        *((1, 2, 2**32 - 1), (1, 5, 3), (1, 5, 5), (1, 1, 1), (1, 3, 9), (1, 4, 1), (0, 6, 2)),
    ],
)
def test_what_is_no_frame_is_refused_by_its_header_alone(header: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="a frame of kind"):
        list(Frames().of(struct.pack(">IBI", *header)))


def test_frames_before_a_bad_one_are_given_out() -> None:
    reader, given = Frames(), []
    with pytest.raises(ValueError):
        for frame in reader.of(ALIVE.encoded + b"\xff" * 9):
            given.append(frame)
    assert given == [ALIVE]


@given(some.binary(max_size=400))
def test_garbage_is_a_value_error_at_worst(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        list(Frames().of(data))
