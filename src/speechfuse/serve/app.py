"""The HTTP service: `POST /v1/predict`, `/healthz`, `/metrics`, `/openapi.json`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from speechfuse import __version__
from speechfuse.errors import SpeechFuseError
from speechfuse.pipeline.answers import Answer
from speechfuse.pipeline.speech_model import SpeechModel
from speechfuse.serve.asked import BODY, FIELDS, PROMPT, QUERY, check_names, switch, words
from speechfuse.serve.batcher import Batcher
from speechfuse.serve.bodies import AnswerBody, ErrorBody, HealthBody
from speechfuse.serve.job import Job
from speechfuse.serve.limits import Limits
from speechfuse.serve.meters import Meters
from speechfuse.serve.refusals import Refusal, unknown, unreadable
from speechfuse.serve.seats import Seats
from speechfuse.serve.uploads import decode, received

_LOG = logging.getLogger(__name__)
LEFT = 499  # how servers count clients that left
GIVES = {"tokens": "text", "vector": "voice", "turns": "speakers"}
TEXTS = {
    400: "The form cannot be read",
    413: "Too many bytes or seconds",
    415: "A body of another type",
    422: "No recording, no such task, prompt or field",
    500: "A mistake of the service",
    503: "Too much at once; try again",
    504: "Not answered in time",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in TEXTS.items()
}


@dataclass(frozen=True)
class Service:
    """What requests and the page share."""

    model: SpeechModel
    limits: Limits
    meters: Meters
    seats: Seats
    batcher: Batcher

    @classmethod
    def of(cls, model: SpeechModel, limits: Limits) -> Service:
        """A service of a run, not started yet."""
        meters, seats = Meters(), Seats(limits.queue)
        meters.watch(lambda: seats.taken)
        return cls(model, limits, meters, seats, Batcher(model, limits, meters))

    def checked(self, tasks: Sequence[str]) -> list[str]:
        """The tasks asked for, all of them if none is named. Raises Refusal (422)."""
        check_names("task", tasks, self.model.tasks, "see /healthz for its tasks")
        return self.model.checked(tasks)


def build_app(service: Service) -> FastAPI:
    """The service alone, without its page."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await run_in_threadpool(service.batcher.close)

    app = FastAPI(
        title="speechfuse",
        version=__version__,
        description="A trained run answers recordings.",
        docs_url=None,  # their scripts come from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )

    @app.post(
        "/v1/predict",
        response_model=AnswerBody,
        responses=ERRORS,
        openapi_extra=BODY,
        summary="Answer one recording",
    )
    async def predict(
        request: Request,
        tasks: Annotated[list[str], Query(description="All of the run, if left out.")] = [],  # noqa: B006
        layers: Annotated[bool, Query(description="With the weights of layers.")] = False,
        prompt: Annotated[
            str | None, Query(max_length=PROMPT, description="In words, for one task.")
        ] = None,
    ) -> Response:
        began, status = monotonic(), 500
        try:
            with service.seats.seat():
                try:
                    async with asyncio.timeout(service.limits.timeout):
                        answer = await _answered(service, request, tasks, layers, prompt)
                except TimeoutError:
                    raise Refusal(
                        504,
                        f"no answer within {service.limits.timeout:g} s",
                        "one in less",
                        "send a shorter recording, or try again when less is going on",
                    ) from None
            status = 200
            return JSONResponse(answer.to_dict())
        except Refusal as refusal:
            status = refusal.status
            return _refused(refusal)
        except ClientDisconnect:
            status = LEFT
            return Response(status_code=LEFT)
        finally:
            service.meters.request(status, monotonic() - began)

    @app.get("/healthz", response_model=HealthBody, responses={503: ERRORS[503]})
    async def healthz() -> Response:
        """Whether it answers, and what."""
        if not service.batcher.alive:
            return _refused(Refusal(503, "the model has stopped", "a running one", "restart it"))
        gives = {name: GIVES.get(task.reads, "label") for name, task in service.model.tasks.items()}
        body = HealthBody(
            status="ok",
            run=service.model.folder.resolve().name,
            tasks=gives,
            inside=service.seats.taken,
        )
        return JSONResponse(body.model_dump())

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4")

    return app


async def _answered(
    service: Service, request: Request, tasks: Sequence[str], layers: bool, prompt: str | None
) -> Answer:
    """Raises Refusal, or ClientDisconnect where nobody waits any longer."""
    check_names("field", request.query_params, QUERY, "mend its name")
    async with received(request, service.limits) as upload:
        fields = upload.fields
        check_names("field", fields, FIELDS, "mend its name")
        tasks = [part for one in fields.get("tasks", tasks) for part in one.split(",") if part]
        layers = switch(fields["layers"][-1]) if "layers" in fields else layers
        prompt = words(fields["prompt"][-1]) if "prompt" in fields else prompt
        wanted = service.checked(tasks)
        samples = await run_in_threadpool(decode, upload.file, upload.name, service.limits)
        name = upload.name
    job = Job(samples, name, wanted, layers=layers, prompt=prompt)
    service.batcher.submit(job)
    answer = asyncio.wrap_future(job.future)
    gone = asyncio.create_task(_left(request))
    try:
        both: set[asyncio.Future[Any]] = {answer, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        found = await answer
    except Refusal:
        raise
    except SpeechFuseError as error:
        raise unknown(error) from error
    except ClientDisconnect:
        raise
    except Exception as error:
        raise Refusal(
            500, "a mistake of the service", "an answer", "tell who runs it; its log has more"
        ) from error
    finally:
        gone.cancel()
        if not answer.done():
            service.batcher.give_up(job)
            answer.cancel()
    if found.error is not None:
        raise unreadable(found.error)
    return found


async def _left(request: Request) -> None:
    """Ends when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refused(refusal: Refusal) -> Response:
    headers = {"retry-after": "2"} if refusal.status == 503 else None
    return JSONResponse(refusal.to_dict(), refusal.status, headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    (first, *_more) = error.errors()
    place = ".".join(str(part) for part in first["loc"])
    return _refused(Refusal(422, f"{place}: {first['msg']}", "see /openapi.json", "mend it"))


async def _elsewhere(request: Request, error: Exception) -> Response:
    """No such address, or none for this method."""
    assert isinstance(error, HTTPException)
    headers = Headers(error.headers)
    known = headers.get("allow", "an address of the service")
    found = f"{request.method} {request.url.path[:60]}"
    answer = _refused(Refusal(error.status_code, found, known, "see /openapi.json"))
    answer.headers.update(headers)
    return answer


HANDLERS: dict[Any, Any] = {RequestValidationError: _invalid, HTTPException: _elsewhere}
