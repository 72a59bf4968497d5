"""ROS 2 recordings in MCAP: messages that arrive when they like, aligned to steps of a fixed rate."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mode_datasets.convert import SourceOptions, detect, open_source
from mode_datasets.convert.align import check_gaps, grid, interpolate, nearest
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import ACTION, STATE

from .conftest import run, to_store

writer = pytest.importorskip("mcap_ros2.writer")
CAMERA = "observation.images.front"
HAND = "observation.images.hand"
KEYS = {
    STATE: ("/joint_states:position",),
    ACTION: ("/command:data",),
    CAMERA: ("/camera/image_raw",),
    HAND: ("/hand/compressed",),
}

HEADER = """================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
JOINTS = f"""std_msgs/Header header
string[] name
float64[] position
float64[] velocity
float64[] effort
{HEADER}"""
IMAGE = f"""std_msgs/Header header
uint32 height
uint32 width
string encoding
uint8 is_bigendian
uint32 step
uint8[] data
{HEADER}"""
COMPRESSED = f"""std_msgs/Header header
string format
uint8[] data
{HEADER}"""
NUMBERS = """std_msgs/MultiArrayLayout layout
float64[] data
================================================================================
MSG: std_msgs/MultiArrayLayout
std_msgs/MultiArrayDimension[] dim
uint32 data_offset
================================================================================
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""
SECOND = 10**9
JOINT_TIMES = np.arange(1000.0, 1002.0, 0.01)
CAMERA_TIMES = np.arange(1000.05, 1002.0, 1 / 30)


def position(t: float) -> list[float]:
    return [t, 2 * t + 1]


def picture(t: float) -> np.ndarray:
    """An image whose colour says when it was taken."""
    return np.full((6, 8, 3), [int(t * 100) % 256, 10, 200], np.uint8)


def header(t: float) -> dict:
    ns = round(t * SECOND)
    return {"stamp": {"sec": ns // SECOND, "nanosec": ns % SECOND}, "frame_id": ""}


def write_bag(
    path: Path,
    *,
    joints: np.ndarray = JOINT_TIMES,
    camera: np.ndarray = CAMERA_TIMES,
    names=("a", "b"),
    instruction: str = "",
    encoding: str = "rgb8",
) -> None:
    """A recording of two seconds; recorded 40 ms after messages were made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, writer.Writer(file, chunk_size=4096) as bag:
        kinds = {
            "sensor_msgs/msg/JointState": JOINTS,
            "sensor_msgs/msg/Image": IMAGE,
            "sensor_msgs/msg/CompressedImage": COMPRESSED,
            "std_msgs/msg/Float64MultiArray": NUMBERS,
        }
        schemas = {name: bag.register_msgdef(name, text) for name, text in kinds.items()}
        events = [(t, "/joint_states", "sensor_msgs/msg/JointState") for t in joints]
        events += [(t, "/camera/image_raw", "sensor_msgs/msg/Image") for t in camera]
        events += [(t, "/hand/compressed", "sensor_msgs/msg/CompressedImage") for t in camera]
        events += [(t, "/command", "std_msgs/msg/Float64MultiArray") for t in np.arange(1000.0, 1002.0, 0.05)]
        for t, topic, kind in sorted(events):
            if topic == "/joint_states":
                message = {
                    "header": header(t),
                    "name": list(names),
                    "position": position(t - 1000),
                    "velocity": [],
                    "effort": [],
                }
            elif topic == "/command":
                message = {"layout": {"dim": [], "data_offset": 0}, "data": [t - 1000, -1.0]}
            elif topic == "/camera/image_raw":
                pixels = picture(t - 1000)[..., ::-1] if encoding == "bgr8" else picture(t - 1000)
                padded = np.zeros((6, 30), np.uint8)
                padded[:, :24] = pixels.reshape(6, 24)
                message = {
                    "header": header(t), "height": 6, "width": 8, "encoding": encoding, "is_bigendian": 0,
                    "step": 30, "data": padded.tobytes(),
                }  # fmt: skip
            else:
                buffer = io.BytesIO()
                Image.fromarray(picture(t - 1000)).save(buffer, "PNG")
                message = {"header": header(t), "format": "png", "data": buffer.getvalue()}
            bag.write_message(
                topic, schemas[kind], message, log_time=round((t + (topic != "/command") * 0.04) * SECOND)
            )
        if instruction:
            bag.add_metadata("task", {"instruction": instruction})


def options(**changes: object) -> SourceOptions:
    return SourceOptions(**{"keys": KEYS, "fps": 20.0, "instruction": "wipe", **changes})


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_steps_of_a_fixed_rate_come_out(tmp_path: Path, encoding: str) -> None:
    write_bag(tmp_path / "bags" / "one" / "one_0.mcap", encoding=encoding)
    write_bag(tmp_path / "bags" / "two" / "two_0.mcap", encoding=encoding)
    assert detect(tmp_path / "bags").format == "mcap"
    store = to_store(tmp_path / "bags", tmp_path / "out.zarr", **vars(options()))
    assert store.num_episodes == 2
    assert store.features[STATE].names == ("a", "b")
    arrays = store.episode(1).arrays
    # From when the cameras begin (1.05) to when the commands end (1.95): messages count by their own time.
    times = 0.05 + np.arange(38 + 1) / 20
    times = times[: len(arrays[ACTION])]
    assert len(times) in (38, 39)
    np.testing.assert_allclose(arrays[STATE], np.stack([times, 2 * times + 1], 1), atol=0.0051)
    np.testing.assert_allclose(arrays[ACTION][:, 0], times, atol=1e-6)
    red = arrays[CAMERA][:, 0, 0].astype(int)
    # Half a frame of 30 Hz, and rounding to a hundredth.
    assert np.abs(red[:, 0] - times * 100).max() <= 1.7 + 1
    assert (red[:, 1:] == [10, 200]).all()
    np.testing.assert_array_equal(arrays[CAMERA], arrays[HAND])
    assert arrays[CAMERA].shape[1:] == (6, 8, 3)


def test_parts_of_a_field_can_be_chosen(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.mcap")
    whole = open_source(tmp_path / "a.mcap", None, options())[0]
    keys = {**KEYS, STATE: (f"{KEYS[STATE][0]}[1:]",)}
    part = open_source(tmp_path / "a.mcap", None, options(keys=keys))[0]
    assert part.features[STATE].names == ("b",)
    np.testing.assert_array_equal(part.episode(0).arrays[STATE], whole.episode(0).arrays[STATE][:, 1:])


def test_vectors_are_interpolated_on_request(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.mcap", joints=np.arange(1000.0, 1002.0, 0.09))
    exact = open_source(tmp_path / "a.mcap", None, options(interpolate=True, tolerance=0.1))[0].episode(0)
    times = 0.05 + np.arange(len(exact)) / 20
    np.testing.assert_allclose(exact.arrays[STATE][:, 0], times, atol=1e-5)
    rough = open_source(tmp_path / "a.mcap", None, options(tolerance=0.1))[0].episode(0)
    assert np.abs(rough.arrays[STATE][:, 0] - times).max() > 0.01


def test_gaps_are_reported_with_their_place_and_length(tmp_path: Path) -> None:
    seen = (CAMERA_TIMES < 1000.8) | (CAMERA_TIMES > 1001.3)
    write_bag(tmp_path / "bags" / "a.mcap", camera=CAMERA_TIMES[seen])
    write_bag(tmp_path / "bags" / "b.mcap")
    report = run(tmp_path / "bags", tmp_path / "out.zarr", **vars(options()))
    assert [s.name for s in report.skipped] == ["a.mcap"]
    message = (
        r"'/camera/image_raw' has 1 gaps .*within 0.05 s\); the longest is [89] steps long and begins 0.[78]"
    )
    with pytest.raises(DataError, match=message):
        raise DataError(report.skipped[0].reason)
    wide = open_source(tmp_path / "bags" / "a.mcap", None, options(tolerance=0.3))[0]
    assert len(wide.episode(0)) > 30


def test_a_recording_may_say_what_it_shows(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.mcap", instruction="wipe the table")
    source, _ = open_source(tmp_path / "a.mcap", None, options(instruction=None))
    assert source.episode(0).task.instruction == "wipe the table"
    write_bag(tmp_path / "b.mcap")
    with pytest.raises(DataError, match="does not say what it shows"):
        open_source(tmp_path / "b.mcap", None, options(instruction=None))


def test_topics_must_be_chosen(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.mcap")
    with pytest.raises(
        ConfigError, match=r"(?s)--key action=.*/command  std_msgs/msg/Float64MultiArray  40 messages"
    ):
        open_source(tmp_path / "a.mcap", None, options(keys=None))
    for keys, message in [
        ({ACTION: ("/comand:data",)}, r"no topic '/comand'.*/command"),
        ({ACTION: ("/command:position",)}, r"no field 'position'.*layout, data"),
        ({ACTION: ("/joint_states:name",)}, "holds no numbers"),
        ({ACTION: ("/camera/image_raw",)}, "needs topics of numbers"),
        ({ACTION: ("/command:data",), CAMERA: ("/command",)}, "needs one topic of images"),
    ]:
        with pytest.raises(DataError, match=message):
            open_source(tmp_path / "a.mcap", None, options(keys=keys))


def test_joints_in_another_order_are_refused(tmp_path: Path) -> None:
    write_bag(tmp_path / "bags" / "a.mcap")
    write_bag(tmp_path / "bags" / "b.mcap", names=("b", "a"))
    report = run(tmp_path / "bags", tmp_path / "out.zarr", **vars(options()))
    assert [s.reason for s in report.skipped] == [
        "'observation.state' has the dimensions b, a here, and a, b in a.mcap"
    ]


@pytest.mark.parametrize("keep", [10, 3000, -30])
def test_recordings_that_were_cut_short_are_named(tmp_path: Path, keep: int) -> None:
    write_bag(tmp_path / "bags" / "b.mcap")
    data = (tmp_path / "bags" / "b.mcap").read_bytes()
    write_bag(tmp_path / "bags" / "a.mcap")
    (tmp_path / "bags" / "b.mcap").write_bytes(data[:keep])
    report = run(tmp_path / "bags", tmp_path / "out.zarr", **vars(options()))
    assert [s.name for s in report.skipped] == ["b.mcap"]
    assert "mcap recover" in report.skipped[0].reason


def test_damaged_messages_are_named(tmp_path: Path) -> None:
    write_bag(tmp_path / "bags" / "a.mcap")
    write_bag(tmp_path / "bags" / "b.mcap")
    data = bytearray((tmp_path / "bags" / "b.mcap").read_bytes())
    data[2000:2400] = bytes(400)
    (tmp_path / "bags" / "b.mcap").write_bytes(data)
    report = run(tmp_path / "bags", tmp_path / "out.zarr", **vars(options()))
    assert [s.name for s in report.skipped] == ["b.mcap"]
    assert "b.mcap is damaged in topic" in report.skipped[0].reason


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True).map(sorted),
    st.lists(st.integers(0, 400), min_size=1, max_size=20).map(sorted),
)
@settings(deadline=None)
def test_nearest_is_nearest(times: list[int], steps: list[int]) -> None:
    stamps, at = np.array(times, float), np.array(steps, float) / 2
    chosen, distance = nearest(stamps, at)
    expected = np.abs(stamps[:, None] - at).min(0)
    np.testing.assert_array_equal(distance, expected)
    np.testing.assert_array_equal(np.abs(stamps[chosen] - at), expected)


def test_the_grid_covers_what_all_topics_cover() -> None:
    stamps = {"/a": np.array([0.0, 0.5, 1.0]), "/b": np.array([0.2, 0.9, 1.6])}
    np.testing.assert_allclose(grid(stamps, 5), [0.2, 0.4, 0.6, 0.8, 1.0])
    with pytest.raises(DataError, match="'/b' has no messages"):
        grid({"/a": np.array([0.0]), "/b": np.array([])}, 5)
    with pytest.raises(DataError, match=r"'/a' ends 1.00 s before '/b' begins"):
        grid({"/a": np.array([0.0, 1.0]), "/b": np.array([2.0, 3.0])}, 5)


def test_interpolation_is_exact_on_lines() -> None:
    times, at = np.array([0.0, 1.0, 4.0]), np.array([0.0, 0.5, 2.0, 4.0])
    values = np.stack([3 * times, 1 - times], 1)
    np.testing.assert_allclose(interpolate(times, values, at), np.stack([3 * at, 1 - at], 1))


def test_no_gap_within_the_tolerance() -> None:
    check_gaps("/a", np.arange(3.0), np.array([0.0, 0.1, 0.0]), 0.1)
    with pytest.raises(DataError, match=r"2 gaps \(3 of 5 steps"):
        check_gaps("/a", np.arange(5.0), np.array([1.0, 0.0, 0.0, 1.0, 1.0]), 0.1)
