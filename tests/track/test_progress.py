import contextlib
import io
import os
import re

from lm.track.progress import Progress

TRAINED = {
    "train/loss": 2.34567,
    "train/lr": 3e-4,
    "train/tokens_per_second": 12345.6,
    "train/mfu": 0.4123,
    "data/fingerprint": "00ff",
}
EVALUATED = {"eval/loss": 1.5, "eval/bits_per_byte": 2.0, "eval/accuracy": 0.25}


def test_a_line_per_logged_step_where_there_is_no_terminal():
    file, times = io.StringIO(), iter([0.0, 60.0])
    with Progress(101, file=file, clock=lambda: next(times)) as progress:
        progress(0, TRAINED)
        progress(20, {"train/loss": float("nan")})
        progress(20, EVALUATED)
    # 20 steps took 60 s, so the 80 to the last one, 100, take 240 s.
    assert file.getvalue().splitlines() == [
        "step 0/101  loss 2.3457  lr 3.00e-04  12,346 tokens/s  MFU 41.2%",
        "step 20/101  loss nan  0:04:00 left",
        "step 20/101  validation loss 1.5000  2.0000 bits per byte  accuracy 0.25",
    ]


def test_quiet_says_nothing():
    file = io.StringIO()
    with Progress(10, quiet=True, file=file) as progress:
        progress(0, TRAINED)
    assert not file.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    screen, terminal = os.openpty()
    with os.fdopen(terminal, "w") as file, Progress(100, first_step=40, file=file) as progress:
        progress(49, TRAINED)
        progress(49, EVALUATED)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", everything(screen))
    assert re.search(r"step 40/100 .* compiling", shown)
    assert re.search(r"step 50/100 .* loss 2.3457  12,346 tokens/s  MFU 41.2%", shown)
    assert "validation loss 1.5000  2.0000 bits per byte" in shown


def everything(screen):
    """What was written to the terminal, whose other end is closed: then Linux raises EIO."""
    parts = []
    with os.fdopen(screen, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while part := file.read(1 << 16):
            parts.append(part)
    return b"".join(parts).decode()
