"""``python -m sim2or.health``: whether the service of this container is alive, for its health check.

Imports next to nothing: it runs every few seconds beside work that needs the cores.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 5.0


def main() -> None:
    """Asks ``/healthz`` on SIM2OR_METRICS_PORT; exits with 1 and the reason when the service is not well."""
    port = os.environ.get("SIM2OR_METRICS_PORT", "")
    if not port.isdecimal() or port == "0":
        sys.exit("SIM2OR_METRICS_PORT is not set: a service tells its health on that port")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"no answer on port {port}: {error!r}")
    if answer.status != http.client.OK:
        sys.exit(f"unhealthy: {text}")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
