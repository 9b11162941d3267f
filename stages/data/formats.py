"""Formats of pictures, told by their first bytes. Light on purpose: plans look at a folder of pictures by it.

What an ending says decides nothing but whether a file is looked at without being opened first.
"""

KEPT = ("jpeg", "png", "webp", "gif")
"""What is stored as it came; pictures in the other formats are written anew as one of these."""
LOSSLESS = ("png", "gif", "bmp", "tiff")
READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
"""For people."""
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
)
"""What pictures are called."""
ENOUGH = 64
"""Bytes that tell the format."""
AVIF = {b"avif", b"avis"}
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def sniff(data: bytes) -> str | None:
    """jpeg, png, webp, gif, bmp, tiff, avif or heif by the first bytes; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if data[:2] == b"BM" and data[6:10] == bytes(4) and int.from_bytes(data[14:18], "little") in BMP_HEADERS:
        return "bmp"
    return _boxed(data) if data[4:8] == b"ftyp" else None


def is_picture(start: bytes) -> bool:
    """Whether a file that is not called like a picture is one, by its first bytes.

    Not a TIFF: so begin the raw files of cameras, of which nothing but a small preview could be read.
    """
    return sniff(start) not in (None, "tiff")


def _boxed(data: bytes) -> str | None:
    """The format of a file of ISO boxes, by the brands that its first box names."""
    box = data[: min(int.from_bytes(data[:4], "big"), ENOUGH)]
    brands = {box[place : place + 4] for place in (8, *range(16, len(box), 4))}
    return "avif" if brands & AVIF else "heif" if brands & HEIF else None
