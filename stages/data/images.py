"""Pictures from strangers: checked, turned upright, capped in pixels, and kept encoded.

The format is known by content, never by name. Everything that can be refused without decoding is refused first: too
many bytes, unknown format, too many pixels by the header. What survives is decoded once in full, so that a truncated
or damaged file fails here and not in the middle of a training run; of a PNG the checksums are compared too. The other
formats have none, and damage that still decodes can't be told from a picture. Original bytes are kept where nothing
has to change: a second JPEG generation would cost quality and disk for nothing.
"""

import hashlib
import io
import os
import stat
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps, UnidentifiedImageError

from stages.data.formats import KEPT, LOSSLESS, READ, sniff
from stages.data.narrow import NARROWEST, too_narrow
from stages.data.sources.remote import LINKED, RemotePath

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""
PLAIN_MODES = {"RGB", "L", "1", "P"}
"""Modes that every decoder turns into the same RGB, so that the original bytes may stay."""
DEEPEST = {"I", "F"}
"""Modes of 32 bits a pixel, whose black and white nobody tells."""
NEEDS_HEIF = "HEIC needs pillow-heif"
LONGEST_KEY = 1024
"""Bytes of the name of an object, at most; a server does not answer when asked for more."""


class ImageRejected(Exception):
    """A picture that cannot be used: `reason` is a short fixed phrase, `detail` says what exactly."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be: stored pixels, refused pixels, refused bytes."""

    max_pixels: int = 1_048_576
    refuse_pixels: int = 100_000_000
    max_bytes: int = 20_000_000


@dataclass(frozen=True)
class Checked:
    """A picture that is safe to decode; `image_id` is the first 32 hex digits of the SHA-256 of `bytes`."""

    image_id: str
    bytes: bytes
    width: int
    height: int
    format: str


def resolve(root: Path | RemotePath, reference: str) -> Path | RemotePath:
    """The file that `reference` names, relative to `root`. Raises ImageRejected where it could leave the root."""
    parts = PurePosixPath(reference.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in reference or not parts.parts:
        raise ImageRejected("path outside root", f"{reference!r} must be relative to the data root, without '..'")
    if "://" in reference:
        raise ImageRejected("picture elsewhere", f"{reference!r} is not opened; download it and give its path")
    if isinstance(root, RemotePath):  # object storage knows no links
        return root / parts
    base = os.path.realpath(root)
    target = os.path.realpath(os.path.join(base, parts))
    if os.path.commonpath([base, target]) != base:
        detail = f"{reference!r} is a link that leaves the data root"  # wherever it lies: it makes the same artifact
        raise ImageRejected("link outside root", f"{detail}; {LINKED.format('FOLDER')}")
    return Path(target)


def load(root: Path | RemotePath, reference: str, limits: ImageLimits) -> Checked:
    """Reads and checks the picture `reference` below `root`. Raises ImageRejected."""
    path = resolve(root, reference)
    if isinstance(path, RemotePath):
        return check(_fetched(path, reference, limits), limits)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageRejected("missing image", f"{reference!r} is not a file")
        _refuse_bytes(status.st_size, limits)
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageRejected("missing image", f"{reference!r} does not exist") from None
    except OSError as error:
        raise ImageRejected("unreadable image", f"{reference!r}: {error.strerror}") from None
    return check(data, limits)


def _fetched(path: RemotePath, reference: str, limits: ImageLimits) -> bytes:
    """The bytes of a remote picture. A network that fails is no fault of the picture and raises OSError."""
    if len(path.path.partition("/")[2].encode()) > LONGEST_KEY:
        raise ImageRejected("missing image", f"no object has a name as long as {reference[:80]!r}…")
    try:
        _refuse_bytes(path.stat().st_size, limits)
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageRejected("missing image", f"{reference!r} does not exist") from None


def check(data: bytes, limits: ImageLimits) -> Checked:
    """Checks encoded bytes and brings them into the form that the pipeline stores. Raises ImageRejected."""
    _refuse_bytes(len(data), limits)
    format_ = known_format(data)
    with _opened(data, format_) as image:
        width, height = image.size
        if width * height > limits.refuse_pixels:
            raise ImageRejected("huge image", f"{width}×{height} pixels pass {limits.refuse_pixels}")
        _refuse_narrow(width, height)
        _decode(image, format_)  # before anything else looks: a second reading of damaged data raises nothing more
        upright, plain = _upright(image)
        untouched = plain and format_ in KEPT and width * height <= limits.max_pixels and _is_still(image)
    if format_ == "png":
        _verify(data)
    if not untouched:
        upright = _shrunk(upright, limits.max_pixels)
        _refuse_narrow(*upright.size)  # whole pixels may pass what the picture itself did not
        data, format_ = _encoded(upright, lossless=format_ in LOSSLESS or data[12:16] == b"VP8L")
    return Checked(hashlib.sha256(data).hexdigest()[:32], data, *upright.size, format_)


def known_format(data: bytes) -> str:
    """The format by the first bytes, see `formats.sniff`. Raises ImageRejected for anything else."""
    found = sniff(data)
    if found is None:
        raise ImageRejected("unknown format", f"no {READ}" if data else "the file is empty")
    if found == "heif" and not reads_heif():
        raise ImageRejected(NEEDS_HEIF, "install pillow-heif, or convert the picture to JPEG")
    return found


@cache
def reads_heif() -> bool:
    """Whether the decoder of HEIC is installed; Pillow knows it from then on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def decode(data: bytes) -> Image.Image:
    """The RGB picture of bytes that `check` has passed; transparency becomes white, as `check` stores it."""
    with Image.open(io.BytesIO(data)) as image:
        return _flat(image)


def _refuse_bytes(size: int, limits: ImageLimits) -> None:
    if size > limits.max_bytes:
        raise ImageRejected("huge image", f"{size} bytes pass {limits.max_bytes}")


def _refuse_narrow(width: int, height: int) -> None:
    if too_narrow(width, height):
        raise ImageRejected("narrow image", f"{width}×{height}: the sides differ by more than {NARROWEST} times")


def _opened(data: bytes, format_: str) -> Image.Image:
    """The picture with only its header read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures `refuse_pixels` decides, what is damaged is rejected
            return Image.open(io.BytesIO(data), formats=[format_])
    except Image.DecompressionBombError as error:
        raise ImageRejected("huge image", str(error)) from None
    except UnidentifiedImageError:  # whose words name a place in memory, another one in each run
        raise ImageRejected("broken image", f"{format_} header: it can't be read") from None
    except Exception as error:  # decoders raise nearly anything on hostile bytes; all of it means the same here
        raise ImageRejected("broken image", f"{format_} header: {error}") from None


def _decode(image: Image.Image, format_: str) -> None:
    """Reads the pixels of the first frame. Raises ImageRejected for data that is damaged or ends too early."""
    try:
        image.load()
    except OSError as error:
        raise ImageRejected("truncated image", f"{format_}: {error}") from None
    except Exception as error:
        raise ImageRejected("broken image", f"{format_}: {error}") from None


def _verify(data: bytes) -> None:
    """Compares the checksums of a PNG's parts, of which decoding looks at some alone. Raises ImageRejected."""
    try:
        with _opened(data, "png") as image:
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's word for a wrong checksum is SyntaxError
        raise ImageRejected("broken image", f"png: {error}") from None


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The upright RGB picture of the first frame, and whether the bytes decode to just that by any decoder.

    Raises ImageRejected for pixels that can't be brought to RGB.
    """
    if image.mode in DEEPEST:
        raise ImageRejected("32-bit pixels", f"their scale is not known; save the {image.format} with 8 or 16 bits")
    try:
        turned = ImageOps.exif_transpose(image)
        plain = image.getexif().get(ORIENTATION, 1) in (0, 1)
    except Exception:  # unreadable EXIF: the picture is written anew, without it
        turned, plain = image, False
    try:
        return _flat(turned), plain and image.mode in PLAIN_MODES and "transparency" not in image.info
    except ValueError as error:  # a mode that Pillow does not convert, such as LAB
        raise ImageRejected("broken image", f"{image.format} of mode {image.mode}: {error}") from None


def _is_still(image: Image.Image) -> bool:
    """Whether there is one frame. A later one that is cut off or damaged is as good as any: it is left out."""
    try:
        return getattr(image, "n_frames", 1) == 1  # reads on to the last frame
    except Exception:
        return False


def _flat(image: Image.Image) -> Image.Image:
    """RGB over white."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I"):  # 16 bits a pixel: PIL's own conversion would clip instead of scale
        image = image.convert("I") if image.mode == "I;16B" else image
        return image.point(lambda value: value / 257).convert("L").convert("RGB")
    return image.convert("RGB")


def _shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """At most `max_pixels`, same aspect."""
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = (max_pixels / (width * height)) ** 0.5
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _encoded(image: Image.Image, lossless: bool) -> tuple[bytes, str]:
    """PNG for what was lossless, else JPEG of quality 95. No metadata."""
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG")
        return buffer.getvalue(), "png"
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue(), "jpeg"
