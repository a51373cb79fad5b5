"""`cedit serve`: answers over HTTP, as OpenAI's clients ask."""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import TYPE_CHECKING

import click

from cli.options import common, find_store, require_writable
from cli.output import Output, short

if TYPE_CHECKING:
    from cli.server.service import Service
    from continual.serving.desk import Desk
    from continual.serving.limits import ServerSettings
    from continual.serving.tokens import Token
    from continual.session import Session
    from store import Revision

PORT = 8321
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option("--name", help="The model's name for clients (default: its folder's).")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Another name by which the server may be called (repeatable).",
)
@click.option(
    "--open",
    "is_open",
    is_flag=True,
    help="Let anyone who reaches the server ask, also on another address than this machine's own.",
)
@click.option(
    "--webhook",
    "webhooks",
    multiple=True,
    metavar="URL",
    help="Post every change of a correction there, until it is taken (repeatable).",
)
@click.option(
    "--waiting",
    "waiting_max",
    type=click.IntRange(1),
    help="Asks that may wait; more are refused with 429 (default: 128).",
)
@click.option(
    "--tokens",
    "tokens_max",
    type=click.IntRange(1),
    help="How long an answer may be (default: 4096).",
)
@click.option(
    "--rate",
    "requests_per_minute",
    type=click.IntRange(0),
    help="Requests a minute of one token, or of one address; 0: any number (default: 1200).",
)
@common
def command(
    out: Output,
    store: str | None,
    host: str,
    port: int,
    name: str | None,
    hosts: tuple[str, ...],
    is_open: bool,
    webhooks: tuple[str, ...],
    waiting_max: int | None,
    tokens_max: int | None,
    requests_per_minute: int | None,
) -> None:
    """Serve the edited model over HTTP, as OpenAI's clients ask.

    /v1/models, /v1/chat/completions and /v1/completions; a model is NAME, NAME@base, NAME@TAG or
    NAME@REVISION, and system_fingerprint names the state that answered. With "explain": true an
    answer says which edit spoke at which token. /health, /ready and /metrics need no token.

    The server holds the store's lock. It listens on this machine alone, unless --host says
    otherwise; asking then needs a token, too. The first start makes a token for an administrator,
    prints it once on standard error, and keeps it in the store (server/tokens.json, mode 600).

    Limits on rates, sizes and numbers are settings of the store, in [server] of cedit.toml: `cedit
    settings server` explains them. --waiting, --tokens and --rate hold for one run.

    Needs the extra `serve`: pip install 'cedit[serve]'. With --json, when it listens:
    {"type":"serving","url","model","head","seq","fingerprint"}.

    \b
    Example:
      cedit serve
      cedit serve --host 0.0.0.0 --allow-host models.example.org
      curl localhost:8321/v1/models
    """
    _require_extra()
    path = find_store(store)
    require_writable(path)
    from cli.server.app import make_app
    from cli.server.running import run
    from cli.server.service import Service
    from continual.serving.address import withdraw
    from continual.serving.names import default_name
    from continual.serving.tokens import tokens_at_start
    from continual.session import open_session

    is_local = _is_local(host)
    tokens, made = tokens_at_start(path)
    with open_session(path) as session:
        out.warn(list(session.notes))
        limits = _limits(
            session,
            waiting_max=waiting_max,
            tokens_max=tokens_max,
            requests_per_minute=requests_per_minute,
        )
        service = Service(
            session,
            _desk(session, limits),
            name or default_name(session.store),
            tokens,
            _hosts(host, hosts),
            is_open or is_local,
            limits=limits,
            webhooks=webhooks,
        )
        tell = partial(_tell, out, service, session.store.head, made)
        try:
            run(make_app(service), host, port, tell, limits.connections_max)
        finally:
            withdraw(path)


def _limits(session: Session, **given: int | None) -> ServerSettings:
    """Return the limits of the store's [server], with those of the command line in their place."""
    from continual.serving.limits import ServerSettings

    chosen = {name: value for name, value in given.items() if value is not None}
    return ServerSettings.of({**session.store.settings.get("server", {}), **chosen})


def _desk(session: Session, limits: ServerSettings) -> Desk:
    from continual.serving.desk import Desk

    return Desk(
        session,
        waiting_max=limits.waiting_max,
        rows_max=limits.batch_max,
        tokens_max=limits.tokens_max,
    )


def _tell(
    out: Output, service: Service, head: Revision, made: Token | None, address: str, port: int
) -> None:
    """Say that the server listens, on the terminal and to other commands on the store."""
    from continual.serving.address import announce

    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    record = {
        "type": "serving",
        "url": url,
        "model": service.name,
        "head": head.id,
        "seq": head.seq,
        "fingerprint": head.fingerprint,
    }
    lines = [f"Serving {service.name} at {url}/v1", f"head {short(head.id)} (@{head.seq})"]
    announce(service.session.store.path, url)
    out.result(record, *lines)
    if made is not None:
        out.note(f"The administrator's token, which is shown only now: {made.token}")


def _require_extra() -> None:
    """Raise ClickException if the extra is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            f"cedit serve needs {error.name}, which is not installed: pip install 'cedit[serve]'."
        ) from None


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(host: str, more: tuple[str, ...]) -> frozenset[str]:
    """Return the names by which the server may be called."""
    wildcard = () if host in ("0.0.0.0", "::") else (host,)
    return frozenset(name.lower() for name in (*LOCAL_NAMES, *wildcard, *more))
