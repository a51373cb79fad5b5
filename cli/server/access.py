"""Who may do what: tokens in the Authorization header, and the roles of endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Header, Request

from cli.server.problems import ApiProblem
from cli.server.service import Service, service_of
from continual.serving.tokens import Role, Token

NOBODY = Token("anyone", "ask", "")
_SCHEME = "bearer "


def bearer_of(authorization: str | None) -> str | None:
    """Return the token in an Authorization header; None where there is none."""
    if not authorization or not authorization.lower().startswith(_SCHEME):
        return None
    return authorization[len(_SCHEME) :].strip()


def caller(request: Request, authorization: Annotated[str | None, Header()] = None) -> Token | None:
    """Return the token of a request; None for a request without one. Raises ApiProblem for a wrong
    one."""
    if not authorization:
        return None
    text = bearer_of(authorization)
    if text is None:
        raise ApiProblem(401, "Authorization is to be `Bearer TOKEN`.")
    owner = service_of(request).tokens.owner(text)
    if owner is None and not service_of(request).is_open:
        raise ApiProblem(401, "Incorrect API key provided: no token of this server is this one.")
    return owner


Caller = Annotated[Token | None, Depends(caller)]
Served = Annotated[Service, Depends(service_of)]


def may(role: Role) -> Callable[[Service, Token | None], Token]:
    """Return a dependency that refuses requests without the rights of a role."""

    def allowed(service: Served, token: Caller) -> Token:
        if token is None and role == Role.ask and service.is_open:
            return NOBODY
        if token is None:
            raise ApiProblem(401, "This needs a token: send it as `Authorization: Bearer TOKEN`.")
        if token.rights < role:
            raise ApiProblem(403, f"This needs the role {role.name}; yours is {token.role}.")
        return token

    return allowed


Asker = Annotated[Token, Depends(may(Role.ask))]
Proposer = Annotated[Token, Depends(may(Role.propose))]
Approver = Annotated[Token, Depends(may(Role.approve))]
Admin = Annotated[Token, Depends(may(Role.admin))]
