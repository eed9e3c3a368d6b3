"""Evaluation runs on a tiny random model: forks, resumption, engagement, data of the user, files written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fasa_py
from fasa_py.cli import main
from fasa_py.eval import NotEngagedError, run
from fasa_py.eval.cases import make_case
from fasa_py.eval.inside import Tap
from fasa_py.eval.methods import expand, parse_method
from fasa_py.eval.overlap import Choices, overlap
from fasa_py.eval.plots import plot_all
from fasa_py.eval.recall import Recall, add_tapped_steps
from fasa_py.eval.results import FILE_NAME
from fasa_py.eval.session import Session
from fasa_py.eval.subject import Subject
from fasa_py.eval.tasks import FAMILIES, Haystack, eval_example
from fasa_py.eval.texts import load_texts
from fasa_py.eval.userdata import UserData
from fasa_py.method import Method
from fasa_py.model import Context, ContextSettings

FULL = Method("full")
STREAMING = "streaming:n_fac=64"
SMALL: dict[str, Any] = {
    "tasks": ["passkey", "perplexity"],
    "methods": ["dense", STREAMING],
    "lengths": [600],
    "n_cases": 2,
    "n_decoded": 40,
}


@pytest.fixture(scope="module")
def subject(tiny_path: Path) -> Subject:
    return Subject(tiny_path, n_threads=1)


@pytest.fixture
def session(subject: Subject) -> Iterator[Session]:
    context = Context(subject.model, ContextSettings(n_ctx=400, method=FULL))
    yield Session(context)
    context.close()


PROMPT = [int(b) for b in load_texts()[0].text[:300].encode()]


# -- methods -----------------------------------------------------------------------------------------------------------


def test_methods_by_name() -> None:
    assert parse_method("dense").is_dense
    assert parse_method("fasa-ca").method == Method("fasa", criterion="ca", dense_below=0)
    paper = parse_method("fasa-paper").method
    assert (paper.n_sink, paper.n_recent, paper.dense_layers, paper.tokens) == (0, 0, 0, "head")
    made = parse_method("fasa:n_fac=0.1,tokens=head,n_recent=0").method
    assert (made.n_fac, made.tokens, made.n_recent) == (0.1, "head", 0)


@pytest.mark.parametrize("spec", ["fasta", "fasa:n_fac", "fasa:colour=red", "fasa:n_fac=-1", "fasa:name=full"])
def test_bad_methods_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"method|n_fac|setting"):
        parse_method(spec)


def test_grid_applies_where_it_means_something() -> None:
    made = expand(["streaming", "fasa-ca", "oracle:n_fac=32", "dense"], n_tip=[4, 8], n_fac=[128, 256])
    assert [c.label for c in made] == [
        "dense",
        "streaming n_fac=128",
        "streaming n_fac=256",
        "fasa-ca n_tip=4 n_fac=128",
        "fasa-ca n_tip=4 n_fac=256",
        "fasa-ca n_tip=8 n_fac=128",
        "fasa-ca n_tip=8 n_fac=256",
        "oracle:n_fac=32 n_fac=32",
    ]


def test_coded_keys_are_a_setting_of_fasa() -> None:
    made = expand(["fasa-mass:k_dom=int8,n_sink=2", "fasa:k_dom=q4"], n_tip=[8])
    assert [(c.k_dom, c.is_coded, c.method.n_tip) for c in made] == [("int8", True, 8), ("q4", True, 8)]
    assert made[0].label == "fasa-mass:k_dom=int8,n_sink=2 n_tip=8 n_fac=256"
    assert made[0].exact.label == expand(["fasa-mass:n_sink=2"], n_tip=[8])[0].label
    assert made[1].exact == expand(["fasa"], n_tip=[8])[0]
    assert not parse_method("fasa:k_dom=f16").is_coded
    with pytest.raises(ValueError, match="k_dom must be one of"):
        parse_method("fasa:k_dom=int4")
    with pytest.raises(ValueError, match="for the method fasa"):
        parse_method("quest:k_dom=int8")


def test_overlap_of_selections() -> None:
    a = Choices([(20, np.array([0, 3, 5, 19], np.int32)), (20, np.array([0, 19], np.int32))])
    b = Choices([(20, np.array([0, 4, 5, 19], np.int32)), (20, np.array([0, 19], np.int32))])
    method = Method("fasa", n_sink=1, n_recent=1)
    assert overlap(a, b, method) == {"overlap": 0.875, "overlap_free": 0.5}
    assert overlap(a, a, method) == {"overlap": 1.0, "overlap_free": 1.0}
    assert overlap(Choices(), Choices(), method) == {}
    with pytest.raises(ValueError, match="zip"):
        overlap(a, Choices(a.lists[:1]), method)


def test_coded_keys_are_compared_with_exact_ones(tmp_path: Path) -> None:
    """Each in a cache of its own; the report has the paired loss, the ratio of perplexities and the overlap."""
    spec = "fasa:n_fac=64"
    methods = ["dense", spec, f"{spec},k_dom=int8", f"{spec},k_dom=q4"]
    records = run(
        None, out=tmp_path, n_threads=1, tasks=["passkey", "perplexity"], methods=methods, lengths=[600], n_cases=2,
        n_decoded=40,
    )  # fmt: skip
    by_method = {m: [r for r in records if r["spec"] == m] for m in methods}
    assert [len(rows) for rows in by_method.values()] == [5, 5, 5, 5]  # two cases, three texts
    read = [sum(r["kv_bytes"] for r in rows) for rows in by_method.values()]
    assert read[1] > read[2] > read[3], "codes were read"
    values = json.loads((tmp_path / "results.json").read_text())["600"]
    found = [entry["to_exact"] for entry in values.values() if "to_exact" in entry]
    assert [entry["cases"] for entry in found] == [2, 2]
    assert 1 > found[0]["overlap"] > 0.97 > found[1]["overlap"] > 0.75
    for entry in found:
        assert entry["overlap_free"] < entry["overlap"]
        assert entry["loss_95"] >= entry["loss"]
        assert entry["ratio"] == pytest.approx(1, abs=0.05) and entry["ratio"] != 1
    assert "Coded dominant keys against exact ones, 600 tokens" in (tmp_path / "results.md").read_text()


# -- one prompt, many methods ------------------------------------------------------------------------------------------


def test_every_method_starts_from_the_same_prompt(session: Session) -> None:
    session.prefill(PROMPT)
    first = session.greedy(FULL, 20, frozenset())
    sparse = session.greedy(parse_method(STREAMING).method, 20, frozenset())
    assert sparse != first, "the sparse method really ran"
    assert session.stats().layers_sparse > 0
    assert session.greedy(FULL, 20, frozenset()) == first


def test_greedy_equals_generate(session: Session, tiny_path: Path) -> None:
    session.prefill(PROMPT)
    tokens = session.greedy(FULL, 20, frozenset([258]))
    with fasa_py.Llama(tiny_path, n_threads=1, n_ctx=400) as llm:
        generated = llm.generate(PROMPT, max_tokens=20, temperature=0).tokens
    assert tokens == [token for token in generated if token != 258]


def test_right_tokens_all_along_mean_the_same_greedy_answer(session: Session) -> None:
    method = parse_method(STREAMING).method
    session.prefill(PROMPT)
    tokens = session.greedy(method, 20, frozenset())
    best = [int(logits.argmax()) for logits in session.forced(method, tokens)]
    assert best == tokens


def test_stop_tokens_end_an_answer(session: Session) -> None:
    session.prefill(PROMPT)
    tokens = session.greedy(FULL, 20, frozenset())
    assert session.greedy(FULL, 20, frozenset([tokens[5]])) == tokens[: tokens.index(tokens[5])]


@pytest.mark.parametrize("settings", ["n_fac=4096", "n_fac=64,dense_layers=2", "n_fac=64,dense_below=4096"])
def test_a_method_that_attends_to_everything_is_an_error(session: Session, settings: str) -> None:
    session.prefill(PROMPT)
    session.greedy(parse_method(f"streaming:{settings}").method, 4, frozenset())
    with pytest.raises(NotEngagedError, match="attended to all"):
        session.stats()


def test_the_oracle_recalls_what_scores_best(session: Session, subject: Subject) -> None:
    k = 32
    recalls = {}
    for name in ("oracle", "streaming"):
        method = Method(name, n_fac=k, n_sink=0, n_recent=0, dense_layers=0, dense_below=0, tokens="head")
        session.prefill(PROMPT)
        session.engage(method)
        recall = Recall()
        with closing(Tap(session.context, subject.info, 3)) as tap:
            for token in (65, 66, 67, 68):
                session.context.decode(0, [token])
            assert tap.n_steps == 3
            assert [len(p) for p in tap.read(1, 0).positions] == [k] * len(tap.read(1, 0).positions)
            add_tapped_steps(recall, tap, session.context, subject.info, k)
        assert recall.n == 3 * subject.info.n_layer * subject.info.n_head
        recalls[name] = recall.result()
    assert recalls["oracle"]["recall"] > 0.98  # ties at the edge may be rounded the other way
    assert recalls["streaming"]["recall"] < 0.6
    assert recalls["oracle"]["mass"] > recalls["streaming"]["mass"]


# -- cases -------------------------------------------------------------------------------------------------------------


def test_cases_are_a_function_of_task_length_index_and_seed(subject: Subject) -> None:
    haystack = Haystack([text.text for text in load_texts()])
    for task in FAMILIES:
        made = [
            make_case(task, 1500, index, seed, subject, haystack) for index, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
        ]
        assert (made[0].prompt, made[0].answer) == (made[1].prompt, made[1].answer)
        assert made[0].prompt not in (made[2].prompt, made[3].prompt)
        assert made[0].score(subject.tokenizer.decode(made[0].answer)) == 1, "the expected answer is right"
        assert made[0].score("") == 0


def test_the_demo_model_is_asked_as_it_was_trained() -> None:
    subject = Subject()
    haystack = Haystack([text.text for text in load_texts()])
    for task in ("multikey", "runsum"):
        document = eval_example(task, 2048, 20_000, haystack, subject.encode)
        case = make_case(task, 2048, 0, 0, subject, haystack)
        assert case.prompt + case.answer == document.ids
    assert subject.answers_exactly


def test_books_are_long_enough_for_16k_contexts() -> None:
    subject = Subject()
    assert all(len(subject.begin(text.text)) >= 16384 for text in load_texts())


# -- runs --------------------------------------------------------------------------------------------------------------


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "decode_s"} for record in records]


def test_an_interrupted_run_continues(subject: Subject, tmp_path: Path) -> None:
    whole = run(subject, out=tmp_path / "whole", answers="exact", **SMALL)
    assert len(whole) == 2 * (2 + 3)  # two methods: two cases, three texts
    assert {r["task"] for r in whole[:4]} == {"passkey", "perplexity"}, "the first round has everything"
    assert all(r["layers_sparse"] > 0 and r["kl"] > 0 for r in whole if r["spec"] == STREAMING)

    folder = tmp_path / "cut"
    folder.mkdir()
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    (folder / FILE_NAME).write_bytes(b"".join(lines[:6]) + lines[6][:30])
    again = run(subject, out=folder, answers="exact", **SMALL)
    assert without_times(again) == without_times(whole)
    before = (folder / FILE_NAME).read_bytes()
    run(subject, out=folder, answers="exact", **SMALL)
    assert (folder / FILE_NAME).read_bytes() == before, "nothing is measured twice"


def test_other_settings_need_another_folder(subject: Subject, tmp_path: Path) -> None:
    settings = {**SMALL, "tasks": ["passkey"], "n_cases": 1}
    run(subject, out=tmp_path, **settings)
    with pytest.raises(ValueError, match="choose another folder"):
        run(subject, out=tmp_path, **settings, seed=1)


def test_a_damaged_line_is_named(subject: Subject, tmp_path: Path) -> None:
    settings = {**SMALL, "tasks": ["passkey"], "n_cases": 1}
    run(subject, out=tmp_path, **settings)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"task"', "task", 1))
    with pytest.raises(ValueError, match="line 2, is damaged"):
        run(subject, out=tmp_path, **settings)


def test_a_run_ends_in_time(subject: Subject, tmp_path: Path) -> None:
    assert run(subject, out=tmp_path, **SMALL, minutes=0) == []


def test_a_run_without_sparse_layers_is_an_error(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(NotEngagedError):
        run(subject, out=tmp_path, **{**SMALL, "methods": ["streaming:n_fac=4096"]}, answers="exact")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["chess"]}, "unknown task 'chess'"),
        ({"answers": "loud"}, "answers must be"),
        ({"n_cases": 0}, "at least one case"),
        ({"lengths": [100]}, "512 tokens or more"),
        ({"n_decoded": 600}, "less than every length"),
    ],
)
def test_settings_are_checked(subject: Subject, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(subject, out=tmp_path, **{**SMALL, **settings})


def test_a_text_too_short_is_an_error(subject: Subject, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("It was dark. The sea was cold. Nora saw the ship. " * 8)
    with pytest.raises(ValueError, match="the text short has 392"):
        run(subject, out=tmp_path / "out", **{**SMALL, "tasks": ["perplexity"]}, texts=[text])


def test_a_length_without_sparse_layers_is_an_error_after_the_tables(subject: Subject, tmp_path: Path) -> None:
    """Although the method engages at another length, and in another task."""
    method = "streaming:n_fac=700"
    settings = {**SMALL, "tasks": ["passkey"], "methods": ["dense", method], "lengths": [600, 1400], "n_cases": 1}
    with pytest.raises(NotEngagedError, match=r"every case of passkey at 600 tokens: .*longer than n_fac") as caught:
        run(subject, out=tmp_path, answers="free", **settings)
    assert "1400" not in str(caught.value)
    tables = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert tables.startswith(f"**{method} n_fac=700 attended to everything in every case of passkey at 600 tokens**")
    assert "## Answers, %, 600 tokens" in tables and "## Answers, %, 1400 tokens" in tables
    made = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    n_sparse = {length: made[length][f"{method} n_fac=700"]["answers"]["layers_sparse"] for length in ("600", "1400")}
    assert n_sparse["600"] == 0 < n_sparse["1400"]


def test_short_data_does_not_cost_the_tables_of_others(subject: Subject, tmp_path: Path) -> None:
    short = write_lines(tmp_path / "short.jsonl", {"problem": "1 + 1", "answer": "2"})
    settings = {**SMALL, "tasks": ["passkey"], "methods": ["dense", "streaming:n_fac=500"], "n_cases": 1}
    with pytest.raises(NotEngagedError, match="every case of short: "):
        run(subject, out=tmp_path / "out", answers="free", **settings, data=[short], n_ctx=1300, max_tokens=8)
    tables = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "## Answers, %, 600 tokens" in tables and "## Answers, %, given data" in tables


def test_a_run_that_fails_leaves_the_tables_of_what_it_measured(subject: Subject, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("It was dark. The sea was cold. Nora saw the ship. " * 14)
    with pytest.raises(ValueError, match="the text short has"):
        run(subject, out=tmp_path / "out", **{**SMALL, "lengths": [600, 1400]}, texts=[text])
    made = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert made["600"]["dense"]["perplexity"]["texts"]["short"]["ppl"] > 1


# -- data of the user --------------------------------------------------------------------------------------------------


def write_lines(path: Path, *items: object) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


LONGBENCH = {"input": "Who?", "context": "Nora went home. " * 60, "answers": ["Nora"], "dataset": "hotpotqa",
             "all_classes": None, "length": 180}  # fmt: skip


def test_data_of_the_user_is_answered_and_scored(subject: Subject, tmp_path: Path) -> None:
    data = write_lines(
        tmp_path / "hotpotqa.jsonl", LONGBENCH, {**LONGBENCH, "dataset": "trec", "all_classes": ["Nora"]}
    )
    math = write_lines(tmp_path / "aime.jsonl", {"ID": "1", "Problem": "1 + 1 " * 150, "Answer": 2})
    records = run(
        subject,
        out=tmp_path / "out",
        tasks=[],
        methods=["dense", STREAMING],
        data=[data, math],
        n_ctx=1300,
        max_tokens=8,
    )
    assert [(r["task"], r["metric"]) for r in records[::2]] == [
        ("hotpotqa", "f1"), ("aime", "boxed_answer"), ("trec", "classification"),
    ]  # fmt: skip
    assert all(0 <= r["score"] <= 1 and r["n_answer"] <= 8 and r["n_cut"] == 0 for r in records)


def test_longbench_templates_and_cut_middles(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "dataset2prompt.json").write_text(json.dumps({"hotpotqa": "Text: {context} Q: {input}"}))
    (tmp_path / "dataset2maxlen.json").write_text(json.dumps({"hotpotqa": 5}))
    data = UserData(write_lines(tmp_path / "data.jsonl", LONGBENCH), tmp_path)
    whole = data.case(0, subject, 4096)
    text = f"Text: {LONGBENCH['context']} Q: Who?"
    assert (subject.tokenizer.decode(whole.prompt), whole.max_tokens, whole.n_cut) == (text, 5, 0)
    cut = data.case(0, subject, 305)
    assert len(cut.prompt) == 300 and cut.n_cut == len(whole.prompt) - 300
    assert cut.prompt == whole.prompt[:150] + whole.prompt[-150:]
    assert whole.score("nora") == 1
    with pytest.raises(ValueError, match="leaves 35 tokens"):
        data.case(0, subject, 40)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"problem": "1 + 1"}, "line 1: no text in the field 'answer'"),
        ({**LONGBENCH, "answers": "Nora"}, "'answers' must be a list"),
        ({**LONGBENCH, "dataset": "trec"}, "'all_classes' must be a list"),
        (["a list"], "expected an object"),
    ],
)
def test_bad_data_is_named(subject: Subject, tmp_path: Path, item: object, message: str) -> None:
    path = write_lines(tmp_path / "data.jsonl", item)
    with pytest.raises(ValueError, match=message):
        UserData(path).case(0, subject, 4096)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_its_tables(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    words = "--tasks passkey --lengths 600 --cases 1 -t 1 --answers exact --plot --n-fac 64 0.25"
    methods = ["--methods", "dense", "streaming"]
    code = main(["eval", str(tiny_path), "-o", str(tmp_path), *words.split(), *methods])
    tables = capsys.readouterr().out
    assert code == 0
    assert tables == (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| streaming n_fac=0.25 | 1 |" in tables
    summary = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(summary["600"]) == {
        "dense", "streaming n_fac=64", "streaming n_fac=0.25",
    }  # fmt: skip
    for name in ("accuracy.png", "budgets.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_perplexity_alone_makes_a_picture(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    words = "--tasks perplexity --lengths 600 700 -t 1 --decoded 40 --plot --methods dense"
    assert main(["eval", str(tiny_path), "-o", str(tmp_path), *words.split(), STREAMING]) == 0
    assert f"wrote {tmp_path / 'perplexity.png'}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.png")] == ["perplexity.png"]
    assert (tmp_path / "perplexity.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("without", ["dense", STREAMING])
def test_a_picture_of_perplexity_shows_what_there_is(subject: Subject, tmp_path: Path, without: str) -> None:
    """One method alone has no ratio, or no divergence."""
    pytest.importorskip("matplotlib")
    methods = [spec for spec in SMALL["methods"] if spec != without]
    records = run(subject, out=tmp_path, **{**SMALL, "tasks": ["perplexity"], "methods": methods})
    assert plot_all(records, tmp_path) == [tmp_path / "perplexity.png"]
    assert (tmp_path / "perplexity.png").stat().st_size > 5000


def test_the_command_says_what_is_wrong(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["eval", str(tiny_path), "-o", str(tmp_path), "--methods", "fasta"])
    assert code == 1
    assert "fasta" in capsys.readouterr().err


def test_results_are_plain_numbers(subject: Subject, tmp_path: Path) -> None:
    records = run(subject, out=tmp_path, **{**SMALL, "n_cases": 1})
    lines = (tmp_path / FILE_NAME).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines[1:]] == records
    assert all(np.isfinite(r["nll"]) for r in records if "nll" in r)


def test_a_quick_run_finds_the_same_answers_right(subject: Subject, tmp_path: Path) -> None:
    settings = {**SMALL, "tasks": ["passkey"], "answers": "exact"}
    quick = run(subject, out=tmp_path / "quick", **settings, quick=True)
    whole = run(subject, out=tmp_path / "whole", **settings)
    assert [r["score"] for r in quick] == [r["score"] for r in whole]
    assert sum(r["n_decode"] for r in quick) < sum(r["n_decode"] for r in whole)
    assert all("token" not in r for r in quick)


def test_budgets_are_named_in_full(subject: Subject) -> None:
    made = expand(["dense", "sparq", "quest"], default_n_tip=subject.default_n_tip)
    assert [c.label for c in made] == ["dense", f"sparq n_tip={subject.default_n_tip} n_fac=256", "quest n_fac=256"]
    context = Context(subject.model, ContextSettings(n_ctx=64, method=Method("sparq")))
    assert context.method.n_tip == subject.default_n_tip
    context.close()
