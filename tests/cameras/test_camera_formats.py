"""Camera files: round trips, real files, and one clear line for each way in which a file can be wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax.cameras import FORMATS, Cameras, read_cameras, write_cameras
from spatia_jax.cameras.formats import recognise
from spatia_jax.errors import InputError

SIZE = (480, 640)
IDENTITY = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def some_cameras(views: int) -> Cameras:
    poses = jaxlie.SE3.sample_uniform(jax.random.key(0), (views,))
    return Cameras.from_se3(poses, jnp.array([0.82464147, 1.4608656, 0.49907562, 0.5008033]))


def place_for(name: str, folder: Path) -> Path:
    return folder / "path.txt" if name in ("tum", "realestate10k") else folder / "scene"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("views", [1, 12])
def test_every_format_gives_back_what_was_written(name, views, tmp_path):
    cameras, path = some_cameras(views), place_for(name, tmp_path)
    write_cameras(path, cameras, name, SIZE)
    assert recognise(path) is FORMATS[name]
    again = read_cameras(path, cameras.intrinsics if name == "tum" else None, SIZE)
    np.testing.assert_allclose(again.cam_from_world, cameras.cam_from_world, atol=1e-6)
    np.testing.assert_allclose(again.intrinsics, cameras.intrinsics, atol=1e-7)
    assert not list(tmp_path.rglob(".*")), "temporary files are left"


@pytest.mark.parametrize("name", ["spatia", "realestate10k"])
def test_formats_with_our_convention_are_exact(name, tmp_path):
    cameras, path = some_cameras(5), place_for(name, tmp_path)
    write_cameras(path, cameras, name)
    again = read_cameras(path)
    np.testing.assert_array_equal(again.cam_from_world, cameras.cam_from_world)
    np.testing.assert_array_equal(again.intrinsics, cameras.intrinsics)


@pytest.mark.parametrize("name", ["spatia", "realestate10k", "nerfstudio", "colmap"])
def test_a_zoom_survives(name, tmp_path):
    cameras = some_cameras(3)
    zoom = jnp.array([1.0, 1.5, 2.0])[:, None] * jnp.array([1.0, 1.0, 0.0, 0.0]) + jnp.array([0.0, 0.0, 1.0, 1.0])
    cameras = Cameras(cameras.cam_from_world, cameras.intrinsics * zoom)
    write_cameras(place_for(name, tmp_path), cameras, name, SIZE)
    again = read_cameras(place_for(name, tmp_path))
    np.testing.assert_allclose(again.intrinsics, cameras.intrinsics, atol=1e-7)


def test_given_intrinsics_replace_those_of_the_file(tmp_path):
    write_cameras(tmp_path, some_cameras(3))
    (tmp_path / "other.txt").write_text("[1.0 2.0 0.5 0.5]")
    assert read_cameras(tmp_path, tmp_path / "other.txt").intrinsics[2].tolist() == [1.0, 2.0, 0.5, 0.5]
    assert read_cameras(tmp_path, (1.0, 1.5, 0.5, 0.5)).intrinsics[0].tolist() == [1.0, 1.5, 0.5, 0.5]


def test_it_says_what_it_recognised(tmp_path, caplog):
    write_cameras(tmp_path, some_cameras(2))
    with caplog.at_level(logging.INFO, "spatia_jax"):
        read_cameras(tmp_path)
    assert "Spatia w2c.txt (world-to-camera, OpenCV axes" in caplog.text


def test_what_was_there_survives_a_failed_write(tmp_path, monkeypatch):
    write_cameras(tmp_path / "w2c.txt", some_cameras(2))
    before = (tmp_path / "w2c.txt").read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_cameras(tmp_path / "w2c.txt", some_cameras(3))
    assert (tmp_path / "w2c.txt").read_text() == before
    assert {file.name for file in tmp_path.iterdir()} == {"w2c.txt", "intrinsics.txt"}


def test_nearly_orthonormal_rotations_are_projected(tmp_path):
    noisy = np.array(IDENTITY) + np.pad(np.random.default_rng(0).normal(0, 5e-4, (3, 3)), ((0, 1), (0, 1)))
    (tmp_path / "w2c.txt").write_text(json.dumps(noisy.tolist()))
    rotation = np.asarray(read_cameras(tmp_path, (1, 1, 0.5, 0.5)).rotation[0])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(rotation, noisy[:3, :3], atol=2e-3)


# Conventions, against numbers worked out by hand ----------------------------------------------------


def test_transforms_json_is_camera_to_world_opengl_with_pixel_centres_at_one_half(tmp_path):
    pose = [[1.0, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1]]  # at (3, 4, 5), looking along -z, y up
    content = {"w": 640, "h": 480, "fl_x": 320, "cx": 320, "cy": 240, "frames": [{"transform_matrix": pose}]}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    cameras = read_cameras(tmp_path)
    np.testing.assert_allclose(cameras.centers, [[3, 4, 5]], atol=1e-6)
    np.testing.assert_allclose(cameras[0].transform(jnp.array([[3.0, 5.0, 3.0]])), [[0, -1, 2]], atol=1e-6)
    np.testing.assert_allclose(cameras.intrinsics[0], [0.5, 320 / 480, 0.5, 0.5], rtol=1e-6)
    del content["fl_x"], content["w"], content["h"], content["cx"], content["cy"]
    content["camera_angle_x"] = np.pi / 2
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    np.testing.assert_allclose(read_cameras(tmp_path, image_size=SIZE).intrinsics, cameras.intrinsics, rtol=1e-6)


def test_tum_is_camera_to_world_with_the_scalar_last(tmp_path):
    half = np.sqrt(0.5)  # a quarter turn about y: looking along +x
    (tmp_path / "traj.txt").write_text(f"# timestamp tx ty tz qx qy qz qw\n0.0 1 2 3 0 {half} 0 {half}\n")
    cameras = read_cameras(tmp_path / "traj.txt", (1, 1, 0.5, 0.5))
    np.testing.assert_allclose(cameras.centers, [[1, 2, 3]], atol=1e-6)
    np.testing.assert_allclose(cameras[0].transform(jnp.array([[3.0, 2.0, 3.0]])), [[0, 0, 2]], atol=1e-6)


def test_colmap_lists_views_by_name_whatever_their_order(tmp_path):
    (tmp_path / "cameras.txt").write_text("# models\n7 SIMPLE_PINHOLE 640 480 320 320 240\n")
    (tmp_path / "images.txt").write_text("# images\n1 1 0 0 0 0 0 2 7 b c.png\n\n2 1 0 0 0 0 0 1 7 a.png\n1 2 -1\n")
    cameras = read_cameras(tmp_path)
    np.testing.assert_array_equal(cameras.translation[:, 2], [1, 2])
    np.testing.assert_allclose(cameras.intrinsics[0], [0.5, 320 / 480, 0.5, 0.5], rtol=1e-6)


# Real files -----------------------------------------------------------------------------------------


def angle(cameras: Cameras) -> float:
    """Largest angle (degrees) from the first view."""
    turned = cameras.as_se3().rotation() @ jaxlie.SO3(cameras.as_se3().rotation().wxyz[:1]).inverse()
    return float(np.degrees(np.linalg.norm(turned.log(), axis=-1).max()))


@pytest.mark.parametrize(("case", "views", "degrees"), [(1, 193, 22), (2, 193, 32.7), (3, 121, 38.8)])
def test_released_cases(shared_dir, tmp_path, case, views, degrees):
    cameras = read_cameras(shared_dir / "cases" / f"case_{case}")
    assert len(cameras) == views
    assert angle(cameras) == pytest.approx(degrees, abs=1)
    write_cameras(tmp_path, cameras)
    np.testing.assert_array_equal(read_cameras(tmp_path).cam_from_world, cameras.cam_from_world)


def test_realestate10k_clips(shared_dir):
    files = sorted((shared_dir / "data" / "re10k_clips").glob("*.txt"))
    assert files
    for file in files:
        cameras = read_cameras(file)
        assert len(cameras) == 16
        np.testing.assert_allclose(cameras.intrinsics[:, 1] / cameras.intrinsics[:, 0], 1280 / 720, rtol=1e-3)


def test_seven_scenes_depth_agrees_between_frames(shared_dir):
    """The direction of the poses is right: depth of one frame, seen from another, is the depth measured there."""
    image = pytest.importorskip("PIL.Image")
    folder = shared_dir / "data" / "7scenes_redkitchen"
    cameras = read_cameras(folder, image_size=SIZE)
    assert len(cameras) == 125
    depth = [np.array(image.open(folder / f"frame-{n:06d}.depth.png")) / 1000.0 for n in (80, 88)]
    first = jnp.asarray(np.where(depth[0] < 60, depth[0], 0), jnp.float32)
    points = np.asarray(cameras[10].unproject(first))[::8, ::8].reshape(-1, 3)
    uv, z = (np.asarray(x) for x in cameras[11].project(jnp.asarray(points), *SIZE))
    u, v = np.round(uv).astype(int).T
    seen = (np.asarray(first)[::8, ::8].ravel() > 0) & (u >= 0) & (u < 640) & (v >= 0) & (v < 480)
    there = depth[1][v[seen], u[seen]]
    measured = (there > 0) & (there < 60)
    assert np.median(np.abs(there - z[seen])[measured] / there[measured]) < 0.01


# Errors ---------------------------------------------------------------------------------------------

POSE = json.dumps(IDENTITY)
ROW = "0 0.5 0.9 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"


def matrix(**changed: float) -> str:
    """The identity pose with entries changed: r00=2 is row 0, column 0."""
    rows = [list(row) for row in IDENTITY]
    for name, value in changed.items():
        rows[int(name[1])][int(name[2])] = value
    return json.dumps(rows)


WRONG = {
    "empty": ({"w2c.txt": ""}, "w2c.txt: is empty"),
    "not json": ({"w2c.txt": f"{POSE}\n[[1, 2\n"}, "w2c.txt:2: not valid JSON"),
    "ragged": ({"w2c.txt": "[[1, 0, 0, 0], [0, 1, 0], [0, 0, 1, 0]]"}, "w2c.txt:1: expected a 3x4 or 4x4 matrix"),
    "words": ({"w2c.txt": '[["a", 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]'}, "expected a 3x4 or 4x4 matrix"),
    "two rows": ({"w2c.txt": "[[1, 0, 0, 0], [0, 1, 0, 0]]"}, "of shape 2x4, expected 3x4 or 4x4"),
    "nan": ({"w2c.txt": f"{POSE}\n{POSE}\n{matrix(r03=float('nan'))}"}, "w2c.txt:3: value 4 is nan"),
    "infinite": ({"w2c.txt": matrix(r13=float("inf"))}, "value 8 is inf"),
    "mirror": ({"w2c.txt": matrix(r00=-1)}, r"w2c.txt:1: the left 3x3 mirrors space \(determinant -1.0000\)"),
    "scaled": (
        {"w2c.txt": f"{POSE}\n{matrix(r00=1.05)}"},
        r"w2c.txt:2: .* is not a rotation .* by 0.103, determ.* 1.05",
    ),
    "zero": ({"w2c.txt": matrix(r00=0, r11=0, r22=0)}, "is not a rotation"),
    "transposed": ({"w2c.txt": matrix(r30=1.5)}, r"the last row is .* \(is the matrix transposed\?\)"),
    "no intrinsics": ({"w2c.txt": POSE}, "has no intrinsics here; pass intrinsics="),
    "three intrinsics": ({"w2c.txt": POSE, "intrinsics.txt": "0.8 1.4 0.5"}, "intrinsics.txt:1: 3 values, expected 4"),
    "intrinsics words": ({"w2c.txt": POSE, "intrinsics.txt": "0.8 f 0.5 0.5"}, "value 2 is 'f', expected a number"),
    "pixels": ({"w2c.txt": POSE, "intrinsics.txt": "1029 1028 624 352"}, "looks like pixels; divide by width/height"),
    "no focal length": (
        {"w2c.txt": POSE, "intrinsics.txt": "0 1.4 0.5 0.5"},
        "focal lengths 0, 1.4, expected both above",
    ),
    "counts": ({"w2c.txt": f"{POSE}\n" * 3, "intrinsics.txt": "1 1 0.5 0.5\n" * 2}, "3 poses but 2 intrinsics"),
    "re10k short": ({"path.txt": f"https://a\n{ROW}\n{ROW} 1\n"}, "path.txt:3: 20 values, expected 19"),
    "re10k header only": ({"path.txt": "https://a\n"}, "holds an address and no frames"),
    "re10k pixels": ({"path.txt": f"https://a\n{ROW.replace('0.9', '500')}"}, "path.txt:2: .*looks like pixels"),
    "unknown": ({"path.txt": "1 2 3\n"}, "3 values a line is no known camera format"),
    "tum quaternion": ({"path.txt": "0 0 0 0 0 0 0 2\n"}, "path.txt:1: a quaternion of length 2.0000"),
    "binary": ({"path.txt": b"\xff\xfe\x00\x01"}, "is not a text file"),
    "empty folder": ({"notes.md": "hello"}, "holds no cameras; expected w2c.txt"),
    "no frames": ({"transforms.json": "{}"}, 'no "frames"'),
    "no matrix": ({"transforms.json": '{"frames": [{}]}'}, 'frame 0: no "transform_matrix"'),
    "no size": (
        {"transforms.json": json.dumps({"frames": [{"transform_matrix": IDENTITY}]})},
        "frame 0: no image size",
    ),
    "normalised": (
        {"transforms.json": json.dumps({"w": 9, "h": 9, "fl_x": 0.8, "frames": [{"transform_matrix": IDENTITY}]})},
        "look normalised, expected pixels",
    ),
    "distorted": (
        {"transforms.json": json.dumps({"k1": 0.1, "frames": [{"transform_matrix": IDENTITY}]})},
        "the lens is distorted",
    ),
    "colmap model": (
        {"images.txt": "", "cameras.txt": "1 OPENCV 9 9 9 9 4 4 0 0 0 0"},
        "camera model OPENCV, expected",
    ),
    "colmap camera": (
        {"images.txt": "1 1 0 0 0 0 0 1 2 a.png", "cameras.txt": "1 PINHOLE 9 9 9 9 4 4"},
        "images.txt:1: camera 2 is not in cameras.txt",
    ),
    "7-scenes rows": ({"frame-000000.pose.txt": "1 0 0 0\n"}, "frame-000000.pose.txt: 1 lines, expected 4"),
    "7-scenes lost": ({"frame-000000.pose.txt": "-inf 0 0 0\n" * 4}, "frame-000000.pose.txt:1: value 1 is -inf"),
    "7-scenes size": (
        {
            "frame-000000.pose.txt": "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1",
            "camera-intrinsics.txt": "9 0 9\n0 9 9\n0 0 1",
        },
        r"pass image_size=\(height, width\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_gets_one_clear_line(name, tmp_path):
    files, message = WRONG[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    path = tmp_path / "path.txt" if "path.txt" in files else tmp_path
    with pytest.raises(InputError, match=message) as caught:
        read_cameras(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value), "the message names the file"


def test_wrong_arguments_get_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.txt: no such file"):
        read_cameras(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="expected one of spatia, realestate10k"):
        write_cameras(tmp_path / "x", some_cameras(2), "fbx")
    with pytest.raises(InputError, match="expected a path of at least one view"):
        write_cameras(tmp_path / "x", some_cameras(2)[0])
    zooming = Cameras(some_cameras(2).cam_from_world, jnp.array([[1.0, 1.0, 0.5, 0.5], [1.1, 1.1, 0.5, 0.5]]))
    zooming = Cameras(some_cameras(2).cam_from_world, jnp.array([[1.0, 1.0, 0.5, 0.5], [1.1, 1.1, 0.5, 0.5]]))
    with pytest.raises(InputError, match="but these cameras zoom"):
        write_cameras(tmp_path / "x", zooming, "7scenes", SIZE)
    for name in ("7scenes", "nerfstudio", "colmap"):
        with pytest.raises(InputError, match=r"pass image_size=\(height, width\)"):
            write_cameras(tmp_path / "x", some_cameras(2), name)
    write_cameras(tmp_path, some_cameras(2))
    with pytest.raises(InputError, match=r"expected 4 numbers \(fx fy cx cy\)"):
        read_cameras(tmp_path, (1.0, 1.0))
