"""Editor networks for tests: groups of a tiny model's corrections, and files of networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from continual.gradients.config import GradientConfig
from continual.gradients.lessons import LessonGroup, LessonMaker, TaughtEdit
from continual.gradients.matrices import EditableMatrix, chosen_matrices
from continual.gradients.networks import EditorNetwork, NetworkForm
from continual.gradients.trained import NetworkFile
from continual.requests import Request
from continual.session import Session
from tests import tiny_language as language

BOTH = GradientConfig(blocks=(0, 1), sides="both")


def requests(*countries: int) -> list[Request]:
    """Corrections with a rephrase to learn from, and a text beside each."""
    return [
        Request.from_json(
            language.correction(
                country,
                rephrases=[language.ask(country, 1)],
                locality=[
                    {
                        "prompt": language.ask((country + 1) % 30),
                        "answer": language.capital((country + 1) % 30),
                    }
                ],
            )
        )
        for country in countries
    ]


def maker(
    session: Session, kind: type[EditorNetwork], choice: GradientConfig = BOTH, **more: Any
) -> LessonMaker:
    """Makes groups of three edits, with a rephrase and two texts beside each."""
    return LessonMaker(
        task_model=session.site,
        matrices=chosen_matrices(session.edited, choice),
        size=3,
        rephrases=1,
        texts_beside=2,
        seed=0,
        condition=kind.condition,
        whole=more.get("whole", True),
    )


def taught(session: Session, lessons: LessonMaker, *countries: int) -> list[TaughtEdit]:
    """Edits of these countries, all of which the base answers otherwise."""
    known = session.run_state.known_answers().training
    edits = lessons.taught(requests(*countries), known)
    assert len(edits) == len(countries)
    return edits


def group_of(session: Session, lessons: LessonMaker, *countries: int) -> LessonGroup:
    """One group of these countries."""
    (group,) = lessons.groups(taught(session, lessons, *countries))
    return group


def network_of(
    session: Session, kind: type[EditorNetwork], matrices: tuple[EditableMatrix, ...]
) -> EditorNetwork:
    """A network of small random weights, so that none of its parts is the identity."""
    shapes = {matrix.path: matrix.shape for matrix in matrices}
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(NetworkForm(shapes, kind.size(session.site, 5)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return network


def weight_sum(network_path: Any) -> Tensor:
    """ΔW [inputs, outputs] of a side path of one edit, or of all, float64."""
    left, right = network_path.left.double(), network_path.right.double()
    return (left @ right) if left.ndim == 2 else (left @ right).sum(0)


def file_of(session: Session, network: EditorNetwork, path: Path) -> dict[str, str]:
    """Write a network; return the lines of its editor's table."""
    file = NetworkFile.write(path, network, session.edited.base.fingerprint, {})
    return {"network": str(file.path), "network_digest": file.digest}
