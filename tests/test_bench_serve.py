import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from speechfuse.bench.serve import alike, clip, load_test, served
from speechfuse.errors import SpeechFuseError


@pytest.fixture
def service():
    """A service that can be told to mix up, refuse or lose answers."""
    faults = {"wrong": 0, "refuse": 0, "lose": 0, "seen": 0}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = body.split(b'filename="')[1].split(b'"')[0].decode()
            with lock:
                faults["seen"] += 1
                late = faults["seen"] > 4  # those alone are right
                fault = next((f for f in ("wrong", "refuse", "lose") if late and faults[f]), None)
                if fault:
                    faults[fault] -= 1
            if fault == "lose":
                self.connection.close()
                return
            name = "clip9.wav" if fault == "wrong" else name
            self.say(503 if fault == "refuse" else 200, json.dumps({"audio": name, "duration": 2}))

        def do_GET(self):
            name = "speechfuse_batch_recordings"
            self.say(200, f"{name}_sum 6.0\n{name}_count 2.0\n")

        def say(self, status, text):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address, faults
    server.shutdown()
    thread.join()
    server.server_close()


def test_lost_refused_and_mixed_up_answers_are_counted(service):
    address, faults = service
    faults.update(wrong=2, refuse=3, lose=1)
    load = load_test(address, 4, 0.5)
    assert (load.wrong, load.statuses[503], load.lost) == (2, 3, 1)
    assert load.statuses[200] == len(load.latencies) > 2
    assert load.batch == 3
    (row,) = load.table(4)[2]
    assert row[-3:] == ["3", "1", "2"]


def test_clips_differ():
    assert len({clip(i) for i in range(8)}) == 8
    assert not alike({"text": "a"}, {"text": "b"})
    assert not alike([1.0], [1.0, 2.0])


@pytest.mark.recipe  # starts a process
def test_a_folder_that_cannot_be_served_is_named(tmp_path):
    with pytest.raises(SpeechFuseError, match="cannot be served"), served(tmp_path):
        pass
