"""exported.py MODEL.onnx MODEL.pt TENSORS.safetensors: both files give the outputs that C++ found, within 1e-4, for
all rows together and for one alone. MODEL.pt may be empty; else MODEL.onnx is that of a classifier."""

import sys

import onnxruntime
import safetensors.numpy
import torch

onnx_file, script_file, tensors_file = sys.argv[1:]
tensors = safetensors.numpy.load_file(tensors_file)
images, expected = tensors["input"], tensors["expected"]
session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
(name,) = [value.name for value in session.get_inputs()]
if script_file:
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["class_1"], metadata["image_size"]) == ("dög", "24"), metadata
    assert session.get_inputs()[0].shape == ["N", 3, 24, 24], session.get_inputs()[0].shape


def by_onnxruntime(rows):
    (found,) = session.run(None, {name: rows})
    return found


def by_torch(rows):
    with torch.no_grad():
        return torch.jit.load(script_file)(torch.from_numpy(rows)).numpy()


for run in [by_onnxruntime] + ([by_torch] if script_file else []):
    for rows in (len(images), 1):
        difference = abs(run(images[:rows]) - expected[:rows]).max()
        if not difference < 1e-4:
            sys.exit(f"{run.__name__}, {rows} rows: differs by {difference}")
