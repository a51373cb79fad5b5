"""The short form of a fault, as a test: every row sound, every control noticed."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def draw() -> random.Random:
    return random.Random(0)


@pytest.fixture
def forms() -> Callable[[ModuleType], None]:
    def run(module: ModuleType) -> None:
        findings = list(module.find(True))
        assert findings
        for finding in findings:
            assert finding.is_sound, (finding.fault, finding.cases, finding.examples)
        reasons = {finding.skipped for finding in findings if finding.skipped}
        if reasons and all(finding.skipped for finding in findings):
            pytest.skip("; ".join(sorted(reasons)))

    return run
