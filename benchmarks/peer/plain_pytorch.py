"""MixMatch on WRN-28-2 as people write it in PyTorch: eager, NCHW, fp32. Prints the median time of a step.

A peer to measure against, not a training program: random uint8 images stand in for CIFAR-10. Needs torch alone.
    python3 benchmarks/peer/plain_pytorch.py --threads 2 --steps 20 [--device cuda]
"""
import argparse
import copy
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels_in, channels_out, stride, activate_before_residual):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in, momentum=0.001, eps=1e-3)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out, momentum=0.001, eps=1e-3)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.shortcut = None
        if channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        self.activate_before_residual = activate_before_residual

    def forward(self, x):
        activated = F.leaky_relu(self.bn1(x), 0.1)
        out = self.conv2(F.leaky_relu(self.bn2(self.conv1(activated)), 0.1))
        kept = activated if self.activate_before_residual else x
        return out + (kept if self.shortcut is None else self.shortcut(kept))


class WideResNet(nn.Module):
    def __init__(self, classes=10, depth=28, widen=2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        blocks, channels = [], 16
        for scale in range(3):
            filters = 16 * widen * 2**scale
            for i in range((depth - 4) // 6):
                stride = 2 if scale > 0 and i == 0 else 1
                blocks.append(Block(channels, filters, stride, scale == 0 and i == 0))
                channels = filters
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels, momentum=0.001, eps=1e-3)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.leaky_relu(self.bn(self.blocks(self.conv1(x))), 0.1)
        return self.fc(x.mean((2, 3)))


def augment(images):
    """Mirror, reflection pad and crop, image by image, as a data loader's transform does."""
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
    out = []
    for image in padded:
        dy, dx = torch.randint(9, (2,)).tolist()
        image = image[:, dy:dy + 32, dx:dx + 32]
        out.append(image.flip(2) if torch.rand(()) < 0.5 else image)
    return torch.stack(out)


def interleave(batches):
    count, rows = len(batches), batches[0].shape[0]
    sizes = [rows // count] * count
    for i in range(rows % count):
        sizes[-1 - i] += 1
    groups = [list(batch.split(sizes)) for batch in batches]
    for i in range(1, count):
        groups[0][i], groups[i][i] = groups[i][i], groups[0][i]
    return [torch.cat(group) for group in groups]


def set_track(model, momentum):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


def train_step(model, average, optimizer, images, labels, batch, step, device="cpu"):
    # The data loader's part is on the CPU, as people have it.
    rows = torch.randint(images.shape[0], (2 * batch,))
    x, u = images[rows[:batch]].float() / 127.5 - 1, images[rows[batch:]].float() / 127.5 - 1
    targets = F.one_hot(labels[rows[:batch]], 10).float().to(device)
    x, views = augment(x).to(device), [augment(u).to(device), augment(u).to(device)]
    with torch.no_grad():
        set_track(model, 0.0)
        guess = sum(torch.softmax(model(view), 1) for view in views) / 2
        set_track(model, 0.001)
        guess = guess**2
        guess = guess / guess.sum(1, keepdim=True)
    inputs, targets = torch.cat([x, *views]), torch.cat([targets, guess, guess])
    weight = torch.distributions.Beta(0.75, 0.75).sample((inputs.shape[0],)).to(device)
    weight = torch.max(weight, 1 - weight)
    order = torch.randperm(inputs.shape[0]).to(device)
    inputs = weight.view(-1, 1, 1, 1) * inputs + (1 - weight.view(-1, 1, 1, 1)) * inputs[order]
    targets = weight.view(-1, 1) * targets + (1 - weight.view(-1, 1)) * targets[order]

    batches = interleave(list(inputs.split(batch)))
    logits = [model(batches[0])]
    set_track(model, 0.0)
    logits += [model(part) for part in batches[1:]]
    set_track(model, 0.001)
    logits = interleave(logits)
    logits_x, logits_u = logits[0], torch.cat(logits[1:])
    loss_x = -(F.log_softmax(logits_x, 1) * targets[:batch]).sum(1).mean()
    loss_u = ((torch.softmax(logits_u, 1) - targets[batch:])**2).mean()
    loss = loss_x + 75 * min(step / 16384, 1) * loss_u
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for mean, parameter in zip(average.parameters(), model.parameters()):
            if parameter.dim() > 1:
                parameter.mul_(1 - 4e-5)
            mean.mul_(0.999).add_(parameter, alpha=0.001)
    return loss.item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--widen", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    images = torch.randint(256, (5000, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (5000,))
    model = WideResNet(depth=args.depth, widen=args.widen).to(args.device)
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    times = []
    for step in range(args.steps + 3):
        start = time.perf_counter()
        train_step(model, average, optimizer, images, labels, args.batch, step, args.device)
        times.append(time.perf_counter() - start)
    times = times[3:]
    print(f"plain PyTorch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads: median {statistics.median(times):.4f} s"
          f" a step over {len(times)} steps (min {min(times):.4f}, max {max(times):.4f})")


if __name__ == "__main__":
    main()
