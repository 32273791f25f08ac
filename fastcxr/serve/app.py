"""Web application of a model: a page, and a JSON API for predictions and saliency maps."""

from functools import partial
from importlib.resources import files as resource_files
from pathlib import PurePath

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fastcxr.serve.options import ServeOptions
from fastcxr.serve.responses import RequestError, SafeJSONResponse, respond_to_http_error
from fastcxr.serve.security import N_FILES_KEY, SecurityMiddleware
from fastcxr.serve.served_model import ServedModel
from fastcxr.serve.uploads import Upload, read_upload
from fastcxr.serve.worker import Worker
from fastcxr.version import VERSION

LABEL_FIELD = "label"
PAGE_FILE = "index.html"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def make_app(model: ServedModel, options: ServeOptions, worker: Worker | None = None) -> Starlette:
    """Return the web application of a model; `worker`: the thread that computes, by default a new one."""
    api = _Api(model, options, worker or Worker(options.max_waiting))
    page_files = read_page_files()
    routes = [
        Route("/", partial(_respond_with_file, page_files, PAGE_FILE)),
        Route("/page/{name}", partial(_respond_with_file, page_files, None)),
        Route("/healthz", api.get_health),
        Route("/model.json", api.get_model),
        Route("/predict", api.predict, methods=["POST"]),
        Route("/saliency", api.explain, methods=["POST"]),
    ]
    known_paths = {*(route.path for route in routes), *(f"/page/{name}" for name in page_files)}
    middleware = [Middleware(SecurityMiddleware, options=options, known_paths=known_paths)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: respond_to_http_error})


def read_page_files() -> dict[str, bytes]:
    """Return the files of the page by name."""
    folder = resource_files("fastcxr.serve") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if PurePath(file.name).suffix in CONTENT_TYPES}


async def _respond_with_file(page_files: dict[str, bytes], name: str | None, request: Request) -> Response:
    name = name or request.path_params["name"]
    if name not in page_files:
        raise HTTPException(404)
    return Response(page_files[name], media_type=CONTENT_TYPES[PurePath(name).suffix])


class _Api:
    """Endpoints of the JSON API."""

    def __init__(self, model: ServedModel, options: ServeOptions, worker: Worker):
        self.model, self.options, self.worker = model, options, worker

    async def get_health(self, request: Request) -> Response:
        """Respond while the server runs, also during a prediction."""
        status = "stopping" if self.worker.is_stopping else "ok"
        return SafeJSONResponse({"status": status, "version": VERSION, "requests": self.worker.n_places})

    async def get_model(self, request: Request) -> Response:
        """Respond with the description of the model."""
        return SafeJSONResponse(self.model.describe(self.options))

    async def predict(self, request: Request) -> Response:
        """Respond with one row per file."""
        with self.worker.hold_place():
            upload = await self._read(request)
            function = partial(self.model.predict, upload.files)
            return SafeJSONResponse(await self.worker.compute(function, partial(wait_for_end, request)))

    async def explain(self, request: Request) -> Response:
        """Respond with the saliency map of one file."""
        with self.worker.hold_place():
            upload = await self._read(request, LABEL_FIELD)
            if len(upload.files) > 1:
                problem = f"{len(upload.files)} files, expected one"
                raise RequestError(400, problem, "Send one file in each request", code="E504")
            function = partial(self.model.explain, upload.files[0], upload.texts.get(LABEL_FIELD) or None)
            return SafeJSONResponse(await self.worker.compute(function, partial(wait_for_end, request)))

    async def _read(self, request: Request, *text_names: str) -> Upload:
        upload = await read_upload(request, self.options, text_names)
        request.scope[N_FILES_KEY] = len(upload.files)
        return upload


async def wait_for_end(request: Request) -> None:
    """Return when the client of a request whose body was read has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
