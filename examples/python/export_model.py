"""Writes a model that C++ can train: TorchScript, for the example program `torchscript`.

    python export_model.py model.pt --classes 10
    torchscript --model model.pt --out trained.pt
    python -c 'import torch; print(torch.jit.load("trained.pt")(torch.zeros(1, 3, 32, 32)))'

Put your own network in place of WideResNet: anything that torch.jit.script takes and that maps images
[N, 3, 32, 32] to logits [N, classes]. Use script, not trace: a traced batch norm cannot change between training
and evaluation. Do not freeze it: frozen weights are constants.
"""

import argparse

import torch
from wide_resnet import WideResNet


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes an untrained Wide ResNet as TorchScript.")
    parser.add_argument("path", help="file to write, model.pt")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--widen", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    # Momentum .05, not the papers' .001: running statistics that are of use after hundreds of steps.
    model = WideResNet(options.classes, options.depth, options.widen, batch_norm_momentum=0.05)
    model.train()
    torch.jit.script(model).save(options.path)


if __name__ == "__main__":
    main()
