"""What the tests of training share."""

from __future__ import annotations

import pytest
from at_a_site import RATE

from secfed.study import Study
from secfed.study.sections import TrainingSection
from secfed.types import Adapter


@pytest.fixture
def plain_sgd(study: Study) -> TrainingSection:
    """One step size for everything, so that change = -RATE * gradient."""
    return study.training.model_copy(update={"head_learning_rate": RATE})


@pytest.fixture(scope="session")
def names(busy: Adapter) -> tuple[str, ...]:
    return tuple(busy.tensors)
