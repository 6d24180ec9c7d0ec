#!/usr/bin/env python3
"""What the norm kernels and convolutions of a MixMatch step of WRN-28-2 should take, from shapes alone. Norm kernels:
bytes, floor and predicted microseconds of each, for those before (six launches a norm) and now (four). Convolutions:
operations, bytes, floors, and what two ways to compute them should take. The backward pass: with the weight gradients
in turn and on a stream of their own. An estimate, no measurement: the constants below were chosen so that the norm
kernels before come out near what the profiler said of them.

    python3 benchmarks/gpu/predict.py [--batch 64] [--views 2]
"""

import argparse

PROCESSORS = 132
MEMORY, CACHE = 4.3e6, 5.5e6  # bytes a microsecond, of an H200's memory and of its cache
CACHE_SIZE = 60e6
START = 1.5  # microseconds of a kernel that does nothing, as the profiler counts them
FAR, NEAR = 1.4, 0.6  # until loads come from memory, from the cache, while many others do
SUM, MERGE = 1.2, 0.4  # sums over a block's threads of a pack's numbers, of a channel's

# Channels, height and width, and whether the norm adds; each as often as WRN-28-2 has it.
NORMS = (
    [(16, 32, False)]
    + [(32, 32, False)] * 4 + [(32, 32, True)] * 4
    + [(64, 16, False)] * 4 + [(64, 16, True)] * 4
    + [(128, 8, False)] * 4 + [(128, 8, True)] * 4
)

PEAK = 989e6  # operations a microsecond of an H200's tensor cores in bf16, on paper
TILE = 128  # pixels and, at most, channels of an implicit GEMM's tile
# What a profile had: microseconds of all weight gradients, of all other convolutions, and of each of 18 kernels that
# prepare a workspace, taken for weight gradients' here.
WEIGHT_GRADIENTS, OTHERS, WORKSPACE = 750, 1450, 111 / 18
BESIDE = 8  # weight gradients that may be under way; SideStream's

# Channels in and out, height and width in and out, the kernel's side; how often WRN-28-2 has it.
CONVOLUTIONS = (
    (3, 16, 32, 32, 3, 1), (16, 32, 32, 32, 3, 1), (16, 32, 32, 32, 1, 1), (32, 32, 32, 32, 3, 7),
    (32, 64, 32, 16, 3, 1), (32, 64, 32, 16, 1, 1), (64, 64, 16, 16, 3, 7),
    (64, 128, 16, 8, 3, 1), (64, 128, 16, 8, 1, 1), (128, 128, 8, 8, 3, 7),
)


class Grid:
    """NormGrid of cuda_norm.hpp for bfloat16, and the one before it."""

    def __init__(self, rows, channels, groups, before):
        packs = channels // 8
        lanes = min(packs, 32 if before else 4)
        tiles, threads = packs // lanes, 256 if before else 512
        slices = threads // lanes
        if before:
            each = 8
        else:
            each = max(2, -(-rows // (slices * max(1, PROCESSORS // (groups * tiles)))))
        self.chunks = -(-rows // (slices * each))
        self.blocks, self.rows_of_thread = groups * self.chunks * tiles, each
        self.merged = self.blocks * self.chunks * lanes * 8 * 8  # bytes that blocks read of chunks' numbers


def took(stages, body, bytes_near, bytes_far, rounds):
    """`stages` of loads before the rows, `rounds` of loads of rows; what else a block does is `body`."""
    streamed = bytes_near / CACHE + bytes_far / MEMORY
    return START + stages * NEAR + body + max(streamed, rounds * (FAR if bytes_far else NEAR))


def norm_kernels(images, channels, size, adds, groups, backward, before):
    """{kernel: (bytes of images, floor, predicted)} of one norm."""
    tensor = images * size * size * channels * 2
    grid = Grid(images // groups * size * size, channels, groups, before)
    each = grid.rows_of_thread
    rounds = lambda was, now: -(-each // (was if before else now))
    merged = 0 if before else grid.merged
    # An addend was made five tensors earlier; what the forward pass saved has long left the cache.
    far_addend = tensor if adds and 5 * tensor > CACHE_SIZE else 0
    found = {}

    def add(name, near, far, depth, stages, body, extra=0):
        floor = near / CACHE + far / MEMORY
        found[name] = (near + far, floor, took(stages, body, near + extra, far, depth))

    moved = 3 * tensor if adds else tensor
    add("norm_moments", moved - far_addend, far_addend, rounds(4, 6 if adds else 8), 1 if before else 0, SUM)
    if before:
        found["norm_statistics"] = (0, 0, START + 2 * NEAR + SUM)
    add("norm_activate", 2 * tensor, 0, rounds(4, 8), 1 if before else 0, 0 if before else MERGE, merged)
    if backward:
        add("norm_gradient_sums", tensor, tensor, rounds(2, 6), 1 if before else 0, SUM)
        if before:
            found["norm_parameter_gradients"] = (0, 0, START + NEAR + SUM)
        moved = 4 * tensor if adds else 3 * tensor
        depth = rounds(1, 4 if adds else 6)
        add("norm_input_gradient", moved, 0, depth, 1 if before else 0, 0 if before else MERGE, merged)
    return found


def step(batch, views, before):
    """{kernel: [launches, bytes, floor, predicted]} of a step: guessing pass, then training pass both ways."""
    total = {}
    for groups, backward in ((views, False), (views + 1, True)):
        for channels, size, adds in NORMS:
            for name, one in norm_kernels(batch * groups, channels, size, adds, groups, backward, before).items():
                row = total.setdefault(name, [0, 0, 0, 0])
                for i, value in enumerate((1, *one)):
                    row[i] += value
    return total


def used(channels):
    """The share of the tensor cores' rate that a tile of so many channels can use. A wgmma of 64 pixels, n channels and
    depth 16 is n / 2 cycles of arithmetic; its operands are 2,048 and 32 n bytes of shared memory, at 128 a cycle."""
    return channels / 2 / max(channels / 2, 16 + channels / 4)


def convolution(images, inner, outer, height_in, height_out, side, kind):
    """(operations, bytes, floor by bytes, by arithmetic, once, again) of one convolution, microseconds from the third on.
    `once`: a kernel that reads each number once and computes all the while. `again`: an implicit GEMM that reads a pixel
    once for each place of the kernel, and the weights once for each tile of pixels, all through the cache."""
    x, y = (images * height**2 * channels * 2 for height, channels in ((height_in, inner), (height_out, outer)))
    weights, places = inner * outer * side**2 * 2, side**2
    operations = 2 * images * height_out**2 * inner * outer * places
    far = x if kind == "weight gradient" else 0  # what the forward pass saved has long left the cache
    near = x + y + weights - far
    floor = near / CACHE + far / MEMORY
    arithmetic = operations / PEAK / used(inner if kind == "input gradient" else outer)
    tiles = lambda size: -(-size // TILE)
    pixels = images * height_out**2
    patches = pixels * places * inner * 2  # bytes, of all pixels that an output pixel sees
    if kind == "weight gradient":
        moved = patches + y * tiles(places * inner)
    elif kind == "input gradient":
        moved = y * places * tiles(inner) + weights * tiles(images * height_in**2) + x
    else:
        moved = patches * tiles(outer) + weights * tiles(pixels) + y
    once = START + (FAR if far else NEAR) + max(floor, arithmetic)
    again = START + NEAR + max(moved / CACHE, arithmetic)
    return operations, near + far, floor, arithmetic, once, again


def convolutions(batch, views):
    """[(kind, images, layer, launches, *convolution())] of a step."""
    found = []
    for groups, kinds in ((views, ["forward"]), (views + 1, ["forward", "input gradient", "weight gradient"])):
        for kind in kinds:
            for inner, outer, height_in, height_out, side, count in CONVOLUTIONS:
                if kind == "input gradient" and inner == 3:
                    continue
                layer = f"{inner} to {outer} of {height_out}x{height_out}, {side}x{side}"
                one = convolution(batch * groups, inner, outer, height_in, height_out, side, kind)
                found.append((kind, batch * groups, layer, count, *one))
    return found


def print_convolutions(batch, views):
    print("\n| convolution | images | layer | launches | GFLOP | MB | floor by bytes, us | by arithmetic | read once | "
          "read again |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows, sums = convolutions(batch, views), {}
    for kind, images, layer, count, operations, size, *times in rows:
        print(f"| {kind} | {images} | {layer} | {count} | {operations / 1e9:.2f} | {size / 1e6:.1f} | "
              + " | ".join(f"{time:.1f}" for time in times) + " |")
        for name in ((kind, images), ("all", "")):
            total = sums.setdefault(name, [0] * 7)
            for i, value in enumerate((1, operations, size, *times)):
                total[i] += count * value
    sums["all", ""] = sums.pop(("all", ""))  # last
    for (kind, images), (count, operations, size, *times) in sums.items():
        print(f"| {kind} | {images} | together | {count} | {operations / 1e9:.0f} | {size / 1e6:.0f} | "
              + " | ".join(f"{time:.0f}" for time in times) + " |")


def backward_pass(batch, views, workspaces_fill):
    """(main, beside): the backward pass's kernels as (microseconds until it computes, microseconds of the whole device,
    the share of it that its blocks can fill), in order; beside[i] has what is ready when main[i] begins. How much of the
    device a workspace's kernel fills is not known: all or next to nothing."""
    images = batch * (views + 1)
    sums = {kind: 0 for kind in ("forward", "input gradient", "weight gradient")}
    for kind, _, _, count, _, _, _, _, _, again in convolutions(batch, views):
        sums[kind] += count * again
    scale = {"input gradient": OTHERS / (sums["forward"] + sums["input gradient"]),
             "weight gradient": WEIGHT_GRADIENTS / sums["weight gradient"]}
    main, beside = [], {}
    layers = [layer[:5] for layer in CONVOLUTIONS for _ in range(layer[5])]
    norms = iter(reversed(NORMS))

    def add_norm(channels, size, adds):
        found = norm_kernels(images, channels, size, adds, views + 1, True, False)
        for name in ("norm_gradient_sums", "norm_input_gradient"):
            main.append((START + NEAR, found[name][2] - START - NEAR, 1))

    add_norm(*next(norms))
    for inner, outer, height_in, height_out, side in reversed(layers):
        def kernel(kind, share):
            whole = scale[kind] * convolution(images, inner, outer, height_in, height_out, side, kind)[5]
            return START + NEAR, (whole - START - NEAR) * share, share

        # A weight gradient is cut into as many parts as fill the device.
        late = [kernel("weight gradient", 1)]
        if side == 3 and sum(len(kernels) == 2 for kernels in beside.values()) < 18:
            start = START + NEAR if workspaces_fill else WORKSPACE
            late.insert(0, (start, WORKSPACE - start, 1))
        beside[len(main)] = late
        if inner != 3:
            tiles = -(-images * height_in**2 // TILE) * -(-inner // TILE)
            main.append(kernel("input gradient", tiles / PROCESSORS / -(-tiles // PROCESSORS)))
        if side == 3:
            norm = next(norms, None)
            if norm is not None:
                add_norm(*norm)
    return main, beside


def time_of(main, beside, filled):
    """Microseconds until both streams are done. The main one's kernels go first; one beside them has what they leave of the
    device: all of it until they compute, and with `filled` what their blocks do not fill then. A main kernel waits while
    more than BESIDE weight gradients are unfinished."""
    late = [(at, index, kernel) for index, at in enumerate(sorted(beside)) for kernel in beside[at]]
    now, at, main_left, side_left, done = 0.0, 0, None, None, -1
    while at < len(main) or late or side_left is not None:
        if main_left is None and at < len(main) and sum(start <= at for start in beside) - (done + 1) <= BESIDE:
            main_left = list(main[at])
        if side_left is None and late and (late[0][0] <= at or at == len(main)):
            _, index, kernel = late.pop(0)
            side_left = list(kernel)
        computes = main_left is not None and main_left[0] <= 0
        rates = [main_left[2] if computes else 0, 0]
        if side_left is not None and side_left[0] <= 0:
            rates[1] = min(side_left[2], (1 - rates[0] if filled else 0) if computes else 1)
        both = [(left, rate) for left, rate in zip((main_left, side_left), rates) if left is not None]
        step = min(left[0] if left[0] > 0 else left[1] / rate for left, rate in both if left[0] > 0 or rate > 0)
        now += step
        for left, rate in both:
            if left[0] > 0:
                left[0] -= step
            else:
                left[1] -= step * rate
        ended = lambda left: left is not None and left[0] <= 1e-9 and left[1] <= 1e-9
        if ended(main_left):
            main_left, at = None, at + 1
        if ended(side_left):
            side_left = None
            if not late or late[0][1] != index:
                done = index
    return now


def print_overlap(batch, views):
    main, beside = backward_pass(batch, views, True)
    alone = time_of(main, {}, False)
    late = sum(start + work / share for kernels in beside.values() for start, work, share in kernels)
    print("\n| the backward pass's kernels | us |")
    print("|---|---|")
    print(f"| norms and input gradients, {len(main)} launches | {alone:.0f} |")
    print(f"| weight gradients and their workspaces, {sum(map(len, beside.values()))} launches | {late:.0f} |")
    print(f"| in turn | {alone + late:.0f} |")
    for text, filled in (("only while the others' kernels start", False), ("on processors that these leave idle too", True)):
        times = [time_of(*backward_pass(batch, views, fill), filled) for fill in (True, False)]
        print(f"| weight gradients beside, {text} | {times[1]:.0f} to {times[0]:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--views", type=int, default=2)
    options = parser.parse_args()
    for before in (True, False):
        total = step(options.batch, options.views, before)
        print(f"\n| {'before' if before else 'now'} | launches | MB a launch | floor, us | predicted, us | us a step |")
        print("|---|---|---|---|---|---|")
        for name, (launches, size, floor, time) in total.items():
            print(f"| {name} | {launches} | {size / launches / 1e6:.1f} | {floor / launches:.1f} |"
                  f" {time / launches:.1f} | {time:.0f} |")
        sums = [sum(row[i] for row in total.values()) for i in range(4)]
        print(f"| all | {sums[0]} | {sums[1] / 1e6:.0f} in all | {sums[2]:.0f} in all | | {sums[3]:.0f} |")
    for groups in (options.views, options.views + 1):
        for channels, size in ((16, 32), (32, 32), (64, 16), (128, 8)):
            rows = options.batch * size * size
            was, now = (Grid(rows, channels, groups, before) for before in (True, False))
            print(f"{groups} groups, {channels:3} channels: {now.blocks} blocks of {now.rows_of_thread} rows a thread,"
                  f" {now.chunks} chunks; merging in every block reads {now.merged / 1e6:.1f} MB of"
                  f" {groups * rows * channels * 2 / 1e6:.1f} (the grid before: {was.merged / 1e6:.1f})")
    print_convolutions(options.batch, options.views)
    print_overlap(options.batch, options.views)


if __name__ == "__main__":
    main()
