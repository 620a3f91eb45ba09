"""A small HTTP service for an exported model: an image goes in, the five likeliest labels come out.

It shows that an ONNX file carries all that a service needs: preprocessing and class names are in its metadata. There is
no torch here. Uploads are limited in bytes, pixels and shape; a bad one gets status 400 or 413 and a message.

Needs `pip install onnxruntime pillow fastapi uvicorn`, and tools/predict_onnx.py, which reads and prepares pictures as
dynavit does; put it beside your copy of this file. From the repository's root:

    python tools/export.py checkpoints/quickstart-pruned --output results/model.onnx
    PYTHONPATH=tools python examples/onnx_service.py results/model.onnx
    curl --data-binary @digit.png http://127.0.0.1:8000/predict

http://127.0.0.1:8000/docs describes it.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from PIL import Image, UnidentifiedImageError
from predict_onnx import convert_picture, open_model, preprocess
from starlette.concurrency import run_in_threadpool

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 50_000_000  # a file of a few kilobytes can hold more than fit into memory
MAX_ASPECT = 20  # the short edge is resized to the model's size, so that a strip would become enormous


def create_app(path: str, top: int = 5) -> FastAPI:
    """Make the service of one ONNX file; ends the process with a message if the file is none of dynavit's."""
    session, names, settings = open_model(path)
    size = session.get_inputs()[0].shape[0]
    batch = size if isinstance(size, int) else 1  # a file for one batch size alone gets the picture as often
    app = FastAPI(title="dynavit")

    def label(upload: bytes) -> list[dict[str, Any]]:
        picture = read_upload(upload, channels=len(settings["mean"]))
        images = np.repeat(preprocess(picture, **settings)[None], batch, axis=0)
        logits = session.run(["logits"], {"images": images})[0][0]
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities)[:top]
        return [{"label": names[i], "probability": round(float(probabilities[i]), 4)} for i in best]

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Say what the service runs."""
        return {"model": Path(path).name, "classes": len(names), "image_size": settings["image_size"]}

    @app.post("/predict")
    async def predict(request: Request) -> list[dict[str, Any]]:
        """Label the picture that is the body of the request, in any format that Pillow reads."""
        upload = await read_body(request)
        return await run_in_threadpool(label, upload)  # other requests go on meanwhile

    return app


async def read_body(request: Request) -> bytes:
    """Read an upload, but no more of it than is allowed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"The upload is larger than {MAX_BYTES:,} bytes.")
    if not body:
        raise HTTPException(400, "The body is empty: send the bytes of an image file.")
    return bytes(body)


def read_upload(upload: bytes, channels: int) -> Image.Image:
    """Decode a picture as dynavit does, upright and with as many channels; sizes are checked before any pixel is."""
    try:
        with Image.open(io.BytesIO(upload)) as image:
            short, long = sorted(image.size)
            if short * long > MAX_PIXELS:
                raise HTTPException(413, f"{short * long:,} pixels; at most {MAX_PIXELS:,} are taken.")
            if long > MAX_ASPECT * short:
                raise HTTPException(400, f"A picture of {image.width} x {image.height} pixels is too narrow.")
            return convert_picture(image, channels)
    except HTTPException:
        raise
    except UnidentifiedImageError:
        raise HTTPException(400, "The body is no image of a format that Pillow reads.") from None
    except Exception as error:  # Pillow answers damaged files with errors of any type
        raise HTTPException(400, f"The image cannot be read: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="file written by tools/export.py")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(argv)
    uvicorn.run(create_app(options.model), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
