"""Positive controls: faults that are put into the pipeline, each found by the audit.

Faults live here, never in production code. Everything runs through the real training
functions, rounds and masks on a small real study; the many seeds of the negative
control are in ``test_audit_statistics.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import small_policy, small_study

from secfed.audit.canaries import CanaryLoss, place_canaries, with_canaries
from secfed.audit.conformance import check_conformance
from secfed.audit.curves import ClaimedCurve
from secfed.audit.dirac import DiracSettings, check_dirac, claim_of, play_canaries
from secfed.audit.findings import Finding, Findings
from secfed.audit.refutation import refute
from secfed.audit.rehearsal import Rehearsal, copy_of
from secfed.errors import BudgetExceededError
from secfed.privacy.noise import simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime import site_training
from secfed.runtime.setup import Prepared
from secfed.training import ClassificationLoss, OpacusGradients, steps

pytestmark = pytest.mark.slow

Patch = Callable[[pytest.MonkeyPatch], None]


def rehearsal_of(prepared: Prepared, folder: Path, seed: int = 5) -> Rehearsal:
    study = small_study(seed=seed)
    return Rehearsal(copy_of(study), prepared, small_policy(), folder, study.sites[0])


@pytest.fixture
def rehearsal(prepared: Prepared, tmp_path: Path) -> Rehearsal:
    return rehearsal_of(prepared, tmp_path)


@pytest.fixture(scope="module")
def curve(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> ClaimedCurve:
    return claim_of(rehearsal_of(prepared, tmp_path_factory.mktemp("curve")))


def flagged(rehearsal: Rehearsal) -> dict[str, Finding]:
    findings = Findings()
    check_conformance(rehearsal, findings)
    return {f.name: f for f in findings.done if f.verdict == "REFUTED"}


# The faults


def noise_times(factor: float) -> Patch:
    whole = PrivacyPlan.noise

    def weaker(self: PrivacyPlan, stream: Any, size: int) -> Any:
        return factor * whole(self, stream, size)

    return lambda patch: patch.setattr(PrivacyPlan, "noise", weaker)


def no_clip(patch: pytest.MonkeyPatch) -> None:
    def sums(gradients: Sequence[torch.Tensor], _clipping: Any) -> list[torch.Tensor]:
        return [torch.nan_to_num(gradient).sum(dim=0) for gradient in gradients]

    patch.setattr(steps, "clipped_sums", sums)


def batch_clip(patch: pytest.MonkeyPatch) -> None:
    """The sum of a micro-batch is clipped, not every contribution."""

    def sums(gradients: Sequence[torch.Tensor], clipping: Any) -> list[torch.Tensor]:
        totals = [g.double().nan_to_num(0, 0, 0).sum(dim=0) for g in gradients]
        norm = torch.sqrt(sum((t.square().sum() for t in totals), torch.tensor(0.0)))
        factor = min(1.0, clipping.norm / max(float(norm), 1e-300))
        return [(factor * total).float() for total in totals]

    patch.setattr(steps, "clipped_sums", sums)


def one_seed_for_two_sites(patch: pytest.MonkeyPatch) -> None:
    def shared(_study: Any, arm: str, number: str, _site: str, purpose: str) -> Any:
        return simulation_stream(1, arm, number, "everybody", purpose)

    patch.setattr(site_training, "random_stream", shared)


def silent_when_empty(patch: pytest.MonkeyPatch) -> None:
    """Noise is added where somebody was drawn, and nothing where nobody was."""
    add, release = steps.NoisySum.add, steps.NoisySum.release

    def remember(self: Any, samples: Any, unit_of_row: Any) -> None:
        self.somebody = True
        add(self, samples, unit_of_row)

    def sometimes(self: Any, stream: Any) -> None:
        release(self, stream)
        if not getattr(self, "somebody", False):
            for parameter in self._parameters:
                parameter.grad = 1e-9 * torch.ones_like(parameter)
        self.somebody = False

    patch.setattr(steps.NoisySum, "add", remember)
    patch.setattr(steps.NoisySum, "release", sometimes)


def token_mean(network: Any, states: Any, mask: Any, labels: Any) -> torch.Tensor:
    """Divided by the tokens of all records in the batch, as Transformers does."""
    each = ClassificationLoss()(network, states, mask, labels)
    return each * mask.sum(dim=1) / mask.sum()


CLIP = "D and D + record differ by at most C"
CONTRIBUTION = "one contribution is at most C"
OTHERS = "nobody else's contribution changes"
EMPTY = "an empty batch is noised"
LAW = "noise has the plan's law"
STREAMS = "noise of sites and rounds is independent"


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (noise_times(0.0), {EMPTY, LAW}),
        (noise_times(0.25), {EMPTY, LAW}),
        (no_clip, {CONTRIBUTION, CLIP}),
        (batch_clip, {CLIP, OTHERS}),
        (one_seed_for_two_sites, {STREAMS}),
        (silent_when_empty, {EMPTY, LAW}),
    ],
    ids=[
        "noise-off",
        "quarter-of-the-noise",
        "no-clip",
        "batch-clip",
        "one-seed-for-two-sites",
        "no-noise-on-empty-batches",
    ],
)
def test_a_fault_is_found_by_conformance(
    fault: Patch,
    names: set[str],
    rehearsal: Rehearsal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    found = flagged(rehearsal)
    assert names <= found.keys(), {name: f.text for name, f in found.items()}


def test_a_token_mean_loss_is_found_by_conformance(rehearsal: Rehearsal) -> None:
    coupled = replace(rehearsal, prepared=replace(rehearsal.prepared, loss=token_mean))
    assert OTHERS in flagged(coupled)


def test_the_pipeline_as_it_is_conforms(rehearsal: Rehearsal) -> None:
    findings = Findings()
    check_conformance(rehearsal, findings)
    assert [f.name for f in findings.done if f.verdict != "ok"] == []
    assert len(findings.done) == 11
    by_name = {f.name: f.values for f in findings.done}
    # The checks have teeth: the clip is reached, and slack is far below C.
    assert by_name[CONTRIBUTION]["largest_over_clip"] > 0.999
    assert by_name[CONTRIBUTION]["slack"] < 1e-3 * rehearsal.plan.clip_norm


# Dirac canaries in the real pipeline


def test_a_canarys_gradient_is_one_number_in_its_own_place(
    prepared: Prepared, rehearsal: Rehearsal
) -> None:
    """Through Opacus' rules; records beside it keep their gradients to the bit."""
    trains = tuple(rehearsal.begin().adapter.tensors)
    prepared.model.write(rehearsal.begin().adapter.tensors)
    chosen = prepared.model.set_trainable(trains)
    places = place_canaries(prepared.model, trains, 40)
    own = prepared.records[rehearsal.site]
    held = with_canaries(own, np.ones(40, dtype=bool))
    loss = CanaryLoss(ClassificationLoss(), places, 3.0, 40)
    rows = np.concatenate([[0, 1], len(own.labels) + np.arange(40)])
    with OpacusGradients(prepared.model, chosen) as gradients:
        found = gradients(loss, held.batch(rows))
        plain = gradients(ClassificationLoss(), own.batch(np.array([0, 1])))
    expected = {name: np.zeros((40, *p.shape)) for name, p in chosen.items()}
    for place in places:
        expected[place.tensor][place.canaries, place.rows, place.columns] = 3.0
    for name, samples, alone in zip(chosen, found, plain, strict=True):
        np.testing.assert_allclose(samples[2:].numpy(), expected[name], atol=1e-5)
        np.testing.assert_allclose(samples[:2].numpy(), alone.numpy(), atol=1e-5)
    assert sum(len(place.canaries) for place in places) == 40


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.25, 0.0])
def test_the_released_update_refutes_less_noise_and_not_the_claim(
    factor: float,
    seed: int,
    prepared: Prepared,
    tmp_path: Path,
    curve: ClaimedCurve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if factor == 0.0:
        factor = 1e-6  # Exactly nothing would stop training: a tensor must move.
    noise_times(factor)(monkeypatch)
    views = play_canaries(rehearsal_of(prepared, tmp_path, seed), 4000)
    p = refute(views.local, curve).p
    assert p < 0.01 if factor < 1 else p > 0.01, p
    assert views.outside is not None
    assert len(views.outside) == 4000


def test_scores_of_canaries_are_what_the_plan_says(
    rehearsal: Rehearsal,
) -> None:
    """In: q per step, in multiples of C; out: nothing; both with the plan's noise."""
    scores = play_canaries(rehearsal, 4000).local
    plan, steps_done = rehearsal.plan, rehearsal.rounds * 1
    inside, outside = scores.values[scores.members], scores.values[~scores.members]
    noise = plan.noise_multiplier * np.sqrt(steps_done)
    # Four standard errors each; the records beside them move the mean by less.
    tolerance = 4 * noise / np.sqrt(len(outside)) + 0.1
    drawn = plan.sampling_probability * steps_done
    assert abs(inside.mean() - outside.mean() - drawn) < tolerance
    assert outside.std() == pytest.approx(noise, rel=0.05)


def test_part_b_says_what_it_assumes_and_what_it_could_find(
    rehearsal: Rehearsal, curve: ClaimedCurve
) -> None:
    findings = Findings()
    settings = DiracSettings(canaries=400, repetitions=4)
    check_dirac(rehearsal, findings, settings, curve)
    assert [f.verdict for f in findings.done] == ["ok"] * 4
    primary, bounds, outside, told = findings.done
    assert "independent" in primary.text
    assert primary.values["members"] + primary.values["others"] == 200
    assert 0 <= bounds.values["epsilon_one_run"] <= bounds.values["claimed"]
    assert "opened mean" in outside.name
    assert 0 <= told.values["power"] <= 1
    # Every site paid for the rounds, in its own budget.
    for site in rehearsal.study.sites:
        charges = rehearsal.budget(site).history()
        assert [charge.round for charge in charges] == [1, 2, 3]
        assert all(charge.run_id.startswith("audit-") for charge in charges)


def test_an_audit_that_a_budget_does_not_hold_is_refused_before_it_trains(
    rehearsal: Rehearsal,
) -> None:
    poor = replace(rehearsal, policy=small_policy(9.0))
    play_canaries(poor, 20)
    with pytest.raises(BudgetExceededError, match="nothing was spent"):
        play_canaries(poor, 20)
    assert len(poor.budget(poor.site).history()) == 3
