# SPDX-License-Identifier: Apache-2.0
"""Signatures by plain public keys, as cosign makes them: cosign's SIGNATURE_SPEC, sigstore's client spec."""

from __future__ import annotations

from hpcpod.errors import TrustUnusable
from hpcpod.images.trust.keys import Key

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

RSA_BITS = 2048
"""Least size of an RSA key."""


def verified(key: Key, signature: bytes, message: bytes | None, digest: str) -> bool:
    """Whether the key made this signature over the message, or over what has this ``sha256:`` digest.

    ECDSA signatures are DER (RFC 3279), over SHA-256, of P-384 keys over SHA-384 too; Ed25519 with or without
    prehash, of a message that must be given; RSA by PKCS #1 1.5.  Raises TrustUnusable for a broken key.
    """
    # It takes as long to load as a whole start: only where a signature is really checked.
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

    try:
        loaded = serialization.load_der_public_key(key.data)
    except (ValueError, UnsupportedAlgorithm):
        raise TrustUnusable(f"key {key.origin}: not a valid {key.algorithm} key") from None
    data = message if message is not None else bytes.fromhex(digest.removeprefix("sha256:"))

    def over(algorithm: HashAlgorithm) -> HashAlgorithm | utils.Prehashed:
        return algorithm if message is not None else utils.Prehashed(algorithm)

    try:
        if isinstance(loaded, ed25519.Ed25519PublicKey):
            return message is not None and _ed25519(loaded, signature, message)
        if isinstance(loaded, ec.EllipticCurvePublicKey):
            if message is not None and isinstance(loaded.curve, ec.SECP384R1):
                try:  # older versions of cosign hash for all curves alike
                    loaded.verify(signature, data, ec.ECDSA(hashes.SHA384()))
                except InvalidSignature:
                    loaded.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            else:
                loaded.verify(signature, data, ec.ECDSA(over(hashes.SHA256())))
        elif isinstance(loaded, rsa.RSAPublicKey) and loaded.key_size >= RSA_BITS:
            loaded.verify(signature, data, padding.PKCS1v15(), over(hashes.SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _ed25519(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Ed25519, or Ed25519ph (RFC 8032, 5.1) as cosign 3 signs images; neither passes for the other."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key.verify(signature, message)
    except InvalidSignature:
        pass
    else:
        return True
    from Crypto.Hash import SHA512
    from Crypto.Signature import eddsa

    try:
        other = eddsa.import_public_key(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
        eddsa.new(other, "rfc8032").verify(SHA512.new(message), signature)
    except ValueError:
        return False
    return True
