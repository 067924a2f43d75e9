"""A sampling session's parts by themselves, with plain values: clock, evaluations, rows, observations. No ComfyUI."""

from __future__ import annotations

import pytest
import torch

from dreammatcher.host.matching.session import Observations
from dreammatcher.host.sampling.rows import CHANGED, NAMELESS, PARTS, RowBook
from dreammatcher.host.sampling.session import CallWatch, Clock, Session
from dreammatcher.host.sampling.wrappers import LISTS_KEY, _read_entries, names_of
from dreammatcher.host.text.prompts import Prompt, joined
from dreammatcher.subject import Subject

DOG, CAT = Subject("dog", "a dog", (2,), 77), Subject("cat", "a cat", (2,), 77)
COND, UNCOND = ("cond", 0), ("uncond", 0)


class Linear:
    """A schedule whose sigma is 10 at share 0 and 0 at share 1."""

    @staticmethod
    def percent_to_sigma(share: float) -> float:
        return 10 * (1 - share)


def seen(value: float, height: int = 4, width: int = 4) -> torch.Tensor:
    return torch.full((1, 4, height, width), value)


def prompt(name: str, subject: Subject | None = None, **entry) -> Prompt:
    return Prompt.of({"dreammatcher_subject": subject, **entry}, name)


def book(*prompts: Prompt, subject: Subject | None = None, size=(4, 4)) -> RowBook:
    rows = RowBook(size, subject)
    for one in prompts or (prompt("p"),):
        rows.add_positive(one)
    rows.add_negative("n", None)
    return rows


def session(**kwargs) -> Session:
    return Session(None, Clock(Linear, 8.0, 2.0), book(**kwargs), CallWatch(), [], lambda: None)


def arrive(run: Session, sigma: float, names: str, value: float):
    return run.arrive(sigma, torch.tensor([sigma]), list(names), [seen(value)] * len(names))


def test_the_clock_counts_noise_levels_and_evaluations_apart():
    clock = Clock(Linear, 8.0, 2.0)
    given = torch.tensor([5.0, 5.0])
    assert [clock.arrive(sigma, given) for sigma in (9.0, 9.0, 5.0)] == [True, False, True]
    assert (clock.noise_levels_visited, clock.evaluations_begun) == (2, 0)
    clock.evaluate()
    assert (clock.noise_levels_visited, clock.evaluations_begun) == (2, 1)
    assert clock.read(given) == 5.0 and clock.read(torch.tensor([3.0])) == 3.0
    assert [clock.in_range(sigma) for sigma in (9.0, 8.0, 2.0, 1.9)] == [False, True, True, False]
    assert clock.within(5.0, 0.0, 0.5) and not clock.within(4.9, 0.0, 0.5)


def test_a_host_that_announces_evaluations_is_believed_whatever_the_calls_look_like():
    run = session()
    run.announce_evaluation()
    for value, names in ((1.0, "p"), (1.0, "n"), (1.0, "p")):
        arrive(run, 5.0, names, value)
    assert run.clock.evaluations_begun == 1
    run.announce_evaluation()
    arrive(run, 5.0, "pn", 1.0)
    assert run.clock.evaluations_begun == 2


@pytest.mark.parametrize("calls, evaluations", [
    ([(5.0, "pn", 1.0), "end", (4.0, "pn", 2.0)], 2),
    ([(5.0, "p", 1.0), (5.0, "n", 1.0), "end"], 1),
    ([(5.0, "pn", 1.0), "end", (5.0, "p", 1.0)], 1),  # PAG
    ([(5.0, "pn", 1.0), "end", (5.0, "n", 9.0)], 1),  # SAG
    ([(5.0, "pn", 1.0), "end", (5.0, "pn", 2.0)], 2),  # heun's second half and the next step's first
    ([(5.0, "pn", 1.0), (5.0, "pn", 2.0)], 1),  # tiles
])
def test_without_announcements_an_evaluation_begins_at_a_new_noise_level_or_after_the_end_with_a_new_picture(calls, evaluations):
    run = session()
    for call in calls:
        if call == "end":
            run.clock.evaluation_ended = True
        else:
            arrive(run, *call)
    assert run.clock.evaluations_begun == evaluations


def test_rows_are_known_by_name_in_any_order_and_number():
    rows = book()
    assert rows.assign(["n", "p", "middle"], [seen(1.0)] * 3).rows == (UNCOND, COND, UNCOND)
    assert rows.assign(["n"], [seen(1.0)]).rows == (UNCOND,)


def test_a_second_call_of_a_row_counts_only_with_the_very_same_picture():
    rows = book()
    assert rows.assign(["p"], [seen(1.0)]).rows == (COND,)
    assert rows.assign(["p"], [seen(1.0)]).rows == (COND,)
    other = rows.assign(["n", "p"], [seen(1.001)] * 2)
    assert other.rows == (UNCOND, None) and other.changed and other.remark == CHANGED
    rows.inputs.clear()
    assert rows.assign(["p"], [seen(1.001)]).rows == (COND,)


def test_parts_of_the_picture_and_calls_without_names_are_left_alone():
    rows = book()
    assert rows.assign(["p"], [seen(1.0, width=2)]).remark == PARTS
    assert rows.assign([None, "n"], [seen(1.0)] * 2).remark == NAMELESS
    assert not rows.inputs


def test_of_several_prompts_those_about_the_subject_take_part():
    rows = book(prompt("dog", DOG), prompt("grass"), prompt("cat", CAT), subject=CAT)
    assert rows.assign(["grass", "cat", "dog", "n"], [seen(1.0)] * 4).rows == (None, ("cond", 2), None, ("uncond", 2))
    nobody = book(prompt("dog", DOG), prompt("grass"), subject=CAT).assign(["dog", "n"], [seen(1.0)] * 2)
    assert nobody.rows == (None, None) and "none comes from Subject (DreamMatcher) with the words 'cat'" in nobody.remark


def test_the_negative_of_an_area_goes_with_the_prompt_that_sees_the_same_or_stands_in_the_same_area():
    left, right = ((4, 4, 0, x) for x in (0, 4))
    rows = book(prompt("l", DOG, area=left), prompt("r", DOG, area=right), subject=DOG, size=(4, 8))
    names, inputs = ["l", "r", "n", "n", "n"], [seen(1.0), seen(2.0), seen(2.0), seen(1.0), seen(0.0, width=8)]
    assert rows.assign(names, inputs).rows == (COND, ("cond", 1), ("uncond", 1), UNCOND, None)
    rows.add_negative("mirrored", right)
    assert rows.assign(["mirrored"], [seen(7.0)]).rows == (("uncond", 1),)


def test_a_prompt_encoded_for_two_spans_is_one_and_the_same_prompt_twice_is_two():
    whole, first, second = (prompt(name, DOG, **span) for name, span in (
        ("whole", {}), ("first", {"timestep_end": 2.0}), ("second", {"timestep_start": 2.0})))
    assert [one.names for one in joined([first, second, whole])] == [("first", "second"), ("whole",)]
    assert len(joined([whole, whole])) == 2


def conds(negative_area=None) -> dict[str, list[dict]]:
    area = (4, 4, 0, 0)
    positive = {"uuid": "p", "area": area} if negative_area else {"uuid": "p"}
    mirrored = [{"uuid": "p", "area": area}] if negative_area else []
    return {"positive": [positive], "negative": [{"uuid": "n"}, *mirrored]}


def test_a_newer_host_names_chunks_by_list_and_uuid():
    rows = RowBook((4, 4))
    _read_entries(rows, conds(negative_area=True))
    options = {"cond_or_uncond": [1, 1, 0], "uuids": ["n", "p", "p"], LISTS_KEY: ("positive", "negative")}
    names = names_of(options, rows)
    assert names == [("negative", "n"), ("negative", "p"), ("positive", "p")]
    assert rows.negatives == {("negative", "n"): None, ("negative", "p"): (4, 4, 0, 0)} and rows.areas


def test_a_list_that_a_pack_copied_is_known_by_its_uuids_whatever_the_guider_calls_it():
    rows = RowBook((4, 4))
    _read_entries(rows, {"main": [{"uuid": "p"}], "other": [{"uuid": "n"}]})
    options = {"cond_or_uncond": [0, 1], "uuids": ["p", "n"], LISTS_KEY: (None, None)}
    assert rows.assign(names_of(options, rows), [seen(1.0)] * 2).rows == (COND, UNCOND)


def test_a_batch_regrouped_by_a_pack_is_still_known_where_each_list_has_one_prompt():
    rows = RowBook((4, 4))
    _read_entries(rows, conds())
    options = {"cond_or_uncond": [0], "uuids": ["n", "p"], LISTS_KEY: ("positive", "negative")}
    assert names_of(options, rows) == [("positive", "p")]
    assert names_of({**options, "cond_or_uncond": [1, 0, 1]}, rows)[0] == ("negative", "n")
    rows.add_positive(prompt(("positive", "another")))
    assert names_of(options, rows) == [None]


def test_the_features_that_are_matched_are_those_of_the_evaluation_before():
    left = Observations()
    for value in (3.0, 2.0):
        left.begin_evaluation()
        left.features[COND] = (torch.full((1, 1, 2, 2), value),)
    assert float(left.features_before(COND, 1)[0].max()) == 3.0
    left.begin_evaluation()  # one in which the row does not come
    left.begin_evaluation()
    assert float(left.features_before(COND, 1)[0].max()) == 2.0
    assert left.features_before(COND, 2) is None and left.features_before(UNCOND, 1) is None
    left.forget_features()
    assert left.features_before(COND, 1) is None
