"""Slow and obvious: crops and colours one number at a time, in float64."""

import colorsys
import math
from itertools import permutations

import numpy as np


def box_of(height, width, draws, scale, ratio):
    """Left, top, right and bottom of torchvision's RandomResizedCrop, in whole pixels."""
    for attempt in range(10):
        area = height * width * (scale[0] + draws[attempt] * (scale[1] - scale[0]))
        log_ratio = math.log(ratio[0]) + draws[10 + attempt] * (math.log(ratio[1]) - math.log(ratio[0]))
        w = round(math.sqrt(area * math.exp(log_ratio)))
        h = round(math.sqrt(area / math.exp(log_ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = math.floor(draws[20] * (width - w + 1)), math.floor(draws[21] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def bicubic(x):
    x, a = abs(x), -0.5
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resize_line(line, size):
    """Antialiased bicubic: the filter is stretched by the reduction and its weights add up to one."""
    step = len(line) / size
    stretch = max(step, 1.0)
    out = []
    for place in range(size):
        centre = (place + 0.5) * step
        weights = [bicubic((pixel + 0.5 - centre) / stretch) for pixel in range(len(line))]
        out.append(sum(w * v for w, v in zip(weights, line)) / sum(weights))
    return out


def resize(image, box, size):
    """Cut, then resized: nothing beyond the box enters."""
    left, top, right, bottom = box
    rows = [resize_line(row, size) for row in image[top:bottom, left:right].astype(np.float64)]
    columns = [resize_line([row[place] for row in rows], size) for place in range(size)]
    return np.clip(np.asarray(columns).T, 0, 255)


def luma(pixel):
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def cut(values):
    return [min(max(value, 0.0), 1.0) for value in values]


def turned(pixel, turns):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)


def jittered(image, draws, strengths):
    """Colour jitter of one RGB image `[3, h, w]` with values in [0, 1]."""
    pixels = [tuple(map(float, pixel)) for pixel in image.reshape(3, -1).T]
    brightness, contrast, saturation = (
        max(0.0, 1 - s) + u * (1 + s - max(0.0, 1 - s)) for s, u in zip(strengths[:3], draws[1:4])
    )
    turns = -strengths[3] + draws[4] * 2 * strengths[3]
    for change in list(permutations(range(4)))[int(draws[5] * 24)]:
        if change == 0:
            pixels = [cut(brightness * v for v in pixel) for pixel in pixels]
        elif change == 1:
            mean = sum(map(luma, pixels)) / len(pixels)
            pixels = [cut(mean + contrast * (v - mean) for v in pixel) for pixel in pixels]
        elif change == 2:
            pixels = [cut(luma(pixel) + saturation * (v - luma(pixel)) for v in pixel) for pixel in pixels]
        else:
            pixels = [turned(pixel, turns) for pixel in pixels]
    return np.asarray(pixels).T.reshape(image.shape)


def blurred(plane, sigma, radius):
    """A Gaussian blur of one plane with `2 radius + 1` taps, mirrored at the edges without repeating them."""
    taps = np.asarray([math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)])
    taps /= taps.sum()
    padded = np.pad(plane, radius, mode="reflect")
    out = np.zeros_like(plane)
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            window = padded[row : row + 2 * radius + 1, column : column + 2 * radius + 1]
            out[row, column] = (window * np.outer(taps, taps)).sum()
    return out
