"""The table, what a policy allows of it, and which units are held back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small import small_policy, study_values

from secfed.data.held_back import draw_held_back, held_part, training_part
from secfed.data.loading import fingerprint, site_data
from secfed.data.records import RecordTable
from secfed.errors import PlanError, PolicyError, StudyError
from secfed.policy import check
from secfed.privacy import accounting
from secfed.privacy.asked import plan_for
from secfed.privacy.held_back import evaluation_events, evaluation_plan
from secfed.runtime.compare import plan_arms
from secfed.runtime.setup import evaluation_plans
from secfed.strategies import get_strategy
from secfed.study import METHODS, Study, load_study_dict
from secfed.study.evaluation import EvaluationSection

TABLE: dict[str, Any] = {
    "fraction": 0.25,
    "metrics": ["accuracy", "loss"],
    "loss_cap": 4.0,
    "noise_multiplier": 4.0,
}


def evaluated(**changes: Any) -> Study:
    values = study_values()
    values["evaluation"] = {**TABLE, **changes}
    return load_study_dict(values, "evaluated")


def test_without_the_table_nothing_changes() -> None:
    plain = load_study_dict(study_values(), "plain")
    assert plain.evaluation is None
    assert "evaluation" not in plain.canonical()
    assert evaluated().digest() != plain.digest()
    assert load_study_dict(evaluated().canonical(), "again") == evaluated()


def test_the_last_round_is_meant_where_none_is_named() -> None:
    assert evaluated().evaluation.due(3) == (3,)
    assert evaluated(rounds=[1, 3]).evaluation.due(3) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"metrics": []}, "evaluation.metrics"),
        ({"metrics": ["auc"], "loss_cap": None}, "evaluation.metrics[1]"),
        ({"metrics": ["accuracy", "accuracy"], "loss_cap": None}, "evaluation.metrics"),
        ({"metrics": ["accuracy", "f1"], "loss_cap": None}, "evaluation.metrics"),
        ({"loss_cap": None}, "evaluation.loss_cap"),
        ({"metrics": ["accuracy"]}, "evaluation.loss_cap"),
        ({"fraction": 0.6}, "evaluation.fraction"),
        ({"fraction": 0.0}, "evaluation.fraction"),
        ({"noise_multiplier": 0.0}, "evaluation.noise_multiplier"),
        ({"rounds": [2, 1]}, "evaluation.rounds"),
        ({"rounds": []}, "evaluation.rounds"),
        ({"rounds": [4]}, "evaluation.rounds[1]"),
        ({"min_units": 9}, "evaluation.min_units"),
        ({"sigma": 1.0}, "evaluation.sigma"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(changes, key) -> None:
    given = {**TABLE, **changes}
    values = study_values()
    values["evaluation"] = {k: v for k, v in given.items() if v is not None}
    with pytest.raises(StudyError) as caught:
        load_study_dict(values, "bad")
    assert caught.value.key == key


def test_every_rule_without_one_adapter_for_all_is_refused() -> None:
    for method in METHODS:
        rule = get_strategy(method)
        values = study_values()
        values["evaluation"] = TABLE
        values["training"]["method"] = method
        values["training"]["learning_rate"][method] = 1.0
        values["adapter"].pop("ranks", None)
        if rule.personal or rule.needs == "nothing":
            with pytest.raises(StudyError, match=f"evaluation: method '{method}'"):
                load_study_dict(values, method)
        else:
            assert load_study_dict(values, method).evaluation is not None


def test_a_whole_site_and_a_comparison_are_refused() -> None:
    values = study_values()
    values["evaluation"] = TABLE
    values["privacy"]["unit"] = "site"
    with pytest.raises(StudyError, match="all its scores are one contribution"):
        load_study_dict(values, "site")
    values["privacy"]["unit"] = "record"
    values["compare"] = {"methods": ["ffa-lora"]}
    with pytest.raises(StudyError, match="belongs to a single run"):
        load_study_dict(values, "compare")
    with pytest.raises(StudyError, match="belongs to `secfed run`"):
        plan_arms(evaluated(), ("ffa-lora",), (0,))


# The site's policy


def test_metrics_are_allowed_by_name_and_denied_by_default() -> None:
    study, policy = evaluated(), small_policy()
    with pytest.raises(PolicyError) as caught:
        check(policy, study, 80)
    assert "'accuracy' is not in allowed_metrics" in str(caught.value)
    assert "'loss' is not in allowed_metrics" in str(caught.value)
    one = policy.model_copy(update={"allowed_metrics": ("accuracy",)})
    with pytest.raises(PolicyError, match="'loss'"):
        check(one, study, 80)
    check(
        policy.model_copy(update={"allowed_metrics": ("accuracy", "loss")}), study, 80
    )
    check(policy, load_study_dict(study_values(), "plain"), 80)


def test_the_floor_of_a_site_is_asked_of_declared_numbers() -> None:
    """The refusal is the same whatever the site really holds."""
    update = {"allowed_metrics": ("accuracy", "loss"), "min_evaluation_units": 30}
    strict = small_policy().model_copy(update=update)
    said = set()
    for true_units in (50, 5_000):
        with pytest.raises(PolicyError, match="min_evaluation_units") as caught:
            check(strict, evaluated(), true_units)
        said.add(str(caught.value))
    assert len(said) == 1
    check(strict, evaluated(min_units=30), 80)


def test_sites_below_the_floor_do_not_evaluate_and_too_few_are_refused() -> None:
    study = evaluated(min_units=15)
    sizes = dict(zip(study.sites, (80, 80, 80, 59), strict=True))
    assert evaluation_plan(study, 59) is None
    plans = evaluation_plans(study, sizes, 5)
    assert plans.keys() == set(study.sites[:3])
    assert {plan.nominal_units for plan in plans.values()} == {20}
    with pytest.raises(StudyError, match="2 sites hold back 15 units or more"):
        evaluation_plans(study, {**sizes, study.sites[0]: 59}, 5)
    assert evaluation_plans(load_study_dict(study_values(), "plain"), sizes, 5) == {}


# What it costs


def test_training_pays_for_the_evaluations_within_the_same_epsilon() -> None:
    study = evaluated(rounds=[1, 3])
    plan, events = plan_for(study, 80), evaluation_events(study, 80)
    assert len(events) == 2
    together = [plan.round_event()] * plan.rounds + events
    total = accounting.epsilon(together, plan.delta)
    assert 0.99 * study.privacy.epsilon <= total <= study.privacy.epsilon
    # A site that does not evaluate pays nothing for it, and needs less noise.
    alone = plan_for(evaluated(rounds=[1, 3], min_units=21), 80)
    assert alone.noise_multiplier < plan.noise_multiplier
    assert evaluation_events(evaluated(min_units=21), 80) == []


def test_an_evaluation_that_takes_everything_is_refused() -> None:
    with pytest.raises(PlanError, match="beside the training costs epsilon"):
        plan_for(evaluated(noise_multiplier=0.2), 80)


# What is held back


def table(units: list[str]) -> RecordTable:
    count = len(units)
    return RecordTable(
        texts=tuple(f"text {number} of {unit}" for number, unit in enumerate(units)),
        labels=np.arange(count) % 3,
        label_names=("a", "b", "c"),
        groups=tuple("g" for _ in units),
        units=tuple(units),
    )


PEOPLE = [f"person {number % 200}" for number in range(500)]


def test_units_never_straddle_and_the_parts_are_the_whole() -> None:
    site = site_data("north", table(PEOPLE), evaluated())
    training, held = training_part(site), held_part(site)
    assert sorted(training.records.texts + held.records.texts) == sorted(
        site.records.texts
    )

    def people(texts: tuple[str, ...]) -> set[str]:
        return {text.split(" of ")[1] for text in texts}

    assert not people(training.records.texts) & people(held.records.texts)
    for part in (training, held):
        assert part.num_units == len(people(part.records.texts))
        assert len(np.unique(part.units)) == part.num_units
        own = dict(zip(part.records.texts, part.units.tolist(), strict=True))
        assert len({(text.split(" of ")[1], unit) for text, unit in own.items()}) == (
            part.num_units
        )
    # 200 people at a quarter: 50, with a standard deviation of 6.
    assert 25 < held.num_units < 75


def test_one_person_more_moves_nobody() -> None:
    section = evaluated().evaluation
    before = draw_held_back(section, PEOPLE)
    more = draw_held_back(section, ["somebody else", *PEOPLE])
    assert np.array_equal(before, more[1:])
    other = draw_held_back(section.model_copy(update={"seed": 1}), PEOPLE)
    assert not np.array_equal(before, other)


def test_a_person_is_on_one_side_at_every_site() -> None:
    """So that nobody's adapter was trained on whom another site evaluates."""
    north = site_data("north", table(PEOPLE), evaluated())
    south = site_data("south", table(list(reversed(PEOPLE))), evaluated())
    sides = [
        dict(
            zip((t.split(" of ")[1] for t in s.records.texts), s.held_back, strict=True)
        )
        for s in (north, south)
    ]
    assert sides[0] == sides[1]


def test_holding_back_makes_no_new_version_of_the_data() -> None:
    plain = site_data("north", table(PEOPLE), load_study_dict(study_values(), "plain"))
    assert plain.held_back is None
    assert training_part(plain) is plain
    assert held_part(plain).num_units == 0
    assert fingerprint(plain) == fingerprint(
        site_data("north", table(PEOPLE), evaluated())
    )


def test_the_section_reads_what_it_writes() -> None:
    section = evaluated(rounds=[1, 2]).evaluation
    assert isinstance(section, EvaluationSection)
    assert section.model_dump(mode="json", exclude_none=True) == {
        **TABLE,
        "rounds": [1, 2],
        "min_units": 10,
        "seed": 0,
    }
