#!/usr/bin/python3
"""Sends a thousand numbered datagrams a second to the other end of a tunnel, and receives as many, until SIGTERM; then prints
what was sent and what arrived. Arguments: own address, the other end's address, a word for the output."""

import json
import signal
import socket
import sys
import threading
import time

OWN, OTHER, NAME = sys.argv[1:]
PORT, EVERY = 7000, 0.001
result = {"end": NAME, "sent": 0, "refused": 0, "arrived": 0, "twice": 0, "longest_gap_ms": 0}
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())


def send(out):
    # The other end receives by then.
    time.sleep(1)
    due = time.time()
    while not stopped.is_set():
        try:
            out.sendto(result["sent"].to_bytes(8, "big") + b"x" * 192, (OTHER, PORT))
            result["sent"] += 1
        except OSError as error:
            result["refused"] += 1
            result["why"] = str(error)
        due += EVERY
        time.sleep(max(0, due - time.time()))


def receive(inbox):
    seen, last, quiet = set(), None, 0
    while quiet < 4:
        try:
            number = int.from_bytes(inbox.recv(4096)[:8], "big")
        except TimeoutError:
            quiet += stopped.is_set()
            continue
        now = time.time()
        if last is not None:
            result["longest_gap_ms"] = max(result["longest_gap_ms"], round((now - last) * 1000))
        last = now
        result["twice"] += number in seen
        seen.add(number)
    result["arrived"] = len(seen)


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as both:
    both.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    both.bind((OWN, PORT))
    both.settimeout(0.5)
    threads = [threading.Thread(target=work, args=(both,)) for work in (send, receive)]
    for thread in threads:
        thread.start()
    while not stopped.wait(0.1):
        pass
    for thread in threads:
        thread.join()
print(json.dumps(result))
