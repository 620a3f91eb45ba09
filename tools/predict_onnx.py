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
        pixels = preprocess(to_rgb(Image.open(path)), **settings)
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
    crop_mode: str = "center",
) -> np.ndarray:
    """Resize as in training, crop the centre, normalise: (3, H, W) float32."""
    if crop_mode == "border":
        raise SystemExit("this model pads its images (crop_mode border), which this example does not do")
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
    pixels = np.asarray(image, dtype=np.float32) / 255
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparent pixels become white, 16 bits of grey become 8, as in training."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


if __name__ == "__main__":
    main()
