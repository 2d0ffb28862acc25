"""Everything that is made once per run: model, features, plans, identities.

The arms of a comparison share it, so the base model is loaded and the texts are
encoded once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.keys import SigningKey, generate_identity
from secfed.adapters import (
    AdaptedModel,
    SequenceClassifier,
    attach_adapter,
    head_from_names,
    initial_adapter,
)
from secfed.data import StudyData, fingerprint, load_sites
from secfed.data.held_back import held_part, single_records, training_part
from secfed.earlier_runs import EarlierRun, NamedRuns
from secfed.errors import RunDirectoryError, StudyError
from secfed.evaluation import Questions
from secfed.models import (
    BaseModel,
    Features,
    TokenFeatures,
    encode_answers,
    encode_blocks,
    encode_prefix,
    find_model,
    load_base_model,
    load_causal_model,
)
from secfed.policy import SitePolicy
from secfed.policy import check as check_policy
from secfed.privacy.asked import plan_for
from secfed.privacy.budget import Budget
from secfed.privacy.held_back import EvaluationPlan, evaluation_plan
from secfed.privacy.noise import RandomStream, simulation_stream, system_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.earlier import open_tuning
from secfed.runtime.mentoring import Mentor, open_mentor
from secfed.runtime.progress import Progress
from secfed.runtime.teaching import open_teaching
from secfed.study import MIN_SITES, Study
from secfed.teacher_ledger import TeacherRun
from secfed.tokens import answer_tokens, end_token, load_tokenizer
from secfed.training import (
    AnswerLoss,
    CausalLoss,
    ClassificationLoss,
    DistillationLoss,
    HeldBack,
    MutualLoss,
    PrivateRecords,
    RecordLoss,
    TokenRecords,
)
from secfed.types import Adapter, LabelledTexts, SiteData

__all__ = [
    "Prepared",
    "evaluation_plans",
    "open_budget",
    "plan_sites",
    "prepare",
    "prepare_data",
    "random_stream",
    "site_identities",
    "with_seed_of",
]

_NAME_HEAD_SCALE = 10.0
_KEY_BYTES = 32


@dataclass(frozen=True)
class Prepared:
    """What the arms of a run share. Holds private records; simulation only.

    ``positive`` is the label whose F1 is wanted, ``questions`` how a prompted model is
    asked; None in other tasks. ``holdout_subgroups`` is the public group of every
    record of the hold-out, where the study names a column of them. ``teacher`` is the
    record of a private teacher, if any, ``tuning`` those of the runs by which the
    settings were chosen, ``mentor`` what trains beside the model at every site that is
    held here. ``held_back`` are the records of every site that
    evaluates, ``evaluations`` what it may release of them.
    """

    base: BaseModel
    model: AdaptedModel
    start: Adapter
    records: Mapping[str, PrivateRecords]
    holdout: Features
    holdout_labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    plans: Mapping[str, PrivacyPlan]
    fingerprints: Mapping[str, str]
    loss: RecordLoss
    positive: int | None = None
    questions: Questions | None = None
    teacher: TeacherRun | None = None
    tuning: tuple[EarlierRun, ...] = ()
    holdout_subgroups: tuple[str, ...] = ()
    mentor: Mentor | None = None
    held_back: Mapping[str, HeldBack] = field(default_factory=dict)
    evaluations: Mapping[str, EvaluationPlan] = field(default_factory=dict)

    @property
    def trained(self) -> AdaptedModel:
        """The model that trains: the student, or it and its mentor as one."""
        return self.model if self.mentor is None else self.mentor.pair

    @property
    def named_runs(self) -> NamedRuns:
        """What the runs spent that the study names."""
        return NamedRuns(
            None if self.teacher is None else self.teacher.costs,
            tuple(run.costs for run in self.tuning),
        )

    def __repr__(self) -> str:
        return "Prepared(<private>)"


def prepare(
    study: Study, base_dir: Path, policy: SitePolicy, progress: Progress
) -> Prepared:
    """Load data and model, make the plans, run every text through the frozen part.

    Raises:
        DataError, ModelError, PlanError, PolicyError, StudyError: Before anything
            is spent.
    """
    progress.phase("reading the sites' records")
    data = load_sites(study, base_dir)
    return prepare_data(study, base_dir, data, policy, progress)


def prepare_data(
    study: Study,
    base_dir: Path,
    data: StudyData,
    policy: SitePolicy | None,
    progress: Progress,
) -> Prepared:
    """Make plans and model, and encode what is held here: all sites, one or none.

    Args:
        study: The study.
        base_dir: Folder that relative paths start from.
        data: What is held here.
        policy: Of the sites that are held here; None where there are none.
        progress: Told about phases.

    Raises:
        ModelError, PlanError, PolicyError, StudyError: Before anything is spent.
    """
    questions = _questions(study, base_dir, data.label_names)
    loss = _loss(study, data.label_names, questions)
    progress.phase("calibrating the noise")
    plans = plan_sites(study, data.nominal_units)
    if policy is not None:
        for site in data.sites.values():
            # Hours are asked at every round: a site may wait for them.
            check_policy(policy, study, site.num_units, without=("hours",))
    names = data.label_names
    tuning = open_tuning(study, base_dir)
    teaching = open_teaching(study, base_dir, names, speaks=bool(data.sites))
    progress.phase("loading the base model")
    if study.is_causal_lm:
        base = load_causal_model(study.model, base_dir)
    else:
        base = load_base_model(study.model, base_dir, len(data.label_names))
    model = attach_adapter(base, study.adapter)
    mentor = _mentor(study, base_dir, model, data)
    progress.phase("encoding the texts up to the first adapted layer")
    evaluations = evaluation_plans(study, data.nominal_units, len(data.label_names))
    records, held_back = {}, {}
    total = len(data.sites) + 1
    for done, (name, site) in enumerate(data.sites.items(), start=1):
        if name in evaluations:
            held_back[name] = _held_back(base, model, held_part(site))
        own = training_part(site) if name in evaluations else site
        records[name] = _records(base, model, own)
        if teaching is not None:
            records[name] = teaching.taught(records[name], own.records)
        if mentor is not None:
            records[name] = mentor.beside(records[name], own.records)
        progress.site(name, done, total)
    held = bool(data.holdout.texts)
    holdout = _encoded(base, model, data.holdout) if held else _no_features(study)
    progress.site("public hold-out", total, total)
    return Prepared(
        base=base,
        model=model,
        start=public_start(study, base, model, data.label_names),
        records=records,
        holdout=holdout,
        holdout_labels=data.holdout.labels,
        holdout_subgroups=data.holdout_subgroups,
        label_names=data.label_names,
        plans=plans,
        fingerprints={name: fingerprint(site) for name, site in data.sites.items()},
        loss=loss,
        positive=_positive(study, data.label_names),
        questions=questions,
        teacher=None if teaching is None else teaching.run,
        tuning=tuning,
        mentor=mentor,
        held_back=held_back,
        evaluations=evaluations,
    )


def evaluation_plans(
    study: Study, nominal_units: Mapping[str, int], classes: int
) -> dict[str, EvaluationPlan]:
    """The sites that evaluate, by their declared sizes, and what each may release.

    Raises:
        StudyError: A study asks for evaluation, and too few sites are large enough for
            their sum to hide one of them.
    """
    asked = {n: evaluation_plan(study, nominal_units[n], classes) for n in study.sites}
    found = {name: plan for name, plan in asked.items() if plan is not None}
    least = max(MIN_SITES, study.secagg.colluders + 2)
    if study.evaluation is not None and len(found) < least:
        raise StudyError(
            f"study {study.name}",
            "evaluation.min_units",
            f"{len(found)} sites hold back {study.evaluation.min_units} units or more, "
            f"by their declared sizes; {least} are needed for a sum. Raise fraction, "
            "or leave [evaluation] out and use the public hold-out",
        )
    return found


def _mentor(
    study: Study, base_dir: Path, model: AdaptedModel, data: StudyData
) -> Mentor | None:
    """Where sites are held, and their study asks for one."""
    if not data.sites or not isinstance(model, SequenceClassifier):
        return None
    return open_mentor(study, base_dir, model, data.label_names, _NAME_HEAD_SCALE)


def _held_back(base: BaseModel, model: AdaptedModel, held: SiteData) -> HeldBack:
    """Encoded one by one, so that no record leaves a trace in another's states."""
    texts = tuple(_encoded(base, model, one) for one in single_records(held.records))
    return HeldBack(texts, held.records.labels, held.units)


def _positive(study: Study, label_names: tuple[str, ...]) -> int | None:
    named = study.task.positive if study.task else None
    return None if named is None else label_names.index(named)


def _questions(
    study: Study, base_dir: Path, label_names: tuple[str, ...]
) -> Questions | None:
    """How the hold-out is asked; None where the task is no answering."""
    if study.task is None or study.task.answers is None:
        return None
    folder = find_model(study.model, base_dir)
    tokenizer, end = load_tokenizer(folder), end_token(folder)
    answers = tuple(study.task.answers[name] for name in label_names)
    return Questions(
        tokenizer=tokenizer,
        answers=answers,
        end=end,
        longest=max(map(len, answer_tokens(tokenizer, answers, end))),
        positive=_positive(study, label_names),
        temperature=study.task.temperature,
        seed=study.task.generation_seed or 0,
    )


def _loss(
    study: Study, label_names: tuple[str, ...], questions: Questions | None
) -> RecordLoss:
    if questions is not None:
        return AnswerLoss(questions.longest)
    if study.is_causal_lm:
        return CausalLoss()
    weights, asked = study.class_weights(label_names), study.distillation
    if asked is not None and asked.mutual:
        adaptive = asked.adaptive is True
        return MutualLoss(asked.weight, asked.temperature, weights, adaptive)
    if asked is not None:
        return DistillationLoss(asked.weight, asked.temperature, weights)
    return ClassificationLoss(weights)


def _encoded(base: BaseModel, model: AdaptedModel, records: LabelledTexts) -> Features:
    """Everything below the first adapted layer: of texts, or of tokens."""
    first, tokens = model.first_layer, records.tokens
    if records.prompt_tokens:
        return encode_answers(base, tokens, records.prompt_tokens, first)
    if tokens:
        return encode_blocks(base, tokens, first)
    return encode_prefix(base, records.texts, first, pairs=records.pairs)


def _no_features(study: Study) -> Features:
    """Where nothing is held; a tokenizer refuses an empty list."""
    states, offsets = torch.zeros(0, 1), np.zeros(1, dtype=np.int64)
    if study.is_causal_lm:
        return TokenFeatures(states, offsets, torch.zeros(0, dtype=torch.int64))
    return Features(states, offsets)


def _records(base: BaseModel, model: AdaptedModel, site: SiteData) -> PrivateRecords:
    features, labels = _encoded(base, model, site.records), site.records.labels
    if isinstance(features, TokenFeatures):
        return TokenRecords(features, labels, site.units, site.num_units)
    return PrivateRecords(features, labels, site.units, site.num_units)


def public_start(
    study: Study, base: BaseModel, model: AdaptedModel, label_names: tuple[str, ...]
) -> Adapter:
    """The adapter before round 1, made from the study's public seed and labels."""
    start = initial_adapter(model, study.adapter)
    if study.adapter.head_init == "zero" or not isinstance(model, SequenceClassifier):
        return start
    model.write(start.tensors)
    return start.replaced(head_from_names(base, model, label_names, _NAME_HEAD_SCALE))


def with_seed_of(prepared: Prepared, study: Study) -> Prepared:
    """The same sites and texts with the start of another seed."""
    start = public_start(study, prepared.base, prepared.model, prepared.label_names)
    return replace(prepared, start=start)


def plan_sites(
    study: Study, nominal_units: Mapping[str, int]
) -> dict[str, PrivacyPlan]:
    """Each site's plan: the study's (epsilon, delta) over all rounds.

    Raises:
        PlanError: A site is too small for the expected batch or for delta.
    """
    return {site: plan_for(study, nominal_units[site]) for site in study.sites}


def random_stream(study: Study, *labels: str) -> RandomStream:
    """The system's randomness, or the study's explicit simulation seed.

    A seed makes the run reproducible and NOT PRIVATE; the statement says so.
    """
    seed = study.simulation.seed
    return system_stream() if seed is None else simulation_stream(seed, *labels)


def open_budget(
    study: Study,
    policy: SitePolicy,
    private_dir: Path,
    site: str,
    fingerprint: str | None = None,
) -> Budget:
    """A site's budget: in the policy's own folder, or in a rehearsal in the run's.

    Args:
        study: The study, for its privacy unit.
        policy: The site's rules: population, limits, folder.
        private_dir: The run's private folder, for a rehearsal.
        site: The site's name.
        fingerprint: Of the site's records; a version of the population.

    Raises:
        PolicyError: The file is damaged, another site's, or in another unit, or
            the records belong to another population.
    """
    folder = Path(policy.budget_dir) if policy.budget_dir else private_dir / "sites"
    path = folder / site / "budget.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Budget(path, site).open(
        policy.population,
        study.privacy.unit,
        max_epsilon=policy.max_epsilon,
        delta=policy.delta,
        fingerprint=fingerprint,
        records_per_person=policy.max_records_per_person,
    )


def site_identities(study: Study, private_dir: Path) -> dict[str, SigningKey]:
    """Each site's identity key: read from its private folder or made there.

    Raises:
        RunDirectoryError: A key file is damaged.
    """
    identities = {}
    for site in study.sites:
        path = private_dir / "sites" / site / "identity.key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            stream = random_stream(study, "identity", site)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
                file.write(generate_identity(stream.bytes(_KEY_BYTES)).to_bytes())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        secret = path.read_bytes()
        if len(secret) != _KEY_BYTES:
            raise RunDirectoryError(f"{path}: not an identity key; restore the file")
        identities[site] = SigningKey.from_bytes(secret)
    return identities
