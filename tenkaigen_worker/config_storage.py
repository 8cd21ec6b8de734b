"""The section ``storage``: where finished files go."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from tenkaigen_worker.config_fields import (
    PROJECT_EXAMPLE,
    BucketName,
    FilePath,
    ProjectUrl,
    Seconds,
    Section,
    Text,
    disagree,
)

_WRONG_KEY = "is a key for browsers, which may not write; the worker needs the project's secret key, sb_secret_..."


class LocalStorageSettings(Section):
    """Files in a folder, served by the API under ``/files``. ``public_url`` is where a browser finds that."""

    path: FilePath | None = None
    public_url: Text | None = None


class SupabaseStorageSettings(Section):
    """A bucket of a Supabase project, and a private one for what users upload.

    ``files_url`` is where a browser finds the API's ``/files``, which leads to the pictures of a private bucket.
    """

    url: ProjectUrl | None = None
    secret_key: SecretStr | None = None
    bucket: BucketName = "generated-designs"
    public: bool = True
    uploads_bucket: BucketName = "generation-uploads"
    files_url: Text | None = None
    signed_url_seconds: Annotated[int, Field(ge=1, le=604_800)] = 300
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    connect_timeout_seconds: Seconds = 10
    timeout_seconds: Seconds = 120

    @field_validator("secret_key")
    @classmethod
    def _is_a_secret_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None:
            return None
        text = key.get_secret_value().strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("should be the project's secret key, sb_secret_..., in one piece")
        if text.startswith("sb_publishable_") or _role_of(text) in ("anon", "authenticated"):
            raise ValueError(_WRONG_KEY)
        return SecretStr(text)

    @model_validator(mode="after")
    def _uploads_are_private(self) -> Self:
        if self.public and self.uploads_bucket == self.bucket:
            raise disagree(
                "should be another bucket than storage.supabase.bucket: that one is public, and uploads are not",
                "uploads_bucket",
                "bucket",
            )
        return self


class StorageSettings(Section):
    """Where finished files go."""

    kind: Literal["local", "supabase"] = "local"
    local: LocalStorageSettings = LocalStorageSettings()
    supabase: SupabaseStorageSettings = SupabaseStorageSettings()

    @property
    def needs_the_api(self) -> bool:
        """Whether the URLs of pictures lead to the API, at an address that no setting names."""
        if self.kind == "local":
            return self.local.public_url is None
        return not self.supabase.public and self.supabase.files_url is None

    @model_validator(mode="after")
    def _supabase_has_an_address(self) -> Self:
        if self.kind == "supabase" and self.supabase.url is None:
            raise disagree(f"is needed with storage.kind: supabase, such as {PROJECT_EXAMPLE}", "supabase.url", "kind")
        return self


def _role_of(key: str) -> str | None:
    """The role that a legacy key, a JWT, says it has; nothing is verified."""
    try:
        _, payload, _ = key.split(".")
        role = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).get("role")
    except (ValueError, binascii.Error, AttributeError):
        return None
    return role if isinstance(role, str) else None
