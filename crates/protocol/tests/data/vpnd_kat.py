#!/usr/bin/env python3
"""Computes vpnd_kat.json: the profile as it enters the preshared key, and the keys of a
post-quantum upgrade, with Python's hashlib and hmac, whose BLAKE2 is the reference's.

    python3 vpnd_kat.py > vpnd_kat.json
"""

import hashlib
import hmac
import itertools
import json
import struct


def H(*parts):
    return hashlib.blake2s(b"".join(parts)).digest()


def HMAC(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.blake2s).digest()


def MAC(key, *parts):
    return hashlib.blake2s(b"".join(parts), key=key, digest_size=16).digest()


def KDF3(chaining_key, data):
    prk = HMAC(chaining_key, data)
    t1 = HMAC(prk, b"\x01")
    t2 = HMAC(prk, t1, b"\x02")
    return t1, t2, HMAC(prk, t2, b"\x03")


def made_up(name, length=32):
    """Bytes that mean nothing."""
    blocks = (H(b"vpnd kat ", name.encode(), struct.pack("<I", i)) for i in itertools.count())
    return b"".join(itertools.islice(blocks, -(-length // 32)))[:length]


def profile(psk, codes):
    bound = HMAC(psk or bytes(32), b"vpnd profile v1", codes)
    return {"psk": psk and psk.hex(), "codes": codes.hex(), "bound": bound.hex()}


def upgrade(name, index_i, index_r, codes):
    lengths = {"t3": 32, "ss": 32, "h": 32, "ek": 1184, "ct": 1088}
    given = {field: made_up(f"{name} {field}", length) for field, length in lengths.items()}
    t3, ss, h, ek, ct = given.values()
    indices = struct.pack("<II", index_i, index_r)
    transcript = H(h, ek, ct)
    k_ir, k_ri, k_c = KDF3(t3, b"vpnd pq v1" + ss + transcript + indices + codes)
    confirmation = MAC(k_c, b"vpnd pq confirm")
    made = {"transcript": transcript, "k_ir": k_ir, "k_ri": k_ri, "confirmation": confirmation}
    fields = given | {"codes": codes} | made
    return {"index_i": index_i, "index_r": index_r} | {k: v.hex() for k, v in fields.items()}


# tun, tap; ChaCha20-Poly1305, AES-256-GCM; no KEM, ML-KEM-768
CODES = [bytes(codes) for codes in itertools.product((0, 1), repeat=3)]

print(json.dumps({
    "profiles": [profile(psk, codes) for psk in (None, made_up("psk")) for codes in CODES],
    "upgrades": [
        upgrade("first", 0x11223344, 0xA1B2C3D4, bytes((0, 0, 1))),
        upgrade("second", 0xFFFFFFFE, 1, bytes((1, 1, 1))),
    ],
}, indent=1))
