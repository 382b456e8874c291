"""Odd files become plain arrays or one clear line; the crop and the intrinsics agree."""

import numpy as np
import pytest
from PIL import Image

from spatia_jax.errors import InputError
from spatia_jax.io import adjust_intrinsics, fit_image, fit_map, read_depth, read_image, read_mask, write_png

RAMP = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
PICTURE = np.stack([RAMP, RAMP.T.reshape(12, 20), 255 - RAMP], axis=-1)


def test_png_round_trip_is_exact(tmp_path):
    write_png(tmp_path / "a.png", PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURE)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = Image.fromarray(RAMP)
    image = Image.fromarray(RAMP.astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    read = read_image(path)
    assert read.shape == (12, 20, 3)
    assert read.dtype == np.uint8
    if mode != "1":
        assert np.abs(read.astype(int) - RAMP[..., None]).max() <= 3


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read[:2] == 0).all()
    assert (read[2:] == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn a quarter clockwise
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(PICTURE, -1))


def _truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such image file"),
        (lambda path: path.mkdir(), "no such image file"),
        (lambda path: path.write_text("hello"), "cannot be read as an image"),
        (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        (_truncated, "cannot be read as an image"),
    ],
)
def test_unreadable_image_is_one_line(tmp_path, write, message):
    write(tmp_path / "a.png")
    with pytest.raises(InputError, match=message) as raised:
        read_image(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_depth_png_is_millimetres_and_both_ends_are_holes(tmp_path):
    depth = np.array([[0, 1], [1234, 65535]], np.uint16)
    write_png(tmp_path / "d.png", depth)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), [[0, 0.001], [1.234, 0]])


def test_depth_array_is_metres_and_nonsense_is_holes(tmp_path):
    np.save(tmp_path / "d.npy", np.array([[np.nan, -1, np.inf], [0, 2.5, 3]], np.float64))
    read = read_depth(tmp_path / "d.npy", size=(2, 3))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, [[0, 0, 0], [0, 2.5, 3]])


def test_bad_depth_is_said(tmp_path):
    write_png(tmp_path / "eight.png", RAMP)
    np.save(tmp_path / "cube.npy", np.ones((2, 3, 4)))
    np.save(tmp_path / "empty.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "other.npy", np.ones((2, 3)))
    np.savez(tmp_path / "two.npz", a=np.ones((2, 3)), b=np.ones((2, 3)))
    (tmp_path / "text.npy").write_text("hello")
    for name, message in [
        ("eight.png", "16-bit"),
        ("cube.npy", "shape"),
        ("empty.npy", "no pixel"),
        ("two.npz", "must hold one array, holds 2"),
        ("text.npy", "cannot be read"),
        ("missing.npy", "no such"),
    ]:
        with pytest.raises(InputError, match=message):
            read_depth(tmp_path / name)
    with pytest.raises(InputError, match="the depth is 3x2 .* the image it belongs to 20x12"):
        read_depth(tmp_path / "other.npy", size=(12, 20))


@pytest.mark.parametrize("scale", [True, 1, 255, np.float32(0.9)])
def test_masks_of_every_kind_agree(tmp_path, scale):
    mask = np.random.default_rng(1).random((3, 12, 20)) > 0.5
    np.save(tmp_path / "m.npy", mask if scale is True else (mask * scale).astype(np.asarray(scale).dtype))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.npy", size=(12, 20)), mask)
    write_png(tmp_path / "m.png", mask[0])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask[:1])
    with pytest.raises(InputError, match="mask is 20x12"):
        read_mask(tmp_path / "m.png", size=(20, 12))


def test_fit_says_what_it_cuts():
    image = np.zeros((90, 160, 3), np.uint8)
    assert str(fit_image(image, 45, 80)[1]) == "160x90 resized to 80x45 (width x height)"
    text = str(fit_image(image, 100, 100)[1])
    assert "35 pixels cut off at the left and right (44% of the picture)" in text


@pytest.mark.parametrize("size", [(128, 224), (100, 100), (40, 200), (300, 123)])
def test_crop_and_intrinsics_follow_the_same_point(size):
    """A dot at the projection of a 3D point stays at its projection through the adjusted intrinsics."""
    original = (240, 320)
    intrinsics = np.array([0.9, 1.2, 0.48, 0.53])
    point = np.array([0.03, -0.02, 1.0])

    def pixel(k, height, width):
        x, y = k[:2] * point[:2] / point[2] + k[2:]
        return np.array([x * width, y * height]) - 0.5

    columns, rows = np.meshgrid(np.arange(original[1]), np.arange(original[0]))
    u, v = pixel(intrinsics, *original)
    dot = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 6.0**2))
    fitted, crop = fit_image(np.repeat((255 * dot).astype(np.uint8)[..., None], 3, -1), *size)
    assert fitted.shape == (*size, 3)

    weight = fitted[..., 0].astype(float)
    found = np.array([(weight.sum(0) @ np.arange(size[1])), (weight.sum(1) @ np.arange(size[0]))]) / weight.sum()
    np.testing.assert_allclose(found, pixel(adjust_intrinsics(intrinsics, crop), *size), atol=0.1)


def test_fit_map_takes_the_pixels_that_fit_image_takes():
    depth = np.arange(60 * 80, dtype=np.float32).reshape(60, 80)
    np.testing.assert_array_equal(fit_map(depth, 60, 80), depth)
    np.testing.assert_array_equal(fit_map(depth, 60, 40), depth[:, 20:60])
    assert set(np.unique(fit_map(depth, 33, 77))) <= set(np.unique(depth))
    assert fit_map(np.zeros((5, 60, 80), bool), 30, 40).shape == (5, 30, 40)


def test_real_photo(shared_dir):
    image = read_image(shared_dir / "cases" / "case_3" / "img.jpg")
    mask = read_mask(shared_dir / "cases" / "case_3" / "mask.png", size=image.shape[:2])
    assert image.shape == (704, 1248, 3)
    assert 0.01 < mask.mean() < 0.9
