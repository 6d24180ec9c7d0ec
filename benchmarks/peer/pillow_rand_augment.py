"""RandAugment as a data loader's transform does it: Pillow, image by image. Prints the median time of a batch.

FixMatch's policy: 2 of 14 operations with probability .5 and magnitudes 1 to 9 of 10, then a grey square of half the
side. A peer to measure `rand_augment` against (benchmarks/augment_bench.cpp). Needs Pillow and numpy.
    python3 benchmarks/peer/pillow_rand_augment.py [--images 448] [--side 32] [--processes 1] [--rounds 20]
"""
import argparse
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps


def enhance(kind):
    return lambda image, v, sign: kind(image).enhance(v * 0.9 / 10 + 0.05)


def affine(image, *matrix):
    return image.transform(image.size, Image.AFFINE, matrix)


OPERATIONS = [
    lambda image, v, sign: ImageOps.autocontrast(image),
    enhance(ImageEnhance.Brightness),
    enhance(ImageEnhance.Color),
    enhance(ImageEnhance.Contrast),
    lambda image, v, sign: ImageOps.equalize(image),
    lambda image, v, sign: image,
    lambda image, v, sign: ImageOps.posterize(image, 4 + int(v * 4 / 10)),
    lambda image, v, sign: image.rotate(sign * int(v * 30 / 10)),
    enhance(ImageEnhance.Sharpness),
    lambda image, v, sign: affine(image, 1, sign * v * 0.3 / 10, 0, 0, 1, 0),
    lambda image, v, sign: affine(image, 1, 0, 0, sign * v * 0.3 / 10, 1, 0),
    lambda image, v, sign: ImageOps.solarize(image, 256 - int(v * 256 / 10)),
    lambda image, v, sign: affine(image, 1, 0, sign * int(v * 0.3 / 10 * image.size[0]), 0, 1, 0),
    lambda image, v, sign: affine(image, 1, 0, 0, 0, 1, sign * int(v * 0.3 / 10 * image.size[1])),
]


def augment(pixels):
    image = Image.fromarray(pixels)
    for operation in random.choices(OPERATIONS, k=2):
        magnitude = random.randint(1, 9)
        if random.random() < 0.5:
            image = operation(image, magnitude, random.choice((1, -1)))
    side = min(image.size) // 2
    left, top = random.randrange(image.size[0]) - side // 2, random.randrange(image.size[1]) - side // 2
    ImageDraw.Draw(image).rectangle((left, top, left + side - 1, top + side - 1), (127, 127, 127))
    return np.asarray(image)


def augment_all(images):
    return np.stack([augment(image) for image in images])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=448)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    images = np.random.default_rng(1).integers(0, 256, (options.images, options.side, options.side, 3), np.uint8)
    times = []
    with ProcessPoolExecutor(options.processes) as pool:
        parts = np.array_split(images, options.processes)
        for _ in range(options.rounds + 1):  # the first starts the processes
            start = time.perf_counter()
            if options.processes == 1:
                augment_all(images)
            else:
                np.concatenate(list(pool.map(augment_all, parts)))
            times.append(1e3 * (time.perf_counter() - start))
    print(
        f"Pillow RandAugment, {options.images}x3x{options.side}x{options.side}, {options.processes} processes: "
        f"median {statistics.median(times[1:]):.2f} ms a batch, {min(times[1:]):.2f} to {max(times[1:]):.2f}"
    )


if __name__ == "__main__":
    main()
