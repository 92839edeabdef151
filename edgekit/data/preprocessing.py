"""How an image becomes an input of the network; it belongs to the bundle and every command uses it alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from edgekit.errors import DataError

COLORS = ("rgb", "bgr", "gray")
RESIZES = ("refuse", "stretch", "crop")
LAYOUTS = ("NCHW", "NHWC")
# ITU-R BT.601 luma, as Pillow converts to gray.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, then (pixel × scale − mean) / std per channel.

    Attributes:
        size: Height and width that the network takes.
        color: Channel order that the network takes; ``gray`` is one channel.
        scale: Pixels, 0 to 255, are multiplied by this first.
        mean: Per channel, in units of pixel × scale; one value serves all channels.
        std: Likewise.
        resize: What to do with an image of another size: ``refuse`` it, ``stretch`` it, or ``crop`` (short side to the
            size, then the centre).
        layout: Of the tensor handed to the network.

    Example:
        >>> import numpy as np
        >>> Preprocessing(size=(2, 2), color="gray", mean=(0.5,), std=(0.5,))(np.full((1, 2, 2, 1), 255, np.uint8)).max()
        np.float32(1.0)
    """

    size: tuple[int, int]
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Literal["refuse", "stretch", "crop"] = "refuse"
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    def __post_init__(self) -> None:
        for name, allowed in (("color", COLORS), ("resize", RESIZES), ("layout", LAYOUTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.channels} channels")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be positive, not {self.std}")

    @property
    def channels(self) -> int:
        """Channels that the network takes."""
        return 1 if self.color == "gray" else 3

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Turns images into inputs.

        Args:
            images: uint8 of shape (n, H, W), (n, H, W, 1) or (n, H, W, 3) in RGB order, or a list of such images of
                various sizes. float32 arrays are inputs already and pass unchanged.

        Returns:
            float32, shape (n, C, H, W), or (n, H, W, C) for the layout NHWC.

        Raises:
            DataError: If an image has another size and ``resize`` is ``refuse``, or has no usable type.
        """
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            return images.astype(np.float32, copy=False)
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:3] == tuple(self.size):
            pixels = images if images.ndim == 4 else images[..., None]
            pixels = self._recolor(pixels)
        else:
            pixels = np.stack([self._one(np.asarray(image)) for image in images]) if len(images) else self._empty()
        x = pixels.astype(np.float32)
        x *= np.float32(self.scale)
        x -= np.asarray(self.mean, np.float32)
        x /= np.asarray(self.std, np.float32)
        if self.layout == "NHWC":
            return x
        # Not ascontiguousarray: it leaves one channel with strides by which torch takes it for channels-last.
        inputs = np.empty((x.shape[0], x.shape[3], *x.shape[1:3]), np.float32)
        inputs[...] = x.transpose(0, 3, 1, 2)
        return inputs

    def to_dict(self) -> dict[str, Any]:
        """JSON values; :meth:`from_dict` takes them back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Preprocessing:
        """The preprocessing that :meth:`to_dict` described."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return Preprocessing(**fields)

    def _empty(self) -> np.ndarray:
        return np.zeros((0, *self.size, self.channels), np.uint8)

    def _one(self, image: np.ndarray) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise DataError(
                f"an image is an array of {image.dtype} with shape {image.shape}",
                "Images are uint8, (H, W) or (H, W, C).",
            )
        image = image if image.ndim == 3 else image[..., None]
        if image.shape[:2] != tuple(self.size):
            image = self._resized(image)
        return self._recolor(image[None])[0]

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = self.size
        if self.resize == "refuse":
            raise DataError(
                f"an image has {image.shape[0]}×{image.shape[1]} pixels, the network takes {height}×{width}",
                "Set --resize crop or --resize stretch if the network is meant to see it resized.",
            )
        from PIL import Image

        opened = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        if self.resize == "stretch":
            opened = opened.resize((width, height), Image.Resampling.BILINEAR)
        else:
            factor = max(height / opened.height, width / opened.width)
            new = (max(width, round(opened.width * factor)), max(height, round(opened.height * factor)))
            opened = opened.resize(new, Image.Resampling.BILINEAR)
            left, top = (opened.width - width) // 2, (opened.height - height) // 2
            opened = opened.crop((left, top, left + width, top + height))
        resized = np.asarray(opened)
        return resized if resized.ndim == 3 else resized[..., None]

    def _recolor(self, pixels: np.ndarray) -> np.ndarray:
        have = pixels.shape[-1]
        if have not in (1, 3):
            raise DataError(f"images have {have} channels", "Images have 1 channel (gray) or 3 (RGB).")
        if self.color == "gray":
            return pixels if have == 1 else np.round(pixels.astype(np.float32) @ _LUMA).astype(np.uint8)[..., None]
        if have == 1:
            return np.repeat(pixels, 3, axis=-1)
        return pixels[..., ::-1] if self.color == "bgr" else pixels
