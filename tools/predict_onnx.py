"""Label pictures with an exported model: needs only onnxruntime, numpy and Pillow.

Prints image, label and probability as CSV; what is left out is said on the error stream. Pictures are read as
dynavit reads them: upright, the first frame, with 16 bits of grey scaled to 8.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from PIL.Image import Transpose

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".avif", ".jp2", ".j2k", ".tga", ".apng"),
)
SYSTEM = ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="file written by tools/export.py")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of them")
    options = parser.parse_args()
    session, names, settings = open_model(options.model)
    size = session.get_inputs()[0].shape[0]
    batch = size if isinstance(size, int) else 1  # a file for one batch size alone gets each picture as often
    paths = [path for image in options.images for path in find_pictures(image)]
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    print("image,label,probability")
    labelled = 0
    for path in paths:
        try:
            picture = read_picture(path, channels=len(settings["mean"]))
        except Exception as error:  # Pillow answers damaged files with errors of any type
            print(f"warning: {printable(f'{path} cannot be read and is left out: {error}')}", file=sys.stderr)
            continue
        images = np.repeat(preprocess(picture, **settings)[None], batch, axis=0)
        logits = session.run(["logits"], {"images": images})[0][0]
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = int(logits.argmax())
        print(row([safe(path), safe(names[best]), f"{probabilities[best]:.4f}"]))
        labelled += 1
    if not labelled:
        stop(f"none of the {len(paths)} image files can be read.")


def stop(message: str) -> None:
    """End with one line and status 2."""
    print(f"error: {printable(message)}", file=sys.stderr)
    raise SystemExit(2)


def printable(text: str) -> str:
    """Escape what a terminal would act on."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def row(cells: list[str]) -> str:
    """Return a line of CSV; with Windows' line end the module quotes both of its characters."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n")


def open_model(path: str) -> tuple[onnxruntime.InferenceSession, list[str], dict]:
    """Return the model, the names of its classes and how it wants its pictures."""
    if not os.path.isfile(path):
        stop(f"{path} does not exist, or is no file: give what tools/export.py wrote.")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        stop(f"{path} is no model that onnxruntime can run: {str(error).splitlines()[0]}")
    about = session.get_modelmeta().custom_metadata_map
    outputs = [output.name for output in session.get_outputs()]
    if "embedding" in outputs:
        stop(f"{path} is a re-identification model: it answers with embeddings, to be compared, not with labels.")
    if "logits" not in outputs or not {"preprocessing", "class_names"} <= about.keys():
        stop(f"{path} was not written by tools/export.py: it does not say its classes and how it wants its pictures.")
    settings = json.loads(about["preprocessing"])
    size = session.get_inputs()[0].shape[2:]
    if list(size) != list(settings["image_size"]):
        stop(f"{path} takes images of {size}, and prepares them as {settings['image_size']}: export it again.")
    if settings.get("crop_mode") == "border":
        stop(f"{path} pads its pictures (crop_mode border), which this example does not do.")
    return session, json.loads(about["class_names"]), settings


def find_pictures(given: str) -> list[str]:
    """Return the pictures below a folder, without hidden ones, following links once; or the one given."""
    if not os.path.isdir(given):
        return [given]
    seen = {os.path.realpath(given)}
    links: list[Path] = []

    def walk(folder: Path) -> Iterator[str]:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            real = os.path.realpath(entry.path)
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM or real in seen:
                continue
            if entry.is_symlink():
                links.append(folder / entry.name)  # what is really there comes before links to it
            elif entry.is_dir():
                seen.add(real)
                yield from walk(folder / entry.name)
            elif entry.is_file() and entry.name.lower().endswith(ENDINGS):  # not a pipe
                seen.add(real)
                yield str(folder / entry.name)

    def follow() -> Iterator[str]:
        yield from walk(Path(given))
        while links:
            link = links.pop(0)
            if (real := os.path.realpath(link)) not in seen:
                seen.add(real)
                if link.is_dir():
                    yield from walk(link)
                elif link.is_file() and link.name.lower().endswith(ENDINGS):
                    yield str(link)

    found = sorted(follow(), key=Path)
    if not found:
        stop(f"{given} holds no images ({', '.join(ENDINGS)}).")
    return found


def safe(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would take for a formula."""
    return "'" + text if text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r")) else text


def preprocess(
    image: Image.Image,
    image_size: list[int],
    mean: list[float],
    std: list[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
) -> np.ndarray:
    """Resize as in training, crop the centre, normalise: (C, H, W) float32."""
    height, width = image_size
    tall, wide = int(height / crop_pct), int(width / crop_pct)
    if crop_mode == "center":  # keep the aspect ratio
        short = min(image.size)
        ratio = min(image.height / tall, image.width / wide)
        if tall == wide:  # the short edge exactly, the long one rounded down, as torchvision does
            edges = (image.height, image.width)
            tall, wide = [tall if edge == short else int(tall * edge / short) for edge in edges]
        else:
            tall, wide = round(image.height / ratio), round(image.width / ratio)
    image = image.resize((wide, tall), Image.Resampling[interpolation.upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, -1) / 255
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


def read_picture(path: str, channels: int) -> Image.Image:
    """Read a picture as dynavit does: see dynavit/data/pictures.py for the rules."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no file, but a named pipe, socket or device")
    with Image.open(path) as image:
        return convert_picture(image, channels)


def convert_picture(image: Image.Image, channels: int) -> Image.Image:
    """Convert to grey, colours, or colours with opacity; transparent pixels of the first two become white."""
    image.load()
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # damaged EXIF data say nothing
        turn = None
    if image.mode.startswith(("I", "F")):
        image = to_8_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if channels != 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L", MODES[channels]):
        image = image.convert("RGBA" if channels == 4 else "RGB")
    image = image.convert(MODES[channels])
    return image if turn is None else image.transpose(turn)


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale the range of the values to 0..255 where it is known: unsigned integers, or what a TIFF file states."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    low, high = float(values.min()), float(values.max())

    def tag(number: int, default: float) -> float:
        value = tags.get(number, default)
        return value[0] if isinstance(value, tuple) else value

    stated = [(float(tag(least, 0)), float(tag(most, 0))) for least, most in ((340, 341), (280, 281)) if most in tags]
    fitting = [(least, most) for least, most in stated if least <= low and high <= most and least < most]
    bits = int(tag(258, 16))
    if fitting:
        least, most = fitting[0]
    elif image.mode == "F" or tag(339, 1) != 1 or bits > 16 or not 0 <= low <= high < 2**bits:
        raise ValueError(f"mode {image.mode}, values from {low:g} to {high:g}, of which the range is not known")
    elif bits == 16 and low < high < 4096:
        raise ValueError(f"of 16 bits it uses the values from {low:g} to {high:g} alone, so the range is not known")
    else:
        least, most = 0, 2**bits - 1
    grey = np.rint((values.astype(np.float64) - least) * (255 / (most - least))).astype(np.uint8)
    return Image.fromarray(255 - grey if tag(262, 1) == 0 else grey)


if __name__ == "__main__":
    main()
