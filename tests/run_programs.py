"""What kill_table.py and fault_table.py share: small data sets, programs to start, and a look at what a run left.

The Python standard library only.
"""

import csv
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import zipfile

SUMMARY_LEFT_OUT = ("seconds_per_step",)
# What a finished run leaves that must not depend on how often it was stopped.
RESULTS = ("metrics.csv", "model.safetensors", "summary.json", "confusion.csv", "split.txt", "predictions.csv")


def pixels(generator, label):
    """A picture of 3 x 32 x 32 bytes: stripes of the class's width, and noise."""
    width = 2 + label
    shift = generator.randrange(32)
    plane = bytes(
        min(255, 60 + 120 * (((x + shift) // width + y // width) % 2) + generator.randrange(40))
        for y in range(32)
        for x in range(32)
    )
    return plane + plane[::-1] + bytes(255 - value for value in plane)


def write_cifar10(directory):
    """A data set in CIFAR-10's files: five of 24 records, a test set of 30."""
    os.makedirs(directory)
    generator = random.Random(1)
    for name, count in [("data_batch_%d.bin" % i, 24) for i in range(1, 6)] + [("test_batch.bin", 30)]:
        with open(os.path.join(directory, name), "wb") as file:
            for i in range(count):
                label = i % 10
                file.write(bytes([label]) + pixels(generator, label))


def write_pictures(directory):
    """Two classes of eight pictures as PPM files, and twelve pictures without a class."""
    generator = random.Random(2)
    for folder, count in (("labeled/cat", 8), ("labeled/dog", 8), ("unlabeled", 12)):
        os.makedirs(os.path.join(directory, folder))
        for i in range(count):
            label = i % 2 if folder == "unlabeled" else 5 * (folder == "labeled/dog")
            planes = pixels(generator, label)
            with open(os.path.join(directory, folder, "%02d.ppm" % i), "wb") as file:
                file.write(b"P6 32 32 255\n" + bytes(planes[k * 1024 + j] for j in range(1024) for k in range(3)))


class Program:
    """One of the training programs on its small data set."""

    def __init__(self, name, program_dir, work, steps=40):
        self.name = name
        self.steps = steps
        self.path = os.path.join(program_dir, name)
        self.data = os.path.join(work, "data_" + name)
        if not os.access(self.path, os.X_OK):
            sys.exit("there is no program " + self.path)
        if name == "own_images":
            write_pictures(self.data)
            self.own = ["--validation", "4"]
        else:
            write_cifar10(self.data)
            self.own = ["--labels", "20"]

    def arguments(self, out, *more):
        """A run of a few seconds: rows at each step, checkpoints that lag behind them."""
        return [
            self.path, "--data", self.data, "--out", out, *self.own, "--batch", "6", "--depth", "10",
            "--widen", "1", "--steps", str(self.steps), "--eval-every", "8", "--log-every", "1",
            *self.UNSTORED, "--threads", "1", "--device", "cpu", "--precision", "fp32", *more,
        ]

    def resume_arguments(self, out, *more):
        return [self.path, "--data", self.data, "--out", out, "--resume", *self.UNSTORED, *more]

    # What does not belong to a run's configuration.
    UNSTORED = ("--checkpoint-every", "3", "--recalibrate", "48")


def start(arguments, **more):
    """A program whose output is kept, in a process group of its own."""
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    more.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(arguments, start_new_session=True, preexec_fn=restore_signals, **more)


def restore_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def run(arguments, timeout=120, **more):
    """(exit status, standard output, standard error)"""
    process = start(arguments, **more)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return "hangs", text_of(out), text_of(err)
    return process.returncode, text_of(out), text_of(err)


def text_of(data):
    return (data or b"").decode("utf-8", "replace")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def fault_of_file(path):
    """What is wrong with a file that a run wrote; "" if it is whole."""
    name = os.path.basename(path)
    data = read(path)
    try:
        if name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".csv"):
            if data and not data.endswith(b"\n"):
                return "a row is cut short"
            rows = list(csv.reader(io.StringIO(data.decode())))
            if any(len(row) != len(rows[0]) for row in rows):
                return "rows of unequal length"
        elif name.endswith(".safetensors"):
            (length,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + length])
            ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
            if 8 + length + max(ends) != len(data):
                return "its size is not what its header says"
        elif name.endswith(".pt"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if not archive.comment.startswith(b"mixmatch checkpoint crc32c ") or archive.testzip() is not None:
                    return "not a whole checkpoint"
        elif name == "report.html" and not data.rstrip().endswith(b"</html>"):
            return "cut short"
        elif name == "split.txt" and (not data.startswith(b"mixmatch split") or not data.endswith(b"\n")):
            return "cut short"
    except Exception as error:  # whatever the parsers say
        return "%s: %s" % (type(error).__name__, error)
    return ""


def faults_of_run(directory, finished):
    """What is wrong with the files of a run directory, half-written ones above all."""
    faults = []
    for name in sorted(os.listdir(directory)):
        if ".tmp-" in name:
            if finished:
                faults.append(name + " was left behind")
            continue
        fault = fault_of_file(os.path.join(directory, name))
        if fault:
            faults.append(name + ": " + fault)
    return faults


def results_of(directory):
    """The bytes of a finished run's results; times are left out."""
    results = {}
    for name in RESULTS:
        path = os.path.join(directory, name)
        if os.path.exists(path):
            data = read(path)
            if name == "summary.json":
                summary = json.loads(data)
                for key in SUMMARY_LEFT_OUT:
                    summary.pop(key)
                data = json.dumps(summary).encode()
            results[name] = data
    return results


def print_table(header, rows):
    """A table that Markdown reads too."""
    table = [header] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for index, row in enumerate(table):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()
