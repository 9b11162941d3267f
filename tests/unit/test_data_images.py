"""Pictures: what is refused and why, what is changed, and what stays byte for byte."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from stages.data import images
from stages.data.formats import KEPT, is_picture, sniff
from stages.data.images import ImageLimits, ImageRejected, check, decode, load, resolve
from stages.data.narrow import too_narrow

LIMITS = ImageLimits(max_pixels=10_000, refuse_pixels=1_000_000, max_bytes=500_000)


def encoded(image: Image.Image, format_: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    image = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (image, image.transpose(Image.Transpose.ROTATE_180), image))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    return exif


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims its size: opening it is cheap, decoding it would not be."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 100) + b"IDAT"


def reason(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageRejected) as caught:
        check(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_good_picture_keeps_its_bytes(format_):
    data = encoded(gradient(40, 30), format_)
    checked = check(data, LIMITS)
    assert checked.bytes == data
    assert (checked.width, checked.height, checked.format) == (40, 30, format_.lower())
    assert decode(checked.bytes).mode == "RGB"


def test_the_format_is_told_by_content_and_unknown_ones_are_refused():
    assert sniff(encoded(gradient(8, 8), "PNG")) == "png"
    assert reason(b"<html>not found</html>") == "unknown format"
    assert reason(b"") == "unknown format"


@pytest.mark.parametrize(("source", "stored"), [("BMP", "png"), ("TIFF", "png"), ("AVIF", "jpeg")])
def test_what_not_every_reader_knows_is_stored_as_what_it_does(source, stored):
    exif = {} if source == "BMP" else {"exif": turned(6)}
    data = encoded(gradient(40, 20), source, **exif)
    checked = check(data, LIMITS)
    assert sniff(data) == source.lower() and checked.format == stored == sniff(checked.bytes) and stored in KEPT
    assert (checked.width, checked.height) == ((40, 20) if source == "BMP" else (20, 40))
    assert reason(data[: len(data) // 2]) in ("truncated image", "broken image")


def test_heic_is_read_where_its_decoder_is_installed():
    pytest.importorskip("pillow_heif").register_heif_opener()
    checked = check(encoded(gradient(40, 20), "HEIF"), LIMITS)
    assert (checked.width, checked.height, checked.format) == (40, 20, "jpeg") and sniff(checked.bytes) == "jpeg"


def test_heic_is_named_where_its_decoder_is_not_installed(monkeypatch):
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(60)
    assert sniff(data) == "heif"
    monkeypatch.setattr(images, "reads_heif", lambda: False)
    with pytest.raises(ImageRejected, match="HEIC needs pillow-heif: install pillow-heif, or convert"):
        check(data, LIMITS)


def test_a_file_with_another_name_is_a_picture_by_its_first_bytes_unless_it_may_be_a_cameras_raw_file():
    assert all(is_picture(encoded(gradient(8, 8), kind)) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"))
    assert not is_picture(encoded(gradient(8, 8), "TIFF"))
    for start in (b"BMW, Audi and other words", b"\0\0\0\x18ftypmp42\0\0\0\0mp41isom", b"", b"RIFF\0\0\0\0WAVE"):
        assert not is_picture(start)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_an_unknown_scale_are_refused(mode):
    assert reason(encoded(Image.new(mode, (8, 8)), "TIFF")) == "32-bit pixels"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_picture_is_refused(format_):
    data = encoded(gradient(90, 90), format_)
    assert reason(data[: len(data) * 2 // 3]) in ("truncated image", "broken image")


def test_why_a_picture_is_refused_is_the_same_in_every_run():
    data = encoded(gradient(90, 90), "TIFF", compression="tiff_lzw")
    with warnings.catch_warnings(), pytest.raises(ImageRejected) as caught:
        warnings.simplefilter("error")
        check(data[:-2], LIMITS)
    assert str(caught.value) == "broken image: tiff header: it can't be read"


def test_a_png_with_one_damaged_byte_is_refused_wherever_it_lies():
    for options in ({}, {"compress_level": 0}):
        data = encoded(gradient(60, 90), "PNG", **options)
        for place in range(41, len(data) - 12, len(data) // 50):
            damaged = data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :]
            assert reason(damaged) in ("truncated image", "broken image"), place


def test_a_picture_whose_exif_can_not_be_read_is_written_anew_without_it():
    data = encoded(gradient(40, 20), "PNG", exif=b"Exif\0\0neither MM nor II")
    checked = check(data, LIMITS)
    assert checked.bytes != data and (checked.width, checked.height) == (40, 20)
    assert decode(checked.bytes).tobytes() == gradient(40, 20).tobytes()


def test_a_picture_that_only_claims_to_be_huge_is_refused_without_decoding():
    assert reason(png_header(2_000, 2_000)) == "huge image"
    assert reason(png_header(60_000, 60_000)) == "huge image"  # PIL itself calls this a bomb


def test_too_many_bytes_are_refused():
    assert reason(encoded(gradient(90, 90), "PNG"), ImageLimits(max_bytes=100)) == "huge image"


def test_sides_that_no_vision_tower_takes_are_refused():
    assert reason(encoded(gradient(402, 2), "PNG")) == "narrow image"


def test_sides_are_measured_as_they_are_stored():
    """200 to 1, of 80,000 pixels; within the 10,000 that are kept, whole pixels make it 1414 × 7."""
    assert reason(encoded(gradient(4000, 20), "PNG")) == "narrow image"
    kept = check(encoded(gradient(3500, 20), "PNG"), LIMITS)
    assert not too_narrow(kept.width, kept.height)


def test_the_camera_position_is_applied_and_dropped():
    checked = check(encoded(gradient(40, 20), "JPEG", exif=turned(6)), LIMITS)
    assert (checked.width, checked.height) == (20, 40)
    assert Image.open(io.BytesIO(checked.bytes)).getexif().get(0x0112, 1) == 1
    assert decode(checked.bytes).size == (20, 40)


@pytest.mark.parametrize(("source", "stored"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "jpeg")])
def test_a_large_picture_is_scaled_down_and_keeps_its_aspect(source, stored):
    checked = check(encoded(gradient(400, 200), source), LIMITS)
    assert checked.format == stored == sniff(checked.bytes)
    assert checked.width * checked.height <= LIMITS.max_pixels
    assert checked.width / checked.height == pytest.approx(2, rel=0.03)
    assert decode(checked.bytes).size == (checked.width, checked.height)


def test_lossless_webp_stays_lossless_when_scaled():
    assert check(encoded(gradient(400, 200), "WEBP", lossless=True), LIMITS).format == "png"


def test_transparency_becomes_white():
    checked = check(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"), LIMITS)
    assert decode(checked.bytes).getpixel((3, 3)) == (255, 255, 255)


def test_only_the_first_frame_of_a_moving_picture_is_kept():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    checked = check(data, LIMITS)
    assert checked.format == "png"
    assert decode(checked.bytes).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "I;16B"])
def test_every_mode_ends_as_rgb(mode):
    deep = mode.startswith("I;16")
    source = Image.new(mode, (8, 8), 65535) if deep else Image.new("L", (8, 8), 255).convert(mode)
    checked = check(encoded(source, {"CMYK": "JPEG", "I;16B": "TIFF"}.get(mode, "PNG")), LIMITS)
    image = decode(checked.bytes)
    assert image.mode == "RGB"
    assert min(image.getpixel((3, 3))) > 250


def test_equal_bytes_have_equal_ids():
    first, second = encoded(gradient(8, 8), "PNG"), encoded(gradient(9, 8), "PNG")
    assert check(first, LIMITS).image_id == check(first, LIMITS).image_id != check(second, LIMITS).image_id
    assert len(check(first, LIMITS).image_id) == 32


@pytest.mark.parametrize(
    "reference", ["/etc/passwd", "../secret.png", "a/../../secret.png", "a\\..\\..\\b", "a\0b", ""]
)
def test_a_reference_may_not_leave_the_root(tmp_path, reference):
    with pytest.raises(ImageRejected, match="path outside root"):
        resolve(tmp_path, reference)


def test_an_address_is_not_opened(tmp_path):
    with pytest.raises(ImageRejected, match=r"picture elsewhere: .* is not opened; download it"):
        load(tmp_path, "https://shop/a.jpg", LIMITS)


def test_a_link_may_not_leave_the_root_but_may_point_within(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(gradient(8, 8), "PNG"))
    (root / "own.png").write_bytes(encoded(gradient(8, 8), "PNG"))
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "within.png").symlink_to("own.png")
    with pytest.raises(ImageRejected, match=r"leaves the data root; copy .* followed: cp -rL FOLDER COPY"):
        resolve(root, "out.png")
    assert resolve(root, "within.png") == root / "own.png"


def test_what_is_no_file_is_missing(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for reference in ("gone.png", "folder", "pipe"):
        with pytest.raises(ImageRejected, match="missing image"):
            load(tmp_path, reference, LIMITS)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = Path(tmp_path, "large.png")
    with path.open("wb") as file:
        file.truncate(LIMITS.max_bytes + 1)
    with pytest.raises(ImageRejected, match="huge image"):
        load(tmp_path, "large.png", LIMITS)


def test_a_moving_picture_cut_anywhere_is_kept_by_its_first_frame_or_refused():
    colours = ("red", "blue", "green")
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    kept = 0
    for length in range(len(data)):
        try:
            checked = check(data[:length], LIMITS)
        except ImageRejected:
            continue
        kept += 1
        assert decode(checked.bytes).getpixel((3, 3)) == (255, 0, 0)
    assert kept
