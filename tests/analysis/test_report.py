"""The page of a report: its numbers are the log's, its text is escaped, nothing is outside it."""

import datetime
import json
import re
from html.parser import HTMLParser

import pytest

from lm.analysis.report import differing, page, positions, read_run

HOSTILE = (
    "</pre><script>alert('1')</script>\"><img src=http://a.b/c onerror=x> & $\\frac$ $ {} #0072b2"
)
START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
VOID = {"meta", "br", "wbr", "img", "hr"}


class Page(HTMLParser):
    """tables: [[cell, ...], ...] of each table. tags: every (tag, attributes). text: all of it.
    drawn: the texts of pictures.
    """

    def __init__(self, content):
        super().__init__()
        self.tables, self.tags, self.open, self.text, self.headings = [], [], [], "", []
        self.drawn = []
        self.feed(content)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & {*self.open}:
            self.tables[-1][-1][-1] += data
        if self.open[-1:] == ["text"]:
            self.drawn.append(data)
        if self.open[-1:] == ["h2"]:
            self.headings[-1] += data

    def table(self, column):
        """{run: {column: text}} of the table with a column."""
        [found] = [rows for rows in self.tables if column in rows[0]]
        rows = [dict(zip(found[0], map(str.strip, row), strict=True)) for row in found[1:]]
        return {row["run"]: row for row in rows}


def rows(number=40, last=2.0, **extra):
    """A step a second, after a start that took ten."""
    first = START.timestamp() + 10
    return [
        {
            "step": step,
            "train/loss": last + (number - 1 - step) / 10,
            "train/lr": 1e-3,
            "train/grad_norm": 1.0,
            "train/tokens_per_second": 64.0 if step else 64 / 10,
            "time": first + step,
            **extra,
        }
        for step in range(number)
    ]


def write_run(folder, found=(), starts=None, samples=(), **keys):
    """A run's folder; found: the rows of its metrics.jsonl."""
    folder.mkdir(parents=True)
    config = {"model": {"d_model": 16}, "data": {"batch_size": 4, "sequence_length": 16}}
    config |= {"optim": {"peak_lr": 0.1}, "train": {"num_steps": 40}, "data_key": "k"}
    for key, value in keys.items():
        section, _, name = key.partition("_")
        config[section][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    if found:
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / "metrics.jsonl").write_text(lines)
    if starts is not None:
        (folder / "environment.json").write_text(json.dumps(starts))
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in samples))
    return read_run(folder, folder.name)


def start(seconds=0, **extra):
    when = (START + datetime.timedelta(seconds=seconds)).isoformat(timespec="seconds")
    return {"start": when, "command": ["python", "-m", "x", "--a=b c"], **extra}


def test_the_numbers_are_those_of_the_log(tmp_path):
    runs = []
    for index, (last, rate) in enumerate([(2.0, 0.1), (1.23456, 0.2), (3.5, 0.4)]):
        found = rows(last=last)
        found[19]["eval/loss"], found[39]["eval/loss"] = 9.0, last + 0.5
        found[39]["eval/bits_per_byte"] = last / 7
        runs.append(write_run(tmp_path / f"r{index}", found, [start()], optim_peak_lr=rate))
    shown = Page(page(runs))
    assert shown.headings == [
        *("Runs", "Curves", "What differs", "Final validation loss", "Where they ran")
    ]
    for run, row in zip(runs, shown.table("validation loss").values(), strict=True):
        assert float(row["validation loss"]) == pytest.approx(run.rows[-1]["eval/loss"], 1e-4)
        assert float(row["smoothed training loss"]) == pytest.approx(
            run.rows[-1]["train/loss"], 0.05
        )
        bits = run.rows[-1]["eval/bits_per_byte"]
        assert float(row["bits per byte"]) == pytest.approx(bits, 1e-4)
        assert (row["steps"], row["tokens"]) == ("40 of 40", f"{40 * 4 * 16:,}")
        assert (row["energy"], row["cost"]) == ("not measured", "not measured")
    rates = ("0.1", "0.2", "0.4")  # and only what differs
    rows_shown = [*shown.table("optim.peak_lr").values()]
    assert rows_shown == [{"run": f"r{i}", "optim.peak_lr": x} for i, x in enumerate(rates)]
    assert [tag for tag, _ in shown.tags].count("figure") == 4 + 1 + 1


def test_it_refers_to_nothing_outside_itself(tmp_path):
    found = rows(**{"eval/loss": 2.0})
    runs = [write_run(tmp_path / name, found, optim_peak_lr=len(name)) for name in ("a", "bb")]
    content = page(runs)
    shown = Page(content)
    assert not {"script", "link", "img", "iframe", "object", "image"} & {
        tag for tag, _ in shown.tags
    }
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    for _, attributes in shown.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    used = re.findall(r'(?:href="|url\()#([^")]*)', content)
    assert used and {*used} <= {*ids}
    assert "://" not in content and "@import" not in content
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", content))


def test_hostile_text_stays_text(tmp_path):
    named = read_run(tmp_path, HOSTILE)
    texts = [{"prompt": HOSTILE, "text": HOSTILE}]
    environment = [start(devices={HOSTILE: 8}, code={"commit": HOSTILE, "dirty": True})]
    extra = {"energy" + HOSTILE: 1.0}
    found = [write_run(tmp_path / "a", rows(**extra), environment, texts, optim_peak_lr=HOSTILE)]
    found.append(
        write_run(tmp_path / "b", rows(last=3.0), optim_peak_lr="x", **{f"model_{HOSTILE}": 1})
    )
    runs = [*found, named]
    shown = Page(page(runs))
    tags = [tag for tag, _ in shown.tags]
    assert "script" not in tags and "img" not in tags
    assert not any("onerror" in attributes for _, attributes in shown.tags)
    assert shown.table("optim.peak_lr")["a"]["optim.peak_lr"] == HOSTILE
    assert HOSTILE in shown.table("validation loss") and shown.text.count(HOSTILE) > 6


def test_what_was_not_finite_unfinished_or_never_logged_is_said(tmp_path):
    diverged = [*rows()[:20], {"step": 20, "train/loss": None, "eval/loss": None}]
    runs = [write_run(tmp_path / "diverged", diverged), write_run(tmp_path / "empty")]
    shown = Page(page(runs))
    table = shown.table("validation loss")
    assert table["diverged"]["smoothed training loss"] == "not finite"
    assert table["diverged"]["validation loss"] == "not finite"
    assert table["diverged"]["steps"] == "21 of 40"
    assert table["empty"]["smoothed training loss"] == table["empty"]["goodput"] == "not measured"
    assert (
        "metrics.jsonl: there is no" in shown.text and "there is no environment.json" in shown.text
    )
    shown = Page(page(runs[1:]))
    assert "no finite loss was logged" in shown.text


def test_one_without_evaluation_has_all_compared_by_the_training_loss(tmp_path):
    runs = [write_run(tmp_path / "a", rows(**{"eval/loss": 1.0}), optim_peak_lr=1)]
    runs.append(write_run(tmp_path / "b", rows(last=1.0), optim_peak_lr=2))
    assert "Final smoothed training loss" in Page(page(runs)).headings


def test_a_torn_last_line_is_left_and_a_damaged_one_is_said(tmp_path):
    write_run(tmp_path / "a", rows())
    log = tmp_path / "a" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 40, "train/lo')
    torn = read_run(tmp_path / "a", "a")
    assert (torn.steps(), torn.notes) == (40, ["there is no environment.json"])
    log.write_text(log.read_text() + "\n{}\n")
    damaged = read_run(tmp_path / "a", "a")
    assert damaged.rows == [] and "line 41 of" in damaged.notes[0]
    assert "line 41 of" in Page(page([torn, damaged])).text
    (tmp_path / "a" / "config.json").write_text("{")
    (tmp_path / "a" / "environment.json").write_text("[")
    broken = read_run(tmp_path / "a", "a")
    assert [note.split(":")[0] for note in broken.notes] == [
        *("config.json", "metrics.jsonl", "environment.json")
    ]
    assert "config.json: Expecting" in Page(page([broken])).text
    for content in ("{}", '[{"devices": {}}]', "[1]", '[{"start": 1}, {"start": "2030"}]'):
        (tmp_path / "a" / "environment.json").write_text(content)
        (tmp_path / "a" / "samples.jsonl").write_text(content)
        odd = read_run(tmp_path / "a", "a")
        assert (odd.starts, odd.samples) == ([], [])
        assert "samples.jsonl" in Page(page([odd])).text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *(("#0072b2", None), ("$\\x$", None), ("<g id=x>", None), ("", '""')),
        *(("a\n\0", r'"a\n\u0000"'), ("\ud800", r'"\ud800"')),
    ],
)
def test_any_text_can_be_a_value(tmp_path, text, shown):
    """In the table, and in the picture of parallel coordinates."""
    texts = {"a": text, "bb": "other"}
    runs = [write_run(tmp_path / x, rows(last=len(x)), optim_peak_lr=texts[x]) for x in texts]
    found = Page(page(runs))
    assert found.table("optim.peak_lr")["a"]["optim.peak_lr"] == (shown or text)
    assert (shown or text) in found.drawn


def test_goodput_is_the_steps_that_count_of_the_time_that_passed(tmp_path):
    # 40 steps of a second, of which the first took ten: 40 of 49 seconds.
    alone = write_run(tmp_path / "alone", rows(), [start()])
    assert alone.goodput() == pytest.approx(40 / 49)
    # Killed after 20 steps, started again after 100 s from step 10, which are done twice.
    first, second = rows()[:20], rows()[10:]
    second[0]["train/tokens_per_second"] = 6.4
    for row in second:
        row["time"] += 120
    twice = write_run(tmp_path / "twice", [*first, *second], [start(), start(120)])
    assert twice.goodput() == pytest.approx(40 / (49 + 120))
    assert Page(page([twice])).table("goodput")["twice"]["goodput"] == f"{40 / 169:.1%}"


@pytest.mark.parametrize("missing", ["time", "train/tokens_per_second", "starts", "clock"])
def test_goodput_is_not_guessed(tmp_path, missing):
    found = [{name: x for name, x in row.items() if name != missing} for row in rows()]
    starts = {"starts": None, "clock": [start(30)]}.get(missing, [start()])
    run = write_run(tmp_path / "a", found, starts)
    assert run.goodput() is None
    assert Page(page([run])).table("goodput")["a"]["goodput"] == "not measured"


def test_energy_and_cost_are_what_was_logged(tmp_path):
    found = rows(**{"energy/kwh": 0.5})
    found[-1]["energy/kwh"] = 0.75
    runs = [write_run(tmp_path / "a", found), write_run(tmp_path / "b", rows())]
    runs.append(write_run(tmp_path / "c", rows(**{"energy/kwh": 0})))
    runs.append(write_run(tmp_path / "d", rows(**{"energy/kwh": None})))
    table = Page(page(runs)).table("energy/kwh")
    found = [row["energy/kwh"] for row in table.values()]
    assert found == ["0.75", "not measured", "0", "not measured"]
    assert table["a"]["cost"] == "not measured"


def test_where_it_ran(tmp_path):
    code = {"commit": "0123456789abcdef", "dirty": False}
    starts = [start(devices={"cpu": 2}, code=code), start(60, devices={"cpu": 2}, code=None)]
    row = Page(page([write_run(tmp_path / "a", rows(), starts)])).table("command")["a"]
    assert row["command"] == "python -m x '--a=b c'" and row["devices"] == "2 × cpu"
    assert row["starts"] == "2030-01-01 00:00:00 UTC / 2030-01-01 00:01:00 UTC"
    assert row["commit"] == "0123456789ab / not recorded"
    run = write_run(tmp_path / "b", rows(), [start(10 * i) for i in range(5)])
    shown = Page(page([run])).table("command")["b"]["starts"]
    assert shown == "2030-01-01 00:00:00 UTC / 3 more / 2030-01-01 00:00:40 UTC"


def test_differences_are_those_of_any_run(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", optim_peak_lr=None)]
    runs.append(write_run(tmp_path / "c", model_depth=3))
    assert differing(runs) == {
        "optim.peak_lr": [0.1, None, 0.1],
        "model.depth": ["not recorded", "not recorded", 3],
    }
    table = Page(page(runs)).table("optim.peak_lr")
    assert [row["optim.peak_lr"] for row in table.values()] == ["0.1", "null", "0.1"]


def test_keys_that_change_together_share_a_picture(tmp_path):
    runs = [
        write_run(tmp_path / name, rows(last=loss), optim_peak_lr=rate, model_d_model=width)
        for name, loss, rate, width in (("a", 1.0, 1, 8), ("b", 2.0, 2, 16), ("c", 3.0, 2, 16))
    ]
    text = Page(page(runs)).text
    assert "smoothed training loss over model.d_model, optim.peak_lr" in text
    assert "hollow" not in text
    runs[0].config["train.num_steps"] = 80
    assert "hollow" in Page(page(runs)).text


def test_values_lie_by_size_and_texts_by_rank():
    assert positions([1, 100, 10]).tolist() == [0, 1, pytest.approx(0.5)]
    assert positions([0, 2, 1.5]).tolist() == [0, 1, 0.75]
    assert positions(["b", None, True, 3, 20]).tolist() == [0.5, 0.75, 1, 0, 0.25]


def test_keys_of_a_random_search_have_a_picture_each(tmp_path):
    rates, widths = (1, 2, 3, 4), (8, 32, 16, 64)
    runs = [
        write_run(tmp_path / str(i), rows(last=i + 1.0), optim_peak_lr=rate, model_d_model=width)
        for i, (rate, width) in enumerate(zip(rates, widths, strict=True))
    ]
    unreadable = read_run(tmp_path / "none", "none")
    text = Page(page([*runs, unreadable])).text
    assert "over model.d_model" in text and "over optim.peak_lr" in text
