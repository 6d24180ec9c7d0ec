#!/usr/bin/env python3
"""What the norm kernels and convolutions of a MixMatch step of WRN-28-2 should take, from shapes alone. Norm kernels:
bytes, floor and predicted microseconds of each, for those before (six launches a norm) and now (four). Convolutions:
operations, bytes, floors, and what two ways to compute them should take. The backward pass: with the weight gradients
in turn and on a stream of their own. The step's small kernels, the whole step, and a step of each other method. An
estimate, no measurement: the constants below were chosen so that the norm kernels before, and Adam, come out near what
the profiler said of them.

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


PARAMETERS, STATISTICS, CLASSES, IMAGE = 1_467_610, 3_616, 10, 3 * 32 * 32
CYCLES = 1755  # a microsecond, of a processor that has much to do
# Microseconds of arithmetic: the lone thread of each of Adam's blocks at a power in float64, chosen so that Adam, by the
# 4,096 blocks that it had, comes out near its measured 27; a float64 logarithm; one of the shuffle's 90 rounds, 92
# instructions (as nvcc makes them) of a warp that is alone.
POWER, LOGARITHM, SHUFFLE_ROUND = 0.8, 0.2, 92 * 1.75 / CYCLES
CROP = 480  # instructions of crop_views a pixel, some
# Microseconds, by the profile of the code before: between two pieces, of a cast, of the partners' sort, of each of the
# small pieces that were saved (about), of all small ones on average.
GAP, CAST, SORT, SAVED, SMALL = 0.35, 186 / 92, 37, 1.5, 1.9
WORKSPACES = 18
OTHER_PIECES = 83  # layouts and sums of cuDNN, the ends of the network: neither convolution nor in small_kernels()

# {method: (measured ms a step before, its passes as (images, groups, gradients, bytes a number), casts of weights
# saved, other small pieces saved, partners' sorts)}, of 64 labeled images. Counted for MixMatch; for the others from
# their code, by which kernels serve them: a pass without gradients had casts of its own.
ONE, TWO = [(64, 1, True, 2)], [(64, 1, True, 2)] * 2
METHODS = {
    "supervised": (2.17, ONE, 59, 40, 0),
    "pseudo_label": (4.25, TWO, 59, 50, 0),
    "mixmatch": (4.44, [(128, 2, False, 2), (192, 3, True, 2)], 91, 105, 1),
    "mixup": (4.96, [(64, 1, False, 2)] + TWO, 91, 105, 2),
    "pi_model": (4.98, [(64, 1, False, 2)] + TWO, 91, 75, 0),
    "mean_teacher": (5.03, [(64, 1, False, 2)] + TWO, 90, 75, 0),
    "ict": (5.07, [(64, 1, False, 2)] + TWO, 90, 90, 1),
    "fixmatch": (9.42, [(960, 1, True, 2)], 59, 50, 0),
    "uda": (9.48, [(960, 1, True, 2)], 59, 50, 0),
    "vat": (12.02, [(64, 1, False, 4), (64, 1, True, 4)] + [(64, 1, True, 2)] * 3, 59, 65, 0),
}


class Grid:
    """NormGrid of cuda_norm.hpp for bfloat16 (or numbers of 4 bytes), and the one before it."""

    def __init__(self, rows, channels, groups, before, number=2):
        width = 16 // number
        packs = channels // width
        lanes = min(packs, 32 if before else 4)
        tiles, threads = packs // lanes, 256 if before else 512
        slices = threads // lanes
        if before:
            each = 8
        else:
            each = max(2, -(-rows // (slices * max(1, PROCESSORS // (groups * tiles)))))
        self.chunks = -(-rows // (slices * each))
        self.blocks, self.rows_of_thread = groups * self.chunks * tiles, each
        self.merged = self.blocks * self.chunks * lanes * width * 8  # bytes that blocks read of chunks' numbers


def took(stages, body, bytes_near, bytes_far, rounds):
    """`stages` of loads before the rows, `rounds` of loads of rows; what else a block does is `body`."""
    streamed = bytes_near / CACHE + bytes_far / MEMORY
    return START + stages * NEAR + body + max(streamed, rounds * (FAR if bytes_far else NEAR))


def norm_kernels(images, channels, size, adds, groups, backward, before, number=2):
    """{kernel: (bytes of images, floor, predicted)} of one norm."""
    tensor = images * size * size * channels * number
    grid = Grid(images // groups * size * size, channels, groups, before, number)
    each = grid.rows_of_thread
    rounds = lambda was, now: -(-each // (was if before else now))
    merged = 0 if before else grid.merged
    # An addend was made five tensors earlier; what the forward pass saved has long left the cache.
    far_addend = tensor if adds and 5 * tensor > CACHE_SIZE else 0
    found = {}

    def add(name, near, far, depth, stages, body, extra=0):
        if tensor > CACHE_SIZE / 2:  # no kernel finds what the one before has written
            near, far = 0, near + far
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


def mixmatch_passes(batch, views):
    return [(batch * views, views, False, 2), (batch * (views + 1), views + 1, True, 2)]


def norms_of(passes, before):
    """{kernel: [launches, bytes, floor, predicted]} of a step's passes: (images, groups, gradients, bytes a number)."""
    total = {}
    for images, groups, backward, number in passes:
        for channels, size, adds in NORMS:
            found = norm_kernels(images, channels, size, adds, groups, backward, before, number)
            for name, one in found.items():
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


def scales():
    """By what "read again" is multiplied so that the sums are those of the profile, which is of 64 images, twice."""
    sums = {kind: 0 for kind in ("forward", "input gradient", "weight gradient")}
    for kind, _, _, count, *_, again in convolutions(64, 2):
        sums[kind] += count * again
    return {"input gradient": OTHERS / (sums["forward"] + sums["input gradient"]),
            "weight gradient": WEIGHT_GRADIENTS / sums["weight gradient"]}


def convolutions_of(passes):
    """Microseconds of all of them, by "read again" and these scales."""
    scale, total = scales(), 0
    for images, _, backward, _ in passes:
        for kind in ("forward", "input gradient", "weight gradient") if backward else ("forward",):
            for *layer, count in CONVOLUTIONS:
                if kind != "input gradient" or layer[0] != 3:
                    of_kind = scale["weight gradient" if kind == "weight gradient" else "input gradient"]
                    total += count * of_kind * convolution(images, *layer, kind)[5]
    return total


def backward_pass(images, groups, workspaces, workspaces_fill):
    """(main, beside): the backward pass's kernels as (microseconds until it computes, microseconds of the whole device,
    the share of it that its blocks can fill), in order; beside[i] has what is ready when main[i] begins. `workspaces`:
    "beside" the weight gradients, which they are taken for, on the "main" stream, or "none". How much of the device
    such a kernel fills is not known: all or next to nothing."""
    scale = scales()
    main, beside = [], {}
    layers = [layer[:5] for layer in CONVOLUTIONS for _ in range(layer[5])]
    norms, prepared = iter(reversed(NORMS)), 0
    start = START + NEAR if workspaces_fill else WORKSPACE
    workspace = (start, WORKSPACE - start, 1)

    def add_norm(channels, size, adds):
        found = norm_kernels(images, channels, size, adds, groups, True, False)
        for name in ("norm_gradient_sums", "norm_input_gradient"):
            main.append((START + NEAR, found[name][2] - START - NEAR, 1))

    add_norm(*next(norms))
    for inner, outer, height_in, height_out, side in reversed(layers):
        def kernel(kind, share):
            whole = scale[kind] * convolution(images, inner, outer, height_in, height_out, side, kind)[5]
            return START + NEAR, (whole - START - NEAR) * share, share

        # A weight gradient is cut into as many parts as fill the device.
        late = [kernel("weight gradient", 1)]
        prepares = workspaces != "none" and side == 3 and prepared < WORKSPACES
        prepared += prepares
        if prepares and workspaces == "beside":
            late.insert(0, workspace)
        beside[len(main)] = late
        if prepares and workspaces == "main":
            main.append(workspace)
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


def overlaps(images, groups, workspaces):
    """(in turn, [beside the kernels' starts alone, on what they leave idle too]), the latter as (least, most)."""
    main, beside = backward_pass(images, groups, workspaces, True)
    late = sum(start + work / share for kernels in beside.values() for start, work, share in kernels)
    both = []
    for filled in (False, True):
        times = [time_of(*backward_pass(images, groups, workspaces, fill), filled) for fill in (True, False)]
        both.append((min(times), max(times)))
    return time_of(main, {}, False) + late, both


def saved_beside(images, groups, workspaces):
    """The least and the most that weight gradients on a stream of their own save, microseconds."""
    in_turn, both = overlaps(images, groups, workspaces)
    return in_turn - max(most for _, most in both), in_turn - min(least for least, _ in both)


def span(least, most, digits=0):
    texts = [f"{value:,.{digits}f}" for value in (least, most)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def print_overlap(batch, views):
    images, groups = batch * (views + 1), views + 1
    main, beside = backward_pass(images, groups, "none", True)
    late = sum(start + work / share for kernels in beside.values() for start, work, share in kernels)
    print("\n| the backward pass's kernels | launches | us |")
    print("|---|---|---|")
    print(f"| norms and input gradients | {len(main)} | {time_of(main, {}, False):.0f} |")
    print(f"| weight gradients | {len(beside)} | {late:.0f} |")
    print(f"| workspaces | {WORKSPACES} | {WORKSPACES * WORKSPACE:.0f} |")
    print("\n| weight gradients beside; workspaces | in turn, us | only while the others' kernels start | "
          "on processors that these leave idle too | saves |")
    print("|---|---|---|---|---|")
    for text, workspaces in (("beside, too", "beside"), ("on the main stream", "main"), ("left out", "none")):
        in_turn, both = overlaps(images, groups, workspaces)
        print(f"| {text} | {in_turn:,.0f} | " + " | ".join(span(*times) for times in both)
              + f" | {span(*saved_beside(images, groups, workspaces))} |")


def small_kernels(batch, views):
    """(kernel, launches, bytes near, bytes far, predicted) of a MixMatch step's small pieces, bytes and microseconds of
    one launch. Images are float32 until the network's first convolution, logits bfloat16, targets float32."""
    rows, raw = batch * (views + 1), 2 * batch * IMAGE
    images, logits, targets = rows * IMAGE * 4, rows * CLASSES * 2, rows * CLASSES * 4
    found = []

    def add(name, launches, near, far, stages, body=0, rounds=1):
        found.append((name, launches, near, far, took(stages, body, near, far, rounds)))

    def waves(blocks, of_processor):
        return blocks / (PROCESSORS * of_processor)

    add("stream_rows", 1, 32 * batch, 0, 2, 90 * SHUFFLE_ROUND)  # its position, a bound, then the row
    add("gathered labels", 1, 3 * 8 * 2 * batch, 0, 1)
    add("gathered images", 1, raw, raw, 1)
    add("crop_views", 1, raw + images, 0, 1, rows * IMAGE / 3 / 32 * CROP / (4 * PROCESSORS * CYCLES))
    add("weights to bf16", 1, 6 * PARAMETERS, 0, 0, 0, 2)
    add("sharpen_views", 1, batch * CLASSES * (2 * views + 4), 0, views, 3 * MERGE)  # sums of a warp, half a MERGE
    add("guess_quality", 1, batch * CLASSES * 4 + batch * 8, 0, 1, CLASSES * LOGARITHM + 5 * MERGE)
    add("join_targets", 1, batch * (CLASSES * 4 + 8) + targets, 0, 1)
    add("LibTorch's draws", 4, 2 * rows * 8, 0, 0, SUM)
    add("beta_of_draws", 1, 4 * rows * 8 + rows * 4, 0, 0, 4 * LOGARITHM)
    add("sorted_places", 1, 2 * rows * 8, 0, 0, 0.7 * rows / 64, -(-rows // 64))  # 64 numbers of a tile: .7 us
    add("mix_rows of images", 1, 3 * images, 0, 1, 0, 2)
    add("mix_rows of targets", 1, 3 * targets, 0, 1, 0, 2)
    add("images in the pass's order", 1, 2 * images, 0, 0)
    add("interleave_rows", 2, 2 * logits, 0, 0)
    add("class_loss", 2, (logits + targets) / 2, 0, 1, LOGARITHM + MERGE + SUM)  # a thread reads ten numbers four times
    add("class_loss_gradient", 2, (2 * logits + targets) / 2, 0, 1, SUM)
    add("ramped_total", 1, 40, 0, 0)
    add("move_statistics", 1, 3 * 4 * STATISTICS, 0, 1)
    add("its copies", 2, 2 * 4 * STATISTICS, 0, 0)
    # Most gradients, those of 128 channels, are written before all others.
    blocks = -(-PARAMETERS // 1024)
    add("gather_gradients", 1, 4 * PARAMETERS, 2 * PARAMETERS, 0, MERGE, waves(blocks, 8))
    add("begin_step", 1, blocks, 0, 1, MERGE, -(-blocks // 256) / 4)
    # Blocks of one wave after the other load what the step needs, raise two betas to a power in one thread, and load
    # their elements: 40 registers are six blocks of 256 threads a processor.
    blocks = min(768, -(-PARAMETERS // 256))
    turns = waves(blocks, 6)
    add("adam_step", 1, 20 * PARAMETERS, 17 * PARAMETERS, 2 * turns, 2 * POWER * turns,
        turns * PARAMETERS / (256 * blocks))
    add("add_numbers", 1, 9 * 40, 0, 1)
    add("the step's number", 1, 16, 0, 0)
    return found


def print_small_kernels(batch, views):
    print("\n| small kernel | launches | KB a launch | floor, us | predicted, us | us a step |")
    print("|---|---|---|---|---|---|")
    rows = small_kernels(batch, views)
    for name, launches, near, far, time in rows:
        print(f"| {name} | {launches} | {(near + far) / 1e3:,.1f} | {near / CACHE + far / MEMORY:.1f} | {time:.1f} |"
              f" {launches * time:.0f} |")
    floor = sum(launches * (near / CACHE + far / MEMORY) for _, launches, near, far, _ in rows)
    print(f"| all | {sum(row[1] for row in rows)} | | {floor:.0f} in all | | {sum(row[1] * row[4] for row in rows):.0f} |")


def print_step(batch, views):
    passes = mixmatch_passes(batch, views)
    norms, small = norms_of(passes, False), small_kernels(batch, views)
    least, most = saved_beside(batch * (views + 1), views + 1, "beside")
    on_side = 28 + WORKSPACES
    parts = [
        ("norm kernels", sum(row[0] for row in norms.values()), sum(row[3] for row in norms.values())),
        ("convolutions, as measured", sum(row[3] for row in convolutions(batch, views)), convolutions_of(passes)),
        ("workspaces, as measured", WORKSPACES, WORKSPACES * WORKSPACE),
        ("small kernels", sum(row[1] for row in small), sum(row[1] * row[4] for row in small)),
        (f"others, {SMALL} us each as measured", OTHER_PIECES, OTHER_PIECES * SMALL),
    ]
    pieces = sum(part[1] for part in parts)
    parts.append((f"gaps between them, {GAP} us each", 0, pieces * GAP))
    parts.append(("weight gradients beside, and their gaps", 0, -(least + most) / 2 - on_side * GAP))
    print("\n| the whole step, predicted | pieces | us |")
    print("|---|---|---|")
    for text, count, time in parts:
        print(f"| {text} | {count or ''} | {time:,.0f} |")
    print(f"| together | {pieces} | {sum(part[2] for part in parts):,.0f} |")


def print_methods():
    """Measured, less what the norms, the saved pieces and the second stream should save. The range: of that at least a
    half, a half and a quarter, at most a seventh more, a third more and twice, taken as independent."""
    print("\n| method | measured before, ms | bf16 convolutions, us | norms before | now | small pieces saved | us | "
          "beside saves, us | predicted now, ms, without | with |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, (measured, passes, casts, small, sorts) in METHODS.items():
        was, now = (norms_of(passes, before) for before in (True, False))
        launches = [sum(row[0] for row in norms.values()) for norms in (was, now)]
        times = [sum(row[3] for row in norms.values()) for norms in (was, now)]
        by_norms = times[0] - times[1] + GAP * (launches[0] - launches[1])
        by_pieces = casts * (CAST + GAP) + small * (SAVED + GAP) + sorts * SORT
        beside = [saved_beside(images, groups, "beside")
                  for images, groups, backward, number in passes if backward and number == 2]
        span_beside = [sum(pair[i] for pair in beside) + len(beside) * GAP * (28 + WORKSPACES) for i in (0, 1)]
        by_beside = sum(span_beside) / 2
        without = measured - (by_norms + by_pieces) / 1e3
        predicted = without - by_beside / 1e3
        fewer = ((by_norms / 7)**2 + (by_pieces / 3)**2 + by_beside**2) ** 0.5 / 1e3
        more = ((by_norms / 2)**2 + (by_pieces / 2)**2 + (0.75 * by_beside)**2) ** 0.5 / 1e3
        in_bf16 = convolutions_of([one for one in passes if one[3] == 2])
        print(f"| {name} | {measured:.2f} | {in_bf16:,.0f} | {times[0]:,.0f} | {times[1]:,.0f} |"
              f" {casts + small} | {by_pieces:.0f} | {span(*span_beside)} | {without:.1f} |"
              f" {predicted:.1f} ({predicted - fewer:.1f} to {predicted + more:.1f}) |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--views", type=int, default=2)
    options = parser.parse_args()
    for before in (True, False):
        total = norms_of(mixmatch_passes(options.batch, options.views), before)
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
    print_small_kernels(options.batch, options.views)
    print_step(options.batch, options.views)
    print_methods()


if __name__ == "__main__":
    main()
