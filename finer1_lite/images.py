"""One picture file, read as a viewer shows it, or refused with a reason."""

import io
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

try:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    HEIF = ""
except ImportError:  # `read_image` says so where it is needed
    HEIF = "; pip install pillow-heif"

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
LONGEST = 200  # times its width: beyond it Qwen's processor refuses a picture
MOST_PIXELS = 100_000_000  # decoded 300 MB; Pillow itself warns from 89 million on, and refuses from 179
TURNS = (None, None, 0, 3, 1, 5, 4, 6, 2)  # EXIF's orientation -> `Image.Transpose`
BROKEN_EXIF = "broken EXIF"  # in the `info` of a picture of `as_rgb`
MANY_PIXELS, ONE_AT_A_TIME = 16_000_000, Lock()  # of larger ones threads decode one at a time


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: turned as the camera says (EXIF, if sound), on white where transparent."""
    image.load()  # what is raised below is about EXIF
    broken = {}
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # almost anything, as of a broken file
        broken = {BROKEN_EXIF: str(error)}
        with suppress(Exception):  # another field may be the broken one
            image = image.transpose(TURNS[image.getexif()[ExifTags.Base.Orientation]])
    if image.mode.startswith("I;16"):  # Pillow would cut off at 255, which leaves white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info.update(broken)
    return image


def read_image(path: Path | io.BytesIO) -> Image.Image:
    """The picture of a file, see `as_rgb`. ValueError with the reason if the model cannot have it."""
    if not isinstance(path, io.BytesIO) and not Path(path).is_file():  # to open a pipe would wait for ever
        raise ValueError("not a file" if Path(path).exists() else "the file is missing")
    try:
        with Image.open(path) as file:
            width, height = file.size
            if width * height > MOST_PIXELS:
                reason = f"{width} x {height} pixels: too large, scale it down"
            elif max(width, height) > LONGEST * min(width, height):
                reason = f"{width} x {height} pixels: too long and thin, crop it"
            else:
                with ONE_AT_A_TIME if width * height > MANY_PIXELS else nullcontext():
                    return as_rgb(file)
    except Exception as error:  # a broken file makes Pillow raise almost anything
        reason = f"cannot be read: {error}"
        if isinstance(error, UnidentifiedImageError):
            how = HEIF if str(path).lower().endswith((".heic", ".heif")) else ""
            reason = f"not a picture in a format that Pillow can read{how}"
    raise ValueError(reason)
