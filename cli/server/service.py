"""The objects that the endpoints share, and the server's limits."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from fastapi import Request

from cli.server.metrics import Metrics
from cli.server.webhooks import Webhooks
from continual.choices import CHAINS, EDITORS
from continual.picture_marks import digests_in
from continual.pictures.album import album_of
from continual.pictures.records import PictureBorder
from continual.review.audit import Audit
from continual.review.conflicts import InForce
from continual.review.queue import CorrectionQueue
from continual.serving.desk import Desk
from continual.serving.facts import Facts
from continual.serving.jobs import Jobs
from continual.serving.limits import ServerSettings
from continual.serving.tokens import Tokens
from continual.serving.writer import Writer
from continual.session import Session
from store import Store


@dataclass
class Service:
    """A store that is served."""

    session: Session
    desk: Desk
    name: str  # of the model
    tokens: Tokens
    hosts: frozenset[str] = frozenset()  # names by which the server may be called; empty: any
    is_open: bool = True  # asking needs no token
    limits: ServerSettings = field(default_factory=ServerSettings)
    webhooks: tuple[str, ...] = ()  # addresses that hear of every change of a correction

    def __post_init__(self) -> None:
        self.jobs = Jobs()
        self.started_at = time.time()
        self.facts = Facts(self.store)
        self.queue = CorrectionQueue(self.store)
        self.audit = Audit(self.store)
        self.in_force = InForce(self.store)
        self.writer = Writer(self.desk, self.queue, prepares=self.limits.prepares)
        self.metrics = Metrics(self.desk, self.facts, self.queue)
        self.hooks = Webhooks(self.store, self.queue, self.webhooks, self.tokens.secret)

    @property
    def chats(self) -> bool:
        """True if the model has a chat template."""
        return bool(getattr(self.session.tokenizer, "chat_template", None))

    def border(self) -> PictureBorder | None:
        """Return the border at which pictures come in over HTTP, into memory; None for a model of
        texts. Files of this machine and addresses are not read."""
        return self.session.picture_border(reads_files=False, keeps=False)

    def keep_pictures(self, record: object) -> None:
        """Write the pictures that a JSON value shows, and that are held in memory, to the store.
        Raises RequestError for one that is not here any more."""
        if (album := album_of(self.session.task)) is not None:
            album.keep(digests_in(json.dumps(record)))

    @property
    def editors(self) -> list[str]:
        """The names of the editors and chains."""
        return [*EDITORS, *CHAINS]

    @property
    def store(self) -> Store:
        """The store."""
        return self.session.store

    def start(self) -> None:
        """Begin to answer, and to apply what was approved before."""
        self.desk.start()
        self.hooks.start()
        self.writer.start()

    def close(self) -> None:
        """Finish the present turn, and let go of the store."""
        self.desk.close()
        self.hooks.close()
        self.session.close()


def service_of(request: Request) -> Service:
    """Return the service of a request's application."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
