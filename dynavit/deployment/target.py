"""What a file has to be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A kind of file, and what it can do.

    Attributes:
        format: one of :data:`~dynavit.deployment.formats.FORMATS`.
        precision: of the blocks, ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``; what each format makes of it is
            said where it is written. Images and answers are fp32.
        batch: it takes batches of this size alone; of any size if None.
        with_tokens: it also gives the patches kept by each stage.
    """

    format: str = "onnx"
    precision: str = "fp32"
    batch: int | None = None
    with_tokens: bool = False

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those to check it at: an exporter that baked in one of them fails at the others."""
        return (1, 2, 5) if self.batch is None else (self.batch,)


ONNX = Target()
"""Of any batch size, in fp32, without tokens."""
