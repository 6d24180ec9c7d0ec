"""The Python half of pillow_rand_augment_test.cpp: `pillow_rand_augment.py DIRECTORY HEIGHT WIDTH`.

Each operation at each magnitude as Pillow does it, beside the library's. `images` and `OPERATION_MAGNITUDE_SIGN`
are bytes of [N, HEIGHT, WIDTH, 3]. Prints how far each operation is off; status 1 if an image of one is off by more
than a hundredth of a grey level in the mean, 77 without Pillow (9.5 to 13.0 are off by nothing).
"""

import sys
from pathlib import Path

try:
    from PIL import Image, ImageChops, ImageEnhance, ImageOps, ImageStat
except ImportError as error:
    print(f"SKIPPED: {error} in {sys.executable}", file=sys.stderr)
    sys.exit(77)


def affine(image, matrix):
    return image.transform(image.size, Image.AFFINE, matrix)


# (image, magnitude of 10, sign) -> image, as the table of FixMatch's paper reads.
OPERATIONS = {
    "auto_contrast": lambda image, v, sign: ImageOps.autocontrast(image),
    "brightness": lambda image, v, sign: ImageEnhance.Brightness(image).enhance(v * 0.9 / 10 + 0.05),
    "color": lambda image, v, sign: ImageEnhance.Color(image).enhance(v * 0.9 / 10 + 0.05),
    "contrast": lambda image, v, sign: ImageEnhance.Contrast(image).enhance(v * 0.9 / 10 + 0.05),
    "equalize": lambda image, v, sign: ImageOps.equalize(image),
    "identity": lambda image, v, sign: image,
    "posterize": lambda image, v, sign: ImageOps.posterize(image, 4 + int(v * 4 / 10)),
    "rotate": lambda image, v, sign: image.rotate(sign * int(v * 30 / 10)),
    "sharpness": lambda image, v, sign: ImageEnhance.Sharpness(image).enhance(v * 0.9 / 10 + 0.05),
    "shear_x": lambda image, v, sign: affine(image, (1, sign * v * 0.3 / 10, 0, 0, 1, 0)),
    "shear_y": lambda image, v, sign: affine(image, (1, 0, 0, sign * v * 0.3 / 10, 1, 0)),
    "solarize": lambda image, v, sign: ImageOps.solarize(image, 256 - int(v * 256 / 10)),
    "translate_x": lambda image, v, sign: affine(image, (1, 0, sign * int(v * 0.3 / 10 * image.size[0]), 0, 1, 0)),
    "translate_y": lambda image, v, sign: affine(image, (1, 0, 0, 0, 1, sign * int(v * 0.3 / 10 * image.size[1]))),
    "invert": lambda image, v, sign: ImageOps.invert(image),
    # UDA's ranges.
    "uda_brightness": lambda image, v, sign: ImageEnhance.Brightness(image).enhance(v * 1.8 / 10 + 0.1),
    "uda_color": lambda image, v, sign: ImageEnhance.Color(image).enhance(v * 1.8 / 10 + 0.1),
    "uda_contrast": lambda image, v, sign: ImageEnhance.Contrast(image).enhance(v * 1.8 / 10 + 0.1),
    "uda_sharpness": lambda image, v, sign: ImageEnhance.Sharpness(image).enhance(v * 1.8 / 10 + 0.1),
    "uda_posterize": lambda image, v, sign: ImageOps.posterize(image, 4 - int(v * 4 / 10)),
}


def images_of(path, size):
    data = path.read_bytes()
    step = 3 * size[0] * size[1]
    assert data and len(data) % step == 0, (path, len(data))
    return [Image.frombytes("RGB", size, data[i : i + step]) for i in range(0, len(data), step)]


def main(directory, height, width):
    size = (int(width), int(height))
    images = images_of(Path(directory) / "images", size)
    worst = {}
    for path in sorted(Path(directory).iterdir()):
        if path.name == "images":
            continue
        name, magnitude, sign = path.name.rsplit("_", 2)
        ours = images_of(path, size)
        assert len(ours) == len(images), path
        for index, (image, found) in enumerate(zip(images, ours)):
            difference = ImageStat.Stat(ImageChops.difference(OPERATIONS[name](image, int(magnitude), int(sign)), found))
            mean, largest = sum(difference.mean) / 3, max(extreme[1] for extreme in difference.extrema)
            worst[name] = max(worst.get(name, (0, 0, "")), (mean, largest, f"{path.name}, image {index}"))
    assert worst.keys() == OPERATIONS.keys(), worst.keys() ^ OPERATIONS.keys()
    for name, (mean, largest, where) in worst.items():
        print(f"{name}: mean {mean:.4f}, largest {largest}" + (f" ({where})" if mean else ""))
    return any(mean > 0.01 for mean, _, _ in worst.values())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
