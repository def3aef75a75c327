"""Who can reach a Ray that runs here or at RAY_ADDRESS: token, dashboard, ports on outer interfaces.

Comes in: the environment, /proc, and one request to a dashboard. Starts and joins no cluster, and says of a token only whether
there is one.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from raydpo.doctor.finding import Finding
from raydpo.doctor.listeners import Listener, listeners_of

DASHBOARD_PORT = 8265
_PROCESSES = ("gcs_server", "raylet", "/ray/dashboard/", "ray::", "ray/autoscaler/", "ray/util/client/server")
_TIMEOUT_S = 3.0


def check() -> Iterator[Finding]:
    """How runs reach Ray, the dashboard, and the ports of a Ray of this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    is_cluster = address not in ("", "local")
    yield how_it_is_reached(address, has_token=token_is_there(), wants_token=os.environ.get("RAY_AUTH_MODE") == "token")
    host = _host(address) if is_cluster else "127.0.0.1"
    yield dashboard(host, answer(host, DASHBOARD_PORT))
    yield ports(listeners_of(_PROCESSES))


def how_it_is_reached(address: str, *, has_token: bool, wants_token: bool) -> Finding:
    """Whether runs start a Ray of their own or join one, and with a token or without."""
    if address in ("", "local"):
        return Finding("RAY_ADDRESS", "ok", "not set: a run starts its own Ray, on loopback, with a token of its own")
    if not wants_token:
        text = "is set, and RAY_AUTH_MODE is not token: whoever reaches the cluster runs code there"
        return Finding("RAY_ADDRESS", "warn", f"{text}, if its network lets them. See `ray get-auth-token --generate`.")
    if not has_token:
        return Finding(
            "RAY_ADDRESS",
            "fail",
            "is set with RAY_AUTH_MODE=token, and there is no token (RAY_AUTH_TOKEN, ~/.ray/auth_token)",
        )
    return Finding("RAY_ADDRESS", "ok", "is set, with a token")


def token_is_there() -> bool:
    """Whether Ray would find a token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser().stat().st_size > 0
    except OSError:
        return False


def answer(host: str, port: int) -> int | None:
    """HTTP status of a dashboard that is asked without a token; None where none answers."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/api/version")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def dashboard(host: str, status: int | None) -> Finding:
    """What it means that a dashboard answers a request without a token with `status`."""
    where = f"{host}:{DASHBOARD_PORT}"
    if status is None:
        return Finding("Ray dashboard", "ok", f"none answers at {where}")
    if status == http.client.OK:
        text = f"answers at {where} without a token: whoever reaches that port runs code on the cluster"
        return Finding("Ray dashboard", "fail", f"{text}. Start it with RAY_AUTH_MODE=token, or keep it on loopback.")
    return Finding("Ray dashboard", "ok", f"at {where} refuses a request without a token (HTTP {status})")


def ports(found: list[Listener]) -> Finding:
    """Whether a Ray of this machine listens to others."""
    outside = sorted({each.port for each in found if not ip_address(each.address).is_loopback})
    if not found:
        return Finding("Ray ports", "ok", "no Ray of this user runs on this machine")
    if not outside:
        return Finding("Ray ports", "ok", f"{len(found)} of a Ray that runs here, all on loopback")
    shown = ", ".join(map(str, outside[:12])) + (", ..." if len(outside) > 12 else "")
    return Finding(
        "Ray ports", "warn", f"a Ray of this machine listens to others on {shown}: let a firewall keep strangers out"
    )


def _host(address: str) -> str:
    """The host of HOST:PORT or scheme://HOST:PORT; this machine for auto. What else may stand there is not shown."""
    text = address.rpartition("://")[2].rpartition("@")[2].partition("/")[0]
    host = text.rpartition(":")[0] if ":" in text else text
    return "127.0.0.1" if text == "auto" or not host else host.strip("[]")
