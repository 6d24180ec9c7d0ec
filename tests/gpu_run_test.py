"""What benchmarks/gpu/run.py does beside starting programs: its build, pieces of files and their joining, time limits.

The Python standard library only.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
import types
import unittest
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE / "benchmarks/gpu"))

import run  # noqa: E402


class RunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name)
        self.printed = io.StringIO()
        silence = contextlib.redirect_stdout(self.printed)
        silence.__enter__()
        self.addCleanup(silence.__exit__, None, None, None)
        self.report = run.Report(self.out / "report.txt")
        self.addCleanup(self.report.file.close)

    def split(self):
        """A few files, and their pieces of 10 bytes, with nothing else left."""
        files = {"run/checkpoint.pt": os.urandom(95), "ten.json": os.urandom(10), "empty": b"", "a.1of2": b"name"}
        for name, data in files.items():
            (self.out / name).parent.mkdir(exist_ok=True)
            (self.out / name).write_bytes(data)
        (self.out / "gpu_benchmark").write_bytes(b"program")
        run.split_files(self.report, self.out, 10)
        pieces = [path for path in (self.out / "pieces").rglob("*") if path.is_file()]
        self.assertLessEqual(max(path.stat().st_size for path in pieces), 10)
        self.assertFalse([path for path in pieces if "gpu_benchmark" in path.name])
        for name in files:
            (self.out / name).unlink()
        return files

    def test_pieces_are_joined_to_the_same_bytes(self):
        files = self.split()
        (self.out / "ten.json").write_bytes(b"newer")
        run.join_files(self.out)
        for name, data in files.items():
            self.assertEqual((self.out / name).read_bytes(), b"newer" if name == "ten.json" else data, name)

    def test_a_missing_piece_is_refused(self):
        self.split()
        (self.out / "pieces/run/checkpoint.pt.3of10").unlink()
        with self.assertRaisesRegex(SystemExit, "checkpoint.pt has pieces 1, 2, 4"):
            run.join_files(self.out)

    def test_a_command_that_takes_too_long_is_stopped_with_what_it_started(self):
        start = time.monotonic()
        # What it started holds its output open.
        self.assertFalse(self.report.run("slow", ["sh", "-c", "sleep 50 & wait"], minutes=0.01))
        self.assertLess(time.monotonic() - start, 30)
        self.assertIn("slow: stopped after 0.0 minutes", self.report.failures)
        self.assertTrue(self.report.run("next", ["echo", "goes on"]))
        self.assertIn("goes on", self.printed.getvalue())

    def test_failures_are_remembered(self):
        self.assertFalse(self.report.run("wrong", ["sh", "-c", "exit 3"]))
        self.assertFalse(self.report.run("missing", [str(self.out / "no_such_program")]))
        self.assertEqual(self.report.failures[0], "wrong: exit status 3")
        self.assertRegex(self.report.failures[1], "missing: cannot be started: .*no_such_program")

    def test_a_sanitizer_looks_at_every_kernel_of_the_library(self):
        kernels = [path.read_text().count("__global__ void") for path in
                   (SOURCE / "include/mixmatch/detail/cuda").glob("*.hpp")]
        self.assertEqual(len(run.kernel_names()), sum(kernels))
        self.assertIn("norm_moments", run.kernel_names())

    def test_a_program_is_built_when_all_of_it_compiles(self):
        tools = self.out / "tools"
        tools.mkdir()
        compiler = tools / "g++"
        # Writes the file after -o, unless it is told to fail for one of the arguments.
        compiler.write_text("""#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in *"$REFUSED") exit 1 ;; -o) output=$2 ;; esac
  shift
done
touch "$output"
""")
        compiler.chmod(0o755)
        torch = types.SimpleNamespace(__file__=str(self.out / "torch dir/__init__.py"), _C=types.SimpleNamespace(
            _GLIBCXX_USE_CXX11_ABI=True), version=types.SimpleNamespace(cuda=None), __version__="2.11")
        self.report.environment["PATH"] = f"{tools}:{os.environ['PATH']}"
        program = self.out / "gpu_benchmark"
        for refused in ["gpu_benchmark.cpp", "checks.cpp", "-ltorch", "nothing"]:
            self.report.environment["REFUSED"] = refused
            self.assertEqual(run.build(self.report, torch, program, "-O1"), refused == "nothing", refused)
            self.assertEqual(program.exists(), refused == "nothing", refused)
        self.assertEqual(self.report.failures, ["build: exit status 1"] * 3)
        self.assertEqual([path.name for path in self.out.rglob("*.o")], [])
        # What is there already is not built again, unless it would be another.
        self.report.environment["REFUSED"] = "-ltorch"
        self.assertTrue(run.build(self.report, torch, program, "-O1"))
        self.assertFalse(run.build(self.report, torch, program, "-O2"))
        self.assertFalse(run.build(self.report, torch, program, "-O1"))

    def test_sizes(self):
        self.assertEqual(run.bytes_of("15M"), 15 << 20)
        for wrong in ("0", "-1M", "M", "fifteen"):
            with self.assertRaises(run.argparse.ArgumentTypeError):
                run.bytes_of(wrong)


if __name__ == "__main__":
    unittest.main()
