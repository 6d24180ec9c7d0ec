#!/usr/bin/env python3
"""Kills training runs at random and aimed instants, lets them go on, and compares them with one never stopped.

    kill_table.py --program-dir DIR [--program cifar10|own_images|train]... [--kills N] [--seed S]

Each trial starts a run, stops it one to three times by SIGKILL, SIGTERM, SIGINT or SIGHUP, and continues it
until it has finished. Right: exit status 128 + the signal's number with a checkpoint, or the signal itself
where the program had not begun or had nothing left to lose; no file is half-written after any kill; in the
end metrics.csv, model.safetensors, summary.json (but for times), confusion.csv, split.txt and predictions.csv
equal those of the undisturbed run byte for byte, and no temporary file is left. Exit status 0 if all was
right.
"""

import argparse
import collections
import ctypes
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import time

import run_programs as programs

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
IN_MODIFY, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x80, 0x100, 0x200

# Where a kill is aimed at: an event in the run directory, the beginning and end of the file's name, and of
# which occurrence of about how many.
AIMS = {
    "checkpoint being written": (IN_CREATE, "checkpoint.pt.tmp-", "", 12),
    "checkpoint just renamed": (IN_MOVED_TO, "checkpoint.pt", "checkpoint.pt", 12),
    "previous checkpoint made": (IN_CREATE | IN_MOVED_TO, "checkpoint.previous.pt", "", 12),
    "row of metrics.csv written": (IN_MODIFY, "metrics.csv", "", 36),
    "metrics.csv made": (IN_CREATE, "metrics.csv", "", 1),
    "config.json being written": (IN_CREATE, "config.json.tmp-", "", 1),
    "weights being written": (IN_CREATE, "model.safetensors.tmp-", "", 1),
    "weights just renamed": (IN_MOVED_TO, "model.safetensors", "", 1),
    "summary just renamed": (IN_MOVED_TO, "summary.json", "", 1),
    "report being written": (IN_CREATE, "report.html.tmp-", "", 1),
}
TIMES = ("at any time", "during the start")


class Watcher:
    """Waits for events in a directory: inotify, by way of the C library."""

    def __init__(self, directory):
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        mask = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE
        if self.descriptor < 0 or libc.inotify_add_watch(self.descriptor, os.fsencode(directory), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.descriptor)

    def wait(self, process, mask, begin, end, occurrence):
        """Returns True at that occurrence of the event, False if the process ended before."""
        while True:
            ready, _, _ = select.select([self.descriptor], [], [], 0.01)
            if not ready:
                if process.poll() is not None:
                    return False
                continue
            data = os.read(self.descriptor, 65536)
            at = 0
            while at < len(data):
                _, event, _, length = struct.unpack_from("iIII", data, at)
                name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode()
                at += 16 + length
                if event & mask and name.startswith(begin) and name.endswith(end):
                    occurrence -= 1
                    if occurrence == 0:
                        return True


def has_checkpoint(directory):
    return any(os.path.exists(os.path.join(directory, name)) for name in ("checkpoint.pt", "checkpoint.previous.pt"))


class Table:
    def __init__(self):
        self.rows = collections.defaultdict(collections.Counter)
        self.faults = []

    def fault(self, trial, text):
        self.faults.append("trial %d: %s" % (trial, text))
        print("FAULT: " + self.faults[-1])
        sys.stdout.flush()


def stop_once(program, out, sent, aim, generator, seconds, table, trial):
    """Starts or continues the run, sends the signal at the instant; whether the run goes on after it."""
    goes_on = has_checkpoint(out)
    arguments = program.resume_arguments(out) if goes_on else program.arguments(out)
    metrics = os.path.join(out, "metrics.csv")
    rows = programs.read(metrics).count(b"\n") if goes_on and os.path.exists(metrics) else 0
    left = max(0.0, 1 - rows / program.steps)
    with Watcher(out) as watcher:
        process = programs.start(arguments)
        if aim in AIMS:
            mask, begin, end, count = AIMS[aim]
            watcher.wait(process, mask, begin, end, generator.randint(1, max(1, int(left * count))))
        else:
            time.sleep(generator.uniform(0, seconds[aim]))
        was_running = process.poll() is None
        if was_running:
            os.kill(process.pid, sent)
        try:
            _, err = process.communicate(timeout=120)
        except programs.subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            table.fault(trial, "the program did not end after %s" % sent.name)
            return False
    status = process.returncode
    err = programs.text_of(err)
    row = table.rows[(sent.name, aim)]
    for fault in programs.faults_of_run(out, finished=False):
        table.fault(trial, "after %s, %s: %s" % (sent.name, aim, fault))
    if not was_running or status == 0:
        row["too late"] += 1
        if status != 0:
            table.fault(trial, "status %s without a signal: %s" % (status, err.strip()[-300:]))
        return status == 0
    row["kills"] += 1
    if status == 128 + sent and sent != signal.SIGKILL:
        row["saved"] += 1
        if not has_checkpoint(out):
            table.fault(trial, "status %d without a checkpoint" % status)
    elif status == -sent:
        row["ended at once"] += 1
        now = programs.read(metrics).count(b"\n") if os.path.exists(metrics) else 0
        if sent != signal.SIGKILL and now > max(rows, 1) and not os.path.exists(os.path.join(out, "summary.json")):
            table.fault(trial, "%s, %s: steps were done and not saved" % (sent.name, aim))
    else:
        table.fault(trial, "%s, %s: status %s: %s" % (sent.name, aim, status, err.strip()[-300:]))
    return True


def finish(program, out, table, trial):
    """Continues the run to its end; whether that went well."""
    arguments = program.resume_arguments(out) if has_checkpoint(out) else program.arguments(out)
    status, _, err = programs.run(arguments)
    if status != 0:
        table.fault(trial, "the last continuation: status %s: %s" % (status, err.strip()[-300:]))
        return False
    for fault in programs.faults_of_run(out, finished=True):
        table.fault(trial, "at the end: " + fault)
    return True


def main():
    parser = argparse.ArgumentParser(description="Kills training runs, continues and compares them.")
    parser.add_argument("--program-dir", required=True, help="where the programs are")
    parser.add_argument("--program", action="append", choices=("cifar10", "own_images", "train"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = options.program or ["cifar10"]
    generator = random.Random(options.seed)
    table = Table()
    done = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="mixmatch_kill_") as work:
        prepared = []
        for name in names:
            program = programs.Program(name, options.program_dir, work)
            reference = os.path.join(work, "reference_" + name)
            started = time.monotonic()
            status, _, err = programs.run(program.arguments(reference))
            if status != 0:
                sys.exit("the undisturbed run of %s: status %s: %s" % (name, status, err))
            seconds = {"at any time": time.monotonic() - started}
            # Until the first checkpoint is there.
            seconds["during the start"] = min(
                seconds["at any time"], os.stat(os.path.join(reference, "split.txt")).st_mtime - time.time()
                + seconds["at any time"] + 0.1)
            prepared.append((program, programs.results_of(reference), seconds))
        kinds = [(sent, aim) for aim in TIMES + tuple(AIMS) for sent in SIGNALS]
        generator.shuffle(kinds)
        planned = 0
        trial = 0
        while done["kills"] < options.kills and not len(table.faults) > 20:
            program, expected, seconds = prepared[trial % len(prepared)]
            trial += 1
            out = os.path.join(work, "run")
            shutil.rmtree(out, ignore_errors=True)
            os.mkdir(out)
            rows = []
            for _ in range(generator.randint(1, 3)):
                sent, aim = kinds[planned % len(kinds)]
                planned += 1
                if aim == "metrics.csv made" and has_checkpoint(out):
                    aim = "row of metrics.csv written"
                before = table.rows[(sent.name, aim)]["kills"]
                goes_on = stop_once(program, out, sent, aim, generator, seconds, table, trial)
                killed = table.rows[(sent.name, aim)]["kills"] - before
                done["kills"] += killed
                if killed:
                    rows.append(table.rows[(sent.name, aim)])
                if not goes_on or done["kills"] >= options.kills:
                    break
            equal = False
            if finish(program, out, table, trial):
                found = programs.results_of(out)
                different = sorted(name for name in expected if found.get(name) != expected[name])
                different += sorted(set(found) - set(expected))
                equal = not different
                if different:
                    table.fault(trial, "%s differs from the undisturbed run" % ", ".join(different))
            done["trials"] += 1
            done["equal"] += equal
            for row in rows:
                row["equal"] += equal
    print_rows(table)
    print("%s: %d runs stopped %d times, %d equal to the undisturbed run, %d faults" % (
        ", ".join(names), done["trials"], done["kills"], done["equal"], len(table.faults)))
    return 0 if not table.faults and done["equal"] == done["trials"] else 1


def print_rows(table):
    rows = []
    for (sent, aim), row in sorted(table.rows.items(), key=lambda item: (item[0][1], item[0][0])):
        rows.append([aim, sent, row["kills"], row["saved"], row["ended at once"], row["equal"], row["too late"]])
    programs.print_table(
        ["instant", "signal", "kills", "saved, status 128 + n", "ended at once", "equal at the end", "came too late"], rows)


if __name__ == "__main__":
    sys.exit(main())
