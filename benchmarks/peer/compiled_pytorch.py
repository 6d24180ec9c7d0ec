"""MixMatch on WRN-28-2 in PyTorch by somebody who cares for speed: torch.compile, bfloat16, channels-last, the data
set and the augmentation on the device, one fused optimiser. Prints the median time of a step.

A peer to measure against: the network and the step of plain_pytorch.py. Needs torch alone.
    python3 benchmarks/peer/compiled_pytorch.py --device cuda --steps 200
"""
import argparse
import copy
import statistics
import sys
import time

import torch
from torch.nn import functional as F

from plain_pytorch import WideResNet, interleave


def augment(images):
    """Mirror, reflection pad and crop of uint8 images, all in one gather."""
    count, _, height, width = images.shape
    device = images.device
    padded = F.pad(images.float() / 127.5 - 1, (4, 4, 4, 4), mode="reflect")
    rows = torch.arange(height, device=device) + torch.randint(9, (count, 1), device=device)
    columns = torch.arange(width, device=device) + torch.randint(9, (count, 1), device=device)
    mirrored = torch.rand((count, 1), device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=device)
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def symmetric_beta(alpha, count, device):
    """Beta(alpha, alpha) from two Gamma variates, in log space."""
    gamma = torch._standard_gamma(torch.full((2, count), alpha + 1, device=device)).log()
    uniform = (1 - torch.rand((2, count), device=device)).log() / alpha
    return torch.sigmoid(gamma[0] - gamma[1] + uniform[0] - uniform[1])


def set_momentum(model, momentum):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum


class Step:
    def __init__(self, args, images, labels):
        self.args, self.images, self.labels = args, images, labels
        import torch._dynamo
        for resident in (images, labels):  # not to be copied into the graph's own memory at each step
            torch._dynamo.mark_static_address(resident)
        self.device = torch.device(args.device)
        self.model = WideResNet(depth=args.depth, widen=args.widen).to(self.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model)
        self.parameters = list(self.model.parameters())
        self.averages = list(self.average.parameters())
        self.kernels = [p for p in self.parameters if p.dim() > 1]
        self.optimizer = torch.optim.Adam(self.parameters, lr=2e-3, fused=True)
        # The running statistics of all but the first pass are moved back: a momentum that changes would compile anew.
        self.buffers = [b for b in self.model.buffers() if b.is_floating_point()]
        mode = None if args.mode == "default" else args.mode
        self.prepare = torch.compile(self._prepare, backend=args.backend, mode=mode)
        self.loss = torch.compile(self._loss, backend=args.backend, mode=mode)

    def _forward(self, x):
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.model(x.contiguous(memory_format=torch.channels_last)).float()

    def _prepare(self, rows, weights, order):
        """Augmented, guessed and mixed."""
        batch = self.args.batch
        images = augment(self.images[torch.cat([rows[:batch], rows[batch:], rows[batch:]])])
        x, *views = images.split(batch)
        with torch.no_grad():
            guess = sum(torch.softmax(self._forward(view), 1) for view in views) / 2
            guess = guess**2
            guess = guess / guess.sum(1, keepdim=True)
        targets = torch.cat([F.one_hot(self.labels[rows[:batch]], 10).float(), guess, guess])
        mixed = weights.view(-1, 1, 1, 1) * images + (1 - weights.view(-1, 1, 1, 1)) * images[order]
        return mixed, weights.view(-1, 1) * targets + (1 - weights.view(-1, 1)) * targets[order]

    def _loss(self, inputs, targets, weight):
        batch = self.args.batch
        logits = interleave([self._forward(part) for part in interleave(list(inputs.split(batch)))])
        logits_x, logits_u = logits[0], torch.cat(logits[1:])
        loss_x = -(F.log_softmax(logits_x, 1) * targets[:batch]).sum(1).mean()
        return loss_x + weight * ((torch.softmax(logits_u, 1) - targets[batch:])**2).mean()

    def __call__(self, step):
        count = 3 * self.args.batch
        rows = torch.randint(self.images.shape[0], (2 * self.args.batch,), device=self.device)
        weights = symmetric_beta(0.75, count, self.device)
        weights = torch.maximum(weights, 1 - weights)
        if hasattr(torch.compiler, "cudagraph_mark_step_begin"):
            torch.compiler.cudagraph_mark_step_begin()
        inputs, targets = self.prepare(rows, weights, torch.randperm(count, device=self.device))
        ramp = torch.full((), 75 * min(step / 16384, 1), device=self.device)
        loss = self.loss(inputs.clone(), targets.clone(), ramp)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_mul_(self.kernels, 1 - 4e-5)
            torch._foreach_lerp_(self.averages, self.parameters, 0.001)
        return loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--widen", type=int, default=2)
    parser.add_argument("--images", type=int, default=50000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mode", default="max-autotune", help="torch.compile's; default: no CUDA graphs, no tuning")
    parser.add_argument("--backend", default="inductor", help="torch.compile's; aot_eager: no code is generated")
    args = parser.parse_args()
    if args.backend != "inductor":
        args.mode = "default"  # modes are inductor's
    if not hasattr(torch, "compile"):
        sys.exit(f"compiled_pytorch.py: torch.compile came with PyTorch 2, this is {torch.__version__}")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    images = torch.randint(256, (args.images, 3, 32, 32), dtype=torch.uint8).to(args.device)
    labels = torch.randint(10, (args.images,)).to(args.device)
    step = Step(args, images, labels)

    def wait():
        if step.device.type == "cuda":
            torch.cuda.synchronize()

    for i in range(args.warmup):
        step(i)
    runs, times = 5, []
    each = max(1, args.steps // runs)
    for _ in range(runs):
        wait()
        start = time.perf_counter()
        for i in range(each):
            loss = step(i)
        wait()
        times.append((time.perf_counter() - start) / each)
    assert torch.isfinite(loss).item()
    print(f"compiled PyTorch {torch.__version__} ({args.backend}, {args.mode}), {args.device}: median {statistics.median(times):.4f} s"
          f" a step over {runs * each} steps (min {min(times):.4f}, max {max(times):.4f})")


if __name__ == "__main__":
    main()
