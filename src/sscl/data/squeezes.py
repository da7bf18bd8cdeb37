"""Tiles squeezed to half their width in several directions: how stretched copies are found.

Tiles of S x S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from sscl.data.keypoints import SQUEEZES, Affine, Bytes, Coder, Floats, Keypoints, detect

_SQUEEZE = 2.0
_KEYPOINTS = 80  # about: pictures have corners that show nothing


def squeezed_keypoints(luma: Bytes, coder: Coder) -> list[Keypoints]:
    """Return the keypoints of a tile squeezed in each of `SQUEEZES` directions, at their places in the tile.

    A tile stretched by 2 has other keypoints than the one it was made from; squeezed, it has the same.
    """
    found = []
    for squeeze in squeezes(len(luma)):
        picture = cv2.filter2D(luma, -1, squeeze.blur, borderType=cv2.BORDER_REFLECT_101)
        picture = cv2.warpAffine(
            picture,
            squeeze.matrix,
            squeeze.inside.shape[::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        points, descriptors = detect(np.asarray(picture, np.uint8), most=squeeze.most, inside=squeeze.inside)
        places = (points[:, :2] - squeeze.matrix[:, 2]) @ np.linalg.inv(squeeze.matrix[:, :2]).T
        found.append(Keypoints(places.astype(np.float32), points[:, 3] - 90, np.log2(points[:, 2]), coder(descriptors)))
    return found


@dataclass(frozen=True)
class Squeeze:
    """How to squeeze a tile.

    Attributes:
        matrix: (2, 3), place in the tile -> place in the picture. blur: against aliasing.
        inside: 255 where the picture shows the tile and not what is beyond it. most: keypoints to look for.
    """

    matrix: Affine
    blur: Floats
    inside: Bytes
    most: int


@cache
def squeezes(side: int) -> tuple[Squeeze, ...]:
    """Return the squeezes of tiles of that side."""
    found = []
    for direction in range(SQUEEZES):
        angle = np.pi * direction / SQUEEZES
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        linear = np.outer(along, along) / _SQUEEZE + np.outer(across, across)
        corners = np.array([[0, 0], [side - 1, 0], [0, side - 1], [side - 1, side - 1]]) @ linear.T
        matrix = np.column_stack([linear, -corners.min(0)])
        width, height = np.ceil(np.ptp(corners, axis=0)).astype(int) + 1
        rows, columns = np.mgrid[-4:5, -4:5]
        gauss = np.exp(-0.5 * ((columns * along[0] + rows * along[1]) / (0.8 * np.sqrt(_SQUEEZE**2 - 1))) ** 2)
        gauss *= np.exp(-0.5 * ((columns * across[0] + rows * across[1]) / 0.4) ** 2)
        inside = cv2.warpAffine(np.full((side, side), 255, np.uint8), matrix, (int(width), int(height)))
        inside = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=0)
        most = int(_KEYPOINTS * inside.size / (inside > 0).sum())
        found.append(Squeeze(matrix, (gauss / gauss.sum()).astype(np.float32), np.asarray(inside, np.uint8), most))
    return tuple(found)
