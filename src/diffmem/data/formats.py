"""Which files are pictures: by their suffix, or by how they begin; and what is to be said of those that are not read."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

# Formats with a decoder of their own in Pillow; EPS and the like would start other programs.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF", "QOI")
_SUFFIXES = (
    *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "dib", "gif", "tif", "tiff"),
    *("ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "jpx", "ico", "avif", "qoi", "tga"),
)
# Format → the plug-in package's module, and the suffixes that it makes readable.
_PLUGINS = {
    "HEIF": ("pillow_heif", ("heic", "heif", "hif")),
    "JXL": ("pillow_jxl", ("jxl",)),
}
_UNREAD = {
    "a camera's raw file; convert it first": "dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f raw 3fr erf kdc mos",
    "a video; take its frames out first": "mp4 m4v mov avi mkv webm mpg mpeg wmv flv ogv",
    "a drawing or page, not pixels; convert it first": "svg svgz eps ps pdf ai cdr wmf emf",
    "a picture format that is not read; convert it first": (
        "psd psb xcf kra exr hdr dds pcx sgi rgb rgba bw ras icns cur jxr wdp hdp jp3d jpm bpg flif fits fit dcm nii vtf blp ktx"
    ),
    "a compressed archive, in which no picture can be found alone; unpack it": "zip tar tgz gz bz2 xz zst 7z rar tbz2 txz",
    "arrays or weights, not a picture file (arrays are read in Python: load_images(array))": (
        "npy npz pt pth safetensors pkl pickle h5 hdf5 mat"
    ),
}
_REASONS = {suffix: reason for reason, suffixes in _UNREAD.items() for suffix in suffixes.split()}
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"qoif")


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here: its own safe decoders, and the plug-ins that are installed."""
    Image.init()
    added = [name for name, (module, _) in _PLUGINS.items() if _register(module)]
    Image.init()
    return tuple(name for name in (*_FORMATS, *added) if name in Image.OPEN)


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Suffixes of pictures that are read, lower case, with the dot."""
    able = formats()
    added = [suffix for name, (_, known) in _PLUGINS.items() if name in able for suffix in known]
    return frozenset(f".{suffix}" for suffix in (*_SUFFIXES, *added) if suffix != "avif" or "AVIF" in able)


def why_not_read(suffix: str) -> str | None:
    """Why files with this suffix (lower case, with the dot) are not read as pictures; None where it says nothing."""
    bare = suffix.removeprefix(".")
    for _, (module, known) in _PLUGINS.items():
        if bare in known and suffix not in suffixes():
            package = module.replace("_", "-") + ("-plugin" if module == "pillow_jxl" else "")
            return f"needs the Pillow plug-in {package}: pip install 'diffmem[formats]', or convert it first"
    if bare == "avif" and suffix not in suffixes():
        return "this Pillow reads no AVIF; install a newer one"
    return _REASONS.get(bare)


def begins_as_picture(head: bytes) -> bool:
    """Whether the first bytes (at least 16) of a file are those of a picture that is read, whatever its name."""
    if head.startswith(_STARTS):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    return head[4:12] == b"ftypavif" or (head[4:8] == b"ftyp" and ".heic" in suffixes() and _is_heif(head))


def what_it_is(data: bytes) -> str | None:
    """What bytes are that no decoder knows, in words, where their beginning says so."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture itself; run git lfs pull"
    if _is_heif(data) or data[4:8] == b"ftyp":
        return f"a HEIC, AVIF or video file: {why_not_read('.heic') or 'broken, or of another kind'}"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return f"a JPEG XL file: {why_not_read('.jxl') or 'broken'}"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"<error")):
        return "a web page or XML, not a picture; perhaps a download that failed"
    if head.startswith((b"{", b"[")):
        return "JSON text, not a picture; perhaps a download that failed"
    for start, what in (
        (b"PK\x03\x04", "a zip archive"),
        (b"%PDF", "a PDF"),
        (b"%!PS", "PostScript"),
        (b"8BPS", "a PSD"),
    ):
        if data.startswith(start):
            return f"{what}, not a picture"
    if not data.strip(b"\0"):
        return "nothing but zero bytes"
    return None


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _register(module: str) -> bool:
    """Make a plug-in's format known to Pillow; whether it is there."""
    if find_spec(module) is None:
        return False
    try:
        plugin = import_module(module)  # pillow_jxl registers itself
        if module == "pillow_heif":
            plugin.register_heif_opener()
    except (ImportError, OSError, AttributeError):
        return False  # installed for another Pillow or without its library: as if it were not there, and said so
    return True
