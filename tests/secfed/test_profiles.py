"""Profiles and assignments: from made-up timings to what every site does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import EXAMPLE, small_study, study_values
from typer.testing import CliRunner

from secfed.cli import app
from secfed.errors import ProfileError
from secfed.profiles.assign import Assignment, assign, preferences
from secfed.profiles.estimate import TIME_MARGIN, estimate
from secfed.profiles.profile import (
    SiteProfile,
    Timing,
    read_profile,
    workload_digest,
)
from secfed.study import Study, load_study_dict

GB = 10**9
STEPS, BATCH, LENGTH, RANK = 8, 16, 8, 4
SITES = tuple(study_values()["data"]["partition"]["sites"])


def study_of(method: str = "hetlora", **training: Any) -> Study:
    values = small_study(2, "ffa-lora").canonical()
    values["training"] |= {"method": method, "steps_per_round": STEPS, **training}
    values["training"]["learning_rate"] |= {method: 1.0}
    return load_study_dict(values, "study")


def timing(
    length: int = LENGTH,
    rank: int = RANK,
    tokens: int = 512,
    bits: str = "none",
    slow: float = 1.0,
    peak: int = GB,
) -> Timing:
    """A record costs its tokens, and more with a rank; a step costs one second."""
    return Timing(
        quantisation=bits,
        max_length=length,
        rank=rank,
        micro_batch_tokens=tokens,
        overhead_seconds=slow,
        step_seconds=slow,
        record_seconds=slow * length * (1 + rank / 4) * (512 / tokens) / 16,
        peak_bytes=peak * tokens // 512 if bits == "none" else peak // 4,
        steps=3,
    )


def profile(
    site: str,
    study: Study,
    slow: float = 1.0,
    memory: int = 8 * GB,
    bits: tuple[str, ...] = ("none",),
) -> SiteProfile:
    timings = tuple(
        timing(length, rank, tokens, own, slow)
        for own in bits
        for length in (LENGTH, LENGTH // 2)
        for rank in (RANK, RANK // 2, 1)
        for tokens in (256, 512)
    )
    return SiteProfile(
        format=1,
        site=site,
        workload=workload_digest(study),
        memory_bytes=memory,
        cores=2,
        threads=2,
        timings=timings,
    )


def all_profiles(study: Study, **own: SiteProfile) -> list[SiteProfile]:
    usual = {site: profile(site, study) for site in SITES}
    return [(usual | {p.site: p for p in own.values()})[site] for site in SITES]


def full_seconds(steps: int = STEPS) -> float:
    """A round of the whole wish at a usual site, with the margin."""
    return TIME_MARGIN * timing().round_seconds(steps, BATCH)


def ranks(chosen: Assignment) -> dict[str, int]:
    return {site.site: site.rank for site in chosen.sites}


# What is chosen


def test_a_study_that_fits_is_left_as_it_is() -> None:
    study = study_of()
    chosen = assign(study, all_profiles(study), full_seconds())
    assert chosen.study.digest() == study.digest()
    assert chosen.reasons == ()
    assert {site.micro_batch_tokens for site in chosen.sites} == {512}
    assert chosen.sites[0].seconds == pytest.approx(full_seconds())


def test_only_the_weak_site_gets_a_lower_rank_where_the_rule_allows_it() -> None:
    study = study_of("hetlora")
    weak = profile(SITES[1], study, slow=1.5)
    chosen = assign(study, all_profiles(study, weak=weak), full_seconds())
    assert ranks(chosen) == dict.fromkeys(SITES, RANK) | {SITES[1]: 1}
    assert chosen.study.adapter.ranks == {SITES[1]: 1}
    assert chosen.common.steps_per_round == STEPS
    # The plan of a site is made of these, and none of them moved.
    for table in ("training", "privacy"):
        assert getattr(chosen.study, table) == getattr(study, table)


def test_for_other_rules_all_sites_get_the_rank_of_the_weakest() -> None:
    study = study_of("ffa-lora")
    weak = profile(SITES[1], study, slow=1.5)
    chosen = assign(study, all_profiles(study, weak=weak), full_seconds())
    assert set(ranks(chosen).values()) == {1}
    adapter = chosen.study.adapter
    assert (adapter.r, adapter.ranks) == (1, None)
    assert adapter.scaling == study.adapter.scaling
    assert any(SITES[1] in reason for reason in chosen.reasons)


def test_length_goes_before_steps_and_both_are_the_same_for_all() -> None:
    study = study_of()
    weak = profile(SITES[2], study, slow=2.5)
    chosen = assign(study, all_profiles(study, weak=weak), full_seconds())
    assert chosen.common.max_length == LENGTH // 2
    assert chosen.study.model.max_length == LENGTH // 2
    assert chosen.common.steps_per_round == STEPS
    slower = profile(SITES[2], study, slow=15.0)
    chosen = assign(study, all_profiles(study, weak=slower), full_seconds())
    assert 1 <= chosen.common.steps_per_round < STEPS
    assert chosen.study.training.expected_batch == study.training.expected_batch
    assert all(SITES[2] in reason for reason in chosen.reasons[:1])


def test_bits_are_taken_where_memory_asks_for_them() -> None:
    study = study_of()
    small = {
        site: profile(site, study, memory=GB // 3, bits=("none", "nf4"))
        for site in SITES
    }
    chosen = assign(study, list(small.values()), full_seconds())
    assert chosen.study.model.quantisation == "nf4"
    assert chosen.tables()["model"]["quantisation"] == "nf4"


def test_a_micro_batch_is_the_fastest_that_fits_and_is_in_no_study() -> None:
    study = study_of()
    tight = profile(SITES[0], study, memory=GB * 6 // 10)  # Room for 256 at once.
    chosen = assign(study, all_profiles(study, tight=tight), 10 * full_seconds())
    tokens = {site.site: site.micro_batch_tokens for site in chosen.sites}
    assert tokens == dict.fromkeys(SITES, 512) | {SITES[0]: 256}
    assert chosen.study.digest() == study.digest()
    assert "micro" not in json.dumps(chosen.study.canonical())


def test_too_little_time_is_refused_and_says_who_needs_what() -> None:
    study = study_of()
    weak = profile(SITES[3], study, slow=1e4)
    with pytest.raises(ProfileError, match=f"{SITES[3]} needs .* minutes") as caught:
        assign(study, all_profiles(study, weak=weak), full_seconds())
    assert SITES[0] not in str(caught.value)


def test_too_little_memory_is_refused_and_says_who_needs_what() -> None:
    study = study_of()
    weak = profile(SITES[3], study, memory=GB // 10)
    with pytest.raises(ProfileError, match=f"{SITES[3]} needs .* GB"):
        assign(study, all_profiles(study, weak=weak), full_seconds())


# Monotone

slowness = st.floats(0.1, 50.0)
memories = st.integers(GB // 4, 4 * GB)


@settings(deadline=None, max_examples=60)
@given(slow=st.tuples(*[slowness] * 4), room=st.tuples(*[memories] * 4))
def test_a_weaker_site_never_gets_a_higher_rank(
    slow: tuple[float, ...], room: tuple[int, ...]
) -> None:
    study = study_of("hetlora")
    given_ = [
        profile(*pair) for pair in zip(SITES, [study] * 4, slow, room, strict=True)
    ]
    try:
        chosen = ranks(assign(study, given_, full_seconds()))
    except ProfileError:
        return
    for i, one in enumerate(SITES):
        for j, other in enumerate(SITES):
            if slow[i] >= slow[j] and room[i] <= room[j]:
                assert chosen[one] <= chosen[other]


@settings(deadline=None, max_examples=60)
@given(slow=slowness, more=st.floats(1.0, 10.0), room=memories, less=memories)
def test_a_site_that_becomes_weaker_never_makes_the_common_choice_richer(
    slow: float, more: float, room: int, less: int
) -> None:
    study = study_of("flexlora")

    def place(slow: float, memory: int) -> int:
        """How far down the preferences; beyond all of them where nothing fits."""
        own = profile(SITES[0], study, slow, memory)
        given_ = all_profiles(study, own=own)
        listed = list(preferences(study, given_))
        try:
            return listed.index(assign(study, given_, full_seconds()).common)
        except ProfileError:
            return len(listed)

    assert place(slow, room) <= place(slow * more, min(room, less))


def test_what_is_chosen_is_in_time_and_has_room() -> None:
    study = study_of()
    weak = profile(SITES[1], study, slow=7.0, memory=GB)
    given_ = all_profiles(study, weak=weak)
    chosen = assign(study, given_, full_seconds())
    for site, own in zip(chosen.sites, given_, strict=True):
        assert site.seconds <= full_seconds()
        assert site.peak_bytes <= own.memory_bytes
        again = estimate(chosen.study, own)
        assert again.seconds == pytest.approx(site.seconds)


# What is refused


def test_one_profile_of_each_site_is_needed_and_of_this_work() -> None:
    study = study_of()
    whole = all_profiles(study)
    with pytest.raises(ProfileError, match=f"no profile of: {SITES[0]}"):
        assign(study, whole[1:], 60)
    with pytest.raises(ProfileError, match="two profiles"):
        assign(study, [*whole, whole[0]], 60)
    with pytest.raises(ProfileError, match="not a site"):
        assign(study, [profile("stranger", study), *whole], 60)
    with pytest.raises(ProfileError, match="other work"):
        assign(study_of("flexlora"), whole, 60)


def test_the_wish_itself_is_no_part_of_the_work_that_was_measured() -> None:
    study = study_of()
    values = study.canonical()
    values["adapter"] |= {"r": 2, "lora_alpha": 4.0}
    values["model"]["max_length"] = 4
    values["training"]["steps_per_round"] = 1
    assert workload_digest(load_study_dict(values, "")) == workload_digest(study)
    values["adapter"]["layers"] = 2
    assert workload_digest(load_study_dict(values, "")) != workload_digest(study)


def test_a_profile_is_read_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    study, path = study_of(), tmp_path / "profile.json"
    own = profile(SITES[0], study)
    path.write_bytes(own.to_bytes())
    assert read_profile(path) == own
    for broken in (
        b"",
        b"[]",
        b"{}",
        own.to_bytes().replace(b'"cores": 2', b'"cores": -2'),
        own.to_bytes().replace(b'"cores": 2', b'"cores": 2, "persons": 7'),
    ):
        path.write_bytes(broken)
        with pytest.raises(ProfileError, match=r"profile\.json"):
            read_profile(path)
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(tmp_path / "missing.json")


# Commands


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, list[str]]:
    import tomli_w  # noqa: PLC0415

    study = study_of()
    (tmp_path / "study.toml").write_text(tomli_w.dumps(study.canonical()))
    paths = []
    for own in all_profiles(study, weak=profile(SITES[1], study, slow=1.5)):
        path = tmp_path / f"{own.site}.json"
        path.write_bytes(own.to_bytes())
        paths.append(str(path))
    return str(tmp_path / "study.toml"), paths


def test_assign_prints_the_tables_to_paste(files: tuple[str, list[str]]) -> None:
    study, paths = files
    minutes = ["--minutes-per-round", str(full_seconds() / 60)]
    shown = CliRunner().invoke(app, ["assign", study, *paths, *minutes])
    assert shown.exit_code == 0, shown.output
    assert f"[adapter.ranks]\n{SITES[1]} = 1\n" in shown.output
    found = CliRunner().invoke(app, ["assign", study, *paths, *minutes, "--json"])
    value = json.loads(found.output)
    assert value["study_digest"] in shown.output
    assert value["tables"]["adapter.ranks"] == {SITES[1]: 1}


def test_assign_refuses_with_its_exit_code(files: tuple[str, list[str]]) -> None:
    study, paths = files
    command = ["assign", study, *paths, "--minutes-per-round", "0.001"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == ProfileError.exit_code


def test_plan_shows_a_round_as_it_was_measured(packages: None, tmp_path: Path) -> None:
    import tomli_w  # noqa: PLC0415

    study = study_of("ffa-lora")
    (tmp_path / "study.toml").write_text(tomli_w.dumps(study.canonical()))
    policy = (EXAMPLE / "site.toml").read_text("utf-8")
    (tmp_path / "site.toml").write_text(policy.replace("= 50", "= 10"))
    command = ["plan", str(tmp_path / "study.toml")]
    for own in (
        profile(SITES[0], study),
        profile(SITES[1], study, memory=GB // 10),
        profile(SITES[2], study).model_copy(
            update={"timings": (timing(length=LENGTH // 2),)}
        ),
    ):
        path = tmp_path / f"{own.site}.json"
        path.write_bytes(own.to_bytes())
        command += ["--profile", str(path)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    lines = shown.output.split("from the sites' profiles")[1].splitlines()
    by_site = {line.split()[0]: line for line in lines if line.strip()}
    assert f"{full_seconds() / 60:.2f}" in by_site[SITES[0]]
    assert "512 tokens" in by_site[SITES[0]]
    assert "does not fit its memory" in by_site[SITES[1]]
    assert "not measured" in by_site[SITES[2]]
    assert SITES[3] not in by_site
