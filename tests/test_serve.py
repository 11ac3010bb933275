import gc
import http.client
import io
import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechfuse
from speechfuse.errors import SpeechFuseError

pytest.importorskip("gradio", reason="the page and the service need the extra `demo`")
import uvicorn
from starlette.testclient import TestClient

from speechfuse.serve.app import Service
from speechfuse.serve.limits import Limits
from speechfuse.serve.server import serve, served

QUIET = [  # of gradio
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # it leaves event loops open
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
pytestmark = [pytest.mark.recipe, *QUIET]
both_ways = pytest.mark.parametrize(
    "paged", [False, True], indirect=True, ids=["alone", "with-page"]
)


@pytest.fixture
def paged(request):
    """Whether the page is served, too, which costs seconds; the service is the same."""
    found = getattr(request, "param", False)
    yield found
    if found:
        gc.collect()  # what gradio leaves open is closed here, where it is known


@pytest.fixture(scope="session")
def trained(answering):
    return answering


@pytest.fixture(scope="session")
def model(trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.parent)
        return speechfuse.load(trained)


@pytest.fixture
def clips(tiny_corpus):
    return [tiny_corpus.parent / f"s{s}-{i}.wav" for s in range(8) for i in range(4)]


@pytest.fixture
def client(model, paged):
    """Starts the service with the limits that are given."""
    open_ones = []

    def start(**limits):
        service = Service.of(model, Limits(**limits))
        one = TestClient(served(service, page=paged), base_url="http://localhost")
        one.__enter__()
        one.service = service
        open_ones.append(one)
        return one

    yield start
    for one in open_ones:
        one.__exit__(None, None, None)


@pytest.fixture
def server(model, paged):
    """A real server on a free port: (service, port)."""
    running = []

    def start(**limits):
        service = Service.of(model, Limits(**limits))
        app = served(service, page=paged)
        config = uvicorn.Config(app, port=0, log_level="error", access_log=False)
        one = uvicorn.Server(config)
        thread = threading.Thread(target=one.run)
        thread.start()
        running.append((one, thread))
        while not one.started:
            time.sleep(0.01)
        return service, one.servers[0].sockets[0].getsockname()[1]

    yield start
    for one, thread in running:
        one.should_exit = True
        thread.join()


def sound(seconds=0.4, rate=16000, form="WAV", level=0.1):
    file = io.BytesIO()
    samples = level * np.sin(np.arange(round(seconds * rate)) * 0.3)
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


def refused(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["status"] == status
    assert all(error[part] for part in ("found", "expected", "remedy"))
    return error["found"]


def eventually(true, seconds=5):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@both_ways
def test_answers_are_those_of_the_model(client, model, clips):
    one = client()
    for clip in clips[:4]:
        expected = model(clip, layers=True).to_dict() | {"audio": clip.name}
        form = one.post(
            "/v1/predict", files={"audio": (clip.name, clip.read_bytes())}, data={"layers": "true"}
        )
        assert form.status_code == 200, form.text
        assert form.json() == expected
        raw = one.post(
            "/v1/predict?layers=true",
            content=clip.read_bytes(),
            headers={"content-type": "audio/wav"},
        )
        assert raw.json() == expected | {"audio": "upload"}


def test_tasks_are_chosen_by_field_or_query(client, clips):
    one, audio = client(), clips[0].read_bytes()
    both = one.post("/v1/predict", files={"audio": audio}, data={"tasks": ["asr", "emotion"]})
    assert list(both.json()["results"]) == ["asr", "emotion"]
    commas = one.post("/v1/predict", files={"audio": audio}, data={"tasks": "asr,emotion"})
    assert commas.json() == both.json()
    only = one.post(
        "/v1/predict?tasks=emotion", content=audio, headers={"content-type": "audio/wav"}
    )
    assert list(only.json()["results"]) == ["emotion"]
    assert "layers" not in only.json()


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3", "AIFF"])
def test_formats_are_known_by_their_content(client, form):
    answer = client().post("/v1/predict", files={"audio": ("any.txt", sound(1.0, 44100, form))})
    assert answer.status_code == 200, answer.text
    assert answer.json()["duration"] == pytest.approx(1.0, abs=0.1)


@both_ways
def test_wrong_requests_are_told_what_is_expected(client, clips):
    one, audio = client(), clips[0].read_bytes()
    url = "/v1/predict"
    assert "no recording" in refused(one.post(url, files={"audio": ("a.wav", b"no sound")}), 422)
    assert "a.wav" in refused(one.post(url, files={"audio": ("../x/a.wav", b"")}), 422)
    misspelt = one.post(url + "?tasks=emotio", files={"audio": audio})
    assert "emotio'" in refused(misspelt, 422)
    assert "'emotion'" in misspelt.json()["error"]["expected"]
    prompted = one.post(url, files={"audio": audio}, data={"prompt": "what?", "tasks": "asr"})
    assert "prompt in words" in refused(prompted, 422)
    assert "file" in refused(one.post(url, files={"file": audio}), 400)
    assert "'audio'" not in refused(one.post(url, data={"audio": "/etc/passwd"}), 415)
    form = {"content-type": "multipart/form-data"}
    refused(one.post(url, content=b"nothing", headers=form), 400)
    refused(one.post(url, content=audio), 415)
    refused(one.post(url, content=b"", headers={"content-type": "audio/wav"}), 422)
    refused(one.post(url + "?layers=perhaps", files={"audio": audio}), 422)
    for method, path in [("GET", url), ("PUT", url), ("POST", "/healthz"), ("DELETE", "/metrics")]:
        answer = one.request(method, path)
        assert refused(answer, 405) == f"{method} {path}"
        assert answer.headers["allow"] == answer.json()["error"]["expected"]
    for path in ("/v1/other", "/v1", "/nothing", "/docs", "/healthz/x", "/assets/x", "/a/b/c.html"):
        assert refused(one.get(path), 404) == f"GET {path}"
    nan = io.BytesIO()
    soundfile.write(nan, np.full(4000, np.nan), 16000, format="WAV", subtype="FLOAT")
    assert "NaN" in refused(one.post(url, files={"audio": nan.getvalue()}), 422)
    assert "10 samples" in refused(one.post(url, files={"audio": sound(10 / 16000)}), 422)
    assert one.service.seats.taken == 0


@both_ways
def test_a_path_sent_in_place_of_a_file_is_never_opened(client, trained):
    secret = str(trained / "recipe.yaml")
    one = client()
    answer = one.post("/v1/predict", files={"audio": (secret, b"x" * 100)})
    assert "recipe.yaml is no recording" in refused(answer, 422)
    boundary = "b"
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="audio"\r\n\r\n{secret}\r\n'
    body += f"--{boundary}--\r\n"
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    refused(one.post("/v1/predict", content=body, headers=kind), 400)


MISSPELT = {
    "task": ("emotion", "Did you mean 'tasks'?"),
    "layer": ("true", "Did you mean 'layers'?"),
    "x": ("y", "known: "),
}


@both_ways
def test_a_misspelt_field_is_refused(client):
    """It would be ignored, and the answer be that of another question."""
    one, url, audio = client(), "/v1/predict", {"audio": sound()}
    for name, (value, hint) in MISSPELT.items():
        for options in ({"params": {name: value}}, {"data": {name: value}}):
            answer = one.post(url, files=audio, **options)
            assert f"'{name}'" in refused(answer, 422)
            assert hint in answer.json()["error"]["expected"]
    for value in ("maybe", "", "2"):
        for options in ({"params": {"layers": value}}, {"data": {"layers": value}}):
            assert "layers" in refused(one.post(url, files=audio, **options), 422)
    for value, shown in {"1": True, "on": True, "False": False, "no": False}.items():
        for options in ({"params": {"layers": value}}, {"data": {"layers": value}}):
            answer = one.post(url, files=audio, **options)
            assert answer.status_code == 200, answer.text
            assert ("layers" in answer.json()) == shown
    for options in ({"params": {"prompt": "x" * 501}}, {"data": {"prompt": "x" * 501}}):
        answer = one.post(url, files=audio, **options)
        refused(answer, 422)
        assert "500" in answer.text
    assert one.service.seats.taken == 0


@both_ways
def test_no_path_of_the_server_is_told(client, trained):
    one, url, audio = client(), "/v1/predict", {"audio": sound()}
    assert one.service.model.folder.is_absolute()
    answers = [one.get(p) for p in ("/", "/healthz", "/metrics", "/openapi.json", "/config", "/x")]
    answers += [
        one.request(method, path)
        for path in (url, "/healthz", "/", "/config", "/gradio_api/upload", "/gradio_api/file=x")
        for method in ("GET", "POST", "PUT", "OPTIONS")
    ]
    answers += [one.post(url, files=audio, params={"tasks": name}) for name in ("asr", "asrr")]
    answers += [one.post(url, files=audio, data={"prompt": "what?", "tasks": "asr"})]
    answers += [one.post(url, files=audio, data={"prompt": "what?"})]
    answers += [one.post(url, files={"audio": ("a.wav", given)}) for given in (b"", b"no sound")]
    answers += [one.post(url, content=b"x", headers={"content-type": kind}) for kind in ("a", "")]
    for told in map(str, (trained, trained.parent, Path.cwd(), speechfuse.__path__[0], sys.prefix)):
        for answer in answers:
            assert told not in answer.text, answer.request.url


@both_ways
def test_limits_are_kept(client, monkeypatch):
    one = client(upload_mb=0.1, duration=2.0)
    url = "/v1/predict"
    assert "MB" in refused(one.post(url, files={"audio": bytes(200_000)}), 413)

    def streamed():
        for _ in range(20):
            yield bytes(10_000)

    raw = one.post(url, content=streamed(), headers={"content-type": "audio/wav"})
    assert "MB" in refused(raw, 413)
    long = sound(3.0, form="FLAC")
    assert "3.0 s" in refused(one.post(url, files={"audio": long}), 413)
    assert one.post(url, files={"audio": sound(1.9, form="FLAC")}).status_code == 200
    strange = sound(0.1, rate=1)[:24] + (2_000_000_000).to_bytes(4, "little")
    refused(one.post(url, files={"audio": strange + sound(0.1)[28:]}), 422)
    with one.service.seats.seat():
        full = client(queue=1)
        with full.service.seats.seat():
            answer = full.post(url, files={"audio": sound()})
            assert "at once" in refused(answer, 503)
            assert answer.headers["retry-after"]
    assert full.post(url, files={"audio": sound()}).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(client, model, monkeypatch):
    one = client(timeout=0.2)
    going = threading.Event()

    def slow(jobs, *_, **__):
        going.wait(5)
        return model(jobs)

    one.service.batcher.model = slow
    assert "0.2 s" in refused(one.post("/v1/predict", files={"audio": sound()}), 504)
    assert one.service.seats.taken == 0
    going.set()
    one.service.batcher.model = model
    eventually(lambda: one.post("/v1/predict", files={"audio": sound()}).status_code == 200)


def test_as_much_audio_waits_as_is_allowed(client, model):
    one = client(backlog=1.0)
    begun, going = threading.Event(), threading.Event()

    def slow(jobs, *given, **options):
        begun.set()
        going.wait(5)
        return model(jobs, *given, **options)

    one.service.batcher.model = slow
    with ThreadPoolExecutor() as pool:
        first = pool.submit(one.post, "/v1/predict", files={"audio": sound(0.8)})
        begun.wait(5)
        second = one.post("/v1/predict", files={"audio": sound(0.8)})
        assert "waiting" in refused(second, 503)
        going.set()
        assert first.result().status_code == 200


@both_ways
def test_a_mistake_in_the_model_is_one_answer(client, model, caplog):
    one = client(wait_ms=200)

    def broken(jobs, *given, **options):
        if any(job.seconds > 1 for job in jobs):
            raise ZeroDivisionError("a mistake")
        return model(jobs, *given, **options)

    one.service.batcher.model = broken
    with ThreadPoolExecutor() as pool:
        sizes = [0.5, 1.5, 0.6]
        sent = [pool.submit(one.post, "/v1/predict", files={"audio": sound(s)}) for s in sizes]
        found = [one.result() for one in sent]
    assert [answer.status_code for answer in found] == [200, 500, 200]
    assert "mistake" in refused(found[1], 500)
    assert "a mistake" in caplog.text


def post(port, name, audio):
    """Over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = (
        f'--b\r\nContent-Disposition: form-data; name="audio"; filename="{name}"\r\n\r\n'.encode()
        + audio
        + b"\r\n--b--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    connection.request("POST", "/v1/predict", body, kind)
    answer = connection.getresponse()
    read = json.loads(answer.read())
    connection.close()
    return answer.status, read


@both_ways
def test_answers_of_many_at_once_are_never_mixed_up(server, model, clips):
    service, port = server(wait_ms=30)
    assert len(clips) == 32
    expected = {clip.name: model(clip).to_dict() for clip in clips}
    with ThreadPoolExecutor(32) as pool:
        for _ in range(3):
            sent = {
                clip.name: pool.submit(post, port, clip.name, clip.read_bytes()) for clip in clips
            }
            for name, future in sent.items():
                status, found = future.result()
                assert status == 200
                assert found["audio"] == name
                mine = expected[name]["results"]
                vectors = [r["verification"]["vector"] for r in (found["results"], mine)]
                assert vectors[0] == pytest.approx(vectors[1], abs=1e-4)
                assert found["results"]["asr"]["text"] == mine["asr"]["text"]
    text = service.meters.text().decode()
    batches = next(
        float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("speechfuse_batch_recordings_count")
    )
    assert batches < 90
    assert 'speechfuse_requests_total{status="200"} 96.0' in text


def test_bad_files_among_good_ones_spare_them(server, clips):
    _, port = server(wait_ms=50)
    bad = [b"", b"no sound at all", clips[0].read_bytes()[:60], sound(10 / 16000)]
    with ThreadPoolExecutor(16) as pool:
        given = [*bad, *(clip.read_bytes() for clip in clips[:12])]
        found = list(pool.map(lambda audio: post(port, "a.wav", audio), given))
    assert [status for status, _ in found] == [422] * 4 + [200] * 12


@both_ways
def test_a_client_that_leaves_frees_its_seat(server, model):
    service, port = server()
    begun, going = threading.Event(), threading.Event()

    def slow(jobs, *given, **options):
        begun.set()
        going.wait(10)
        return model(jobs, *given, **options)

    service.batcher.model = slow
    head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n"
    audio = sound()
    whole = f"{head}Content-Length: {len(audio)}\r\n\r\n".encode() + audio
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    sockets[0].sendall(whole)  # its job runs
    begun.wait(5)
    sockets[1].sendall(whole)  # its job waits
    sockets[2].sendall(whole[:-100])  # still sends
    eventually(lambda: service.seats.taken == 3 and len(service.batcher._waiting) == 1)
    for one in sockets:
        one.close()
    eventually(lambda: service.seats.taken == 0)
    assert not service.batcher._waiting
    going.set()
    assert post(port, "a.wav", audio)[0] == 200
    assert 'speechfuse_requests_total{status="499"} 3.0' in service.meters.text().decode()


@both_ways
def test_health_and_metrics_tell_what_goes_on(client, trained):
    one = client()
    health = one.get("/healthz").json()
    assert health["run"] == trained.name
    assert health["tasks"] == {"asr": "text", "emotion": "label", "verification": "voice"}
    one.post("/v1/predict", files={"audio": sound(0.5)})
    one.post("/v1/predict", files={"audio": b"x"})
    text = one.get("/metrics").text
    assert 'speechfuse_requests_total{status="200"} 1.0' in text
    assert 'speechfuse_requests_total{status="422"} 1.0' in text
    assert "speechfuse_audio_seconds_total 0.5" in text
    assert "speechfuse_request_seconds_count 2.0" in text


@both_ways
def test_other_hosts_are_refused_on_loopback(client):
    one = client()
    refused(one.get("/healthz", headers={"host": "evil.example"}), 403)
    for host in ("localhost:7860", "127.0.0.1", "[::1]:80"):
        assert one.get("/healthz", headers={"host": host}).status_code == 200


@both_ways
def test_the_description_is_typed(client):
    described = client().get("/openapi.json").json()
    operation = described["paths"]["/v1/predict"]["post"]
    assert {"200", "413", "415", "422", "503", "504"} <= set(operation["responses"])
    for status, answer in operation["responses"].items():
        kind = "AnswerBody" if status == "200" else "ErrorBody"
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith(kind)
    assert client().get("/docs").status_code == 404


@both_ways
def test_uploads_leave_no_file(client, tmp_path, monkeypatch):
    one = client()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert one.post("/v1/predict", files={"audio": sound(60.0)}).status_code == 200
    refused(one.post("/v1/predict", files={"audio": bytes(3_000_000)}), 422)
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SpeechFuseError, match="choose another --port"):
            serve(trained, port=taken.getsockname()[1], page=False)


def test_who_asks_as_soon_as_the_address_is_told_is_heard(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)

    def ready(address):
        port = int(address.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        raise InterruptedError("heard")

    with pytest.raises(InterruptedError, match="heard"):
        serve(trained, port=0, page=False, ready=ready)
