"""`runcode-server gateway run`: the workers that share one port, kept alive by one supervisor.

Owns: starting, restarting with back-off, and ending the worker processes. Called by
`main`. Never: a connection; it holds the port only so that nobody else gets it.

Each worker has its own listener on the port (SO_REUSEPORT, socket(7)): the kernel
spreads connections, and one user's processes alone may share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal

from runcode.core.errors import RunCodeError
from runcode.server.data_folder import translated_os_errors, write_private_file
from runcode.server.gateway_process import READY, GatewayOptions, make_client, make_worker_command, parse_networks
from runcode.server.listeners import bind_shared
from runcode.server.logs import say

_log = logging.getLogger(__name__)
_READY_S = 30.0
_BACKOFF_S = 0.2
_BACKOFF_MAX_S = 10.0
_STEADY_S = 30.0
# After the drain: the last events, and what is slow.
_ENDING_S = 15.0


def run_gateway(options: GatewayOptions) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean end."""
    parse_networks(options.balancers)
    with translated_os_errors(options.spool):
        options.spool.mkdir(mode=0o700, exist_ok=True)
    with bind_shared(options.ssh, "--ssh") as reserved:
        return asyncio.run(_Supervisor(options, reserved.getsockname()[1]).run())


class _Supervisor:
    def __init__(self, options: GatewayOptions, port: int) -> None:
        self._options = options
        self._port = port
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ending = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._end)
        await self._try_credential()
        numbers = range(self._options.workers)
        keepers: list[asyncio.Task[None]] = []
        try:
            ready = await asyncio.gather(*(self._start(number) for number in numbers))
            if not all(ready) and not self._ending.is_set():
                raise RunCodeError("io_error", "a gateway worker did not start", resolution="see its words above")
            keepers = [loop.create_task(self._keep(number)) for number in numbers]
            self._write_ready_file()
            say(f"SSH gateway on {self._options.ssh.host} port {self._port}, {len(keepers)} workers")
            await self._ending.wait()
            say("draining")
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await self._end_workers()
        return 0

    def _end(self) -> None:
        if self._ending.is_set():
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            os._exit(128 + signal.SIGTERM)
        self._ending.set()

    async def _try_credential(self) -> None:
        """A credential that is not taken, or another version, is said at once; a control plane that is away comes."""
        client = make_client(self._options, 0)
        try:
            await client.call("facts", {"title": "", "key_fingerprint": ""})
        except RunCodeError as error:
            if not error.kind.retryable:
                raise
            _log.warning("starting without the control plane, nobody is let in until it answers: %s", error.message)
        finally:
            await client.close()

    async def _start(self, number: int) -> bool:
        """Start one worker, and wait until it serves. False: it ended, or does not say that it does."""
        process = await asyncio.create_subprocess_exec(
            *make_worker_command(self._options, number, self._port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the supervisor, which tells them.
            start_new_session=True,
        )
        self._processes[number] = process
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_READY_S):
                return await process.stdout.readline() == READY
        except TimeoutError:
            process.kill()
            return False

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _BACKOFF_S
        while True:
            began = loop.time()
            status = await self._processes[number].wait()
            if loop.time() - began > _STEADY_S:
                pause_s = _BACKOFF_S
            _log.error("gateway worker %d ended (%d), and is started again in %.1f s", number, status, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _BACKOFF_MAX_S)
            try:
                if await self._start(number):
                    self._write_ready_file()
            except (OSError, RunCodeError) as error:
                # No process, no descriptor or no room on the disk just now: it comes again.
                _log.error("gateway worker %d: %s", number, error)

    def _write_ready_file(self) -> None:
        if self._options.ready_file is None:
            return
        facts = {
            "ssh_host": self._options.ssh.host,
            "ssh_port": self._port,
            "workers": [self._processes[number].pid for number in sorted(self._processes)],
        }
        with translated_os_errors(self._options.ready_file):
            write_private_file(self._options.ready_file, json.dumps(facts, indent=1) + "\n")

    async def _end_workers(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        waiting = [asyncio.ensure_future(process.wait()) for process in self._processes.values()]
        if not waiting:
            return
        _, late = await asyncio.wait(waiting, timeout=self._options.drain_s + _ENDING_S)
        if late:
            _log.error("%d gateway workers did not end, and are killed", len(late))
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.wait(late)
