import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import Conversation, Message, Tool
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.evals.channels import Rate, judge
from counterpoint.train.evals.drawing import svg_in_page
from counterpoint.train.evals.figures import Pair, Series, dumbbells, lines
from counterpoint.train.evals.findings import findings_of
from counterpoint.train.evals.publish import write_report
from counterpoint.train.evals.report_data import Report, Side, numbers_of, run_report
from counterpoint.train.evals.report_page import page_of
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.scorers import ExpectedCall, Reference, Scorers

VOCABULARY = load_vocabulary()
RIGHT = "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant<|channel|>final<|message|>It is 5.<|return|>"
BARE = "<|channel|>final<|message|>It is 5.<|return|>"
WRONG = "<|channel|>analysis<|message|>Hm, so.<|end|><|start|>assistant<|channel|>final<|message|>It is 6.<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
NAMELESS = '<|channel|>commentary to=f <|constrain|>json<|message|>{"x": 1}<|call|>'
EVIL = (
    "</style></pre><script>window.owned = 1</script><img src='http://127.0.0.1:9/x' onerror='owned = 2'>"
    "<svg onload='owned = 3'><a href='javascript:owned = 4'>\u202egnp.exe\u202c \x1b[31m <|start|>assistant"
)
CUT = "<|channel|>analysis<|message|>One and one and"


def row(text: str, effort: str = "low", id_: str = "sum", calls: bool = False, asked: str = "2 + 3?", sample: int = 0):
    reference = Reference(calls=(ExpectedCall("f", {"x": 1}),)) if calls else Reference(answer="5", prompt=asked)
    tool = Tool("f", "", {"type": "object", "properties": {"x": {"type": "integer"}}})
    conversation = Conversation((Message("user", asked),), tools=(tool,))
    prompt = EvalPrompt(id_, conversation, reference, "calls" if calls else "number")
    ids = VOCABULARY.encode_with_specials(text)
    with Scorers() as scorers:
        reason = "stop" if text.endswith(("<|return|>", "<|call|>")) else "length"
        return judge(prompt, effort, sample, ids, reason, VOCABULARY, scorers).as_row(VOCABULARY)


def verdict(report: Report) -> list[str]:
    return [said.text for said in findings_of(report).verdict]


def two_sides() -> Report:
    base = [row(BARE, "medium"), row(BARE, "high", "b"), row(NAMELESS, "low", "c", calls=True), row(CUT, "low", "d")]
    tuned = [row(RIGHT, "medium"), row(WRONG, "high", "b"), row(CALL, "low", "c", calls=True), row(RIGHT, "low", "d")]
    points = [
        {"step": 0, "who": "base", "channel_correct": 0.0, "right_calls": 0.0, "right_answers": 0.67},
        {"step": 8, "who": "tuned", "channel_correct": 1.0, "right_calls": 1.0, "right_answers": 0.67},
    ]
    losses = [{"step": 1, "loss": 2.0, "loss_final": 3.0}, {"step": 8, "loss": 0.5, "loss_final": 0.4}]
    return Report("run-1", Side("tuned", tuned), Side("base", base), [("model", "tiny")], points, losses)


class Page(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_numbers_are_counted_from_the_samples() -> None:
    report = two_sides()
    assert report.base is not None
    assert report.tuned is not None
    base, tuned = report.base.numbers, report.tuned.numbers
    assert (base.n, base.items) == (4, 4)
    assert (base.correct, tuned.correct) == (Rate(0, 4), Rate(4, 4))
    assert base.violations == {"no_analysis": Rate(2, 4), "bare_name": Rate(1, 4), "truncated": Rate(1, 4)}
    assert tuned.violations == {}
    assert (base.answers, tuned.answers) == (Rate(2, 3), Rate(2, 3))
    assert (base.calls, tuned.calls) == (Rate(0, 1), Rate(1, 1))
    assert (base.right_tool, tuned.right_tool) == (Rate(0, 1), Rate(1, 1))
    assert (base.valid_calls, tuned.valid_calls) == (Rate(0, 1), Rate(1, 1))
    assert base.truncated == Rate(1, 4)
    assert base.with_analysis == Rate(1, 4)
    assert tuned.efforts["low"].analysis_tokens == pytest.approx(len(VOCABULARY.encode("Add.")) / 2)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        numbers_of([])


def test_the_verdict_says_the_rate_first_and_what_got_worse() -> None:
    said = verdict(two_sides())
    assert said[0].startswith(
        "The tuned model is right on every channel in 4 of 4 samples (1.00, 95 % interval 0.51 to"
    )
    assert "the base in 0 of 4 samples (0.00" in said[0]
    assert "Right answers: 0.67 of 3 (base 0.67)." in said
    assert said[1].startswith(
        "Channels, paired by prompt: too few items to tell: the tuned model is 100.0 points better"
    )
    assert "4 independent items show differences of 62.6 points and more" in said[1]
    bare, right = (
        [{**row(text, "high"), "id": str(n), "cluster": str(n)} for n in range(40)] for text in (BARE, RIGHT)
    )
    worse = Report("x", Side("tuned", bare), Side("base", right))
    assert any(s == "Worse than the base: no_analysis in 1.00 of samples (base 0.00)." for s in verdict(worse))
    assert any(s == "Worse than the base: samples with analysis, 1.00 to 0.00." for s in verdict(worse))


def test_efforts_out_of_order_raise_an_alarm() -> None:
    report = Report("x", Side("tuned", [row(WRONG, "low"), row(RIGHT, "medium"), row(RIGHT, "high")]))
    assert report.shown.numbers.efforts_in_order is False
    assert any(s.startswith("More effort does not mean longer analysis (mean") for s in verdict(report))
    assert Report("x", Side("tuned", [row(RIGHT, "low")])).shown.numbers.efforts_in_order is None


def grown(lengths: dict[str, list[int]]) -> list[dict[str, object]]:
    """Rows of samples with so many tokens of analysis, an effort each, one prompt after the other."""
    made = row(RIGHT)
    return [
        {**made, "id": str(n), "cluster": str(n), "effort": effort, "tokens": {**made["tokens"], "analysis": length}}
        for effort, values in lengths.items()
        for n, length in enumerate(values)
    ]


def test_a_collapse_of_effort_is_named_although_the_means_are_in_order() -> None:
    base = Side("base", grown({"low": [20, 30, 25, 40], "medium": [60, 80, 70, 90], "high": [200, 310, 240, 400]}))
    flat = Side(
        "tuned", grown({"low": [98, 101, 99, 102], "medium": [99, 100, 101, 103], "high": [103, 100, 101, 104]})
    )
    assert flat.numbers.efforts_in_order is True
    (said,) = [s for s in verdict(Report("x", flat, base)) if "ffort" in s]
    assert said.startswith("Effort has collapsed: from low to high the analysis grows 1 times (95 % interval ")
    assert said.endswith("on 4 prompts.")
    found = findings_of(Report("x", flat, base)).effort
    assert found is not None
    assert found.base.value == pytest.approx(np.exp(np.mean(np.log([201 / 21, 311 / 31, 241 / 26, 401 / 41]))))
    assert found.base.low < found.base.value < found.base.high
    kept = Side("tuned", grown({"low": [22, 28, 27, 38], "medium": [60, 80, 70, 90], "high": [220, 290, 250, 380]}))
    assert not [s for s in verdict(Report("x", kept, base)) if "ffort" in s]


def test_the_json_holds_both_sides_and_survives_a_round_trip() -> None:
    told = json.loads(json.dumps(findings_of(two_sides()).as_dict(), allow_nan=False))
    assert told["tuned"]["correct"] == {
        "count": 4,
        "n": 4,
        "rate": 1.0,
        "low": pytest.approx(0.51, abs=0.01),
        "high": 1.0,
    }
    assert told["base"]["violations"]["bare_name"]["rate"] == 0.25
    assert [cell["effort"] for cell in told["tuned"]["tasks"]] == ["low", "medium", "high"]
    assert told["difference"]["differences"][0]["metric"] == "score"
    assert told["guard"] is None


def test_the_page_makes_no_request_and_runs_nothing() -> None:
    page = Page(page_of(two_sides()))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "img", "base", "form", "audio", "video"}
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")} | attributes & {"style", "src", "href"}
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "url(" not in page_of(two_sides())


def test_the_verdict_comes_first_on_the_page() -> None:
    text = page_of(two_sides())
    places = [
        text.index(word)
        for word in (
            "<h2>Verdict",
            "<h2>Accuracy and reasoning effort",
            "<h3>Which effort to use",
            "<h2>Violations",
            "<h2>Tool calls",
            "<h2>Tasks",
            "<h2>During training",
            "<h2>Samples",
        )
    ]
    assert places == sorted(places)
    assert '<span class="was">0.00</span><span class="to">→</span><strong>1.00</strong>' in text


@pytest.mark.parametrize(
    "evil",
    [
        "</pre><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "<!--",
        "&lt;b&gt;",
        "\u202eevil\u2066",
        "\x00\x1b[31m",
    ],
)
def test_hostile_text_is_inert_everywhere(evil: str) -> None:
    text = f"<|channel|>analysis<|message|>{evil}<|end|><|start|>assistant<|channel|>final<|message|>{evil}<|return|>"
    rows = [row(text, asked=evil, id_=evil), row(f"<|channel|>{evil}<|message|>x<|return|>", id_="header")]
    report = Report(evil, Side("tuned", rows), Side("base", rows), [(evil, evil)], notes=[evil])
    written = page_of(report)
    page = Page(written)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "pre"}
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", written)
    if evil.isascii() and evil.isprintable():
        assert evil in page.text


def test_tokens_are_coloured_by_channel_and_faults_are_marked() -> None:
    text = page_of(Report("x", Side("tuned", [row(NAMELESS, calls=True)])))
    assert '<span class="t commentary">' in text
    assert "<mark>" in text
    assert "bare_name" in text
    clean = page_of(Report("x", Side("tuned", [row(RIGHT)])))
    assert '<span class="t analysis"><span class="special">&lt;|channel|&gt;</span>analysis' in clean
    assert '<span class="t final">' in clean
    assert "<mark>" not in clean


def test_figures_keep_points_inside_and_say_what_they_show() -> None:
    drawn = svg_in_page(lines([Series("a", [(0, 0.2), (10, 5.0)]), Series("b", [])], "step", "rate", (0.0, 1.0)))
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert len(ys) == 2
    assert min(ys) == 12.0
    assert "a from 0.2 to 5" in drawn
    rows = dumbbells([Pair("channel-correct", (0.5, 0.4, 0.6), (1.0, 0.9, 1.0)), Pair("calls", None, None)])
    assert rows.told == "channel-correct base 0.50; channel-correct tuned 1.00"
    assert 'role="img" aria-label="channel-correct base' in svg_in_page(rows)
    assert lines([Series("one", [(3, 1.0)])], "step", "rate").told == "rate by step: one from 1 to 1"


def write_rows(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_a_run_folder_gives_its_report(tmp_path) -> None:
    write_rows(tmp_path / "eval/step-000000-base.jsonl", [row(BARE, "high")])
    write_rows(tmp_path / "eval/step-000004-tuned.jsonl", [row(BARE, "high")])
    write_rows(tmp_path / "eval/step-000008-tuned.jsonl", [row(RIGHT, "high")])
    points = [{"step": 0, "who": "base"}, {"step": 4, "who": "tuned"}, {"step": 8, "who": "tuned"}]
    write_rows(tmp_path / "eval/metrics.jsonl", [{**p, "channel_correct": 0.5} for p in points])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "lr": 1}\n{"step": 2, "lo')
    report = run_report(tmp_path)
    assert report.base is not None
    assert report.tuned is not None
    assert report.base.numbers.correct == Rate(0, 1)
    assert report.tuned.numbers.correct == Rate(1, 1)
    assert [p["step"] for p in report.points] == [0, 4, 8]
    assert len(report.losses) == 1
    assert "Verdict" in page_of(report)


def test_full_fine_tuning_compares_with_its_own_start(tmp_path) -> None:
    write_rows(tmp_path / "eval/step-000000-tuned.jsonl", [row(BARE, "high")])
    write_rows(tmp_path / "eval/step-000008-tuned.jsonl", [row(RIGHT, "high")])
    points = [{"step": 0, "who": "tuned"}, {"step": 8, "who": "tuned"}]
    write_rows(tmp_path / "eval/metrics.jsonl", [{**p, "channel_correct": 0.5} for p in points])
    report = run_report(tmp_path)
    assert report.base is not None
    assert report.base.numbers.correct == Rate(0, 1)


def test_a_run_without_evaluations_is_told(tmp_path) -> None:
    with pytest.raises(DataError, match="measured nothing"):
        run_report(tmp_path)


def test_the_report_is_a_page_numbers_and_figures(tmp_path) -> None:
    write_report(tmp_path, two_sides(), VOCABULARY)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["verdict"][0].startswith("The tuned model is right on every channel in 4 of 4 samples")
    assert told["tuned"]["right_tool"] == {"count": 1, "n": 1, "rate": 1.0, "low": pytest.approx(0.21, abs=0.01), "high": 1.0}  # fmt: skip
    assert told["tuned"]["effort"]["choice"]["offline"] == "medium"
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    plain = ["accuracy", "loss-by-step", "rates", "rates-by-step"]
    assert names == sorted(f"{name}.{kind}" for name in plain for kind in ("png", "svg"))
    again = (tmp_path / "report.html").read_bytes()
    write_report(tmp_path, two_sides(), VOCABULARY)
    assert (tmp_path / "report.html").read_bytes() == again


def test_thoughts_at_each_effort_are_drawn_by_step(tmp_path) -> None:
    for step in (0, 8):
        write_rows(tmp_path / f"eval/step-00000{step}-tuned.jsonl", [row(RIGHT, "high")])
    tokens = ({"low": 20.0, "high": 21.0}, {"low": 10.0, "high": 40.0})
    points = [
        {"step": 8 * k, "who": "tuned", "channel_correct": 1.0}
        | {f"analysis_tokens/{effort}": n for effort, n in by_effort.items()}
        for k, by_effort in enumerate(tokens)
    ]
    write_rows(tmp_path / "eval/metrics.jsonl", points)
    assert "tokens of analysis by step: low from 20 to 10; high from 21 to 40" in page_of(run_report(tmp_path))


def test_tasks_of_the_model_card_are_drawn_beside_its_figures() -> None:
    rows = [{**row(RIGHT, effort, id_), "task": "aime_2025"} for effort in ("low", "high") for id_ in "ab"]
    text = page_of(Report("x", Side("tuned", rows), model="openai/gpt-oss-120b"))
    assert "card 120b high 0.925" in text
    assert "the model card's figures" in text
    assert "Task aime_2025" in text
    assert (
        "card" not in page_of(Report("x", Side("tuned", [{**r, "task": "sums"} for r in rows]))).partition("<body>")[2]
    )


def test_what_the_probes_show_is_in_the_verdict_and_in_a_table() -> None:
    probe = {"probe": {"skill": "german"}}
    base = [{**row(RIGHT, sample=k), **probe} for k in range(12)]
    tuned = [{**row(WRONG, sample=k), **probe} for k in range(12)]
    worse = Report("x", Side("tuned", tuned), Side("base", base))
    assert "Lost on the probes: german (answers 1.00 to 0.00)." in verdict(worse)
    text = page_of(worse)
    assert '<span class="lost">lost</span>' in text
    kept = Report("x", Side("tuned", base), Side("base", base))
    assert verdict(kept)[-1] == "Nothing is lost and nothing newly tilted on the probes (1 skill)."
    assert findings_of(two_sides()).guard is None
