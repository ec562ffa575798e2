import itertools
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import agreement, annotators, quality
from rlhf_jax.feedback.statistics import alpha as agreement_alpha
from rlhf_jax.feedback.statistics import rows as agreement_rows
from rlhf_jax.feedback.statistics.quality import Judged
from rlhf_jax.feedback.store import assign, open_store
from rlhf_jax.feedback.store import judge as store_judge
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_guideline, add_items
from rlhf_jax.feedback.store.read import judged
from rlhf_jax.runs import label_charts, label_page, label_report


def made(seed=0, *, people=8, items=60, votes=3):
    """Rows of all kinds by honest people, a spammer (p0: fast, random) and one who takes the first (p1); p2 is <b>."""
    rng = np.random.default_rng(seed)
    names = ["p0", "p1", "<b>&\"'", *(f"p{k}" for k in range(3, people))]
    rows, created = [], 1.7e9
    for item in range(items):
        gap, gold = 2 * rng.normal(), None
        kind = ("pair", "pair", "pair", "rank", "rate")[item % 5]
        if item < 12:
            gap, kind = float(rng.choice([-3, 3])), "pair"
            gold = {"strength": 2 if gap > 0 else -2}
        for k in range(people) if gold else rng.choice(people, votes, replace=False):
            shown = tuple(int(x) for x in rng.permutation({"pair": 2, "rank": 3, "rate": 1}[kind]))
            for again in (False, True) if kind == "pair" and item % 3 == 0 and gold is None else (False,):
                order = shown[::-1] if again else shown
                felt = 2 * rng.normal() if k == 0 else gap + 0.5 * rng.normal()
                if k == 1:
                    felt = -2.0 if order == (0, 1) else 2.0
                verdict = {
                    "pair": {"strength": int(np.clip(np.round(felt), -3, 3))},
                    "rank": {"ranks": [0, 1, 1] if felt > 0 else [1, 0, 2]},
                    "rate": {"ratings": {"helpful": int(np.clip(3 + np.round(felt), 1, 5)), "style": 3}},
                }[kind]
                if rng.random() < 0.03:
                    verdict = {"skip": True}
                created += float(rng.exponential(60))
                ms = float(rng.lognormal(9, 0.5)) / (20 if k == 0 else 1)
                rows.append(
                    Judged(
                        *(names[k], str(item), kind, verdict, order, ms, 700, gold, again, created),
                        source_kind="synthetic" if k == 3 else "human",
                        axis="harmless" if item % 10 == 2 else "overall",
                    )
                )
    return rows


ROWS = made()


@pytest.fixture(scope="module")
def found():
    return label_report.summary(ROWS, progress={"given": 30, "wanted": 60})


def test_every_share_is_the_library_s(found):
    people = quality.by_annotator(ROWS)
    limit = quality.fast_limit(ROWS)
    assert [a["annotator"] for a in found["annotators"]] == list(people)
    for a, rows in zip(found["annotators"], people.values(), strict=True):
        assert a["gold_accuracy"] == asdict(quality.gold_accuracy(rows))
        assert a["first_shown"] == asdict(quality.first_shown(rows))
        assert a["self_consistency"] == asdict(quality.self_consistency(rows))
        assert a["speed"] == asdict(quality.speed(rows, limit))
        assert (a["longest_run"]["length"], a["longest_run"]["key"]) == quality.longest_run(rows)
        assert a["alarms"] == quality.alarms(rows, limit)
        assert (a["judgements"], a["skipped"]) == (len(rows), sum("skip" in row.verdict for row in rows))
    assert found["gold_accuracy"] == asdict(quality.gold_accuracy(ROWS))
    assert found["first_shown"] == asdict(quality.first_shown(ROWS))
    assert found["self_consistency"] == asdict(quality.self_consistency(ROWS))
    assert found["fast_limit"] == limit and found["concentration"] == quality.concentration(ROWS)


def test_reliability_is_the_library_s_where_enough_is_shared(found):
    trusted = annotators.reliability(agreement_rows.preferences(ROWS))
    told = {a["annotator"]: a["reliability"] for a in found["annotators"]}
    assert {name: one for name, one in told.items() if one} == {
        name: asdict(one) for name, one in trusted.items() if one.shared >= 10
    }
    assert told["p0"]["eta"] < told["p4"]["eta"]
    few = label_report.summary(ROWS[100:112])
    assert all(a["reliability"] is None for a in few["annotators"])


def test_agreement_is_the_library_s(found):
    questions = {q["question"]: q for q in found["agreement"]}
    overall = [row for row in ROWS if row.axis == "overall"]
    assert list(questions) == [
        *("which is better", "by how much, −3..3", "which is better (harmless)", "by how much, −3..3 (harmless)"),
        *("rating: helpful", "rating: style"),
    ]
    pairs = agreement_rows.preferences(overall)
    q = questions["which is better"]
    alpha = agreement_alpha.krippendorff_alpha([unit.values() for unit in pairs.values()])
    assert (q["alpha"], q["units"], q["values"]) == ({"nominal": alpha.value}, alpha.units, alpha.values)
    table = agreement_rows.counts(pairs.values(), (0, 1, 2))
    assert (q["fleiss"], q["fleiss_units"]) == (agreement.fleiss_kappa(table), len(table))
    assert (q["two_agree"], q["rater_pairs"]) == agreement.pairwise_agreement(pairs.values())
    assert (q["one_predicts_others"], q["judgements"]) == agreement.leave_one_out(pairs.values())
    assert q["bound"] == agreement.accuracy_bound(q["two_agree"])
    couples = agreement_rows.couples(pairs.values(), categories=(0, 1, 2))
    assert q["cohen"] == pytest.approx(sum(c.n * c.kappa for c in couples) / sum(c.n for c in couples))
    for name, units in (
        ("by how much, −3..3", agreement_rows.strengths(overall)),
        ("rating: helpful", agreement_rows.ratings(ROWS)["helpful"]),
    ):
        for level in ("ordinal", "interval"):
            alpha = agreement_alpha.krippendorff_alpha([unit.values() for unit in units.values()], level=level)
            assert questions[name]["alpha"][level] == alpha.value
    style = questions["rating: style"]
    assert style["alpha"] == {"ordinal": None, "interval": None} and "every value is 3" in style["reason"]


def test_kappa_of_strengths_and_ratings_is_quadratic():
    """Three people who judge everything; the kappa by hand."""
    rows = made(1, people=3, items=80)
    questions = {q["question"]: q for q in label_report.summary(rows, progress=None)["agreement"]}
    overall = [row for row in rows if row.axis == "overall"]
    for name, units in (
        ("by how much, −3..3", agreement_rows.strengths(overall)),
        ("rating: helpful", agreement_rows.ratings(rows)["helpful"]),
    ):
        assert questions[name]["cohen"] == pytest.approx(quadratic_kappa(units.values()), abs=1e-12)


def quadratic_kappa(units):
    """Cohen's kappa with quadratic weights of each two people who share ten units or more, weighed by how many they share."""
    shared = {}
    for unit in units:
        for a, b in itertools.combinations(sorted(unit), 2):
            shared.setdefault((a, b), []).append((unit[a], unit[b]))
    total = count = 0
    for said in shared.values():
        if len(said) < 10:
            continue
        observed = sum((x - y) ** 2 for x, y in said) / len(said)
        expected = sum((x - y) ** 2 for x, _ in said for _, y in said) / len(said) ** 2
        if expected:
            total, count = total + len(said) * (1 - observed / expected), count + len(said)
    return total / count if count else None


def test_counts_and_progress(found):
    assert found["judgements"] == len(ROWS) == sum(found["kinds"].values()) == sum(found["source_kinds"].values())
    assert (found["repeats"], found["gold"]) == (sum(r.repeat for r in ROWS), sum(r.gold is not None for r in ROWS))
    assert found["items"] == 60 and found["progress"] == {"given": 30, "wanted": 60}
    assert found["timeline"][-1][1] == len(ROWS) and len(found["timeline"]) <= 51
    times = sorted(row.created for row in ROWS)
    assert all(times[n - 1] == t for t, n in found["timeline"])
    paces = [quality.pace(row) for row in ROWS]
    assert sum(found["pace_histogram"]["counts"]) == sum(p is not None for p in paces)


def test_the_files_say_the_same(found, tmp_path):
    paths = label_report.write(found, tmp_path / "judged")
    assert [path.name for path in paths] == ["judged.report.json", "judged.report.html"]
    again = json.loads(paths[0].read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(c))
    assert again == json.loads(json.dumps(found)) and sorted(tmp_path.iterdir()) == sorted(paths)
    assert paths[1].read_text(encoding="utf-8") == label_page.html(again), "the page needs only what is in the JSON"


def test_the_page_shows_the_numbers(found):
    html = label_page.html(found)
    for a in found["annotators"]:
        share = a["gold_accuracy"]
        shown = f"{share['share']:.2f} of {share['n']} ({share['low']:.2f}\u2060–\u2060{share['high']:.2f})".replace(
            " ", "\u00a0"
        )
        assert shown in html
    q = found["agreement"][0]
    assert f"{q['alpha']['nominal']:.4f}".rstrip("0") in html and f"{100 * q['bound']:.1f}\u00a0%" in html
    assert "30 of 60 judgements wanted: 50\u00a0%" in html
    assert f"Not by people: {found['source_kinds']['synthetic']} synthetic of" in html
    for why in found["annotators"][1]["alarms"].values():
        assert why.replace("'", "&#x27;") in html


def test_the_page_is_offline_and_escaped(found):
    html = label_page.html(found)
    assert not re.search(r"https?://|<script|<link|<img|src=|href=|@import|url\(", html)
    assert "default-src 'none'" in html
    assert "<b>&\"'" not in html and "&lt;b&gt;&amp;&quot;&#x27;" in html
    for tag in ("svg", "figure", "table", "section", "details", "p", "div", "tr", "td"):
        assert len(re.findall(rf"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag


def test_every_plot_has_a_title_a_label_and_units(found):
    html = label_page.html(found)
    figures = re.findall(r"<figure>.*?</figure>", html, re.S)
    titles = [re.search(r"<b>(.*?)</b>", figure)[1] for figure in figures]
    assert titles == [
        *("Right on gold", "Prefers what is shown first", "Says the same again", "Pace", "Pace of all judgements"),
        *("Who gave the judgements", "Judgements so far"),
    ]
    labels = [
        "share of gold items",
        "share of decisive pairs",
        "share of swapped",
        "seconds per 100",
        "seconds per 100",
    ]
    for figure, label in zip(figures, [*labels, "busiest annotators", "hours since"], strict=True):
        assert label in re.sub(r'aria-label="[^"]*"', "", figure), "stands in the drawing, not only for screen readers"
        assert 'role="img"' in figure and "aria-label=" in figure


def test_alarms_differ_in_shape(found):
    gold = re.findall(r"<figure>.*?</figure>", label_page.html(found), re.S)[1]
    alarmed = [a for a in found["annotators"] if "first_shown" in a["alarms"]]
    told = [a for a in found["annotators"] if a["first_shown"]["share"] is not None]
    assert alarmed and gold.count('<rect class="dot alarm"') == len(alarmed)
    assert gold.count('<circle class="dot"') == len(told) - len(alarmed)
    assert gold.index("name alarm") < gold.index('class="name"'), "alarms come first"


@pytest.mark.parametrize("count", [0, 1, 5])
def test_little_data_is_a_page_too(count):
    found = label_report.summary(ROWS[:count])
    json.dumps(found, allow_nan=False)
    html = label_page.html(found)
    assert ("There are no judgements yet." in html) == (count == 0)
    assert not re.search(r"\bnan\b|\binf\b|None", html)
    assert f"{count} judgement{'' if count == 1 else 's'} of" in html


def place(dot, axis):
    html = label_charts.dots("t", "x", [dot], axis)
    return {
        "value": float(re.search(r'class="dot" cx="([\d.]+)"', html)[1]),
        "low": float(re.search(r'class="span" x1="([\d.]+)"', html)[1]),
        "high": float(re.search(r'class="span" x1="[\d.]+" x2="([\d.]+)"', html)[1]),
    }


def test_dots_stand_where_they_should():
    left, wide = label_charts.NAMES, label_charts.WIDTH - label_charts.NAMES - label_charts.RIGHT
    found = place(label_charts.Dot("a", 0.5, 0.25, 1.0), label_charts.linear(0, 1))
    assert found == pytest.approx({"value": left + wide / 2, "low": left + wide / 4, "high": left + wide}, abs=0.06)
    axis = label_charts.logarithmic([1, 10, 100])
    found = place(label_charts.Dot("a", 10, 1, 100), axis)
    assert found["value"] - found["low"] == pytest.approx(found["high"] - found["value"], abs=0.2)
    assert axis.low < 1 and axis.high > 100 and set(axis.marks) >= {1, 10, 100}
    narrow = label_charts.logarithmic([3.0])
    assert narrow.high / narrow.low == pytest.approx(10) and narrow.marks


def test_many_annotators_are_cut_and_said_so():
    rows = [label_charts.Dot(f"person {k}", k / 100, None, None) for k in range(100)]
    html = label_charts.dots("t", "x", rows, label_charts.linear(0, 1))
    assert html.count('<circle class="dot"') == label_charts.MAX_ROWS and "The first 40 of 100." in html


def test_the_two_lines_of_concentration_differ_in_grey(found):
    figure = re.findall(r"<figure>.*?</figure>", label_page.html(found), re.S)[5]
    assert figure.count('<polyline class="c0"') == figure.count('<polyline class="c1 dashed"') == 1


def test_bars_are_as_high_as_their_counts():
    html = label_charts.histogram("t", "x", [1, 2, 4, 8], [5, 0, 10])
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([\d.]+)"', html)]
    widths = [float(w) for w in re.findall(r'class="bar"[^>]* width="([\d.]+)"', html)]
    assert heights == [75.0, 150.0] and widths[0] == pytest.approx(widths[1], abs=0.15)
    assert label_charts.histogram("t", "x", [], []) == ""


def filled(path):
    """A store with five pairs for two people each, judged by two of three people in part; the last one skips."""
    con = open_store(path)
    add_items(con, [NewItem(f"q {k}", [f"a {k}", f"b {k}"], target_n=2) for k in range(5)])
    add_items(con, [NewItem("gold", ["good", "bad"], gold={"strength": -3})])
    for name in ("ann", "bob", "cy"):
        add_annotator(con, name, source_kind="synthetic" if name == "bob" else "human")
    asked = store_judge.Asked(add_guideline(con, "be fair"), "test")
    rules = assign.Rules(gold_rate=0.3, repeat_rate=0)
    for who, verdict in zip(
        con.execute("SELECT id FROM annotator ORDER BY rowid").fetchall(), (-2, 1, None), strict=True
    ):
        for _ in range(4):
            task = assign.next_task(con, who["id"], rules)
            if task is not None:
                said = {"skip": True} if verdict is None else {"strength": verdict}
                store_judge.submit(con, who["id"], task["id"], store_judge.Words(said, ms=2000), asked, rules)
    return con


def test_the_report_of_a_store_is_that_of_its_rows(tmp_path):
    con = filled(tmp_path / "s.sqlite")
    rows = judged(con)
    found = label_report.of_store(con)
    given = sum("skip" not in r.verdict and r.gold is None for r in rows)
    invited = [row["id"] for row in con.execute("SELECT id FROM annotator ORDER BY rowid")]
    expected = label_report.summary(rows, progress={"given": given, "wanted": 10}, invited=invited)
    assert found == expected and 0 < given < len(rows)
    assert label_report.page_of_store(con) == label_page.html(found)
    names = {a["annotator"] for a in label_report.of_store(con, names=True)["annotators"]}
    assert names == {"ann", "bob", "cy"} and names.isdisjoint(a["annotator"] for a in found["annotators"])
    assert found["source_kinds"]["synthetic"] == sum(r.source_kind == "synthetic" for r in rows) > 0
    con.close()


def test_who_has_not_judged_is_named_too(tmp_path):
    con = filled(tmp_path / "s.sqlite")
    assert label_report.of_store(con)["without_judgements"] == [] and "No judgement" not in label_report.page_of_store(
        con
    )
    for name in ("d<i>", "eve"):
        add_annotator(con, name)
    found = label_report.of_store(con, names=True)
    assert found["without_judgements"] == ["d<i>", "eve"] and len(found["annotators"]) == 3
    assert "No judgement yet from d&lt;i&gt;, eve." in label_report.page_of_store(con, names=True)
    hidden = label_report.of_store(con)["without_judgements"]
    assert len(hidden) == 2 and not {"d<i>", "eve"} & set(hidden)
    con.close()


def test_the_command_line(tmp_path, capsys):
    filled(tmp_path / "s.sqlite").close()
    label_report.main([str(tmp_path / "s.sqlite"), "--names"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "s.report.json"), str(tmp_path / "s.report.html")]
    assert '"annotator": "ann"' in (tmp_path / "s.report.json").read_text()
    with pytest.raises(SystemExit) as failed:
        label_report.main([str(tmp_path / "none.sqlite")])
    assert failed.value.code == 2 and not (tmp_path / "none.sqlite").exists()
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="cannot write the report"):
        label_report.write(label_report.summary([]), tmp_path / "no such folder" / "x")


def test_control_characters_are_shown(found):
    html = label_page.html(label_report.summary([replace(ROWS[0], annotator="a\x00b\x1b[31m")]))
    assert "\x00" not in html and "␀" in html and "\x1b" not in html
