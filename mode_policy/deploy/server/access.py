"""Who may talk to the server, and how fast."""

from __future__ import annotations

import hmac
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

from mode_policy.errors import ConfigError

SHORTEST_TOKEN = 16


def read_token(path: str | None) -> bytes | None:
    """Return the token in a file; None for no file.

    Raises:
        ConfigError: if the file is absent, or its token too short to be a secret.
    """
    if path is None:
        return None
    try:
        token = Path(path).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file={path} cannot be read: {error}") from error
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"{path} holds a token of {len(token)} characters; make a longer one: "
            f"python -c 'import secrets; print(secrets.token_urlsafe())' > {path}"
        )
    return token.encode()


def is_admitted(headers: Mapping[str, str], token: bytes | None) -> bool:
    """Whether a request carries the token, as ``Authorization: Api-Key …`` (openpi) or ``Bearer …``.

    The comparison takes the same time wherever the difference is.
    """
    if token is None:
        return True
    try:
        kind, _, given = headers.get("Authorization", "").partition(" ")
    except LookupError:  # several of them
        return False
    same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token)
    return same and kind.lower() in ("api-key", "bearer")


def tls(certificate: str | None, private_key: str | None) -> ssl.SSLContext | None:
    """Return the server's TLS settings; None without a certificate.

    Raises:
        ConfigError: if certificate or key cannot be used.
    """
    if certificate is None or private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"certificate={certificate} with private_key={private_key}: {error}") from error
    return context


class RateLimit:
    """A token bucket: ``per_second`` on average, and as many at once."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._left = max(1.0, per_second)
        self._at = time.monotonic()

    def take(self) -> bool:
        """Return whether one more is allowed now."""
        now = time.monotonic()
        self._left = min(max(1.0, self._rate), self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
