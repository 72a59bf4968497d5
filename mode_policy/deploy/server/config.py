"""Configuration of the policy server, filled in by ``conf/serve/serve.yaml``."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_frozen = ConfigDict(extra="forbid")
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, config=_frozen)
class ServerConfig:
    """How a policy is served.

    Attributes:
        host: address to listen at; this machine alone by default.
        port: 0 for any free one.
        token_file: file with the token that clients must send; None for none.
        certificate: file with the TLS certificate (and its chain), for ``wss://``.
        private_key: file with its key.
        exposed_without_protection: allow other machines without a token and TLS, e.g. behind a tunnel.
        batch_size: requests that are answered together.
        batch_window_ms: how long a request waits for those of other sessions.
        max_sessions: clients at once.
        max_message_mb: largest message.
        requests_per_second: of one session, averaged over a second.
        request_seconds: within which a request must be answered.
        idle_seconds: without a request, after which a session is closed.
        drain_seconds: that running requests get after SIGTERM.
        keys: names that clients use → our feature keys, e.g. ``observation/image`` →
            ``observation.images.agentview``.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    token_file: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    exposed_without_protection: bool = False
    batch_size: Count = 16
    batch_window_ms: Annotated[float, Field(ge=0)] = 2.0
    max_sessions: Count = 16
    max_message_mb: Positive = 16.0
    requests_per_second: Positive = 200.0
    request_seconds: Positive = 30.0
    idle_seconds: Positive = 300.0
    drain_seconds: Positive = 10.0
    keys: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> ServerConfig:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("TLS needs both certificate=… and private_key=…")
        protected = self.token_file is not None and self.certificate is not None
        if not is_loopback(self.host) and not protected and not self.exposed_without_protection:
            raise ValueError(
                f"host={self.host} is reached from other machines, and who reaches the server can use it; "
                "give token_file=…, certificate=… and private_key=…, or, where something else protects it, "
                "exposed_without_protection=true"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
