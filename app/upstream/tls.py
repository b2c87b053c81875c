"""Whom the service trusts when it calls an https URL.

Source: specs/002 R10, specs/006 W4.
"""

import os
import ssl

import certifi


def trusting(ca_bundle: str) -> ssl.SSLContext:
    """Return a TLS context for all connections; loading the CA bundle takes 45 ms.

    ca_bundle  path of a file of certificates or of a directory; empty: certifi's
    """
    bundle = ca_bundle or certifi.where()
    directory = os.path.isdir(bundle)
    context = ssl.create_default_context(capath=bundle if directory else None,
                                         cafile=None if directory else bundle)
    # An end of the connection without close_notify may be anybody's doing. It must not pass for
    # the end of a body that lasts until the connection closes. Python asks OpenSSL to hide it.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context
