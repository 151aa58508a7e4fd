"""Keys renewed in the middle of big transfers, on either leg, by either end."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from runcode.gateway.admission import AdmissionPolicy
from support.gateway_box import open_scene

_MB = 1024 * 1024


# Whole in either framing: the second is asyncssh's own, until the gateway moves the client to AES-GCM.
@pytest.mark.parametrize("ciphers", ["aes128-gcm@openssh.com", "aes256-ctr,aes256-gcm@openssh.com"])
@pytest.mark.parametrize(
    ("by_client", "by_gateway", "by_box"),
    [(True, False, False), (False, True, False), (False, False, True), (True, True, True)],
    ids=["client", "gateway", "box", "all at once"],
)
async def test_a_rekey_loses_nothing(by_client: bool, by_gateway: bool, by_box: bool, ciphers: str) -> None:
    """12 MB there and back again while keys change about every megabyte."""
    policy = AdmissionPolicy(rekey_bytes=_MB) if by_gateway else AdmissionPolicy()
    async with open_scene(policy, box=None) as scene:
        scene.add_box("royal-1", extra_config="RekeyLimit 1M" if by_box else "")
        client = scene.add_client("royal-1")
        sent = os.urandom(12 * _MB)
        options = (f"Ciphers={ciphers}", *(("RekeyLimit=1M",) if by_client else ()))
        finished = await client.run("cat; exit 7", options=options, stdin=sent)
        assert finished.status == 7, finished.error_text
        assert hashlib.sha256(finished.stdout).digest() == hashlib.sha256(sent).digest()


async def test_many_commands_across_constant_rekeys() -> None:
    """Short commands whose exit status often waits for a key exchange: none is lost."""
    async with open_scene(AdmissionPolicy(rekey_bytes=20_000)) as scene:
        client = scene.add_client("royal-1")
        control = f"ControlPath={scene.folder}/m"
        await client.start("-M", "-N", "box", options=(control, "RekeyLimit=64K", "Ciphers=aes128-gcm@openssh.com"))
        await scene.until(lambda: (scene.folder / "m").exists())
        results = await asyncio.gather(
            *(client.run(f"head -c 100000 /dev/zero; exit {n}", options=(control,)) for n in range(20))
        )
        assert [r.status for r in results] == list(range(20))
        assert {len(r.stdout) for r in results} == {100_000}
