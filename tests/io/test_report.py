"""The report holds everything it shows, whatever the rollout was."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from spatia_jax.io import ClipReport, ClosedLoop, ReportData, RolloutProgress, contact_sheet, write_report, write_video
from spatia_jax.io.charts import EDIT, clip_color, map_from_above, provenance_colors

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Page(HTMLParser):
    """Collects addresses and text, and fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _clip(rng, t=5, prompt="a <b>bold</b> & quiet street", num_points=900, **more):
    frames = rng.integers(0, 255, (t, 16, 28, 3), np.uint8)
    holes = rng.random((t, 16, 28)) < 0.3
    seconds = {"project": 0.1, "denoise": 2.0, "map": 0.4}
    return ClipReport(
        prompt, np.where(holes[..., None], 0, frames).astype(np.uint8), holes, frames, seconds, num_points, **more
    )


def _data(rng, clips, **more):
    num_frames = sum(len(clip.frames) for clip in clips)
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (num_frames, 1, 1))
    poses[:, 0, 3] = -np.sin(np.linspace(0, np.pi, num_frames))
    return ReportData(
        title="There & back",
        clips=clips,
        fps=12.0,
        cam_from_world=poses,
        focal_x=0.9,
        positions=rng.normal(0, 2, (500, 3)),
        colors=rng.integers(0, 255, (500, 3), np.uint8),
        provenance=rng.integers(0, len(clips) + 1, 500),
        observed_points=400,
        **more,
    )


def test_report_is_one_file_without_outside_addresses(tmp_path):
    rng = np.random.default_rng(0)
    write_video(tmp_path / "video.mp4", rng.integers(0, 255, (4, 16, 28, 3), np.uint8), fps=12)
    clips = [
        _clip(rng),
        _clip(rng, references=rng.integers(0, 255, (3, 16, 28, 3), np.uint8), warnings=["it <leaves>"]),
    ]
    loop = ClosedLoop(23.456, 0.91, clips[0].frames[0], clips[-1].frames[-1])
    data = _data(rng, clips, video=tmp_path / "video.mp4", closed_loop=loop, settings={"seed": "0"}, capacity=10_000)
    write_report(tmp_path / "report.html", data)

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    words = "".join(page.words)
    assert "a <b>bold</b> & quiet street" in words  # shown, not interpreted
    assert "it <leaves>" in words
    assert "23.46 dB" in words
    assert sum(address.startswith("data:video/mp4") for address in page.addresses) == 1
    for address in page.addresses:
        if address.startswith("data:image"):
            Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).verify()


def test_large_video_is_linked_by_its_name(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "long.mp4").write_bytes(bytes(9 * 2**20))
    write_report(tmp_path / "report.html", _data(rng, [_clip(rng)], video=tmp_path / "long.mp4"))
    assert [a for a in _Page((tmp_path / "report.html").read_text()).addresses if not a.startswith("data:")] == [
        "long.mp4"
    ]


@pytest.mark.parametrize(("num_clips", "frames"), [(1, 1), (12, 3)])
def test_smallest_and_long_rollouts(tmp_path, num_clips, frames):
    rng = np.random.default_rng(0)
    clips = [
        _clip(rng, t=frames, prompt=f"prompt {k}", num_points=0 if num_clips == 1 else 500 + k)
        for k in range(num_clips)
    ]
    write_report(tmp_path / "report.html", _data(rng, clips))
    words = "".join(_Page((tmp_path / "report.html").read_text()).words)
    assert f"prompt {num_clips - 1}" in words


def _raster(svg):
    return np.array(Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]+)"', svg)[1]))))


def test_map_from_above_puts_things_where_they_are():
    """Camera at the origin looking along +z: ahead is up on the page, +x is right, and the ceiling is left out."""
    rng = np.random.default_rng(0)

    def blob(x, y, z):
        return np.array([x, y, z]) + rng.uniform(-0.3, 0.3, (300, 3))

    positions = np.concatenate([blob(-2, 1, 4), blob(2, 1, 4), blob(0, 1, 1), blob(0, -3, 3)])
    colors = np.repeat(np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]), 300, axis=0)
    svg = map_from_above(positions, colors, np.eye(3, 4)[None], half_angle=0.5, unit="m")
    raster = _raster(svg)
    center = [np.argwhere((raster == [*color, 255]).all(-1)).mean(0) for color in colors[[0, 300, 600]]]
    (left_y, left_x), (right_y, right_x), (near_y, near_x) = center
    assert left_x < near_x < right_x
    assert near_y > max(left_y, right_y) + 50
    assert not (raster == 255).all(-1).any()
    x, y = (float(number) for number in re.search(r'class="start" cx="([\d.]+)" cy="([\d.]+)"', svg).groups())
    assert abs(x - near_x) < 20
    assert y > near_y


def test_map_from_above_does_not_depend_on_the_world_frame():
    """The same scene in a turned and shifted world draws the same map, since the first camera sets its axes."""
    rng = np.random.default_rng(3)
    positions = rng.normal(0, 1, (400, 3))
    colors = rng.integers(0, 255, (400, 3), np.uint8)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    shift = np.array([5.0, -2.0, 1.0])
    poses = np.tile(np.eye(3, 4), (4, 1, 1))
    poses[:, 2, 3] = np.linspace(0, -1, 4)
    turned = np.concatenate(
        [poses[:, :, :3] @ rotation.T, (poses[:, :, 3] - poses[:, :, :3] @ rotation.T @ shift)[..., None]], -1
    )
    one = map_from_above(positions, colors, poses, half_angle=0.5, unit="m")
    other = map_from_above(positions @ rotation.T + shift, colors, turned, half_angle=0.5, unit="m")
    assert (_raster(one) != _raster(other)).any(-1).mean() < 0.01


def test_provenance_has_one_colour_a_clip():
    provenance = np.array([0, 1, 2, 3, EDIT])
    colors = provenance_colors(provenance, 3)
    assert len({tuple(color) for color in colors}) == 5
    assert tuple(colors[2]) == clip_color(2, 3)


def test_contact_sheet_places_every_picture():
    pictures = [np.full((4, 6, 3), k, np.uint8) for k in range(1, 6)]
    sheet = contact_sheet([pictures[:3], pictures[3:]], gap=2)
    assert sheet.shape == (14, 26, 3)
    assert [(sheet == k).all(-1).sum() for k in range(1, 6)] == [24] * 5


def test_progress_is_one_line_a_clip_away_from_a_terminal():
    output = io.StringIO()
    with RolloutProgress(num_clips=2, num_steps=3, console=Console(file=output)) as progress:
        for index in range(2):
            progress.start_clip(index, "a [red] car " + "x" * 100)
            progress.stage("denoise")
            progress.step(3)
            progress.finish_clip(num_points=1234)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("clip 2/2")
    assert "1,234 points" in lines[1]
    assert "[red]" in lines[1]
