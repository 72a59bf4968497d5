"""The wire format: openpi's bytes, round trips, and nothing but data."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mode_policy.deploy.client import WireError, pack, unpack

ARRAYS = hnp.arrays(
    st.sampled_from(["<f4", "<f8", ">f4", "|u1", "<i8", "|b1", "<f2", "<U3", "|S4"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
MESSAGES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@settings(max_examples=100, deadline=None)
@given(message=MESSAGES, array=ARRAYS)
def test_round_trip(message, array):
    back = unpack(pack({"message": message, "array": array}))
    assert back["message"] == message
    assert back["array"].dtype == array.dtype
    assert back["array"].shape == array.shape
    assert back["array"].tobytes() == array.tobytes()


def test_numpy_scalars():
    for scalar in (np.float32(0.1), np.int64(-3), np.bool_(True), np.uint8(255)):
        back = unpack(pack(scalar))
        assert back == scalar
        assert back.dtype == scalar.dtype


def test_the_bytes_are_those_of_openpi():
    """Written out by hand from the format's description, not by our encoder."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    theirs = msgpack.packb(
        {
            "state": {
                b"__ndarray__": True,
                b"data": array.tobytes(),
                b"dtype": "<f4",
                b"shape": (2, 3),
            },
            "prompt": "pick up the fork",
        }
    )
    assert pack({"state": array, "prompt": "pick up the fork"}) == theirs
    np.testing.assert_array_equal(unpack(theirs)["state"], array)
    scalar = msgpack.packb({b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"})
    assert pack(np.float32(0.5)) == scalar


@pytest.mark.parametrize("bad", [np.array([object()]), np.array([1j]), np.zeros(1, "V4"), {1, 2}, object()])
def test_what_is_no_data_is_not_sent(bad):
    with pytest.raises(WireError, match="cannot be sent"):
        pack({"x": bad})


def encoded(**changes):
    array = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]} | {
        k.encode(): v for k, v in changes.items()
    }
    return msgpack.packb({"x": array})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (encoded(dtype="|O"), "refused"),
        (encoded(dtype="O8"), "refused"),
        (encoded(dtype="<c8"), "refused"),
        (encoded(dtype="(1000000000,)<f8"), "refused"),
        (encoded(dtype=[["a", "<f4"]]), "refused"),
        (encoded(dtype="<f3"), "refused"),
        (encoded(dtype="<U0"), "refused"),
        (encoded(shape=[3]), "does not fit its data"),
        (encoded(shape=[-1]), "is no shape"),
        (encoded(shape=[2.0]), "is no shape"),
        (encoded(shape=[True, 2]), "is no shape"),
        (encoded(shape=[1] * 20), "is no shape"),
        (encoded(shape=[2**62, 2**62]), "does not fit its data"),
        (encoded(data="text"), "does not fit its data"),
        (msgpack.packb({b"__npgeneric__": True, b"data": [], b"dtype": "<f4"}), "a NumPy scalar that is"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}), "is no float32"),
        (msgpack.packb(msgpack.ExtType(4, b"pickle")), "extension type 4"),
        (msgpack.packb([0] * 100_001), "no msgpack message: .*max_array_len"),
        (msgpack.packb({str(i): 0 for i in range(100_001)}), "no msgpack message: .*max_map_len"),
        (msgpack.packb([[]] * 100_000), "more than 100000 values"),
        (b"\x81\xc0\xc0", "no msgpack message"),
        (b"", "no msgpack message"),
        (b"\x91" * 5000, "no msgpack message"),
        (b"\xdd\xff\xff\xff\xff", "no msgpack message"),
        (b"\xc4\xff", "no msgpack message"),
        (b"\xa2\xff\xfe", "no msgpack message"),
    ],
)
def test_hostile_messages_are_refused(message, words):
    with pytest.raises(WireError, match=words):
        unpack(message)


def message_or_refused(data: bytes) -> None:
    """Whatever arrives is refused, or is plain values that can be sent on."""
    try:
        message = unpack(data)
    except WireError:
        return
    assert len(pack({"echo": message})) > 0


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_a_message_or_refused(noise):
    message_or_refused(noise)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_a_message_or_refused(data):
    message = bytearray(pack({"observation.state": np.zeros((1, 3), np.float32), "prompt": "go left"}))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    message_or_refused(bytes(message[: data.draw(st.integers(0, len(message)))]))
