"""What is slow to make and shared by the tests: the model and encoded texts."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from small import EXAMPLE, PACKAGES, randomised, small_policy, small_study

from secfed.data import StudyData, load_sites
from secfed.models import Features
from secfed.policy import SitePolicy
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared, prepare
from secfed.study import Study
from secfed.training import PrivateRecords
from secfed.types import Adapter


@pytest.fixture(scope="session")
def packages() -> None:
    """Skips what needs the model or the text where they are not installed."""
    # The matrices are tiny: a second thread would spend its time waiting.
    torch.set_num_threads(1)
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the package {name} is not installed (`make setup` does)")


@pytest.fixture(scope="session")
def study() -> Study:
    return small_study()


@pytest.fixture(scope="session")
def policy() -> SitePolicy:
    return small_policy()


@pytest.fixture(scope="session")
def data(packages: None, study: Study) -> StudyData:
    return load_sites(study, EXAMPLE)


@pytest.fixture(scope="session")
def prepared(packages: None, study: Study, policy: SitePolicy) -> Prepared:
    """Model, features and plans; a test that trains overwrites the model."""
    return prepare(study, EXAMPLE, policy, NoProgress())


@pytest.fixture(scope="session")
def busy(prepared: Prepared) -> Adapter:
    """An adapter in which every tensor has a gradient."""
    return randomised(prepared.start)


@pytest.fixture(scope="session")
def everybody(prepared: Prepared) -> PrivateRecords:
    """All sites' records as if one site had them."""
    held = list(prepared.records.values())
    lengths = np.concatenate([records.features.lengths for records in held])
    features = Features(
        states=torch.cat([records.features.states for records in held]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )
    labels = np.concatenate([records.labels for records in held])
    return PrivateRecords(features, labels, np.arange(len(labels)), len(labels))
