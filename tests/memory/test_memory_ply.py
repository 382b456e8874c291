"""Point maps as PLY files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.errors import InputError
from spatia_jax.memory import EDIT, PointMap, read_ply, write_ply


def point_map(n=20) -> PointMap:
    """Every third slot empty, colours on the 8-bit grid."""
    rng = np.random.default_rng(0)
    filled = np.arange(n) % 3 > 0
    return PointMap(
        positions=jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        colors=jnp.asarray(rng.integers(0, 256, (n, 3)) / 255.0, jnp.float32),
        weights=jnp.asarray(rng.uniform(0.1, 9, n), jnp.float32),
        counts=jnp.asarray(rng.integers(1, 99, n), jnp.int32),
        provenance=jnp.asarray(np.where(filled, rng.integers(0, 5, n), -1), jnp.int32).at[1].set(EDIT),
        keyframes=jnp.asarray(rng.integers(-1, 9, n), jnp.int32),
    )


def test_round_trip_keeps_the_points(tmp_path):
    before = point_map()
    write_ply(tmp_path / "map.ply", before)
    after = read_ply(tmp_path / "map.ply", capacity=30)
    valid = np.asarray(before.valid)
    assert after.capacity == 30
    assert int(after.num_points) == valid.sum()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(b)[: valid.sum()], np.asarray(a)[valid], atol=1e-6),
        before, after,
    )  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.ply"]


def test_an_empty_map_survives(tmp_path):
    before = point_map()
    write_ply(tmp_path / "map.ply", PointMap(**{**vars(before), "provenance": jnp.full(20, -1, jnp.int32)}))
    assert int(read_ply(tmp_path / "map.ply").num_points) == 0


def test_normals_and_radii_are_written_where_they_are_known(tmp_path):
    points = point_map()
    normals, radii = np.zeros((20, 3), np.float32), np.arange(20, dtype=np.float32)
    normals[:, 2] = -1
    write_ply(tmp_path / "map.ply", points, (normals, radii))
    data = (tmp_path / "map.ply").read_bytes()
    head, body = data.split(b"end_header\n", 1)
    assert [line.split()[-1] for line in head.decode().splitlines() if "property" in line][-4:] == [
        "nx", "ny", "nz", "radius",
    ]  # fmt: skip
    valid = np.asarray(points.valid)
    written = np.frombuffer(body, np.uint8).reshape(valid.sum(), -1)[:, -8:].copy().view("<f4")
    np.testing.assert_array_equal(written[:, 0], -1)
    np.testing.assert_array_equal(written[:, 1], radii[valid])
    assert int(read_ply(tmp_path / "map.ply").num_points) == valid.sum()


HEADER = (
    "ply\nformat {} 1.0\ncomment by hand\nelement vertex 2\nproperty double z\nproperty float x\nproperty float y\n"
)


def test_text_of_another_program_is_read_as_an_edit(tmp_path):
    path = tmp_path / "other.ply"
    path.write_text(
        HEADER.format("ascii") + "property uchar red\nproperty uchar green\nproperty uchar blue\nelement face 1\n"
        "property list uchar int vertex_index\nend_header\n3 1 2 255 0 51\n6 4 5 0 0 0\n2 0 1\n"
    )
    read = read_ply(path)
    np.testing.assert_allclose(read.positions, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(read.colors, [[1, 0, 0.2], [0, 0, 0]], atol=1e-6)
    assert (np.asarray(read.provenance) == EDIT).all()
    assert (np.asarray(read.keyframes) == -1).all()
    assert (np.asarray(read.counts) == 1).all()


def test_binary_without_colours_is_grey(tmp_path):
    path = tmp_path / "other.ply"
    body = np.array([(3.0, 1, 2), (6.0, 4, 5)], [("z", "<f8"), ("x", "<f4"), ("y", "<f4")]).tobytes()
    path.write_bytes((HEADER.format("binary_little_endian") + "end_header\n").encode() + body)
    np.testing.assert_allclose(read_ply(path).positions, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(read_ply(path).colors, 0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("solid stl\n", "not a PLY file"),
        ("ply\nformat ascii 1.0\nelement vertex 1\n", "end_header"),
        (HEADER.format("binary_big_endian") + "end_header\n", "binary_big_endian"),
        (HEADER.format("binary_little_endian") + "end_header\n1234", "cut short"),
        (HEADER.format("ascii") + "end_header\n1 2 3\n", "2 lines of 3 numbers"),
        (HEADER.format("ascii") + "end_header\n1 2 three\n4 5 6\n", "2 lines of 3 numbers"),
        (HEADER.format("ascii") + "end_header\n1 2 nan\n4 5 6\n", "no finite position"),
        (HEADER.format("ascii").replace("float y", "float why") + "end_header\n1 2 3\n4 5 6\n", "x, y and z"),
        (HEADER.format("ascii") + "property int provenance\nend_header\n1 2 3 -7\n4 5 6 0\n", "provenance -7"),
        (HEADER.format("ascii") + "property float x\nend_header\n1 2 3 4\n4 5 6 7\n", "same name"),
        ("ply\nformat ascii 1.0\nend_header\n", "no vertices"),
        ("ply\nelement vertex 0\nend_header\n", "no format"),
        (HEADER.format("ascii").replace("float x", "list uchar int x") + "end_header\n", "not a number"),
    ],
)
def test_malformed_files_are_refused(tmp_path, text, says):
    path = tmp_path / "bad.ply"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        read_ply(path)
    assert "bad.ply" in str(caught.value)


def test_absent_file_and_too_many_points_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.ply"):
        read_ply(tmp_path / "none.ply")
    write_ply(tmp_path / "map.ply", point_map())
    with pytest.raises(InputError, match="raise the capacity"):
        read_ply(tmp_path / "map.ply", capacity=3)
