"""A ProxyCommand: bytes between stdio and a unix socket of any path length."""

import os
import select
import socket
import sys

folder = os.open(os.path.dirname(sys.argv[1]), os.O_PATH | os.O_DIRECTORY)
peer = socket.socket(socket.AF_UNIX)
peer.connect(f"/proc/self/fd/{folder}/{os.path.basename(sys.argv[1])}")
while True:
    ready, _, _ = select.select([0, peer], [], [])
    if 0 in ready:
        data = os.read(0, 65536)
        if not data:
            peer.shutdown(socket.SHUT_WR)
            break
        peer.sendall(data)
    if peer in ready:
        data = peer.recv(65536)
        if not data:
            break
        os.write(1, data)
