"""One picture file, read as a viewer shows it, or refused with a reason."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
LONGEST = 200  # times its width: beyond it Qwen's processor refuses a picture
MOST_PIXELS = 100_000_000  # decoded 300 MB; Pillow itself warns from 89 million on, and refuses from 179


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: turned as the camera says (EXIF), on white where transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut off at 255, which leaves white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(path: Path) -> Image.Image:
    """The picture of a file, see `as_rgb`. ValueError with the reason if the model cannot have it."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            if width * height > MOST_PIXELS:
                reason = f"{width} x {height} pixels: too large, scale it down"
            elif max(width, height) > LONGEST * min(width, height):
                reason = f"{width} x {height} pixels: too long and thin, crop it"
            else:
                return as_rgb(file)
    except Exception as error:  # a broken file makes Pillow raise almost anything
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not a picture in a format that Pillow can read" if unknown else f"cannot be read: {error}"
    raise ValueError(reason)
