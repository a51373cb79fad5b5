"""At which token a request is written: where a value there changes what is answered.

The papers write at the subject's last token, as that is where large models have put together what
they know of a subject (Meng et al. 2022, section 2.2). A model may do otherwise: one that is small,
or was taught few wordings, may look a fact up from the whole prompt, at its end. There no value at
the subject changes the answer, and the prompt's last token is written to, as the public code can be
told to. Which of them it is shows in the search itself: there is a value that gives the target, or
there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from continual.associative.config import AssociativeConfig
from continual.associative.lessons import Lesson
from continual.associative.targets import Targets, find_targets
from continual.site import Site


def located(
    site: Site, lessons: Sequence[Lesson], block: int, config: AssociativeConfig
) -> tuple[list[Lesson], Targets]:
    """The lessons as they are to be written, by `config.place`, and z of each at a block.

    One with a value at neither token stays at its subject.
    """
    if config.place == "end":
        lessons = [lesson.at_end() for lesson in lessons]
    targets = find_targets(site, lessons, block, config)
    missed = [i for i, arrived in enumerate(targets.arrived) if not arrived]
    if config.place != "auto" or not missed:
        return list(lessons), targets
    moved = [lessons[i].at_end() for i in missed]
    again = find_targets(site, moved, block, config)
    order = list(range(len(lessons)))
    chosen = list(lessons)
    for j, i in enumerate(missed):
        if again.arrived[j]:
            order[i], chosen[i] = len(lessons) + j, moved[j]
    return chosen, Targets.joined([targets, again])[order]
