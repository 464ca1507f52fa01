"""Sits at a terminal and uses a shell's job control: job_control.py COMMAND...

Runs COMMAND, an interactive shell, on a pseudo-terminal, types at it as soon as it has shown what it
is expected to, and prints what was on the screen, without carriage returns and process ids.
"""
import os
import pty
import re
import select
import sys
import time

pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])

screen = ""
seen = 0


def expect(pattern, limit=40, must=True):
    """Reads until `pattern` has come after what was expected last; gives whether it has."""
    global screen, seen
    end = time.monotonic() + limit
    while True:
        found = re.compile(pattern, re.M).search(screen, seen)
        if found:
            seen = found.end()
            return True
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        try:
            data = os.read(terminal, 4096) if ready else b""
        except OSError:
            data = b""
        if not data and not must:
            return False
        if not data:
            print(f"{screen}\n--- {pattern!r} did not come")
            os.kill(pid, 9)
            sys.exit(1)
        screen += data.decode(errors="replace").replace("\r", "")


def key(text):
    os.write(terminal, text.encode())


def press(text, pattern):
    """Types a key until `pattern` comes: a shell that is about to become another program misses it."""
    key(text)
    while not expect(pattern, limit=3, must=False):
        key(text)


def line(text, prompt=True):
    """Types a command; waits for its echo, and for the next prompt."""
    key(text + "\n")
    expect(re.escape(text) + r"\n")
    if prompt:
        expect(r"^\$ ")


READY = "sh -c 'echo ready; exec sleep 100'"

expect(r"[#$] ")
key("PS1='$ '\n")
expect(r"^\$ ")
# A job that is stopped while it reads, and goes on.
line("echo ready; cat", prompt=False)
expect(r"^ready\n")
key("one\n")
expect(r"one\none\n")
press("\x1a", r"^\$ ")
line("jobs")
line("fg", prompt=False)
expect(r"cat\n")
time.sleep(0.5)
key("two\n")
expect(r"two\ntwo\n")
key("\x04")
expect(r"^\$ ")
line("echo status $?")
# One that goes on in the background, is killed there and waited for.
line(READY, prompt=False)
expect(r"^ready\n")
press("\x1a", r"^\$ ")
line("bg")
line("jobs")
line("kill %1; wait %1; echo status $?")
# Interrupted in the foreground; a pipeline too.
line(READY, prompt=False)
expect(r"^ready\n")
press("\x03", r"^\$ ")
line("echo status $?")
line(READY + " | cat", prompt=False)
expect(r"^ready\n")
press("\x03", r"^\$ ")
line("echo status $?")
# A signal typed reaches the whole group, but not the shell; who catches it goes on.
line("sh -c 'trap \"echo caught\" INT; echo ready; sleep 100; echo after'", prompt=False)
expect(r"^ready\n")
time.sleep(0.5)
press("\x03", r"^after\n")
expect(r"^\$ ")
line("echo status $?")
# The quit key.
line(READY, prompt=False)
expect(r"^ready\n")
press("\x1c", r"^\$ ")
line("echo status $?")
# Reading in the background stops a job.
line("cat & busybox sleep 0.5; jobs")
line("kill -KILL %1; busybox sleep 0.5")
# Typed ahead, erased, and killed as a line.
key("echo wrong\x15echo righd\x7ft\n")
expect(r"^right\n")
expect(r"^\$ ")
key("exit 3\n")
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    if not data:
        break
    screen += data.decode(errors="replace").replace("\r", "")
_, status = os.waitpid(pid, 0)
screen = screen[screen.index("$ "):]
# How often a key was typed, how the shell draws and when it tells of who was killed is no matter here.
screen = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", screen)
screen = re.sub(r"(\^[CZ\\\\])+\n?", "", screen)
screen = re.sub(r"^.*(Terminated|Killed|wrong).*\n", "", screen, flags=re.M)
print(re.sub(r"^\[(\d+)\] \d+$", r"[\1]", screen, flags=re.M))
print("exit status", os.waitstatus_to_exitcode(status))
