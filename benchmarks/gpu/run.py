#!/usr/bin/env python3
"""What a GPU makes of the library, unattended: builds against this machine's PyTorch, checks every kernel against
float64, a step against the CPU's, its graph against the eager step and a resumed run against one that never stopped,
times a MixMatch step by variant, profiles the fastest, times the peers, evaluation and convolutions, and trains on
CIFAR-10.

Needs python with torch (built with CUDA) and g++, and a CUDA toolkit where torch's own packages bring headers without
the ones that those include (CUDA 13's do); no network.

    python3 benchmarks/gpu/run.py --data cifar-10-batches-bin --minutes 60
    python3 benchmarks/gpu/run.py --quick --minutes 12 --data cifar-10-batches-bin  # all within 12 minutes; training
                                                    # has what is left, and the next call goes on with it
    python3 benchmarks/gpu/run.py --quick --preset fast --data …    # trains by train's --preset fast, in a run of its own
    python3 benchmarks/gpu/run.py --program DIR/gpu_benchmark …                     # built elsewhere, for this PyTorch
    python3 benchmarks/gpu/run.py --pieces 15M …    # what is to be carried away in files of 15 MB at most
    python3 benchmarks/gpu/run.py --join …          # begins with joining pieces that were carried here, in OUT/pieces
    python3 benchmarks/gpu/run.py --sanitize        # memcheck and racecheck of a few checks, nothing else
    python3 benchmarks/gpu/run.py --quick --dry-run # all of it on the CPU, in tiny sizes: one to three minutes
                                                    # after the build, which takes as long and is not repeated
"""
import argparse
import collections
import glob
import hashlib
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["gpu_benchmark", "checks"]  # compiled at the same time


class Report:
    """Prints, and keeps what was printed in a file."""

    def __init__(self, path):
        self.file = open(path, "w")
        self.failures = []
        self.deadline = None  # by time.monotonic()
        self.environment = dict(os.environ)

    def minutes_left(self):
        return float("inf") if self.deadline is None else (self.deadline - time.monotonic()) / 60

    def line(self, text=""):
        print(text, flush=True)
        self.file.write(text + "\n")
        self.file.flush()

    def run(self, title, command, minutes=15):
        """Runs a command, for so long at most, showing its output as it comes; remembers a failure and goes on."""
        self.line(f"\n== {title}")
        start = time.monotonic()
        minutes = min(minutes, self.minutes_left())
        if minutes <= 0:
            self.line("left out: the time is up")
            return False
        late = threading.Event()
        try:
            # A group of its own: what the command starts is stopped with it.
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       errors="replace", env=self.environment, start_new_session=True)
        except OSError as error:
            return self.failed(title, f"cannot be started: {error}")

        def stop():
            try:
                os.killpg(process.pid, signal.SIGKILL)
                late.set()
            except ProcessLookupError:  # just ended
                pass

        watch = threading.Timer(60 * minutes, stop)
        watch.start()
        try:
            with process.stdout:
                for text in process.stdout:
                    self.line(text.rstrip())
            process.wait()
        except BaseException:  # Ctrl-C
            stop()
            raise
        finally:
            watch.cancel()
            watch.join()  # it may be stopping the command this moment
        self.line(f"({time.monotonic() - start:.0f} s)")
        if late.is_set():
            return self.failed(title, f"stopped after {minutes:.1f} minutes")
        return process.returncode == 0 or self.failed(title, f"exit status {process.returncode}")

    def failed(self, title, why):
        self.failures.append(f"{title}: {why}")
        self.line(f"FAILED: {why}")
        return False


def machine(torch, device):
    cpu = platform.processor() or platform.machine()
    for text in open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else []:
        if text.startswith("model name"):
            cpu = text.split(":", 1)[1].strip()
            break
    gpu = "no GPU"
    if device == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        gpu = f"{name} (sm_{major}{minor}), CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{gpu}; {cpu}, {os.cpu_count()} processors; PyTorch {torch.__version__}"


def torch_libraries(torch):
    """Where torch's own libraries are and, from PyPI, CUDA's beside it."""
    package = Path(torch.__file__).parent
    return [package / "lib", *map(Path, glob.glob(str(package.parent / "nvidia/*/lib")))]


def checksum(flags):
    """Of all that a program is built from."""
    found = hashlib.sha256("\0".join(flags).encode())
    for path in sorted([*(ROOT / "include").rglob("*.hpp"), *(ROOT / "benchmarks/gpu").glob("*.?pp"),
                        *(ROOT / "tests").glob("*.hpp")]):
        found.update(path.read_bytes())
    return found.hexdigest()


def build(report, torch, target, optimize):
    """Two g++ calls at a time and one that links: the library is headers, and so is all it needs beside LibTorch.
    Nothing where the program is there already, of the same sources, flags and PyTorch."""
    package = Path(torch.__file__).parent
    includes = [package / "include", package / "include/torch/csrc/api/include"]
    libraries = [package / "lib"]
    defines = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", "-DFMT_HEADER_ONLY"]
    link = ["-ltorch", "-ltorch_cpu", "-lc10"]

    def found(header):
        return any((path / header).exists() for path in [*includes, Path("/usr/include"), Path("/usr/local/include")])

    if torch.version.cuda:
        # From PyPI, CUDA's headers lie beside torch; elsewhere there is a toolkit.
        compiler = shutil.which("nvcc")
        home = os.environ.get("CUDA_HOME") or (Path(compiler).resolve().parents[1] if compiler else "/usr/local/cuda")
        toolkit = [] if str(home) == "/usr" else [Path(home)]  # a distribution's, which the compiler finds itself
        for place in [*map(Path, glob.glob(str(package.parent / "nvidia/*"))), *toolkit]:
            includes += [path for path in [place / "include", place / "include/cccl"] if path.is_dir()]
            libraries += [path for path in [place / "lib", place / "lib64"] if path.is_dir()]
        missing = [name for name in ["cuda_runtime_api.h", "crt/host_defines.h", "nv/target"] if not found(name)]
        if missing:
            report.line(f"CUDA's headers {', '.join(missing)} are in none of {', '.join(map(str, includes))}:"
                        " built without CUDA; install the toolkit or set CUDA_HOME")
        else:
            runtime = [name for path in libraries for name in glob.glob(str(path / "libcudart.so*"))]
            defines.append("-DMIXMATCH_HAS_CUDA")
            link += ["-Wl,--no-as-needed", "-ltorch_cuda", "-lc10_cuda", "-Wl,--as-needed", *runtime[:1], "-ldl"]
    if not found("fmt/format.h"):
        report.line("fmt/format.h comes neither with torch nor with the system: install libfmt-dev")
    command = ["g++", "-std=c++20", optimize, "-c", f"-I{ROOT / 'include'}", *defines]
    command += [argument for path in includes for argument in ("-isystem", str(path))]
    # The driver's libcuda is LibTorch's to find.
    link = [*(argument for path in libraries for argument in (f"-L{path}", f"-Wl,-rpath,{path}")),
            "-Wl,--allow-shlib-undefined", *link]
    stamp, sources = target.with_name("gpu_benchmark.sources"), checksum([*command, *link, torch.__version__])
    if target.exists() and stamp.exists() and stamp.read_text() == sources:
        report.line(f"\n== build\nnot needed: {target} is of these sources")
        return True
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        objects = [f"{directory}/{name}.o" for name in SOURCES]
        first, second = (shlex.join([*command, str(ROOT / f"benchmarks/gpu/{name}.cpp"), "-o", output])
                         for name, output in zip(SOURCES, objects))
        join = shlex.join(["g++", *objects, "-o", str(target), *link])
        if not report.run("build", ["sh", "-c", f"{first} & {second}; other=$?; wait $! && [ $other = 0 ] && {join}"]):
            return False
    stamp.write_text(sources)
    return True


def summarize(report, trace, steps):
    """The GPU's time by kernel, or, without one, the CPU's by operator."""
    events = [event for event in json.load(open(trace)).get("traceEvents", []) if event.get("ph") == "X"]
    on_gpu = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    chosen = on_gpu or [event for event in events if event.get("cat") == "cpu_op"]
    if not chosen:
        report.line("the trace holds no events")
        return
    times, counts = collections.Counter(), collections.Counter()
    for event in chosen:
        times[event["name"]] += event.get("dur", 0)
        counts[event["name"]] += 1
    total = sum(times.values())
    span = max(e["ts"] + e.get("dur", 0) for e in chosen) - min(e["ts"] for e in chosen)
    kind = "GPU kernels and copies" if on_gpu else "CPU operators (nested ones counted twice)"
    report.line(f"{kind}: {total / steps / 1000:.3f} ms a step in {len(chosen) / steps:.0f} pieces"
                f" within {span / steps / 1000:.3f} ms a step")
    for name, spent in times.most_common(25):
        report.line(f"  {100 * spent / total:5.1f} %  {spent / steps:9.1f} us  {counts[name] / steps:6.1f} x  {name[:100]}")


def kernel_names():
    """Of the library's kernels, which alone a sanitizer is to look at: LibTorch's and cuDNN's take it minutes."""
    sources = (ROOT / "include/mixmatch/detail/cuda").glob("*.hpp")
    pattern = re.compile(r"__global__ void (?:__launch_bounds__\(\w+\)\s+)?(\w+)\(")
    return sorted({name for path in sources for name in pattern.findall(path.read_text())})


def bytes_of(text):
    """15M and the like."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper())
    try:
        count = int(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        count = 0
    if count <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 15M, got {text!r}")
    return count


def split_files(report, out, size):
    """Each file of the output but the program, in out/pieces, cut where it is larger. A whole set of pieces takes the
    place of the former."""
    pieces, fresh = out / "pieces", out / "pieces.new"
    report.line(f"pieces of at most {size} bytes in {pieces}; --join puts them together")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out)
        if name.parts[0] in ("pieces", "pieces.new", "gpu_benchmark", "gpu_benchmark.sources", "tiny_cifar10"):
            continue
        data = path.read_bytes()
        count = max(1, -(-len(data) // size))
        for number in range(count):
            piece = fresh / f"{name}.{number + 1}of{count}"
            piece.parent.mkdir(parents=True, exist_ok=True)
            piece.write_bytes(data[number * size:(number + 1) * size])
    shutil.rmtree(pieces, ignore_errors=True)
    fresh.rename(pieces)


def join_files(out):
    """What split_files() cut, where it is to go on. A file that is there already is left alone."""
    pieces = out / "pieces"
    if not pieces.is_dir():
        sys.exit(f"run.py: --join: there is no {pieces}")
    files = collections.defaultdict(list)
    for piece in pieces.rglob("*"):
        if piece.is_file():
            files[piece.relative_to(pieces).with_suffix("")].append(piece)
    for name, parts in files.items():
        numbers = {int(number): part for part in parts for number in [part.suffix[1:].partition("of")[0]]}
        count = int(parts[0].suffix.partition("of")[2])
        if sorted(numbers) != list(range(1, count + 1)):
            sys.exit(f"run.py: --join: {name} has pieces {', '.join(map(str, sorted(numbers)))} of {count}")
        target = out / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"".join(numbers[number].read_bytes() for number in range(1, count + 1)))


def write_tiny_cifar10(directory):
    """CIFAR-10's files with a few records of gray levels by class and noise."""
    directory.mkdir(parents=True, exist_ok=True)
    random.seed(1)

    def records(count):
        for i in range(count):
            label = i % 10
            yield bytes([label]) + bytes(min(255, 25 * label + random.randrange(20)) for _ in range(3072))

    for i in range(1, 6):
        (directory / f"data_batch_{i}.bin").write_bytes(b"".join(records(40)))
    (directory / "test_batch.bin").write_bytes(b"".join(records(40)))
    (directory / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10's binary files; without them nothing is trained")
    parser.add_argument("--minutes", type=float, help="of training (60); with --quick, of everything (12)")
    parser.add_argument("--preset", choices=["paper", "fast"], default="paper",
                        help="what is trained: MixMatch with the paper's numbers, or train's --preset fast")
    parser.add_argument("--labels", type=int, default=250)
    parser.add_argument("--steps", type=int, default=500, help="timed, of each variant")
    parser.add_argument("--out", default=str(ROOT / "build/gpu"), help="program, report, trace and checkpoint")
    parser.add_argument("--program", help="gpu_benchmark as built elsewhere against the same PyTorch; nothing is built")
    parser.add_argument("--quick", action="store_true", help="the most telling parts first, each bounded")
    parser.add_argument("--thorough", action="store_true", help="torch.compile's max-autotune too, which tunes for minutes")
    parser.add_argument("--pieces", type=bytes_of, metavar="SIZE",
                        help="at the end, all but the program once more in files of at most SIZE (15M)")
    parser.add_argument("--join", action="store_true", help="first put pieces that were carried here together")
    parser.add_argument("--sanitize", action="store_true",
                        help="compute-sanitizer's memcheck and racecheck of a short subset of the checks, nothing else")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.minutes is None:
        args.minutes = 12 if args.quick else 60

    # So that the command under way is stopped too, which is in a group of its own.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, frame: sys.exit(128 + caught))
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.join:
        join_files(out)
    try:
        import torch
    except ImportError:
        sys.exit(f"run.py: {sys.executable} has no PyTorch; start this with a python that has")
    report = Report(out / "report.txt")
    device = "cpu" if args.dry_run else "cuda"
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("run.py: PyTorch finds no CUDA device here; --dry-run tries everything on the CPU")
    report.line(machine(torch, device))
    if args.dry_run:
        report.line("dry run: that everything runs, in tiny sizes on the CPU; its times say nothing of a GPU")
    if args.quick:
        report.deadline = time.monotonic() + 60 * args.minutes
    if args.program:
        program = Path(args.program).resolve()
        paths = [*map(str, torch_libraries(torch)), os.environ.get("LD_LIBRARY_PATH", "")]
        report.environment["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
    else:
        program = out / "gpu_benchmark"
        # What is not timed is compiled sooner with fewer optimisations.
        if not build(report, torch, program, "-O1" if args.dry_run else "-O2"):
            sys.exit(1)
    size = ["--depth", "10", "--widen", "1", "--batch", "3"] if args.dry_run else []
    steps = 5 if args.dry_run else min(args.steps, 200) if args.quick else args.steps
    common = ["--device", device, *size]
    images = ["--images", "400"] if args.dry_run else []
    bound = 3 if args.quick else 15

    def finish():
        report.line("\n" + ("all done" if not report.failures else "FAILED: " + "; ".join(report.failures)))
        if args.pieces:
            split_files(report, out, args.pieces)
        sys.exit(1 if report.failures else 0)

    if args.sanitize:  # of CUDA's toolkit, or PyPI's nvidia-cuda-sanitizer-api
        sanitizer = shutil.which("compute-sanitizer") or os.path.join(
            os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/compute-sanitizer")
        only = [argument for name in kernel_names() for argument in ("--kernel-name", f"kns={name}")]
        checks = [str(program), "check", *common, "--sanitize", "yes"]
        for tool in ["memcheck", "racecheck"]:
            under = [] if args.dry_run else [sanitizer, "--tool", tool, "--error-exitcode", "9", *only]
            report.run(tool, under + checks, minutes=3)
        finish()

    report.run("kernels against float64", [str(program), "check", *common], minutes=bound)
    report.run("a step by variant", [str(program), "time", *common, *images, "--steps", str(steps)], minutes=bound)
    profiled = 2 if args.dry_run else 20
    for graph in ["yes"] if args.quick else ["yes", "no"]:
        trace = out / f"trace_{'graph' if graph == 'yes' else 'eager'}.json"
        title = "profile of the step" + ("" if graph == "yes" else ", without a graph")
        trace.unlink(missing_ok=True)
        if report.run(title, [str(program), "profile", *common, *images, "--steps", str(profiled), "--graph", graph,
                              "--trace", str(trace)], minutes=bound) and trace.exists():
            summarize(report, trace, profiled)
    report.run("what was predicted of an H200", [sys.executable, str(ROOT / "benchmarks/gpu/predict.py")], minutes=1)
    peers = ROOT / "benchmarks/peer"

    def compiled(mode, minutes):
        # Generating a CPU's code takes minutes: without it all the same but that.
        options = ["--backend", "aot_eager", "--warmup", "2"] if args.dry_run else ["--mode", mode]
        report.run(f"peer: torch.compile, {options[1]}", [
            sys.executable, str(peers / "compiled_pytorch.py"), "--device", device, *size, *images, *options,
            "--steps", str(steps)], minutes=minutes)

    compiled("reduce-overhead", bound)
    small = ["--batch", "1"] if args.dry_run else []
    few = ["--images", "20"] if args.dry_run else []
    report.run("evaluation of 10,000 images", [str(program), "evaluation", *common, *few, "--steps",
                                               str(min(steps, 50))], minutes=1)
    report.run("each convolution of a step", [str(program), "convolutions", *common, *small, "--steps",
                                              str(min(steps, 50))], minutes=1)
    report.run("peer: plain PyTorch", [sys.executable, str(peers / "plain_pytorch.py"), "--device", device, *size,
                                       "--steps", str(min(steps, 60 if args.quick else 100))], minutes=bound)
    data = args.data
    if args.dry_run:
        data = str(out / "tiny_cifar10")
        write_tiny_cifar10(Path(data))
        limits = ["--minutes", "1", "--labels", "20", "--train-steps", "20", "--eval-every", "10"]
    else:
        # With --quick half a minute is for the last steps' evaluation and its checkpoint.
        minutes = max(0.1, report.minutes_left() - 0.5) if args.quick else args.minutes
        limits = ["--minutes", f"{minutes:.2f}", "--labels", str(args.labels)]
    if data:
        run = out / ("run" if args.preset == "paper" else f"run_{args.preset}")
        report.run(f"training on CIFAR-10, preset {args.preset}", [
            str(program), "train", *common, *limits, "--preset", args.preset, "--data", data, "--out", str(run)],
            minutes=float(limits[1]) + 15)
    else:
        report.line("\nno training: --data was not given")
    if args.thorough:
        compiled("max-autotune", 30)  # last: it may compile for many minutes
    finish()


if __name__ == "__main__":
    main()
