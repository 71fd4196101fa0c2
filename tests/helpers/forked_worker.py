"""What Ray starts in place of `python`: `forked_worker.py SOCKET SCRIPT ...` has SCRIPT run by the server at SOCKET.

It hands over its arguments, environment, folder and output, and ends as that process ends (see forked_workers.py).
"""

import json
import os
import signal
import socket
import sys
import time

place, script, *arguments = sys.argv[1:]
deadline = time.monotonic() + 300
while not os.path.exists(place) and time.monotonic() < deadline:
    time.sleep(0.1)
server = socket.socket(socket.AF_UNIX)
server.connect(place)
asked = {"script": script, "arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
message = json.dumps(asked).encode()
socket.send_fds(server, [b"%-8d" % len(message)], [0, 1, 2])
server.sendall(message)
code = int(server.recv(16) or -signal.SIGKILL)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
