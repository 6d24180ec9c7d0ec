#!/usr/bin/env python3
"""Kills one of several ranks at random instants and resumes the run, with as many ranks and with one.

    python3 tests/rank_kill_table.py build/train [--runs 50] [--ranks 2] [--seed 1] [--timeout 10]

Each run trains on procedural shapes over Gloo on this machine. The other ranks must end within the timeout and ten
seconds, with status 2 and a line that names the rank that was killed. The run is then resumed: with as many ranks,
every other time, its metrics.csv must be the undisturbed run's, byte for byte; with one rank equal to rounding.
Prints a line a run and what came out in all; exit status 1 if anything was not as it must be.
"""
import argparse
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time


def arguments(out, timeout):
    return ["--dataset", "shapes", "--out", out, "--threads", "1", "--precision", "fp32", "--batch", "8", "--steps", "30",
            "--log-every", "5", "--eval-every", "15", "--recalibrate", "0", "--checkpoint-every", "3", "--timeout",
            str(timeout)]


def start(program, ranks, port, args):
    processes = []
    for rank in range(ranks):
        environment = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank),
                           LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                           OMP_WAIT_POLICY="passive")
        more = ["--sync-batch-norm"] if ranks > 1 else []
        processes.append(subprocess.Popen([program] + args + more, env=environment, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.PIPE, text=True))
    return processes


def finish(processes, limit):
    results = []
    end = time.monotonic() + limit
    for process in processes:
        try:
            error = process.communicate(timeout=max(0.1, end - time.monotonic()))[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            error = "it hung"
        results.append((process.returncode, error))
    return results


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def close(found, expected):
    """Equal to rounding, which thirty steps multiply."""
    pairs = list(zip(rows(found), rows(expected)))
    return len(rows(found)) == len(rows(expected)) and all(
        abs(float(a["loss"]) - float(b["loss"])) <= 2e-2 * abs(float(b["loss"])) for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=10)
    parser.add_argument("--port", type=int, default=31000)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    port = options.port
    with tempfile.TemporaryDirectory() as folder:
        whole = os.path.join(folder, "whole")
        began = time.monotonic()
        for status, error in finish(start(options.program, options.ranks, port, arguments(whole, options.timeout)), 300):
            if status != 0:
                sys.exit(f"the undisturbed run failed: {error}")
        length = time.monotonic() - began
        expected = os.path.join(whole, "metrics.csv")
        faults, slowest, early = 0, 0.0, 0
        for number in range(options.runs):
            out = os.path.join(folder, str(number))
            args = arguments(out, options.timeout)
            port += 1
            processes = start(options.program, options.ranks, port, args)
            victim = draw.randrange(options.ranks)
            time.sleep(draw.uniform(0, 1.1 * length))
            killed = processes[victim].poll() is None
            processes[victim].send_signal(signal.SIGKILL)
            began = time.monotonic()
            results = finish(processes, options.timeout + 10)
            seconds = time.monotonic() - began
            problems = []
            survivors = [result for rank, result in enumerate(results) if rank != victim]
            if killed and any(status not in (0, 2) for status, _ in survivors):
                problems.append(f"statuses {[status for status, _ in survivors]}")
            # A survivor that is not rank 0 begins with its own number.
            named = re.compile(rf"^\w+: (rank \d+\b.*\b)?rank {victim}\b", re.MULTILINE)
            if killed and any(status == 2 and not named.search(error) for status, error in survivors):
                problems.append(f"no line that names the killed rank: {[error[-200:] for _, error in survivors]}")
            if killed:
                slowest = max(slowest, seconds)
            ranks = options.ranks if number % 2 == 0 else 1
            port += 1
            if os.path.exists(os.path.join(out, "checkpoint.pt")):
                again = start(options.program, ranks, port, args + ["--resume"])
            else:  # killed before its first checkpoint: it begins anew
                early += 1
                again = start(options.program, ranks, port, args)
            for status, error in finish(again, 300):
                if status != 0:
                    problems.append(f"resuming: {error.splitlines()[-1:]}")
            found = os.path.join(out, "metrics.csv")
            if not problems and ranks == options.ranks and open(found).read() != open(expected).read():
                problems.append("metrics.csv differs")
            if not problems and ranks == 1 and not close(found, expected):
                problems.append("metrics.csv differs by more than rounding")
            faults += bool(problems)
            print(f"{number}: rank {victim} {'killed' if killed else 'had ended'}, others after {seconds:.1f} s, resumed with "
                  f"{ranks}: {'; '.join(problems) or 'equal'}", flush=True)
            shutil.rmtree(out, ignore_errors=True)
    print(f"{options.runs} runs, {early} of them killed before their first checkpoint, {faults} faults; the others ended after "
          f"{slowest:.1f} s at most")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
