"""Who gets what, in which order, and never too often: against brute counts of what was handed out."""

import itertools
import json
import random
import threading
from collections import Counter

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics.quality import self_consistency
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_items
from rlhf_jax.feedback.store.assign import Rules, kinds_of_place, next_task, order_of, shuffled
from rlhf_jax.feedback.store.gold import gold_accuracy, notice, pause, resume
from rlhf_jax.feedback.store.judge import Conflict, last_word, save_draft, undo
from rlhf_jax.feedback.store.progress import progress
from rlhf_jax.feedback.store.read import judged, judgements
from tests.feedback.judging import PLAIN, asked, judge_all, pairs, say, shown, store

TIE = {"strength": 0}


class TestTheOrderShown:
    def test_is_a_fair_coin_and_is_recorded(self, tmp_path):
        """2,000 views: the share of the item's first response in the first place."""
        con, people = store(tmp_path, pairs(40, target_n=50), *(f"p{k}" for k in range(50)))
        for who in people:
            judge_all(con, who, lambda task: TIE)
        orders = [row["shown"] for row in judgements(con)]
        assert len(orders) == 2000
        assert abs(sum(order == [0, 1] for order in orders) / 2000 - 0.5) < 0.03
        assert {tuple(order) for order in orders} == {(0, 1), (1, 0)}

    def test_differs_between_people_and_items_and_not_between_requests(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(60, target_n=2), "ann", "bob")
        first = next_task(con, ann, PLAIN)
        assert shown(next_task(con, ann, PLAIN)) == shown(first)
        orders = {who: {t["item_id"]: shown(t) for t in judge_all(con, who, lambda t: TIE)} for who in (ann, bob)}
        same = sum(orders[ann][item] == orders[bob][item] for item in orders[ann])
        assert 15 < same < 45

    def test_every_order_of_three_is_as_likely(self, tmp_path):
        items = [NewItem(f"p {i}", ["a", "b", "c"], kind="rank") for i in range(300)]
        con, (ann,) = store(tmp_path, items, "ann")
        seen = Counter(tuple(shown(task)) for task in judge_all(con, ann, lambda t: {"ranks": [0, 0, 0]}))
        assert set(seen) == set(itertools.permutations(range(3)))
        assert min(seen.values()) > 25  # 50 expected, deviation 6.5

    def test_does_not_change_what_was_said(self, tmp_path):
        """People who all like response b by 2 leave the same value, wherever b stood."""
        con, people = store(tmp_path, pairs(20, target_n=4), *"wxyz")
        for who in people:
            judge_all(con, who, lambda task: {"strength": 2 if shown(task) == [0, 1] else -2})
        rows = judgements(con)
        assert {json.dumps(row["verdict"]) for row in rows} == {'{"strength": 2}'}
        assert {row["strength"] for row in rows} == {2}
        assert {row["said"]["strength"] for row in rows} == {2, -2}

    def test_items_come_in_another_order_for_everybody_those_begun_first(self, tmp_path):
        con, (ann, bob, cat) = store(tmp_path, pairs(40, target_n=2), "ann", "bob", "cat")
        of_ann = [task["item_id"] for task in judge_all(con, ann, lambda t: TIE, limit=10)]
        of_bob = [task["item_id"] for task in judge_all(con, bob, lambda t: TIE, limit=10)]
        assert sorted(of_bob) == sorted(of_ann) and of_bob != of_ann
        assert not {task["item_id"] for task in judge_all(con, cat, lambda t: TIE, limit=10)} & {*of_ann}
        assert of_ann != sorted(of_ann)

    def test_all_orders_of_the_items_are_alike_probable(self, tmp_path):
        """Of 2,400 people: each order of the first four of 40 items, each item in each place, and steps between neighbours
        that are no arithmetic progression."""
        con, _ = store(tmp_path, pairs(40))
        query = f"SELECT id FROM ({shuffled('SELECT id FROM item')}) ORDER BY place"
        orders = [[row["id"] for row in con.execute(query, order_of("seed", f"p{k}"))] for k in range(2400)]
        ranks = Counter(tuple(sorted(range(4), key=order.__getitem__)) for order in orders)
        assert len(ranks) == 24 and 55 < min(ranks.values()) and max(ranks.values()) < 145  # 100 expected, deviation 10
        for place in (0, 1, 39):
            met = Counter(order[place] for order in orders)
            assert len(met) == 40 and 25 < min(met.values()) and max(met.values()) < 95  # 60 expected, deviation 8
        steps = [len({b - a for a, b in itertools.pairwise(order)}) for order in orders]
        assert min(steps) > 10, "an arithmetic progression modulo something has at most three different steps"

    def test_rounds_come_in_order(self, tmp_path):
        con, (ann,) = store(tmp_path, [*pairs(5, round=1), *pairs(5, round=0, start=5)], "ann")
        order = [task["item_id"] for task in judge_all(con, ann, lambda t: TIE)]
        assert {*order[:5]} == {6, 7, 8, 9, 10}


class TestOverlap:
    def test_fifty_threads_never_exceed_it(self, tmp_path):
        """3 people, 50 threads (several browsers each): two judgements an item, and nobody is given an item twice."""
        con, people = store(tmp_path, pairs(40, target_n=2), "ann", "bob", "cat")
        faults, conflicts = [], []
        asked(con)

        def work(who):
            mine = open_store(tmp_path / "judgements.sqlite")
            try:
                while (task := next_task(mine, who, PLAIN)) is not None:
                    try:
                        say(mine, who, task, TIE, rationale=threading.current_thread().name)
                    except Conflict:  # another of this person's threads was faster
                        conflicts.append(task)
            except Exception as error:
                faults.append(error)
            finally:
                mine.close()

        threads = [threading.Thread(target=work, args=(people[k % 3],)) for k in range(50)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not faults
        rows = judgements(con)
        assert Counter(Counter(row["item"] for row in rows).values()) == {2: 40}
        assert max(Counter((row["item"], row["annotator"]) for row in rows).values()) == 1
        assert con.execute("SELECT count(*) FROM assignment").fetchone()[0] == 80

    def test_a_lease_holds_the_last_place_until_it_ends(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(1), "ann", "bob")
        task = next_task(con, ann, PLAIN, now=0)
        assert next_task(con, bob, PLAIN, now=PLAIN.lease_s - 1) is None
        again = next_task(con, bob, PLAIN, now=PLAIN.lease_s + 1)
        assert again["item_id"] == task["item_id"] and again["id"] != task["id"]
        for moment in (PLAIN.lease_s + 2, PLAIN.lease_s - 1):  # the second by a clock that is behind
            with pytest.raises(Conflict, match="somebody else has it"):
                say_at(con, ann, task, TIE, moment)
        assert next_task(con, ann, PLAIN, now=PLAIN.lease_s + 2) is None
        say_at(con, bob, again, TIE, PLAIN.lease_s + 3)
        assert len(judgements(con)) == 1

    def test_who_comes_back_late_to_a_free_place_may_still_judge(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(1), "ann", "bob")
        task = next_task(con, ann, PLAIN, now=0)
        late = next_task(con, ann, PLAIN, now=10 * PLAIN.lease_s)
        assert late["id"] == task["id"] and shown(late) == shown(task)
        assert next_task(con, bob, PLAIN, now=10 * PLAIN.lease_s + 1) is None  # the lease is renewed
        say_at(con, ann, task, TIE, 20 * PLAIN.lease_s)

    def test_looking_again_renews_an_old_lease(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(1), "ann", "bob")
        for hour in range(5):
            assert next_task(con, ann, PLAIN, now=hour * 0.7 * PLAIN.lease_s) is not None
            assert next_task(con, bob, PLAIN, now=hour * 0.7 * PLAIN.lease_s) is None

    def test_a_skip_leaves_the_place_to_somebody_else(self, tmp_path):
        con, (ann, bob, cat) = store(tmp_path, pairs(1), "ann", "bob", "cat")
        for who, verdict in ((ann, {"skip": True}), (bob, TIE)):
            say(con, who, next_task(con, who, PLAIN), verdict)
        assert next_task(con, ann, PLAIN) is None and next_task(con, cat, PLAIN) is None
        assert [row["skipped"] for row in judgements(con)] == [True, False]

    def test_what_is_undone_frees_its_place_once_the_lease_ends(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(1), "ann", "bob")
        task = next_task(con, ann, PLAIN, now=0)
        say_at(con, ann, task, TIE, 1)
        undo(con, ann, asked(con).guideline_version, PLAIN, now=2)
        assert next_task(con, bob, PLAIN, now=3) is None
        say_at(con, bob, next_task(con, bob, PLAIN, now=3 + PLAIN.lease_s), TIE, 4 + PLAIN.lease_s)
        with pytest.raises(Conflict):
            say_at(con, ann, task, TIE, 5 + PLAIN.lease_s)
        assert len(judgements(con)) == 1


class TestUndo:
    def test_supersedes_and_the_last_word_counts(self, tmp_path):
        con, (ann,) = store(tmp_path, pairs(3), "ann")
        tasks = judge_all(con, ann, lambda t: {"strength": -1})
        version = asked(con).guideline_version
        opened = undo(con, ann, version, PLAIN)
        assert opened["id"] == tasks[-1]["id"] and shown(opened) == shown(tasks[-1])
        assert len(judgements(con)) == 2  # what was taken back is not exported
        draft = con.execute("SELECT draft FROM draft WHERE assignment_id = ?", (opened["id"],)).fetchone()[0]
        assert json.loads(draft) == {"verdict": {"strength": -1}, "flags": [], "rationale": "", "ms": 0}
        say(con, ann, next_task(con, ann, PLAIN), {"strength": 3})
        rows = [tuple(row) for row in con.execute("SELECT id, kind, supersedes FROM judgement ORDER BY id")]
        assert rows == [
            (1, "verdict", None),
            (2, "verdict", None),
            (3, "verdict", None),
            (4, "undo", 3),
            (5, "verdict", 4),
        ]
        assert judgements(con)[-1]["said"] == {"strength": 3} and len(judgements(con)) == 3

    def test_goes_back_step_by_step_and_forward_again(self, tmp_path):
        con, (ann,) = store(tmp_path, pairs(5), "ann")
        tasks = judge_all(con, ann, lambda t: TIE, limit=3)
        waiting = next_task(con, ann, PLAIN)
        version = asked(con).guideline_version
        back = [undo(con, ann, version, PLAIN)["id"] for _ in range(3)]
        assert back == [task["id"] for task in tasks[::-1]]
        with pytest.raises(Conflict, match="nothing to undo"):
            undo(con, ann, version, PLAIN)
        forward = [task["id"] for task in judge_all(con, ann, lambda t: TIE)]
        assert forward[:4] == [*(task["id"] for task in tasks), waiting["id"]]
        assert len(judgements(con)) == 5

    def test_is_of_ones_own_words_only(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(2), "ann", "bob")
        mine = judge_all(con, ann, lambda t: TIE, limit=1)
        judge_all(con, bob, lambda t: TIE, limit=1)
        assert undo(con, ann, asked(con).guideline_version, PLAIN)["id"] == mine[0]["id"]
        assert last_word(con, bob) is not None

    def test_is_of_the_word_said_last_not_of_the_task_given_last(self, tmp_path):
        con, (ann,) = store(tmp_path, pairs(2), "ann")
        first = next_task(con, ann, PLAIN, now=0)
        say_at(con, ann, first, TIE, 1)
        version = asked(con).guideline_version
        second = next_task(con, ann, PLAIN, now=2)
        say_at(con, ann, second, TIE, 3)
        assert [undo(con, ann, version, PLAIN, now=4 + k)["id"] for k in range(2)] == [second["id"], first["id"]]
        say_at(con, ann, second, TIE, 6)
        say_at(con, ann, first, {"strength": 1}, 7)
        assert undo(con, ann, version, PLAIN, now=8)["id"] == first["id"], "said after the other one"

    def test_of_a_skip_takes_nobodys_place(self, tmp_path):
        """Ann skips, Bob gets the item: it stays Bob's, and Ann can still take back what she said before."""
        con, (ann, bob) = store(tmp_path, pairs(2), "ann", "bob")
        before = next_task(con, ann, PLAIN, now=0)
        say_at(con, ann, before, TIE, 1)
        task = next_task(con, ann, PLAIN, now=2)
        skip = say_at(con, ann, task, {"skip": True}, 3)
        theirs, version = next_task(con, bob, PLAIN, now=4), asked(con).guideline_version
        assert theirs["item_id"] == task["item_id"]
        for _ in range(2):
            with pytest.raises(Conflict, match="somebody else has this item now; your skip stands"):
                undo(con, ann, version, PLAIN, judgement=skip, now=5)
        assert [row["skipped"] for row in judgements(con)] == [False, True]
        word = last_word(con, ann, now=5)
        assert undo(con, ann, version, PLAIN, judgement=word["id"], now=6)["id"] == before["id"]
        with pytest.raises(Conflict, match="your skip stands"):
            undo(con, ann, version, PLAIN, now=6)
        say_at(con, bob, theirs, {"strength": 2}, 7)
        with pytest.raises(Conflict, match="your skip stands"):
            undo(con, ann, version, PLAIN, judgement=skip, now=8)

    def test_of_a_skip_whose_place_is_free_gives_the_item_back(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(1), "ann", "bob")
        task, version = next_task(con, ann, PLAIN, now=0), asked(con).guideline_version
        skip = say_at(con, ann, task, {"skip": True}, 1)
        theirs = next_task(con, bob, PLAIN, now=2)
        late = 3 + PLAIN.lease_s  # bob's lease is over
        assert undo(con, ann, version, PLAIN, judgement=skip, now=late)["id"] == task["id"]
        with pytest.raises(Conflict, match="somebody else has it"):
            say_at(con, bob, theirs, TIE, late + 1)
        say_at(con, ann, task, TIE, late + 2)


class TestAnyPeople:
    """Short random histories of people who look, judge, skip, undo and stay away."""

    @pytest.mark.parametrize("seed", range(30))
    def test_no_place_is_given_twice_and_none_is_lost(self, tmp_path, seed):
        rng = random.Random(seed)
        target = rng.choice([1, 2])
        con, people = store(tmp_path, pairs(3, target_n=target), *("ann", "bob", "cat")[: rng.choice([2, 3])])
        version, now, held = asked(con).guideline_version, 0.0, {}
        for _ in range(60):
            who = rng.choice(people)
            now += rng.choice([1, 1, 1, 1, PLAIN.lease_s / 3, PLAIN.lease_s + 1])
            does = rng.random()
            if does < 0.4:
                held[who] = next_task(con, who, PLAIN, now=now)
            elif does < 0.8 and held.get(who):
                task = con.execute("SELECT * FROM assignment WHERE id = ?", (held.pop(who)["id"],)).fetchone()
                verdict = rng.choice([TIE, {"strength": 1}, {"skip": True}])
                leased = task["state"] == "open" and task["leased_until"] > now
                try:
                    say_at(con, who, task, verdict, now)
                except Conflict:
                    assert not leased, "who holds a running lease may judge"
            elif last := last_word(con, who, now=now):
                opened = undo(con, who, version, PLAIN, judgement=last["id"], now=now)
                shown_next = next_task(con, who, PLAIN, now=now)
                assert shown_next["id"] == opened["id"], "what is taken back is there again"
                held[who] = shown_next
            else:
                with pytest.raises(Conflict):
                    undo(con, who, version, PLAIN, now=now)
            assert con.execute(PLACES, (now,)).fetchone()[0] <= target
        now += 2 * PLAIN.lease_s
        for _ in range(20):
            for who in people:
                if task := next_task(con, who, PLAIN, now=now):
                    say_at(con, who, task, TIE, now)
        left = con.execute(UNFINISHED, (len(people),)).fetchone()[0]
        assert left == 0, "every item has its verdicts, or everybody has met it"


PLACES = """SELECT coalesce(max(places), 0) FROM (SELECT count(*) AS places FROM assignment WHERE repeat_of IS NULL
    AND (state = 'judged' OR (state = 'open' AND leased_until > ?)) GROUP BY item_id)"""
UNFINISHED = """SELECT count(*) FROM item WHERE target_n > (SELECT count(*) FROM assignment WHERE item_id = item.id AND
    state = 'judged') AND ? > (SELECT count(*) FROM assignment WHERE item_id = item.id AND state != 'open')"""


class TestTheSameWordsTwice:
    def test_are_stored_once(self, tmp_path):
        con, (ann,) = store(tmp_path, pairs(1), "ann")
        task = next_task(con, ann, PLAIN)
        numbers = {say(con, ann, task, TIE, flags=["broken"], rationale="why", ms=ms) for ms in (5, 5, 9)}
        assert len(numbers) == 1 and len(judgements(con)) == 1
        for other in (dict(verdict={"strength": 1}), dict(verdict=TIE, rationale="other"), dict(verdict=TIE, flags=[])):
            with pytest.raises(Conflict, match="judged already"):
                say(con, ann, task, **{"flags": ["broken"], "rationale": "why", **other})
        assert judgements(con)[0]["ms"] == 5

    def test_after_an_undo_they_count_again(self, tmp_path):
        con, (ann,) = store(tmp_path, pairs(1), "ann")
        task = next_task(con, ann, PLAIN)
        first = say(con, ann, task, TIE)
        undo(con, ann, asked(con).guideline_version, PLAIN)
        assert say(con, ann, task, TIE) != first and len(judgements(con)) == 1


class TestGold:
    def items(self, n=60):
        gold = [NewItem(f"gold {i}", ["right", "wrong"], gold={"strength": -1}) for i in range(n)]
        return [*pairs(400, target_n=9), *gold]

    def test_comes_at_its_rate_never_twice_and_for_everybody(self, tmp_path):
        rules = Rules(gold_rate=0.15, repeat_rate=0)
        con, people = store(tmp_path, self.items(), "ann", "bob")
        for who in people:
            seen = [task["item_id"] for task in judge_all(con, who, favourite, rules, limit=200)]
            assert 15 < sum(item > 400 for item in seen) < 45 and len(set(seen)) == 200

    def test_stays_hidden_from_the_total(self, tmp_path):
        """A total that changed only after hidden items would show which they were."""
        rules = Rules(gold_rate=0.2, repeat_rate=0.2, repeat_gap=3)
        gold = [NewItem(f"gold {i}", ["right", "wrong"], gold={"strength": -1}) for i in range(7)]
        con, (ann,) = store(tmp_path, [*pairs(40), *gold], "ann")
        totals, count = {progress(con, ann, rules).total}, 0
        while (task := next_task(con, ann, rules)) is not None:
            totals.add(progress(con, ann, rules).total)
            say(con, ann, task, favourite(task), rules)
            count += 1
            assert progress(con, ann, rules).done == count
            totals.add(progress(con, ann, rules).total)
        assert totals == {count} and count > 50

    @pytest.mark.parametrize("share", [0.5, 0.95])
    def test_pauses_who_answers_at_random_and_not_who_is_right(self, tmp_path, share):
        """At random over the seven keys, against 19 right answers of 20."""
        rules = Rules(gold_rate=0.3, repeat_rate=0)
        con, (ann,) = store(tmp_path, self.items(), "ann")
        turn = itertools.count()

        def at_random(task):
            return {"strength": (next(turn) * 5) % 7 - 3}

        def nearly_right(task):
            return {"strength": 1} if task["item_id"] > 400 and next(turn) % 20 == 7 else favourite(task)

        seen = judge_all(con, ann, at_random if share == 0.5 else nearly_right, rules, limit=300)
        why = con.execute("SELECT paused FROM annotator").fetchone()[0]
        accuracy = gold_accuracy(con, ann)
        if share == 0.5:
            assert why and "guidelines" in why and len(seen) < 200 and accuracy.high < rules.pause_below
            with pytest.raises(Conflict, match="paused"):
                undo(con, ann, asked(con).guideline_version, rules)
        else:
            assert why is None and len(seen) == 300 and accuracy.n > 50 and accuracy.share > 0.9
            assert notice(con, ann, rules) is None

    def test_accuracy_is_the_count_of_right_answers_with_wilsons_interval(self, tmp_path):
        from scipy import stats

        rules = Rules(gold_rate=0.5, repeat_rate=0, pause_below=0)
        con, (ann,) = store(tmp_path, self.items(20), "ann")
        right = iter([True] * 7 + [False] * 3 + [None] * 2 + [True] * 100)

        def verdict(task):
            if task["item_id"] <= 400:
                return TIE
            good = next(right)
            return {"skip": True} if good is None else favourite(task) if good else {"both_bad": True}

        while gold_accuracy(con, ann).n < 10 or next(iter(con.execute(SKIPS)))[0] < 2:
            judge_all(con, ann, verdict, rules, limit=1)
        found = gold_accuracy(con, ann)
        expected = stats.binomtest(7, 10).proportion_ci(method="wilson")
        assert (found.hits, found.n, found.share) == (7, 10, 0.7)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert notice(con, ann, Rules(warn_below=0.95)) and notice(con, ann, Rules(warn_below=0.5)) is None

    def test_an_answer_taken_back_counts_as_it_was_said_last(self, tmp_path):
        rules = Rules(gold_rate=0.9, repeat_rate=0)
        con, (ann,) = store(tmp_path, self.items(5), "ann")
        while gold_accuracy(con, ann).n == 0:
            judge_all(con, ann, lambda t: {"both_bad": True}, rules, limit=1)
        task = undo(con, ann, asked(con).guideline_version, rules)
        assert gold_accuracy(con, ann).n == 0
        say(con, ann, task, favourite(task), rules)
        assert (gold_accuracy(con, ann).hits, gold_accuracy(con, ann).n) == (1, 1)

    def test_pause_and_resume_by_hand_begin_the_count_anew(self, tmp_path):
        rules = Rules(gold_rate=0.9, repeat_rate=0)
        con, (ann,) = store(tmp_path, self.items(), "ann")
        judge_all(con, ann, lambda t: {"both_bad": True}, rules)
        assert con.execute("SELECT paused FROM annotator").fetchone()[0]
        resume(con, "ann")
        assert gold_accuracy(con, ann).n == 0 and next_task(con, ann, rules) is not None
        pause(con, "ann", "a talk first")
        open_task = con.execute("SELECT * FROM assignment WHERE state = 'open'").fetchone()
        assert next_task(con, ann, rules) is None
        with pytest.raises(Conflict, match="paused"):
            say(con, ann, open_task, TIE, rules)
        for change in (lambda: pause(con, "bob", "x"), lambda: resume(con, "bob")):
            with pytest.raises(UserError, match="no annotator 'bob'"):
                change()


class TestRepeats:
    RULES = Rules(gold_rate=0, repeat_rate=0.3, repeat_gap=4)

    def run(self, tmp_path, verdict):
        con, (ann,) = store(tmp_path, pairs(120), "ann")
        tasks = judge_all(con, ann, verdict, self.RULES)
        return con, tasks

    def test_show_the_opposite_order_once_and_not_too_soon(self, tmp_path):
        con, tasks = self.run(tmp_path, lambda t: {"strength": 1})
        place = {task["id"]: k for k, task in enumerate(tasks)}
        repeats = [task for task in tasks if task["repeat_of"] is not None]
        assert 25 < len(repeats) < 80 and len({task["repeat_of"] for task in repeats}) == len(repeats)
        for task in repeats:
            first = tasks[place[task["repeat_of"]]]
            assert shown(task) == shown(first)[::-1] and task["item_id"] == first["item_id"]
            assert place[task["id"]] - place[first["id"]] >= self.RULES.repeat_gap and first["repeat_of"] is None
        assert len(tasks) - len(repeats) == 120  # a repeat takes nobody's place

    def test_tell_the_honest_from_who_goes_by_position(self, tmp_path):
        """Self-consistency: 1 of a person who likes what they like, 0 of one who likes what stands first."""
        for name, verdict, share in (("honest", favourite, 1.0), ("by position", lambda t: {"strength": -2}, 0.0)):
            (tmp_path / name).mkdir()
            con, _ = self.run(tmp_path / name, verdict)
            found = self_consistency(judged(con))
            assert found.same.n > 25 and found.same.share == share

    def test_what_was_skipped_is_not_repeated(self, tmp_path):
        _, tasks = self.run(tmp_path, lambda t: {"skip": True})
        assert len(tasks) == 120


class TestProgress:
    def test_tells_how_long_the_rest_takes_from_the_median_pace(self, tmp_path):
        con, (ann,) = store(tmp_path, pairs(10), "ann")
        for ms in (1000, 2000, 90_000):
            assert progress(con, ann, PLAIN).seconds_left is None
            say(con, ann, next_task(con, ann, PLAIN), TIE, ms=ms)
        assert progress(con, ann, PLAIN) == type(progress(con, ann, PLAIN))(done=3, total=10, seconds_left=14)

    def test_what_others_took_is_not_left(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(10), "ann", "bob")
        judge_all(con, bob, lambda t: TIE, limit=4)
        assert progress(con, ann, PLAIN).total == 6
        next_task(con, ann, PLAIN, now=0)  # a task whose lease ends, and which bob then takes
        judge_all(con, bob, lambda t: TIE)
        assert (progress(con, ann, PLAIN).done, progress(con, ann, PLAIN).total) == (0, 0)


class TestDrafts:
    def test_the_latest_is_kept_until_the_task_is_judged(self, tmp_path):
        con, (ann, bob) = store(tmp_path, pairs(2), "ann", "bob")
        task = next_task(con, ann, PLAIN)
        for draft in ({"verdict": None}, {"verdict": {"strength": 1}, "rationale": "bec"}):
            save_draft(con, ann, task["id"], draft)
        stored = con.execute("SELECT draft FROM draft").fetchall()
        assert [json.loads(row[0]) for row in stored] == [{"verdict": {"strength": 1}, "rationale": "bec"}]
        with pytest.raises(Conflict, match="not yours"):
            save_draft(con, bob, task["id"], {})
        say(con, ann, task, TIE)
        with pytest.raises(Conflict, match="judged already"):
            save_draft(con, ann, task["id"], {})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (dict(gold_rate=1.5), "gold_rate is a share"),
        (dict(gold_rate=0.5, repeat_rate=0.45), "less than a tenth"),
        (dict(repeat_gap=0), "at least 1 task"),
        (dict(lease_s=0), "more than 0 seconds"),
    ],
)
def test_rules_are_checked(wrong, told):
    with pytest.raises(UserError, match=told):
        Rules(**wrong)


def test_the_places_of_hidden_items_differ_between_people_and_stores():
    rules = Rules(gold_rate=0.2, repeat_rate=0.2)
    take = lambda seed, who, first=0: list(itertools.islice(kinds_of_place(seed, who, rules, first), 500))  # noqa: E731
    one = take("s", "ann")
    assert Counter(one)["gold"] / 500 == pytest.approx(0.2, abs=0.05)
    assert one != take("s", "bob") and one != take("t", "ann") and one == take("s", "ann")
    assert take("s", "ann", 100)[:400] == one[100:]


def favourite(task):
    """Of who likes the item's first response, wherever it stands."""
    return {"strength": -2 if shown(task) == [0, 1] else 2}


SKIPS = """SELECT count(*) FROM current_judgement AS said JOIN assignment ON assignment.id = assignment_id
    JOIN item ON item.id = item_id WHERE said.kind = 'skip' AND gold IS NOT NULL"""


def say_at(con, who, task, verdict, now):
    from rlhf_jax.feedback.store.judge import Words, submit

    return submit(con, who, task["id"], Words(verdict), asked(con), PLAIN, now=now)


def test_adding_while_people_work_reaches_them(tmp_path):
    con, (ann,) = store(tmp_path, pairs(1), "ann")
    judge_all(con, ann, lambda t: TIE)
    add_items(con, pairs(2))
    add_annotator(con, "late")
    assert len(judge_all(con, ann, lambda t: TIE)) == 1
