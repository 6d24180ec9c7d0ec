#!/usr/bin/env python3
"""What training runs and the programs beside them do when disks, files, streams and terminals fail.

    fault_table.py --program-dir DIR [--flips N] [--seed S] [--only WORDS]

Each row is tried with the example programs on a small data set: a fault that ends a run is one line on
stderr and exit status 2, and the run goes on afterwards to the result of an undisturbed one, byte for byte;
a fault of a stream that only watches ends nothing. Rows that need root, a tmpfs or a program that is not
there are SKIPPED with the reason. Exit status 0 if every row that was tried is right.
"""

import argparse
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import run_programs as programs

NOBODY = 65534


class Skipped(Exception):
    pass


class Wrong(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Wrong(text)


class Table:
    """The rows' common ground: a finished run to compare with, and an unfinished one to damage."""

    def __init__(self, options, work):
        self.work = work
        self.options = options
        self.generator = random.Random(options.seed)
        os.chmod(work, 0o755)
        self.program = programs.Program("cifar10", options.program_dir, work, steps=24)
        self.finished = self.path("finished")
        status, _, err = programs.run(self.program.arguments(self.finished))
        check(status == 0, "the undisturbed run: status %s: %s" % (status, err))
        self.expected = programs.results_of(self.finished)
        # Two checkpoints, and rows that neither counts.
        self.stopped = self.path("stopped")
        process = self.started(self.stopped)
        wait_for(lambda: self.rows(self.stopped) >= 11, process)
        process.kill()
        process.communicate()

    def path(self, name):
        return os.path.join(self.work, name)

    def other_program(self, name):
        path = os.path.join(self.options.program_dir, name)
        if not os.access(path, os.X_OK):
            raise Skipped("no program " + name)
        return path

    def fresh(self, name="run"):
        path = self.path(name)
        remove(path)
        return path

    def copy(self):
        out = self.fresh()
        shutil.copytree(self.stopped, out)
        return out

    def started(self, out, **more):
        return programs.start(self.program.arguments(out), **more)

    def rows(self, out):
        try:
            return programs.read(os.path.join(out, "metrics.csv")).count(b"\n") - 1
        except OSError:
            return 0

    def started_until_row(self, out, row, **more):
        process = self.started(out, **more)
        wait_for(lambda: self.rows(out) >= row, process)
        return process

    def check_equal(self, out):
        found = programs.results_of(out)
        different = [name for name in self.expected if found.get(name) != self.expected[name]]
        check(not different, ", ".join(different) + " differs from the undisturbed run")
        faults = programs.faults_of_run(out, finished=True)
        check(not faults, "; ".join(faults))

    def check_goes_on(self, out, expected_note=None):
        status, _, err = programs.run(self.program.resume_arguments(out))
        check(status == 0, "continuing: status %s: %s" % (status, err.strip()[-300:]))
        check(expected_note is None or expected_note in err, "stderr does not say %r" % expected_note)
        self.check_equal(out)


def remove(path):
    if os.path.islink(path) or not os.path.isdir(path):
        if os.path.lexists(path):
            os.unlink(path)
    else:
        shutil.rmtree(path)


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            out, err = process.communicate()
            raise Wrong("the program ended early: %s: %s" % (process.returncode, programs.text_of(err)[-300:]))
        time.sleep(0.002)


def check_refused(status, err, words, name="cifar10"):
    """Exit status 2, and one line that the program says of itself."""
    said = [line for line in err.splitlines() if line.startswith(name + ": ")]
    check(status == 2, "status %s: %s" % (status, err.strip()[-300:]))
    check(len(said) == 1, "%d lines of the program: %s" % (len(said), err.strip()[-300:]))
    check(err.splitlines()[-1] == said[0], "the reason is not the last line: " + err.strip()[-300:])
    check(words in said[0], "expected %r in: %s" % (words, said[0]))
    check(all(ord(c) >= 32 for c in said[0]), "control characters: %r" % said[0])
    return said[0].replace(tempfile.gettempdir(), "…")


def end_of(process):
    try:
        _, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Wrong("the program hangs")
    return process.returncode, programs.text_of(err)


def snapshot(directory):
    return {name: programs.read(os.path.join(directory, name)) for name in sorted(os.listdir(directory))
            if name != ".lock"}


class SmallDisk:
    """A tmpfs of that many kilobytes."""

    def __init__(self, table, kilobytes):
        self.path = table.fresh("disk")
        self.kilobytes = kilobytes

    def __enter__(self):
        if os.geteuid() != 0:
            raise Skipped("only root may mount a small disk")
        os.mkdir(self.path)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dk,mode=755" % self.kilobytes, "tmpfs", self.path],
                          stderr=subprocess.DEVNULL, check=False).returncode != 0:
            raise Skipped("no tmpfs can be mounted here")
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", self.path], stderr=subprocess.DEVNULL, check=False)

    def fill(self):
        with open(os.path.join(self.path, "filling"), "wb", buffering=0) as file:
            size = 65536
            while size > 0:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def empty(self):
        os.unlink(os.path.join(self.path, "filling"))


# The rows: each returns what was seen, raises Wrong or Skipped.


def disk_too_small(table):
    with SmallDisk(table, 2048) as disk:
        status, _, err = programs.run(table.program.arguments(os.path.join(disk.path, "run")))
        return check_refused(status, err, "")


def disk_full_during_the_run(table):
    with SmallDisk(table, 16384) as disk:
        out = os.path.join(disk.path, "run")
        process = table.started_until_row(out, 7)
        disk.fill()
        seen = check_refused(*end_of(process), "No space left on device")
        disk.empty()
        table.check_goes_on(out)
        return seen


def disk_full_at_the_end(table):
    with SmallDisk(table, 16384) as disk:
        out = os.path.join(disk.path, "run")
        process = table.started(out)
        wait_for(lambda: os.path.exists(os.path.join(out, "model.safetensors")), process)
        disk.fill()
        status, err = end_of(process)
        if status == 0:
            raise Skipped("the run was over before the disk was full")
        seen = check_refused(status, err, "No space left on device")
        disk.empty()
        table.check_goes_on(out)
        return seen


def read_only_disk(table):
    with SmallDisk(table, 1024) as disk:
        if subprocess.run(["mount", "-o", "remount,ro", disk.path], check=False).returncode != 0:
            raise Skipped("no tmpfs can be made read-only here")
        status, _, err = programs.run(table.program.arguments(os.path.join(disk.path, "run")))
        return check_refused(status, err, "Read-only file system")


def permission_taken_during_the_run(table):
    out = table.fresh()
    more = {}
    if os.geteuid() == 0:
        os.mkdir(out)
        os.chown(out, NOBODY, NOBODY)
        more = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        try:
            programs.run([table.program.path, "--help"], **more)
        except OSError:
            raise Skipped("another user than root may not run the program here")
    process = table.started_until_row(out, 7, **more)
    os.chmod(out, 0o555)
    seen = check_refused(*end_of(process), "Permission denied")
    os.chmod(out, 0o755)
    table.check_goes_on(out)
    return seen


def directory_removed(table):
    out = table.fresh()
    process = table.started_until_row(out, 7)
    moved = table.fresh("moved")
    os.rename(out, moved)
    seen = check_refused(*end_of(process), "No such file or directory")
    check(not os.path.exists(out), "the directory is there again")
    os.rename(moved, out)
    table.check_goes_on(out)
    return seen


def damage(table, change, with_previous):
    """Damages checkpoint.pt and continues: from the previous one, or not at all."""
    out = table.copy()
    last = os.path.join(out, "checkpoint.pt")
    data = change(programs.read(last))
    with open(last, "wb") as file:
        file.write(data)
    if with_previous:
        table.check_goes_on(out, expected_note="checkpoint.previous.pt")
        return "went on from the previous one"
    os.unlink(os.path.join(out, "checkpoint.previous.pt"))
    before = snapshot(out)
    status, _, err = programs.run(table.program.resume_arguments(out))
    seen = check_refused(status, err, "checkpoint.pt")
    check(snapshot(out) == before, "files were changed")
    return seen


def flip(table):
    def change(data):
        data = bytearray(data)
        data[table.generator.randrange(len(data))] ^= 1 << table.generator.randrange(8)
        return bytes(data)

    return change


def cut(table):
    return lambda data: data[: table.generator.choice((0, table.generator.randrange(len(data)), len(data) - 1))]


def many(table, kind, with_previous):
    # Continuing is tried less often than refusing.
    count = max(1, table.options.flips // (5 if with_previous else 1))
    for _ in range(count):
        seen = damage(table, kind(table), with_previous)
    return "%d of %d; the last: %s" % (count, count, seen)


def flips_with_previous(table):
    return many(table, flip, True)


def flips_without_previous(table):
    return many(table, flip, False)


def cuts_with_previous(table):
    return many(table, cut, True)


def cuts_without_previous(table):
    return many(table, cut, False)


def both_damaged(table):
    out = table.copy()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        path = os.path.join(out, name)
        with open(path, "wb") as file:
            file.write(flip(table)(programs.read(os.path.join(table.stopped, name))))
    before = snapshot(out)
    status, _, err = programs.run(table.program.resume_arguments(out))
    seen = check_refused(status, err, "checkpoint.pt")
    check(snapshot(out) == before, "files were changed")
    return seen


def metrics_damaged(table):
    for change in (lambda rows: rows[:2] + [b"3,what?\n"] + rows[3:], lambda rows: rows[:1], lambda rows: [],
                   lambda rows: rows[:4] + [rows[4][:3]]):
        out = table.copy()
        path = os.path.join(out, "metrics.csv")
        rows = programs.read(path).splitlines(keepends=True)
        with open(path, "wb") as file:
            file.writelines(change(rows))
        table.check_goes_on(out)
    return "written anew from the checkpoint; equal"


def files_removed(table):
    for names in (["metrics.csv"], ["config.json"], ["checkpoint.pt"], [".lock"], ["config.json", "metrics.csv"]):
        out = table.copy()
        for name in names:
            os.unlink(os.path.join(out, name))
        table.check_goes_on(out)
    return "the run goes on; equal"


def runs_through(table, watch, **streams):
    """A run whose streams fail ends well all the same."""
    out = table.fresh()
    process = table.started(out, **streams)
    watch(process)
    status, _ = end_of(process)
    check(status == 0, "status %s" % status)
    table.check_equal(out)
    return "the run ends well; equal"


def full_stderr(table):
    with open("/dev/full", "wb") as full:
        return runs_through(table, lambda process: None, stdout=full, stderr=full)


def closed_streams(table):
    out = table.fresh()
    for closing in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        remove(out)
        command = " ".join(map(shell_word, table.program.arguments(out))) + " " + closing
        status, _, _ = programs.run(["/bin/sh", "-c", command])
        check(status == 0, "%s: status %s" % (closing, status))
        table.check_equal(out)
    return "the run ends well; equal"


def shell_word(text):
    return "'" + text.replace("'", "'\\''") + "'"


def reader_leaves(table):
    def watch(process):
        process.stderr.readline()
        process.stderr.close()
        process.stdout.close()
        process.stdout = process.stderr = None

    return runs_through(table, watch)


def lose_terminal(table, ignore_hangup):
    """Starts a run on a terminal of its own, which goes away in mid-run; its directory and wait status."""
    out = table.fresh()
    try:
        child, master = pty.fork()
    except OSError as error:
        raise Skipped("no pseudo-terminal: %s" % error)
    if child == 0:
        programs.restore_signals()
        if ignore_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            # LibTorch of Debian 13 and later loads UCX, which takes SIGHUP for itself before main() begins.
            os.environ["UCX_DEBUG_SIGNO"] = "0"
        os.execv(table.program.path, table.program.arguments(out))
    os.set_blocking(master, False)
    end = time.monotonic() + 60
    while table.rows(out) < 5 and time.monotonic() < end:
        try:
            os.read(master, 65536)
        except (BlockingIOError, OSError):
            time.sleep(0.01)
    os.close(master)
    return out, os.waitpid(child, 0)[1]


def lost_terminal(table):
    out, status = lose_terminal(table, ignore_hangup=True)
    check(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, "wait status %d" % status)
    table.check_equal(out)
    return "the run ends well; equal"


def terminal_closed(table):
    """Without SIGHUP ignored: the run is saved, and goes on later."""
    out, status = lose_terminal(table, ignore_hangup=False)
    check(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + signal.SIGHUP, "wait status %d" % status)
    table.check_goes_on(out)
    return "status 129, saved; equal"


def interrupted_with_dead_tee(table):
    """Ctrl-C ends `tee` first, and then the run has no reader."""
    out = table.fresh()
    process = table.started_until_row(out, 7)
    process.stderr.close()
    process.stdout.close()
    process.stdout = process.stderr = None
    process.send_signal(signal.SIGINT)
    check(process.wait(timeout=120) == 130, "status %s" % process.returncode)
    check(os.path.exists(os.path.join(out, "checkpoint.pt")), "no checkpoint")
    table.check_goes_on(out)
    return "status 130, saved; equal"


def results_unwritable(table):
    """Programs whose output is their result."""
    picture = os.path.join(table.work, "picture.ppm")
    with open(picture, "wb") as file:
        file.write(b"P6 4 4 255\n" + bytes(range(48)))
    evaluate = [table.program.path, "--data", table.program.data, "--eval", table.finished, "--threads", "1"]
    commands = {"cifar10": evaluate,
                "predict": [table.other_program("predict"), "--model", table.finished, picture, "--threads", "1"],
                "compare": [table.other_program("compare"), table.finished]}
    for name, arguments in commands.items():
        with open("/dev/full", "wb") as full:
            status, _, err = programs.run(arguments, stdout=full)
        check_refused(status, err, "cannot write the standard output: No space left", name)
        reader, writer = os.pipe()
        os.close(reader)
        status, _, err = programs.run(arguments, stdout=writer)
        os.close(writer)
        check_refused(status, err, "cannot write the standard output: Broken pipe", name)
        command = " ".join(map(shell_word, arguments)) + " >&-"
        status, _, err = programs.run(["/bin/sh", "-c", command])
        seen = check_refused(status, err, "cannot write the standard output", name)
    return seen


def two_programs(table):
    out = table.fresh()
    process = table.started_until_row(out, 3)
    process.send_signal(signal.SIGSTOP)  # so that it is not over before the others have asked
    words = "is in use by process %d" % process.pid
    status, _, err = programs.run(table.program.arguments(out))
    check_refused(status, err, words)
    status, _, err = programs.run(table.program.resume_arguments(out))
    seen = check_refused(status, err, words)
    process.send_signal(signal.SIGCONT)
    status, err = end_of(process)
    check(status == 0, "the first: status %s: %s" % (status, err[-300:]))
    table.check_equal(out)
    return seen


def out_is_no_directory(table):
    out = table.fresh()
    os.mkfifo(out)
    status, _, err = programs.run(table.program.arguments(out))
    check_refused(status, err, out)
    check(os.path.exists(out) and not os.path.isfile(out) and not os.path.isdir(out), "the FIFO is gone")
    remove(out)
    with open(out, "wb") as file:
        file.write(b"mine")
    status, _, err = programs.run(table.program.arguments(out))
    check_refused(status, err, out)
    check(programs.read(out) == b"mine", "the file was changed")
    status, _, err = programs.run(table.program.arguments("/dev/null"))
    seen = check_refused(status, err, "/dev/null")
    check(not os.path.isfile("/dev/null") and not os.path.isdir("/dev/null"), "/dev/null was replaced")
    return seen


def out_is_a_link(table):
    target = table.fresh("target")
    os.mkdir(target)
    out = table.fresh()
    os.symlink(target, out)
    status, _, err = programs.run(table.program.arguments(out))
    check(status == 0, "status %s: %s" % (status, err[-300:]))
    check(os.path.islink(out), "the link was replaced")
    table.check_equal(target)
    return "the link stays, the run is in its target; equal"


def predictions_into_special_files(table):
    picture = os.path.join(table.work, "picture.ppm")
    with open(picture, "wb") as file:
        file.write(b"P6 4 4 255\n" + bytes(range(48)))
    command = [table.other_program("predict"), "--model", table.finished, picture, "--threads", "1", "--out"]
    target, link, fifo = (table.fresh(name) for name in ("predictions", "link", "fifo"))
    os.symlink(target, link)
    status, _, err = programs.run(command + [link])
    check(status == 0 and os.path.islink(link), "a link: status %s: %s" % (status, err))
    expected = programs.read(target)
    check(expected.count(b"\n") >= 1, "nothing in the link's target")
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        status, _, err = programs.run(command + [fifo])
        text, _ = reader.communicate(timeout=60)
    check(status == 0 and text == expected, "a FIFO: status %s: %s" % (status, err))
    status, _, err = programs.run(command + ["/dev/null"])
    check(status == 0 and not os.path.isfile("/dev/null"), "/dev/null: status %s: %s" % (status, err))
    status, _, err = programs.run(command + ["/dev/full"])
    seen = check_refused(status, err, "No space left on device", "predict")
    check(not os.path.isfile("/dev/full"), "/dev/full was replaced")
    return "written through, nothing replaced; /dev/full: " + seen


def directory_of_another_run(table):
    out = table.fresh()
    os.mkdir(out)
    shutil.copy(os.path.join(table.finished, "metrics.csv"), out)
    before = snapshot(out)
    status, _, err = programs.run(table.program.arguments(out))
    seen = check_refused(status, err, "metrics.csv")
    check(snapshot(out) == before, "files were changed")
    return seen


ROWS = (
    ("the disk is too small for the run", "refused at the start", disk_too_small),
    ("the disk is full in mid-run", "one line, status 2; then it goes on", disk_full_during_the_run),
    ("the disk is full at the end", "one line, status 2; then it goes on", disk_full_at_the_end),
    ("the disk is read-only", "refused at the start", read_only_disk),
    ("no permission any more in mid-run", "one line, status 2; then it goes on", permission_taken_during_the_run),
    ("the run directory goes away in mid-run", "one line, status 2; then it goes on", directory_removed),
    ("checkpoint.pt with a flipped bit", "goes on from the previous one, equal", flips_with_previous),
    ("the same without a previous one", "refused, nothing changed", flips_without_previous),
    ("checkpoint.pt cut short", "goes on from the previous one, equal", cuts_with_previous),
    ("the same without a previous one", "refused, nothing changed", cuts_without_previous),
    ("both checkpoints damaged", "refused, nothing changed", both_damaged),
    ("metrics.csv damaged, cut, emptied", "goes on, equal", metrics_damaged),
    ("files of the run removed", "goes on, equal", files_removed),
    ("stdout and stderr are full", "the run ends well", full_stderr),
    ("stdin, stdout, stderr closed", "the run ends well", closed_streams),
    ("the reader leaves (| head -1)", "the run ends well", reader_leaves),
    ("the terminal goes away, SIGHUP ignored", "the run ends well", lost_terminal),
    ("the terminal goes away", "status 129, saved", terminal_closed),
    ("Ctrl-C after `tee` has gone", "status 130, saved", interrupted_with_dead_tee),
    ("results cannot be written to stdout", "one line, status 2", results_unwritable),
    ("two programs in one directory", "the second is refused by name", two_programs),
    ("a directory with remains of another run", "refused, nothing changed", directory_of_another_run),
    ("--out is a FIFO, a file, a device", "refused, nothing replaced", out_is_no_directory),
    ("--out is a symbolic link", "the link stays", out_is_a_link),
    ("predict --out into links, FIFOs, devices", "written through, nothing replaced", predictions_into_special_files),
)


def main():
    parser = argparse.ArgumentParser(description="Tries runs and programs under faults of what is around them.")
    parser.add_argument("--program-dir", required=True, help="where the programs are")
    parser.add_argument("--flips", type=int, default=5, help="damaged checkpoints a row")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="the rows that say so")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="mixmatch_fault_") as work:
        table = Table(options, work)
        for fault, expected, function in ROWS:
            if options.only not in fault:
                continue
            try:
                result, seen = "as expected", function(table)
            except Skipped as reason:
                result, seen = "SKIPPED", str(reason)
            except Wrong as error:
                result, seen = "WRONG", str(error)
            results.append((fault, expected, result, seen.replace(work + "/", "").replace("\n", " ")[:160]))
            if result == "WRONG":
                print("WRONG: %s: %s" % (fault, seen))
                sys.stdout.flush()
    programs.print_table(["fault", "expected", "result", "seen"], results)
    counts = [sum(result[2] == kind for result in results) for kind in ("as expected", "SKIPPED", "WRONG")]
    print("%d rows as expected, %d SKIPPED, %d WRONG" % tuple(counts))
    return 1 if counts[2] else 0


if __name__ == "__main__":
    sys.exit(main())
