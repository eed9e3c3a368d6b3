"""Scores against values worked out by hand."""

import math

import numpy as np
import pytest

from fasa_py.eval import metrics
from fasa_py.eval.cases import essentials
from fasa_py.eval.divergence import Trace, kl_divergence, log_softmax
from fasa_py.eval.recall import Recall
from fasa_py.eval.report import Table, accuracy_table, markdown, perplexity_table, stratified, summary


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("red blue blue", "blue green blue", 2 / 3),  # two of three words on both sides
        ("red", "red blue green", 0.5),  # precision 1, recall 1/3
        ("the", "a", 0.0),  # nothing is left
        ("The Door-code!", "a doorcode", 1.0),  # case, articles and punctuation do not count
        ("", "red", 0.0),
    ],
)
def test_f1(prediction: str, reference: str, expected: float) -> None:
    assert metrics.f1(prediction, [reference]) == pytest.approx(expected)


def test_the_best_reference_counts() -> None:
    assert metrics.f1("red", ["green", "red"]) == 1
    assert metrics.f1("red", []) == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),  # a subsequence of 3 of 4 words
        ("a b c d", "d c b a", 0.25),
        ("a b", "a x y b", 2 * 1 * 0.5 / 1.5),
    ],
)
def test_rouge_l(prediction: str, reference: str, expected: float) -> None:
    assert metrics.rouge_l(prediction, [reference]) == pytest.approx(expected)


def test_code_similarity_takes_the_first_line_of_code() -> None:
    assert metrics.code_similarity("# a comment\nreturn x + 1\nmore", ["return x + 1"]) == 1
    assert metrics.code_similarity("abcd", ["abxy"]) == pytest.approx(0.5)  # 2 * 2 matches / 8 characters
    assert metrics.code_similarity("# nothing", ["return"]) == 0


def test_classification() -> None:
    classes = ["Date", "City", "Person", "Other City"]
    assert metrics.classification("It is a Date", ["Date"], classes) == 1
    assert metrics.classification("Date or Person", ["Date"], classes) == 0.5
    assert metrics.classification("Other City", ["Other City"], classes) == 1, "City is a part of the right name"
    assert metrics.classification("Person", ["Date"], classes) == 0


def test_retrieval_and_counting_are_shares_of_numbers() -> None:
    assert metrics.retrieval("Paragraph 7", ["Paragraph 7"]) == 1
    assert metrics.retrieval("Paragraph 7 or 8", ["Paragraph 7"]) == 0.5
    assert metrics.count("There are 12", ["12"]) == 1
    assert metrics.count("none", ["12"]) == 0


def test_contains_all() -> None:
    assert metrics.contains_all("I saw 12 and 30.", ["12", "31"]) == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\frac{1}{2}} then \boxed{x^{2}}", "x^{2}"),
        (r"\boxed{{a}", None),
        ("nothing", None),
    ],
)
def test_boxed(text: str, expected: str | None) -> None:
    assert metrics.boxed(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (r"\boxed{0.5}", r"\frac{1}{2}", 1),
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", 1),
        (r"\boxed{-\frac{1}{2}}", "-0.5", 1),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})", 1),
        (r"\boxed{1,000}", "1000", 1),
        (r"\boxed{90^\circ}", "90", 1),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", 1),
        ("the answer is 204.", "204", 1),
        (r"204 and \boxed{205}", "204", 0),
        (r"\boxed{\frac{1}{0}}", "0", 0),
        (r"\boxed{073}", "73", 1),
        ("", "73", 0),
    ],
)
def test_boxed_answer(prediction: str, reference: str, expected: float) -> None:
    assert metrics.boxed_answer(prediction, [reference]) == expected


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        ("passkey", "The door code is 61010.", ["61010"]),
        ("multikey", "The special magic word for red-fox is castle.", ["castle"]),
        ("multivalue", "The lucky numbers for red-fox are 12345, 678901.", ["12345", "678901"]),
        ("vartrack", "VAR B = VAR A. VAR A = 12345. The value of VAR B is 12345.", ["12345"]),
        ("vartrack", "VAR A = 12345. VAR B = VAR A. The variables are A, B.", ["A", "B"]),
        ("kv", '"copper-rabbit": "8e1f00"', ["8e1f00"]),
        ("fewshot", "lion -> zobix", ["zobix"]),
        ("count", "Nora finds 3. Nora has 3 apples.", ["3 apples"]),
        ("where", "Nora went to the barn, the attic.", ["barn", "attic"]),
        ("items", "Item 1: red 27\nItem 2: blue 30", ["Item 1: red 27", "Item 2: blue 30"]),
        ("runsum", "Entry 1: 27, total 27\nEntry 2: 80, total 7", ["total 27", "total 7"]),
        ("quote", "It was dark.", ["It was dark."]),
    ],
)
def test_essentials(task: str, answer: str, expected: list[str]) -> None:
    assert essentials(task, answer) == expected


def test_log_softmax_and_divergence() -> None:
    p, q = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    np.testing.assert_allclose(log_softmax(p + 7), p, rtol=1e-6)
    assert kl_divergence(p, q) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert kl_divergence(p, p) == 0
    huge = np.array([1e4, 0.0], np.float32)
    assert kl_divergence(log_softmax(huge), log_softmax(huge)) == 0


def test_trace_compares_step_by_step() -> None:
    dense = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    trace = Trace([0, 2], dense)
    trace.add(np.log([0.25, 0.5, 0.25]))
    trace.add(np.log([0.1, 0.8, 0.1]))
    np.testing.assert_allclose(trace.logp, np.log([0.25, 0.1]), rtol=1e-6)
    assert trace.best.tolist() == [1, 1]
    assert trace.compared() == {"kl": pytest.approx(0.125 * math.log(2), rel=1e-5), "agree": 0.5}
    assert Trace([0]).compared() == {}


def test_recall_counts_and_weighs() -> None:
    keys = np.array([[4.0], [3.0], [2.0], [1.0]], np.float32)
    recall = Recall()
    recall.add(np.array([1.0], np.float32), keys, np.array([0, 2], np.int32), 2)
    weights = np.exp([4.0, 3.0, 2.0, 1.0])
    assert recall.result() == {"recall": 0.5, "mass": pytest.approx(weights[[0, 2]].sum() / weights.sum(), rel=1e-6)}
    assert Recall().result() == {}


def record(task: str, case: str, method: str, score: float) -> dict[str, object]:
    return {"task": task, "length": 4096, "case": case, "method": method, "score": score, "layers_sparse": 1}


RECORDS = [
    *(record("passkey", str(i), "dense", 1) for i in range(4)),
    *(record("passkey", str(i), "fasa", score) for i, score in enumerate([1, 1, 1, 0])),
    *(record("items", str(i), "dense", score) for i, score in enumerate([1, 0])),
    *(record("items", str(i), "fasa", score) for i, score in enumerate([0, 0])),
]


def test_estimates_are_means_of_tasks() -> None:
    made = stratified([[1, 1, 1, 0], [0, 1]])
    assert made.mean == pytest.approx((0.75 + 0.5) / 2)
    # variances of the means: 0.25 / 4 and 0.5 / 2
    assert made.error == pytest.approx(math.sqrt(0.0625 + 0.25) / 2)
    assert made.n == 6
    assert math.isnan(stratified([[1.0]]).error)


def test_differences_are_paired() -> None:
    table = Table(RECORDS, 4096)
    difference = table.difference("fasa", ["passkey", "items"])
    assert difference.mean == pytest.approx((-0.25 - 0.5) / 2)
    assert difference.error == pytest.approx(math.sqrt(0.25 / 4 + 0.5 / 2) / 2)
    without = Table([r for r in RECORDS if (r["method"], r["case"]) != ("dense", "3")], 4096)
    assert without.difference("fasa", ["passkey"]).mean == 0, "a case that dense did not answer is left out"


def test_accuracy_table() -> None:
    lines = accuracy_table(RECORDS, 4096).splitlines()
    assert lines[0] == "| method | cases | passkey | items | mean | to dense | short | to dense |"
    assert lines[2].startswith("| dense | 6 | 100.0 | 50.0 | 75.0 | +0.0 ± 0.0 | 100.0 |")
    assert lines[3] == "| fasa | 6 | 75.0 | 0.0 | 37.5 | -37.5 ± 28.0 | 75.0 | -25.0 ± 25.0 |"


def test_perplexity_ratio() -> None:
    common = {"task": "perplexity", "length": 4096, "case": "book", "n_answer": 10, "n_decode": 9, "decode_s": 0.5,
              "layers_dense": 72, "layers_sparse": 0, "tokens_selected": 0, "kv_bytes": 9 * 2**20}  # fmt: skip
    records = [
        {**common, "method": "dense", "nll": 2.0, "ppl": math.exp(2.0)},
        {**common, "method": "fasa", "nll": 2.1, "ppl": math.exp(2.1), "kl": 0.01, "agree": 0.9, "recall": 0.4,
         "mass": 0.8, "layers_dense": 9, "layers_sparse": 63, "tokens_selected": 63 * 512},
    ]  # fmt: skip
    lines = perplexity_table(records, 4096).splitlines()
    assert lines[2].startswith("| dense | 1 | 7.389 | 1.0000 | 1.0000 | - |")
    assert lines[3] == "| fasa | 1 | 8.166 | 1.1052 | 1.1052 | 0.0100 | 90.00 | 40.0 | 80.0 | 512 | 1.00 | 18 |"
    assert "## Perplexity, 4096 tokens" in markdown(records)
    made = summary(records)["4096"]
    ratio = pytest.approx(math.exp(0.1))
    assert made["fasa"]["perplexity"] == {
        "ratio": ratio, "texts": {"book": {"ppl": math.exp(2.1), "ratio": ratio}}, "kl": 0.01, "agree": 0.9,
        "recall": 0.4, "mass": 0.8, "n_decode": 9, "decode_s": 0.5, "layers_dense": 9, "layers_sparse": 63,
        "tokens_selected": 63 * 512, "kv_bytes": 9 * 2**20, "positions_per_layer": 512, "kv_bytes_per_step": 2**20,
        "steps_per_s": 18,
    }  # fmt: skip
    assert made["dense"]["perplexity"]["kl"] is None, "nothing to compare with"
    assert made["dense"]["perplexity"]["positions_per_layer"] is None, "no sparse layer"
    assert made["fasa"]["mean"]["mean"] is None, "JSON has no NaN"


def test_the_summary_of_answers_has_all_that_the_tables_have() -> None:
    common = {"token": 0.9, "kl": 0.02, "agree": 0.75, "n_answer": 5, "n_decode": 4, "decode_s": 0.5,
              "layers_dense": 4, "tokens_selected": 40, "kv_bytes": 400}  # fmt: skip
    made = summary([{**r, **common} for r in RECORDS])["4096"]["fasa"]
    assert made["tasks"] == {"passkey": 0.75, "items": 0}
    assert (made["mean"]["mean"], made["difference"]["mean"]) == (0.375, -0.375)
    assert (made["short"]["mean"]["mean"], made["short"]["difference"]["mean"]) == (0.75, -0.25)
    assert made["answers"] == {
        "token": pytest.approx(0.9), "kl": pytest.approx(0.02), "agree": 0.75, "n_decode": 24, "decode_s": 3.0,
        "layers_dense": 24, "layers_sparse": 6, "tokens_selected": 240, "kv_bytes": 2400, "positions_per_layer": 40,
        "kv_bytes_per_step": 100, "steps_per_s": 8,
    }  # fmt: skip
    assert made["perplexity"]["ratio"] is None, "not measured"
