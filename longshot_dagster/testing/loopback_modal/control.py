"""The control plane of the loopback server: apps, images, secrets, and the life of sandboxes."""

import asyncio
import base64
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

from longshot_dagster.testing.loopback_modal.calls import Nothing
from longshot_dagster.testing.loopback_modal.images import Image, Images
from longshot_dagster.testing.loopback_modal.sandboxes import SUCCESS, TERMINATED, Sandbox, Sandboxes

_BUILDER = "2025.06"
_PAGE = 50
_TOKEN_LIFETIME_S = 3600
_NOT_HERE = {
    "gpu": "a GPU",
    "volume_mounts": "volumes",
    "cloud_bucket_mounts": "cloud buckets",
    "nfs_mounts": "network file systems",
    "enable_snapshot": "memory snapshots",
    "proxy_id": "a proxy",
}


class Control:
    """Answers by the names of Modal's calls."""

    def __init__(self, sandboxes: Sandboxes, images: Images) -> None:
        self.url = ""
        self.token = secrets.token_hex(16)  # what the router is asked with
        self._sandboxes = sandboxes
        self._images = images
        self._numbers = itertools.count(1)
        self._apps: dict[str, str] = {}
        self._secrets: dict[str, dict[str, str]] = {}

    def environment(self, sources: "Iterable[api.SecretSource]") -> dict[str, str]:
        """What secrets and plain variables of a request come to. Raises GRPCError."""
        found: dict[str, str] = {}
        for source in sources:
            if source.WhichOneof("source") == "env":
                found |= source.env.contents
            elif source.secret_id in self._secrets:
                found |= self._secrets[source.secret_id]
            else:
                raise GRPCError(Status.NOT_FOUND, f"no secret {source.secret_id}")
        return found

    # apps, environments, secrets

    async def client_hello(self, request: Nothing) -> api.ClientHelloResponse:
        return api.ClientHelloResponse()

    async def auth_token_get(self, request: api.AuthTokenGetRequest) -> api.AuthTokenGetResponse:
        return api.AuthTokenGetResponse(token=self._token())

    async def environment_get_or_create(
        self, request: api.EnvironmentGetOrCreateRequest
    ) -> api.EnvironmentGetOrCreateResponse:
        settings = api.EnvironmentSettings(image_builder_version=_BUILDER)
        metadata = api.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def app_get_or_create(self, request: api.AppGetOrCreateRequest) -> api.AppGetOrCreateResponse:
        name = request.app_name
        if name not in self._apps and request.object_creation_type == api.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"no app {name}")
        return api.AppGetOrCreateResponse(app_id=self._apps.setdefault(name, f"ap-{next(self._numbers):022d}"))

    async def secret_get_or_create(self, request: api.SecretGetOrCreateRequest) -> api.SecretGetOrCreateResponse:
        secret_id = f"st-{request.deployment_name or next(self._numbers)}"
        if secret_id not in self._secrets and request.object_creation_type == api.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"no secret {request.deployment_name}")
        self._secrets.setdefault(secret_id, dict(request.env_dict))
        return api.SecretGetOrCreateResponse(secret_id=secret_id)

    # images

    async def image_get_or_create(self, request: api.ImageGetOrCreateRequest) -> api.ImageGetOrCreateResponse:
        image, known = self._images.defined(request.image.SerializeToString(deterministic=True))
        answer = api.ImageGetOrCreateResponse(image_id=image.id)
        if known:
            answer.result.status = SUCCESS
            answer.metadata.image_builder_version = _BUILDER
        return answer

    async def image_join_streaming(
        self, request: api.ImageJoinStreamingRequest
    ) -> AsyncIterator[api.ImageJoinStreamingResponse]:
        yield api.ImageJoinStreamingResponse(result=api.GenericResult(status=SUCCESS), eof=True)

    async def image_from_id(self, request: api.ImageFromIdRequest) -> api.ImageFromIdResponse:
        return api.ImageFromIdResponse(image_id=self._image(request.image_id).id)

    async def image_publish(self, request: api.ImagePublishRequest) -> api.ImagePublishResponse:
        self._images.publish(request.tag, self._image(request.image_id).id)
        return api.ImagePublishResponse(image_id=request.image_id)

    async def image_get_by_tag(self, request: api.ImageGetByTagRequest) -> api.ImageGetByTagResponse:
        try:
            return api.ImageGetByTagResponse(image_id=self._images.published(request.tag))
        except KeyError as e:
            raise GRPCError(Status.NOT_FOUND, f"no image is published as {request.tag}") from e

    # sandboxes

    async def sandbox_create_v2(self, request: api.SandboxCreateV2Request) -> api.SandboxCreateV2Response:
        definition = request.definition
        _refuse_unknown(definition)
        image = self._image(definition.image_id)
        try:
            made = await self._sandboxes.create(request, self.environment(request.secret_sources), image.ref)
        except FileExistsError as e:
            raise GRPCError(Status.ALREADY_EXISTS, f"a sandbox with the name {e} is running already") from e
        if image.archive is not None:
            await self._images.unpack(image, made.container, "/", over=True)
        return api.SandboxCreateV2Response(
            sandbox_id=made.id,
            task_id=made.task_id,
            metadata=api.SandboxHandleMetadata(app_id=request.app_id),
            command_router_access=api.CommandRouterAccess(url=self.url, jwt=self._token()),
        )

    async def sandbox_get_command_router_access(
        self, request: api.SandboxGetCommandRouterAccessRequest
    ) -> api.SandboxGetCommandRouterAccessResponse:
        found = self._sandboxes.by_task(request.task_id) if request.task_id else self._sandbox(request.sandbox_id)
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"no task {request.task_id}")
        return api.SandboxGetCommandRouterAccessResponse(url=self.url, jwt=self._token())

    async def sandbox_get_task_id_v2(self, request: api.SandboxGetTaskIdRequest) -> api.SandboxGetTaskIdResponse:
        sandbox = self._sandbox(request.sandbox_id)
        return api.SandboxGetTaskIdResponse(task_id=sandbox.task_id, task_result=sandbox.result)

    async def sandbox_wait_v2(self, request: api.SandboxWaitRequest) -> api.SandboxWaitResponse:
        sandbox = self._sandbox(request.sandbox_id)
        with contextlib.suppress(asyncio.TimeoutError):
            if request.timeout > 0:
                await asyncio.wait_for(sandbox.over.until(lambda: sandbox.result is not None), request.timeout)
        metadata = api.SandboxHandleMetadata(app_id=sandbox.app_id, result=sandbox.result)
        return api.SandboxWaitResponse(result=sandbox.result, metadata=metadata)

    async def sandbox_terminate_v2(self, request: api.SandboxTerminateRequest) -> api.SandboxTerminateResponse:
        sandbox = self._sandbox(request.sandbox_id)
        before = sandbox.result
        await self._sandboxes.end(sandbox, TERMINATED, 137)
        return api.SandboxTerminateResponse(existing_result=before)

    async def sandbox_list_v2(self, request: api.SandboxListRequest) -> api.SandboxListResponse:
        tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        found = self._sandboxes.listed(request.app_id, tags, request.before_timestamp, request.include_finished)
        return api.SandboxListResponse(sandboxes=[_described(sandbox) for sandbox in found[:_PAGE]])

    async def sandbox_tags_get_v2(self, request: api.SandboxTagsGetRequest) -> api.SandboxTagsGetResponse:
        return api.SandboxTagsGetResponse(tags=_tags(self._sandbox(request.sandbox_id)))

    async def sandbox_tags_set_v2(self, request: api.SandboxTagsSetRequest) -> Nothing:
        self._sandbox(request.sandbox_id).tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        return Nothing()

    async def sandbox_get_from_name_v2(self, request: api.SandboxGetFromNameRequest) -> api.SandboxGetFromNameResponse:
        app_id = self._apps.get(request.app_name)
        for found in self._sandboxes.by_name(request.sandbox_name):
            if found.app_id == app_id and (found.result is None or request.include_terminated):
                return api.SandboxGetFromNameResponse(sandbox_id=found.id)
        raise GRPCError(Status.NOT_FOUND, f"no sandbox with the name {request.sandbox_name} in {request.app_name}")

    async def sandbox_get_stats(self, request: api.SandboxGetStatsRequest) -> api.SandboxGetStatsResponse:
        """A rehearsal costs nothing; what Modal would count is the time times what was asked for."""
        sandbox = self._sandbox(request.sandbox_id)
        seconds = (sandbox.ended_at or time.time()) - sandbox.created_at
        resources = sandbox.definition.resources
        return api.SandboxGetStatsResponse(
            cost="0",
            duration_hours=seconds / 3600,
            billed_cpu_core_seconds=seconds * resources.milli_cpu / 1000,
            billed_memory_gib_seconds=seconds * resources.memory_mb / 1024,
        )

    async def sandbox_get_tunnels_v2(self, request: api.SandboxGetTunnelsRequest) -> api.SandboxGetTunnelsResponse:
        raise GRPCError(Status.FAILED_PRECONDITION, "the loopback server makes no tunnels")

    # what the SDK asks of the first generation, which never has any

    async def sandbox_get_from_name(self, request: api.SandboxGetFromNameRequest) -> api.SandboxGetFromNameResponse:
        raise GRPCError(Status.NOT_FOUND, f"no sandbox with the name {request.sandbox_name} in {request.app_name}")

    async def sandbox_wait(self, request: api.SandboxWaitRequest) -> api.SandboxWaitResponse:
        raise GRPCError(Status.NOT_FOUND, f"no sandbox {request.sandbox_id}")

    def _sandbox(self, sandbox_id: str) -> Sandbox:
        found = self._sandboxes.by_id(sandbox_id)
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"no sandbox {sandbox_id}")
        return found

    def _image(self, image_id: str) -> Image:
        try:
            return self._images.get(image_id)
        except KeyError as e:
            raise GRPCError(Status.NOT_FOUND, f"no image {image_id}") from e

    def _token(self) -> str:
        """A JWT in shape: its end is read by the SDK, its signature is our own secret."""
        claims = {"exp": int(time.time()) + _TOKEN_LIFETIME_S}
        return f"{_encoded({'alg': 'none'})}.{_encoded(claims)}.{self.token}"


def _refuse_unknown(definition: api.Sandbox) -> None:
    """Raises GRPCError for what the loopback server cannot give."""
    asked = {
        "gpu": bool(definition.resources.gpu_config.type or definition.resources.gpu_config.gpu_type),
        "volume_mounts": bool(definition.volume_mounts),
        "cloud_bucket_mounts": bool(definition.cloud_bucket_mounts),
        "nfs_mounts": bool(definition.nfs_mounts),
        "enable_snapshot": definition.enable_snapshot,
        "proxy_id": bool(definition.proxy_id),
    }
    for name, wanted in asked.items():
        if wanted:
            raise GRPCError(Status.INVALID_ARGUMENT, f"the loopback server has no sandboxes with {_NOT_HERE[name]}")
    if definition.open_ports.ports:
        raise GRPCError(Status.INVALID_ARGUMENT, "the loopback server makes no tunnels: open no ports")


def _described(sandbox: Sandbox) -> api.SandboxInfo:
    task = api.TaskInfo(id=sandbox.task_id, started_at=sandbox.created_at, result=sandbox.result)
    return api.SandboxInfo(
        id=sandbox.id,
        created_at=sandbox.created_at,
        app_id=sandbox.app_id,
        name=sandbox.name,
        image_id=sandbox.definition.image_id,
        timeout_secs=sandbox.definition.timeout_secs,
        tags=_tags(sandbox),
        task_info=task,
    )


def _tags(sandbox: Sandbox) -> list[api.SandboxTag]:
    return [api.SandboxTag(tag_name=name, tag_value=value) for name, value in sandbox.tags.items()]


def _encoded(value: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
