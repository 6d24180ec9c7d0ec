"""Reads a directory of events files as TensorBoard does and checks what tensorboard_read_test.cpp logged there.

Exit status 0: all is there. 1: something differs, said on stderr. 77: tensorboard is not installed.
"""
import struct
import sys
import zlib

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)


def expect(name, got, wanted):
    if got != wanted:
        sys.exit(f"{name}: expected {wanted!r}, got {got!r}")


def decode_png(data):
    """Height, width and rows of an 8-bit RGB or grey PNG without filters; checksums included."""
    expect("PNG signature", data[:8], b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        expect(f"CRC of {kind}", crc, zlib.crc32(kind + body))
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + length
    expect("last chunk", kind, b"IEND")
    width, height, bits, color = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    expect("bits a channel", bits, 8)
    row = 1 + width * {0: 1, 2: 3}[color]
    pixels = zlib.decompress(chunks[b"IDAT"])
    expect("bytes of pixels", len(pixels), row * height)
    return height, width, [list(pixels[y * row + 1 : (y + 1) * row]) for y in range(height)]


def main(directory):
    events = EventAccumulator(directory, size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    expect("scalar tags", sorted(tags["scalars"]), ["h\u00e9/<x>", "loss/total"])
    expect("image tags", tags["images"], ["batch/first"])
    expect("tensor tags", tags["tensors"], ["config"])

    # Steps 400 and 500 were logged before the resume at 300 and are void; 350 came after it.
    loss = events.Scalars("loss/total")
    expect("steps", [event.step for event in loss], [100, 200, 300, 350, 1048576])
    expect("values", [event.value for event in loss], [2.5, 1.25, 0.75, 0.5, 0.125])
    if any(abs(event.wall_time - loss[0].wall_time) > 600 for event in loss):
        sys.exit("wall times lie apart")
    expect("other scalar", [(event.step, event.value) for event in events.Scalars("h\u00e9/<x>")], [(1, -3.0)])

    (image,) = events.Images("batch/first")
    expect("image step", image.step, 7)
    expect("image size", (image.height, image.width), (2, 3))
    height, width, rows = decode_png(image.encoded_image_string)
    expect("PNG size", (height, width), (2, 3))
    # Channel c of the pixel in row y, column x is 100 c + 10 y + x.
    expect("pixels", rows, [[100 * c + 10 * y + x for x in range(3) for c in range(3)] for y in range(2)])

    (text,) = events.Tensors("config")
    expect("text step", text.step, 0)
    expect("text", text.tensor_proto.string_val[0].decode(), "| a | b |\n|---|---|\n| h\u00e9 | <1> |")
    expect("plugin", events.SummaryMetadata("config").plugin_data.plugin_name, "text")


main(sys.argv[1])
