"""Label images with an exported model: needs only onnxruntime, numpy and Pillow."""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="file written by tools/export.py")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    settings = about["preprocessing"]
    for path in options.images:
        pixels = preprocess(Image.open(path).convert("RGB"), **settings)
        logits = session.run(["logits"], {"images": pixels[None]})[0][0]
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = int(logits.argmax())
        print(f"{path},{about['class_names'][best]},{probabilities[best]:.4f}")


def preprocess(
    image: Image.Image,
    image_size: list[int],
    mean: list[float],
    std: list[float],
    interpolation: str,
    crop_pct: float,
) -> np.ndarray:
    """Resize the short edge, crop the centre, normalise: (3, H, W) float32."""
    height, width = image_size
    short = int(height / crop_pct) if height == width else None
    if short is None:
        scaled = (round(width / crop_pct), round(height / crop_pct))
    else:
        ratio = short / min(image.size)
        scaled = tuple(short if edge == min(image.size) else int(edge * ratio) for edge in image.size)
    image = image.resize(scaled, Image.Resampling[interpolation.upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32) / 255
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
